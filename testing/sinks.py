"""Sinks: what each has to keep, whatever its destination is: it is opened, given events in many forms, and closed."""

import asyncio
import itertools
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from millrace.sinks.sink import DELIVERED, Delivered, Delivery, Memory, Rejected, Retry, Sink
from millrace.testing.builders import WireEvent, track
from millrace.testing.deliveries import DictMemory, deliveries_of, delivery_of
from millrace.transforms.batches import concat

_DEADLINE_S = 60.0
_ENDS_S = 1.0
_COST_EVENTS = 500
_COST_DELIVERIES = 10
_CANCELLED_AFTER_S = (0.0, 0.0, 0.001, 0.01)
_HOSTILE: tuple[dict[str, Any], ...] = (
    {},
    {"text": ""},
    {"text": "\x01\x1f\x7f\u2028'\";--\\n"},
    {"text": "\U0001f600 \u202e\u0301 \uffff"},
    {"number": -0.0, "large": 2**63 - 1, "small": -(2**63), "tiny": 5e-324},
    {"nothing": None, "list": [], "nested": {"a": [{"b": {}}]}},
    {"long": "x" * 60_000},
)


class SinkError(AssertionError):
    """A sink does not keep what it has to; each line names a property, and says what happened."""


class SinkReport(NamedTuple):
    """What was found of a sink that keeps everything."""

    events_per_s: float
    """Delivered in parts of 500 (or as many as it takes), as many at once as it takes."""
    cpu_us_per_event: float
    """Of this process."""
    checked: tuple[str, ...]


def check_sink(
    make_sink: Callable[[], Sink],
    *,
    read: Callable[[], Sequence[str]] | None = None,
    prefix: str = "",
    but: Sequence[str] = (),
) -> SinkReport:
    """Check that a sink keeps what every sink has to, against its real destination.

    | property | what has to hold |
    | --- | --- |
    | made | it can be made twice, and is the same; it shows no state |
    | opens | open and close, twice over; close without open; open again without close, as after SinkDownError |
    | delivers | an outcome for each row, delivered, in their users' order |
    | nothing | a delivery without rows has no outcomes, and fails nothing |
    | values | nulls, empty and hostile texts, extremes of numbers: delivered or rejected, and no exception |
    | columns | another route's columns, fewer and in another order, are delivered, too |
    | redelivers | events that are delivered again, in other company, are delivered; now, and by the next process |
    | cancelled | a delivery that is cancelled at any moment stands in the way of nothing; its events can be resent |
    | together | as many deliveries at once as max_in_flight says |

    After each, no task of it may go on, and nothing may be warned of.

    Args:
        make_sink: makes the sink; called many times.
        read: returns the message_ids that the destination has, in its order: with it is checked that what was said to
            be delivered is there, in each user's order, and once only where the sink says `keeps_ids`.
        prefix: of the message_ids.
        but: properties that it need not have.

    Raises:
        SinkError: it lacks some.
    """
    found: list[str] = []
    run = _Run(make_sink, read, prefix)
    names = [name for name in _CHECKS if name not in but]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in names:
            found += [f"{name}: {problem}" for problem in run.check(name)]
        if found:
            raise SinkError("\n".join(found))
        return SinkReport(*run.cost(), tuple(names))


class _Run:
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

    def check(self, name: str) -> list[str]:
        """Run a check on a loop of its own, with a memory of its own."""
        self.memory = DictMemory()
        try:
            return asyncio.run(self._within(_CHECKS[name](self)))
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


async def _made(run: _Run) -> list[str]:
    first, second = run.make_sink(), run.make_sink()
    found = [] if first == second else ["two of the same settings are not equal"]
    shown = repr(first)
    await first.open(run.memory)
    found += [] if repr(first) == shown else ["what it shows changes when it is opened"]
    await first.close()
    return found


async def _opens(run: _Run) -> list[str]:
    sink = run.make_sink()
    await sink.close()
    for _ in range(2):
        await sink.open(run.memory)
        await sink.close()
        await sink.close()
    await sink.open(run.memory)
    await sink.open(run.memory)
    found = await run.deliver(sink, deliveries_of(run.events(2))[0])
    await sink.close()
    return found


async def _delivers(run: _Run) -> list[str]:
    sink = await run.opened()
    # A user twice in a delivery only where the sink takes a batch whole, or a prefix of it.
    size = 30
    given = deliveries_of(run.events(3 * size, users=5 if sink.keeps_order else size), max_events=size)
    found = [problem for each in given for problem in await run.deliver(sink, each)]
    await sink.close()
    return [*found, *run.there(given, is_once=sink.keeps_ids)]


async def _nothing(run: _Run) -> list[str]:
    sink = await run.opened()
    (given,) = deliveries_of(run.events(1))
    found = await run.deliver(sink, delivery_of(given.rows.slice(0, 0)))
    found += await run.deliver(sink, given)
    await sink.close()
    return found


async def _values(run: _Run) -> list[str]:
    sink = await run.opened()
    found, taken = [], []
    for number, properties in enumerate(_HOSTILE):
        (given,) = deliveries_of(run.events(1, properties=properties))
        for each in (given, _with_nulls(given)):
            outcomes = await sink.deliver(each)
            if len(outcomes) != 1 or isinstance(outcomes[0], Retry):
                found.append(f"{outcomes!r} for properties {number}")
            elif not isinstance(outcomes[0], Rejected):
                taken.append(given)
    await sink.close()
    return [*found, *run.there(taken, is_once=sink.keeps_ids)]


def _with_nulls(given: Delivery) -> Delivery:
    rows = given.rows
    for at, field in enumerate(rows.schema):
        if field.nullable:
            rows = rows.set_column(at, field, pa.nulls(rows.num_rows, field.type))
    return delivery_of(rows)


async def _columns(run: _Run) -> list[str]:
    sink = await run.opened()
    found, given = [], []
    names = ["properties", "user_key", "event", "message_id"]
    for route, chosen in (("all", None), ("few", names), ("all", None)):
        (each,) = deliveries_of(run.events(3, users=3))
        given.append(delivery_of(each.rows if chosen is None else each.rows.select(chosen), route=route))
        found += await run.deliver(sink, given[-1])
    await sink.close()
    return [*found, *run.there(given, is_once=sink.keeps_ids)]


async def _redelivers(run: _Run) -> list[str]:
    sink = await run.opened()
    first, second, third = deliveries_of(run.events(9, users=9), max_events=3)
    found = await run.deliver(sink, first)
    await sink.close()
    sink = await run.opened()
    mixed = delivery_of(concat([first.rows.slice(1, 2), second.rows]))
    found += await run.deliver(sink, mixed)
    found += await run.deliver(sink, third)
    await sink.close()
    return [*found, *run.there([first, second, third], is_once=sink.keeps_ids)]


async def _cancelled(run: _Run) -> list[str]:
    sink = await run.opened()
    found, given = [], []
    for number, after_s in enumerate(_CANCELLED_AFTER_S):
        (each,) = deliveries_of(run.events(5, users=5))
        given.append(each)
        task = asyncio.get_running_loop().create_task(_deliver(sink, each))
        for _ in range(number):
            await asyncio.sleep(after_s)
        task.cancel()
        await asyncio.wait([task])
        found += await run.deliver(sink, each)
    await sink.close()
    return [*found, *run.there(given, is_once=sink.keeps_ids)]


async def _deliver(sink: Sink, delivery: Delivery) -> None:
    if len(await sink.deliver(delivery)) != len(delivery):
        raise SinkError("not an outcome for each row")


async def _together(run: _Run) -> list[str]:
    sink = await run.opened()
    parts = deliveries_of(run.events(10 * sink.max_in_flight, users=10 * sink.max_in_flight), max_events=10)
    outcomes = await asyncio.gather(*(sink.deliver(each) for each in parts))
    await sink.close()
    found = [] if outcomes == [[DELIVERED] * len(each) for each in parts] else [f"{outcomes!r}"[:300]]
    return [*found, *run.there(parts, is_once=sink.keeps_ids)]


_CHECKS: dict[str, Callable[[_Run], Awaitable[list[str]]]] = {
    "made": _made,
    "opens": _opens,
    "delivers": _delivers,
    "nothing": _nothing,
    "values": _values,
    "columns": _columns,
    "redelivers": _redelivers,
    "cancelled": _cancelled,
    "together": _together,
}
