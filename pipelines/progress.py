"""Progress: a line of counts, for whoever watches a job on one node.

The lag is the age of the oldest message that was read and is not yet archived.
"""

import contextlib
import threading
import time
from collections.abc import Iterator

from millrace.pipelines.every import Every
from millrace.transforms.counts import counted_here
from millrace.transforms.custom.timings import summary
from millrace.transforms.receipts import LEDGER

_COLUMNS = (
    ("in", ("decode/events_out", "decode/dead_letters")),
    ("ordered", ("order/events_out",)),
    ("late", ("archive/late",)),
    ("duplicate", ("duplicates/rows",)),
    ("dead", ("dead_letters/rows",)),
    ("dropped", ("dropped/rows",)),
    ("archived", ("archive/rows",)),
)


def line(counts: dict[str, int], lag_s: float) -> str:
    """Return one line of a job's counts so far.

    >>> line({"decode/events_out": 1200, "archive/rows": 1000}, 3.21)
    'in 1,200  ordered 0  late 0  duplicate 0  dead 0  dropped 0  archived 1,000  lag 3.2 s'
    """
    numbers = [f"{name} {sum(counts.get(key, 0) for key in keys):,}" for name, keys in _COLUMNS]
    return "  ".join([*numbers, f"lag {lag_s:.1f} s"])


@contextlib.contextmanager
def progress(every_s: float) -> Iterator[None]:
    """Print a line every so many seconds while inside, and one at the end; every 0 seconds none.

    At the end there is a line for each of the users' own transforms, too.
    """
    with Every(every_s, _print, first_s=0.0):
        yield
    if every_s:
        _print()
    for each in summary():
        print(each, flush=True)


def _print(_: threading.Event | None = None) -> None:
    oldest_us = LEDGER.oldest_open_us()
    lag_s = 0.0 if oldest_us is None else max(0.0, time.time() - oldest_us / 1_000_000)
    print(line(counted_here(), lag_s), flush=True)
