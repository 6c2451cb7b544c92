"""Loop: one asyncio event loop for all lookups of a process, in a thread of its own.

A user's coroutine that blocks it (`time.sleep`, an endless loop without `await`) cannot be stopped: the loop is then
left to it and a new one begun, a few times; after that lookups in this process go without.
"""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any

MOST_LOOPS = 4
"""Each that is left behind is a thread that may go on computing."""

_LOCK = threading.Lock()
_LOOPS: list[asyncio.AbstractEventLoop] = []


class StuckError(Exception):
    """The loop does not answer: something blocks it."""


def run_in_loop(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], timeout_s: float) -> Any:
    """Run a coroutine in the loop and wait for it.

    Raises:
        StuckError: it did not end in time, although it should have by itself; the loop is given up.
    """
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result(timeout_s)
    except concurrent.futures.TimeoutError as error:
        if future.done():  # it is the work's own TimeoutError
            raise
        future.cancel()
        _give_up(loop)
        raise StuckError from error


def current_loop() -> asyncio.AbstractEventLoop:
    """Return the process's loop; starts it the first time.

    Raises:
        StuckError: too many have been given up.
    """
    with _LOCK:
        if _LOOPS and not getattr(_LOOPS[-1], "given_up", False):
            return _LOOPS[-1]
        if len(_LOOPS) >= MOST_LOOPS:
            raise StuckError
        loop = asyncio.new_event_loop()
        _LOOPS.append(loop)
        threading.Thread(target=_run, args=(loop,), name="millrace-lookups", daemon=True).start()
        return loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(_ignore)
    while not getattr(loop, "given_up", False):
        with contextlib.suppress(SystemExit, KeyboardInterrupt):  # raised by a user's coroutine: asyncio lets it out
            loop.run_forever()
    # It was given up, and what blocked it has ended after all.
    with contextlib.suppress(BaseException):
        loop.run_until_complete(_cancel_all())
    loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=1.0)


def _ignore(_: asyncio.AbstractEventLoop, __: dict[str, Any]) -> None:
    """Say nothing of what a cancelled call raises afterwards: it could hold a user's data."""


def _give_up(loop: asyncio.AbstractEventLoop) -> None:
    with _LOCK:
        loop.given_up = True  # type: ignore[attr-defined]
        with contextlib.suppress(RuntimeError):  # it is closed: it came to itself in this moment
            loop.call_soon_threadsafe(loop.stop)
