"""Spooling: messages on their way to the spool, and for how long somebody waits for its disk."""

import asyncio
import collections
import concurrent.futures
import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from millrace.collector.delivery import Undelivered
from millrace.collector.live import Waiting
from millrace.collector.message import Message

log = logging.getLogger(__name__)


class AppendableSpool(Protocol):
    """What is needed of the spool here."""

    def append(self, message: Message) -> concurrent.futures.Future[None]:
        """Store a message; the future ends when it is on disk, or with an error. Raises ValueError: no message."""
        ...


class _OnItsWay(NamedTuple):
    expires_s: float
    waiting: Waiting
    future: concurrent.futures.Future[None]


class Spooling:
    """Appends to the spool, on one event loop.

    Each message ends in one call of `unfit`, `spooled` or `failed`. For the last two `released` is called too, when it
    takes no memory any more, which may be later.
    """

    def __init__(
        self,
        spool: AppendableSpool,
        wait_s: float,
        *,
        spooled: Callable[[Waiting], None],
        failed: Callable[[Waiting, Undelivered], None],
        unfit: Callable[[Waiting, Exception], None],
        released: Callable[[Waiting], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Join the parts; `wait_s` is how long the disk may take."""
        self.failed_s = -math.inf
        """When the spool last refused a message; -inf: it has taken one since."""
        self._spool = spool
        self._wait_s = wait_s
        self._spooled = spooled
        self._failed = failed
        self._unfit = unfit
        self._released = released
        self._clock = clock
        self._under_way: collections.deque[_OnItsWay] = collections.deque()
        self._timer: asyncio.TimerHandle | None = None

    def put(self, group: Iterable[Waiting]) -> None:
        """Append messages."""
        loop = asyncio.get_running_loop()
        expires_s = self._clock() + self._wait_s
        for waiting in group:
            try:
                future = self._spool.append(waiting.message)
            except ValueError as error:
                self._unfit(waiting, error)
                continue
            except Exception as error:  # noqa: BLE001  as if its future had said so
                future = concurrent.futures.Future()
                future.set_exception(error)
            one = _OnItsWay(expires_s, waiting, future)
            self._under_way.append(one)
            future.add_done_callback(functools.partial(_call, loop, self._ended, one))
        if self._timer is None:
            self._expire()

    def close(self) -> None:
        """Wait for nothing any more: what is under way is answered as a failure, and may be on disk all the same."""
        if self._timer is not None:
            self._timer.cancel()
        for one in self._under_way:
            if not one.waiting.settled:
                self._failed(one.waiting, Undelivered.CLOSED)

    def _ended(self, one: _OnItsWay) -> None:
        self._released(one.waiting)
        if one.future.cancelled():
            self._fail(one.waiting, Undelivered.SPOOL_SLOW)
        elif (error := one.future.exception()) is not None:
            if self.failed_s == -math.inf:
                log.error("the spool takes no messages: %s", error)
            self.failed_s = self._clock()
            self._fail(one.waiting, Undelivered.SPOOL_FAILED)
        else:
            if self.failed_s > -math.inf:
                log.warning("the spool takes messages again")
            self.failed_s = -math.inf
            if not one.waiting.settled:
                self._spooled(one.waiting)
        while self._under_way and self._under_way[0].future.done() and self._under_way[0].waiting.settled:
            self._under_way.popleft()  # else their bodies stay in memory until the timer's time, for seconds

    def _expire(self) -> None:
        """Give up what the disk has kept waiting for too long; come back for the next."""
        self._timer = None
        now_s = self._clock()
        while self._under_way and (self._under_way[0].future.done() or self._under_way[0].expires_s <= now_s):
            one = self._under_way.popleft()
            if not one.future.done() and not one.future.cancel():
                # It is being written, and still takes memory; but its client has waited for long enough.
                self._fail(one.waiting, Undelivered.SPOOL_SLOW)
        if self._under_way:
            left_s = self._under_way[0].expires_s - now_s
            self._timer = asyncio.get_running_loop().call_later(left_s, self._expire)

    def _fail(self, waiting: Waiting, reason: Undelivered) -> None:
        if not waiting.settled:
            if reason is Undelivered.SPOOL_SLOW:
                self.failed_s = self._clock()
            self._failed(waiting, reason)


def _call(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], argument: Any, _: Any) -> None:
    """Call back on the loop, from whatever thread; a loop that has ended has nobody waiting on it."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, argument)
