"""A run of checks on a sink: its events, its loop, and what its destination has afterwards."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from millrace.sinks.sink import Delivered, Delivery, Memory, Sink
from millrace.testing.builders import WireEvent, track
from millrace.testing.deliveries import DictMemory, deliveries_of

_DEADLINE_S = 60.0
_ENDS_S = 1.0
_COST_EVENTS = 500
_COST_DELIVERIES = 10


class SinkError(AssertionError):
    """A sink does not keep what it has to; each line names a property, and says what happened."""


class Run:
    """Runs checks, each with events of its own.

    Args:
        make_sink, read, prefix: see check_sink.
    """

    def __init__(self, make_sink: Callable[[], Sink], read: Callable[[], Sequence[str]] | None, prefix: str) -> None:
        self.make_sink, self.read, self._prefix = make_sink, read, prefix
        self._checks = itertools.count()
        self.memory: Memory = DictMemory()

    def events(self, count: int, users: int = 3, **more: Any) -> list[WireEvent]:
        """Return events that no other check has: m<check>-<n>, of several users."""
        check = next(self._checks)
        ids = [f"{self._prefix}m{check}-{n:06}" for n in range(count)]
        return [
            track("Order Completed", user=f"user-{n % users}", at=n / 1_000, message_id=message_id, **more)
            for n, message_id in enumerate(ids)
        ]

    def check(self, checking: Callable[["Run"], Awaitable[list[str]]]) -> list[str]:
        """Run a check on a loop of its own, with a memory of its own."""
        self.memory = DictMemory()
        try:
            return asyncio.run(self._within(checking(self)))
        except Exception as error:  # noqa: BLE001  a sink may raise anything, and it is a finding
            return [f"{type(error).__name__}: {error}"]

    async def _within(self, checking: Awaitable[list[str]]) -> list[str]:
        before = asyncio.all_tasks()
        async with asyncio.timeout(_DEADLINE_S):
            found = await checking
        left = asyncio.all_tasks() - before - {asyncio.current_task()}
        if left:  # one that was cancelled may need a moment
            _, left = await asyncio.wait(left, timeout=_ENDS_S)
        return [*found, *(f"a task goes on after close: {task.get_coro()}" for task in left)]

    async def opened(self) -> Sink:
        sink = self.make_sink()
        await sink.open(self.memory)
        return sink

    async def deliver(self, sink: Sink, delivery: Delivery) -> list[str]:
        """Deliver, and say what is wrong with the outcomes where not everything is delivered."""
        outcomes = await sink.deliver(delivery)
        if len(outcomes) != len(delivery):
            return [f"{len(outcomes)} outcomes for {len(delivery)} rows"]
        return [f"{each!r} instead of delivered" for each in outcomes if not isinstance(each, Delivered)][:1]

    def there(self, deliveries: Sequence[Delivery], *, is_once: bool = True) -> Iterator[str]:
        """Yield what the destination has otherwise than was said."""
        if self.read is None:
            return
        # A user's order is kept within a route: another may go to another table, or file.
        users = {
            message_id: (each.route, user)
            for each in deliveries
            for message_id, user in zip(each.message_ids, each.user_keys, strict=True)
        }
        held = [each for each in self.read() if each in users]
        missing = sorted(users.keys() - set(held))
        if missing:
            yield f"delivered and not there: {len(missing)} events, the first {missing[0]}"
        if is_once and len(held) != len(set(held)):
            yield f"there more than once: {len(held) - len(set(held))} copies"
        last: dict[tuple[str, str], str] = {}
        for each in dict.fromkeys(held):
            if each < last.get(users[each], ""):
                yield f"{each} comes after {last[users[each]]} of its user"
                return
            last[users[each]] = each

    def cost(self) -> tuple[float, float]:
        """Measure a sink that is open."""
        return asyncio.run(self._cost())

    async def _cost(self) -> tuple[float, float]:
        self.memory = DictMemory()
        sink = await self.opened()
        size = min(_COST_EVENTS, sink.max_events)
        parts = deliveries_of(self.events(size * _COST_DELIVERIES, users=size), max_events=size)
        free = asyncio.Semaphore(sink.max_in_flight)

        async def one(delivery: Delivery) -> None:
            async with free:
                await sink.deliver(delivery)

        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*map(one, parts))
        count = sum(map(len, parts))
        took = time.perf_counter() - began, time.process_time() - cpu
        await sink.close()
        return count / took[0], took[1] / count * 1e6
