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

from millrace.delivery.barrier import Barrier
from millrace.delivery.feed import Feed
from millrace.delivery.ledger import Ledger, Mark, Order, Status, Trying
from millrace.delivery.pending import Pending, Settled
from millrace.delivery.settings import LaneSettings
from millrace.delivery.undelivered import Dead, Undelivered
from millrace.sinks.storage import StorageError

_LOG = logging.getLogger(__name__)
_STATUS_S = 1.0
_PAUSE_S = 1.0
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
        self._must_save = False
        self._status_at = 0.0
        self.has_read_all = False
        """Whether there was nothing in the queue when it was read last."""
        self._is_reading_well = True
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

    async def close(self, state: str) -> None:
        """Write down the last of it, as far as that is possible."""
        try:
            await self.say(State("", None, 0, 0), state)
            await self._in_thread(self._feed.close)
        except (StorageError, OSError, sqlite3.Error) as error:
            _LOG.warning("%s: not everything could be written down: %s", self._settings.name, error)
        self._thread.shutdown()

    async def read(self) -> list[Pending] | None:
        """Return the feed's next events; None where it could not be read: try again later."""
        try:
            events = await self._in_thread(self._feed.read)
        except (StorageError, OSError, sqlite3.Error) as error:
            if self._is_reading_well:
                _LOG.warning("%s reads on later: %s", self._settings.name, error)
            self._is_reading_well = False
            return None
        self._is_reading_well = True
        self.has_read_all = not events and not await self._in_thread(self._feed.behind)
        return events

    def settled(self, settled: Settled, now_us: int) -> None:
        """Take in what became of a delivery."""
        if settled.delivered:
            self._settled.append((settled.delivered, Mark.DELIVERED))
        for event, fault, detail in settled.dead:
            route = self._settings.routes[event.route].name
            self._dead.append(Dead(event, self._settings.name, route, fault, detail, now_us))
            self._must_save = True

    async def before_take(self) -> None:
        """Save, where users would otherwise go on past an event of which nothing is written down."""
        while self._must_save:
            await self.save()

    async def save(self) -> None:
        """Make durable what is known so far; tries until it can: nothing else would be right."""
        async with self._saving:
            settled, self._settled = self._settled, []
            dead, self._dead = self._dead, []
            self._must_save = False
            trying = self._trying()
            complained = False
            while True:
                try:
                    await self._in_thread(lambda: self._save(settled, dead, trying))
                except (StorageError, OSError, sqlite3.Error) as error:
                    if not complained:
                        _LOG.warning("%s cannot write down what it did, and waits: %s", self._settings.name, error)
                    complained = True
                    await asyncio.sleep(_PAUSE_S)
                else:
                    return

    def _save(self, settled: list[tuple[list[Pending], Mark]], dead: list[Dead], trying: list[Trying]) -> None:
        if dead:
            self._undelivered.write(dead)
            settled.append(([each.event for each in dead], Mark.DEAD))
            dead.clear()
        while settled:
            self._feed.settle(*settled.pop(0))
        self._feed.save(trying, time.time_ns() // 1_000)

    def _trying(self) -> list[Trying]:
        return [
            Trying(
                position=each.position,
                user_key=each.user_key or "",
                message_id=each.message_id,
                attempts=each.attempts,
                first_us=each.since_us,
                next_us=each.next_us,
                fault=each.fault,
                detail=each.detail,
                waiting=each.waiting,
            )
            for each in self._barrier.blocked()
        ]

    async def obey(self) -> bool:
        """Carry out what the operator said since; say whether there was anything."""
        try:
            orders = await self._in_thread(lambda: self._ledger.orders(pending=True))
        except sqlite3.Error:
            return False
        for order in orders:
            result = await self._carry_out(order)
            if result is not None:
                await self.save()
                await self._in_thread(functools.partial(self._ledger.done, order.id, result))
                _LOG.info("%s: %s %s (%s): %s", self._settings.name, order.verb, order.subject, order.told_by, result)
        return bool(orders)

    async def _carry_out(self, order: Order) -> str | None:
        """Return what came of an order; None where it has to wait for an event that is under way."""
        whom = _whom(order.subject)
        if self._barrier.is_under_way(**whom):
            return None
        if order.verb == "retry":
            found = self._barrier.retry(**whom)
            back = await self._in_thread(lambda: self._feed.bring_back(order.subject))
            self._barrier.offer(back)
            return f"{len(found)} tried again now, {len(back)} brought back from parking"
        mark = Mark.SKIPPED if order.verb == "skip" else Mark.PARKED
        found = self._barrier.skip(**whom)
        if found:
            self._settled.append((found, mark))
            self._must_save = True
        names = ", ".join(each.message_id for each in found[:20]) or "none of these has failed"
        return f"{len(found)} {mark.name.lower()}: {names}"

    async def say(self, state: State, name: str = "") -> None:
        """Write the lane's status, once a second."""
        if not name and time.monotonic() < self._status_at:
            return
        self._status_at = time.monotonic() + _STATUS_S
        waiting, blocked = len(self._barrier), len(self._barrier.blocked())
        try:
            await self._in_thread(lambda: self._say(state, name, waiting, blocked))
        except sqlite3.Error as error:
            _LOG.warning("%s cannot write its status: %s", self._settings.name, error)

    def _say(self, state: State, name: str, waiting: int, blocked: int) -> None:
        self._ledger.set_status(
            Status(
                sink=self._settings.sink.name,
                is_ordered=self._settings.is_ordered,
                state=name or ("running" if state.down_since_us is None else "down"),
                detail=state.detail,
                down_since_us=state.down_since_us,
                waiting=waiting,
                in_flight=state.in_flight,
                concurrency=state.concurrency,
                blocked_users=blocked,
                lag_s=self._feed.lag_us(time.time_ns() // 1_000) / 1_000_000,
                behind=self._feed.behind(),
                totals=self._ledger.totals(),
                pid=os.getpid(),
            )
        )

    async def _in_thread(self, call: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _whom(subject: str) -> dict[str, str]:
    kind, _, value = subject.partition(":")
    return {} if subject == "all" else {{"user": "user_key", "event": "message_id"}[kind]: value}
