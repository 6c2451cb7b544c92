"""Progress: a line of counts, for whoever watches a job on one node.

The lag is the age of the oldest message that was read and is not yet archived.
"""

import threading
import time
from types import TracebackType
from typing import Self

from millrace.transforms.counts import counted_here
from millrace.transforms.receipts import LEDGER

_COLUMNS = (
    ("in", ("decode/events_out", "decode/dead_letters")),
    ("ordered", ("order/events_out",)),
    ("late", ("archive/late",)),
    ("duplicate", ("archive/duplicates",)),
    ("dead", ("dead_letters/rows",)),
    ("archived", ("archive/rows",)),
)


def line(counts: dict[str, int], lag_s: float) -> str:
    """Return one line of a job's counts so far.

    >>> line({"decode/events_out": 1200, "archive/rows": 1000}, 3.21)
    'in 1,200  ordered 0  late 0  duplicate 0  dead 0  archived 1,000  lag 3.2 s'
    """
    numbers = [f"{name} {sum(counts.get(key, 0) for key in keys):,}" for name, keys in _COLUMNS]
    return "  ".join([*numbers, f"lag {lag_s:.1f} s"])


class Progress:
    """Prints a line every so many seconds, from entering to leaving; every 0 seconds prints nothing."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._print, name="millrace-progress", daemon=True)

    def __enter__(self) -> Self:
        if self._every_s:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._every_s:
            self._thread.join()
            print(line(counted_here(), self._lag_s()), flush=True)

    def _print(self) -> None:
        due_s = time.monotonic()
        while not self._ended.wait(max(0.0, due_s - time.monotonic())):
            print(line(counted_here(), self._lag_s()), flush=True)
            due_s += self._every_s

    def _lag_s(self) -> float:
        oldest_us = LEDGER.oldest_open_us()
        return 0.0 if oldest_us is None else max(0.0, time.time() - oldest_us / 1_000_000)
