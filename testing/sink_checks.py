"""Checks of a sink: each a property of every sink, as a story on a run; they return what is wrong."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pyarrow as pa

from millrace.sinks.sink import DELIVERED, Delivery, Rejected, Retry, Sink
from millrace.testing.deliveries import deliveries_of, delivery_of
from millrace.testing.sink_run import Run, SinkError
from millrace.transforms.batches import concat

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

_ALSO = ("properties", "user_key", "event", "message_id")


async def _made(run: Run) -> list[str]:
    first, second = run.make_sink(), run.make_sink()
    found = [] if first == second else ["two of the same settings are not equal"]
    shown = repr(first)
    await first.open(run.memory)
    found += [] if repr(first) == shown else ["what it shows changes when it is opened"]
    await first.close()
    return found


async def _opens(run: Run) -> list[str]:
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


async def _delivers(run: Run) -> list[str]:
    sink = await run.opened()
    # A user twice in a delivery only where the sink takes a batch whole, or a prefix of it.
    size = 30
    given = deliveries_of(run.events(3 * size, users=5 if sink.keeps_order else size), max_events=size)
    found = [problem for each in given for problem in await run.deliver(sink, each)]
    await sink.close()
    return [*found, *run.there(given, is_once=sink.keeps_ids)]


async def _nothing(run: Run) -> list[str]:
    sink = await run.opened()
    (given,) = deliveries_of(run.events(1))
    found = await run.deliver(sink, delivery_of(given.rows.slice(0, 0)))
    found += await run.deliver(sink, given)
    await sink.close()
    return found


async def _values(run: Run) -> list[str]:
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


async def _columns(run: Run) -> list[str]:
    sink = await run.opened()
    found, given = [], []
    for route in ("all", "few", "all"):
        (each,) = deliveries_of(run.events(3, users=3))
        rows = each.rows if route == "all" else each.rows.select(_fewest(sink, each.rows.schema.names))
        given.append(delivery_of(rows, route=route))
        found += await run.deliver(sink, given[-1])
    await sink.close()
    return [*found, *run.there(given, is_once=sink.keeps_ids)]


def _fewest(sink: Sink, names: Sequence[str]) -> list[str]:
    """Return as few columns as its check_columns allows, last ones first, and some more."""
    left = {name: name for name in reversed(names)}
    for name in names:
        without = {each: each for each in left if each != name}
        with contextlib.suppress(ValueError):
            if name not in _ALSO:
                sink.check_columns(without)
                left = without
    return list(left)


async def _targets(run: Run) -> list[str]:
    sink = await run.opened()
    (given,) = deliveries_of(run.events(1))
    looked: list[str] = []

    class Watched(Delivery):
        """Notes what is looked at."""

        def __getattribute__(self, name: str) -> Any:
            looked.append(name)
            return super().__getattribute__(name)

    fields = {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
    found = await run.deliver(sink, Watched(**fields))
    await sink.close()
    has_none = type(sink).check_target is Sink.check_target
    if has_none and "target" in looked:
        found.append("it looks at the delivery's target, which no route may name: give it a check_target")
    return found


async def _redelivers(run: Run) -> list[str]:
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


async def _cancelled(run: Run) -> list[str]:
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


async def _together(run: Run) -> list[str]:
    sink = await run.opened()
    parts = deliveries_of(run.events(10 * sink.max_in_flight, users=10 * sink.max_in_flight), max_events=10)
    outcomes = await asyncio.gather(*(sink.deliver(each) for each in parts))
    await sink.close()
    found = [] if outcomes == [[DELIVERED] * len(each) for each in parts] else [f"{outcomes!r}"[:300]]
    return [*found, *run.there(parts, is_once=sink.keeps_ids)]


CHECKS: dict[str, Callable[[Run], Awaitable[list[str]]]] = {
    "made": _made,
    "opens": _opens,
    "delivers": _delivers,
    "nothing": _nothing,
    "values": _values,
    "columns": _columns,
    "targets": _targets,
    "redelivers": _redelivers,
    "cancelled": _cancelled,
    "together": _together,
}
