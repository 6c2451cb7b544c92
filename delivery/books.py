"""The books of a lane: what is written down, and when. The lane's loop calls; a thread of its own writes.

The order matters. A dead letter is in its table before the ledger says dead: a crash between repeats a record, and
loses none. And both are written before that user's next event goes out, or a restart would try the dead one once more,
behind it.
"""

import asyncio
import concurrent.futures
import functools
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from millrace.delivery import clock
from millrace.delivery.barrier import Barrier, Blocked
from millrace.delivery.feed import Feed
from millrace.delivery.ledger import Ledger
from millrace.delivery.orders import has_to_wait, is_understood, take_out, try_again
from millrace.delivery.pending import Pending, Settled
from millrace.delivery.records import Mark, Order, Status, Trying
from millrace.delivery.settings import LaneSettings
from millrace.delivery.undelivered import Dead, Undelivered
from millrace.sinks.storage import StorageError

_LOG = logging.getLogger(__name__)
_STATUS_S = 1.0
_PAUSE_S = 1.0
_LAST_TRIES_S = 10.0
"""So long after the lane was told to end it tries to write down what it did; what it cannot comes again."""
_Result = TypeVar("_Result")


class State(NamedTuple):
    """What the loop knows of the lane's state."""

    detail: str
    down_since_us: int | None
    in_flight: int
    concurrency: int


class Ledgers(NamedTuple):
    """What a lane writes to.

    Attributes:
        of_lane: open for writing; for the books' thread only.
        of_sink: the same file, opened once more.
        undelivered: the table of what is given up.
    """

    of_lane: Ledger
    of_sink: Ledger
    undelivered: Undelivered


class Books:
    """Writes for one lane; its methods are called in the loop.

    Args:
        settings: the lane's.
        feed, ledgers: used in the books' thread only, but for the sink's.
        barrier: the lane's, used in the loop only.
    """

    def __init__(self, settings: LaneSettings, feed: Feed, ledgers: Ledgers, barrier: Barrier) -> None:
        self._settings = settings
        self._feed = feed
        self._ledger = ledgers.of_lane
        self._undelivered = ledgers.undelivered
        self._barrier = barrier
        self._settled: list[tuple[list[Pending], Mark]] = []
        self._dead: list[Dead] = []
        self._saving = asyncio.Lock()
        # How often something was noted that must be durable before users go on, and how much of that is.
        self._noted = self._durable = 0
        self._end_s: float | None = None
        self._state = State("", None, 0, 0)
        self._status_at = 0.0
        self._results: dict[int, str] = {}  # of orders that were carried out, and are not written down
        self._cannot_read = self._cannot_write = self._cannot_say = ""
        self.has_read_all = False
        """Whether there was nothing in the queue when it was read last."""
        self.unsaved = 0
        """How many events were settled of which nothing is written down yet."""
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="books")

    async def open(self) -> None:
        """Give the barrier what an earlier run left unsettled.

        Raises:
            StorageError: the archive cannot be read.
        """
        failed, waiting = await self._in_thread(self._feed.open)
        for event in failed:
            self._barrier.restore(event)
        self._barrier.offer(waiting)

    def end(self, *, at_once: bool) -> None:
        """Write down what can be written in some seconds, and no more."""
        self._end_s = time.monotonic() + (0.0 if at_once else _LAST_TRIES_S)

    def _is_over(self) -> bool:
        return self._end_s is not None and time.monotonic() >= self._end_s

    async def close(self, state: str, detail: str = "") -> None:
        """Write down the last of it, as far as that is possible."""
        try:
            await self.say(State(detail, None, 0, 0), state)
            await self._in_thread(self._feed.close)
        except (StorageError, OSError, sqlite3.Error) as error:
            _LOG.warning("%s: not everything could be written down: %s", self._settings.name, error)
        self._thread.shutdown()

    async def read(self) -> list[Pending] | None:
        """Return the feed's next events; None where it could not be read: try again later."""
        try:
            events = await self._in_thread(self._feed.read)
            self.has_read_all = not events and not await self._in_thread(self._feed.behind)
        except (StorageError, OSError, sqlite3.Error) as error:
            if not self._cannot_read:
                _LOG.warning("%s reads on later: %s", self._settings.name, error)
            self._cannot_read = str(error)
            return None
        self._cannot_read = ""
        return events

    def settled(self, settled: Settled, now_us: int) -> None:
        """Take in what became of a delivery."""
        if settled.delivered:
            self._settled.append((settled.delivered, Mark.DELIVERED))
        for event, fault, detail in settled.dead:
            route = self._settings.routes[event.route].name
            self._dead.append(Dead(event, self._settings.name, route, fault, detail, now_us))
            self._noted += 1
        self.unsaved += len(settled.delivered) + len(settled.dead)

    async def before_take(self) -> bool:
        """Save, where users would otherwise go on past an event of which nothing is written down.

        Returns:
            False where that cannot be had before the lane ends: nothing more may be taken.
        """
        while self._durable < self._noted:  # a save under way counts only once it is done
            if not await self.save():
                return False
        return True

    async def save(self) -> bool:
        """Make durable what is known so far; tries until it can, or the lane ends: nothing else would be right.

        Returns:
            Whether it is durable.
        """
        async with self._saving:
            settled, self._settled = self._settled, []
            dead, self._dead = self._dead, []
            noted, unsaved = self._noted, self.unsaved
            changes = self._barrier.changes()
            trying = [_trying(each) for each in changes.blocked]
            while True:
                try:
                    await self._in_thread(lambda: self._save(settled, dead, trying, changes.over))
                except (StorageError, OSError, sqlite3.Error) as error:
                    if not self._cannot_write:
                        _LOG.warning("%s cannot write down what it did, and waits: %s", self._settings.name, error)
                    self._cannot_write = f"cannot write down what it did: {error}"
                    if self._is_over():
                        return False
                    await self.say(self._state)
                    await asyncio.sleep(_PAUSE_S)
                else:
                    self._durable = noted
                    self.unsaved -= unsaved
                    self._cannot_write = ""
                    return True

    def _save(
        self, settled: list[tuple[list[Pending], Mark]], dead: list[Dead], trying: list[Trying], over: list[int]
    ) -> None:
        if dead:
            self._undelivered.write(dead)
            settled.append(([each.event for each in dead], Mark.DEAD))
            dead.clear()
        while settled:
            self._feed.settle(*settled.pop(0))
        self._feed.save(trying, over, clock.now_us())

    async def obey(self) -> bool:
        """Carry out what the operator said since; say whether there was anything."""
        try:
            orders = await self._in_thread(lambda: self._ledger.orders(pending=True))
        except sqlite3.Error:
            return False
        for order in orders:
            if order.id not in self._results and not await self._carry_out(order):
                continue
            result = self._results[order.id]
            if not await self.save():
                break
            try:
                await self._in_thread(functools.partial(self._ledger.done, order.id, result))
            except sqlite3.Error:
                break  # it is carried out, which is written down later
            del self._results[order.id]
            # Neither of whom nor of what: no user's key comes into a log. `millrace sinks log` has all of it.
            _LOG.info("%s: %s, as %s told, is carried out", self._settings.name, order.verb, order.told_by)
        return bool(orders)

    async def _carry_out(self, order: Order) -> bool:
        """Carry out an order; say whether that could be done: it may have to wait for an event that is under way."""
        if not is_understood(order):
            self._results[order.id] = "not understood"
            return True
        if has_to_wait(order, self._barrier):
            return False
        if order.verb == "retry":
            try:
                back = await self._in_thread(lambda: self._feed.bring_back(order.subject))
            except sqlite3.Error:
                return False
            self._results[order.id] = try_again(order, self._barrier, back)
            return True
        found, mark, result = take_out(order, self._barrier)
        if found:
            self._settled.append((found, mark))
            self._noted += 1
            self.unsaved += len(found)
        self._results[order.id] = result
        return True

    async def say(self, state: State, name: str = "") -> None:
        """Write the lane's status, once a second."""
        self._state = state
        if not name and time.monotonic() < self._status_at:
            return
        self._status_at = time.monotonic() + _STATUS_S
        waiting, blocked = len(self._barrier), self._barrier.count_blocked()
        try:
            await self._in_thread(lambda: self._say(state, name, waiting, blocked))
        except sqlite3.Error as error:
            if not self._cannot_say:
                _LOG.warning("%s cannot write its status: %s", self._settings.name, error)
            self._cannot_say = str(error)
        else:
            self._cannot_say = ""

    def _say(self, state: State, name: str, waiting: int, blocked: int) -> None:
        trouble = self._cannot_write or self._cannot_read
        is_down = state.down_since_us is not None
        self._ledger.set_status(
            Status(
                sink=self._settings.sink.name,
                is_ordered=self._settings.is_ordered,
                state=name or ("failed" if trouble else "down" if is_down else "running"),
                detail=state.detail or trouble if name else trouble or state.detail or self._feed.note(),
                down_since_us=state.down_since_us,
                waiting=waiting,
                in_flight=state.in_flight,
                concurrency=state.concurrency,
                blocked_users=blocked,
                lag_s=self._feed.lag_us(clock.now_us()) / 1_000_000,
                behind=self._feed.behind(),
                totals=self._ledger.totals(),
                pid=os.getpid(),
            )
        )

    async def _in_thread(self, call: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _trying(event: Blocked) -> Trying:
    return Trying(
        position=event.position,
        user_key=event.user_key or "",
        message_id=event.message_id,
        attempts=event.attempts,
        first_us=event.since_us,
        next_us=event.next_us,
        fault=event.fault,
        detail=event.detail,
        waiting=event.waiting,
    )
