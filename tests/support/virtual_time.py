"""An event loop whose clock jumps to the next timer: asynchronous code that waits for minutes is tested in no time.

What the code gives to threads runs in between, so that nothing but the timers decides what comes after what.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _JumpingSelector(selectors.SelectSelector):
    """Waits for nothing: where the loop would sleep, its clock moves."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout is not None:
            if not ready and timeout is not None:
                self.now_s += (
                    max(0.0, timeout) + 2e-9
                )  # a loop calls timers that are due within 1e-9 s; none is early here
            return ready
        raise AssertionError("everything waits for something that never comes")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`time()` starts at 0.0 and is right for the code under test too, as its monotonic clock."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s

    def run_in_executor(  # type: ignore[override]
        self,
        executor: Any,  # noqa: ARG002
        func: Callable[..., Any],
        *args: Any,
    ) -> asyncio.Future[Any]:
        """Run it now."""
        future: asyncio.Future[Any] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  it is the caller's
            future.set_exception(error)
        return future


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, as `asyncio.run` does, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
