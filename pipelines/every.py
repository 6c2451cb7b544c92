"""Every so often: a thread beside the job that does one thing at a steady pace, for as long as the job runs."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Every:
    """Calls `do` every so many seconds, from entering to leaving; every 0 seconds never. A context manager.

    Args:
        seconds: from the start of one call to that of the next, if it is over by then.
        do: gets the event that says that it is over: a long call looks at it, and returns early.
        first_s: when the first call is due; default: after `seconds`.
    """

    def __init__(self, seconds: float, do: Callable[[threading.Event], None], first_s: float | None = None) -> None:
        self._seconds = seconds
        self._do = do
        self._first_s = seconds if first_s is None else first_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"millrace-{do.__name__}", daemon=True)

    def __enter__(self) -> Self:
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._seconds:
            self._thread.join()

    def _run(self) -> None:
        due_s = time.monotonic() + self._first_s
        while not self._over.wait(max(0.0, due_s - time.monotonic())):
            self._do(self._over)
            due_s = max(due_s + self._seconds, time.monotonic())
