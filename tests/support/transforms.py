"""Transforms as users would write them, good ones and hostile ones, for tests to name in a configuration."""

import asyncio
import sys
import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from millrace.api import (
    BatchTransform,
    Event,
    EventTransform,
    LookupTransform,
    UserTransform,
    on_batch,
    on_event,
    on_lookup,
)

SECRET = "ann@example.com"  # noqa: S105  stands for what must not get into a message


@on_event(adds={"total_eur": pa.float64()}, version="3")
def euros(event: Event, *, rate: float = 2.0) -> Any:  # noqa: PLR0912  a case for each thing
    """Does by the event's name what a user's function may do."""
    match event.name:
        case "drop":
            return None
        case "split":
            return [event, event.copy(event="Part", properties={"part": 1}), event.copy(event="Part")]
        case "raise":
            raise KeyError(SECRET)
        case "exit":
            sys.exit(SECRET)
        case "wrong":
            return 7
        case "list":
            return [event, 7]
        case "twice":
            return [event, event]
        case "type":
            event["total_eur"] = SECRET
        case "strange":
            event["not_there"] = 1
        case "fixed":
            event["message_id"] = "mine"
        case "nul":
            event["event"] = "a\0b"
        case "kind":
            event["type"] = "click"
        case "endless":
            return iter(event.copy, None)
        case "yield":
            return (event.copy(event=f"Part {number}") for number in range(2))
        case "json":
            event.properties["at"] = {1, 2}.__iter__()
        case _:
            event["total_eur"] = event.properties.get("total", 0) * rate
    return event


BROKEN = ("raise", "exit", "wrong", "list", "twice", "type", "strange", "fixed", "nul", "kind", "endless", "json")
"""Names at which it fails."""


class Euros(EventTransform):
    """The same as a class."""

    adds = (pa.field("total_eur", pa.float64()),)

    def __init__(self, rate: float = 2.0) -> None:
        if rate <= 0:
            raise ValueError("rate must be above 0")
        self._rate = rate

    def each(self, event: Event) -> Any:
        return euros(event, rate=self._rate)


@on_batch(adds={"length": pa.int64()})
def lengths(batch: pa.RecordBatch) -> Any:
    """Does by an event's name what a user's function may do to all of them."""
    names = batch.column("event").to_pylist()
    length = pc.utf8_length(batch.column("message_id")).cast(pa.int64())
    if "raise" in names:
        raise ValueError(SECRET)
    if "exit" in names:
        sys.exit(SECRET)
    if "wrong" in names:
        return None
    if "type" in names:
        return {"length": [SECRET] * batch.num_rows}
    if "short" in names:
        return {"length": [1] * (batch.num_rows + 1)}
    if "strange" in names:
        return {"not_there": length}
    if "fixed" in names:
        return {"message_id": pc.binary_join_element_wise(batch.column("message_id"), "x", "")}
    if "order" in names:
        return pa.concat_batches([batch, batch]).append_column("length", pa.concat_arrays([length, length]))
    if "mutate" in names:
        index = batch.column("order_index").to_numpy()
        index.flags.writeable = True
        index[:] = 0
    if "null" in names:
        return {"type": pa.nulls(batch.num_rows, pa.string())}
    with_length = batch.append_column("length", length)
    return with_length.filter(pc.fill_null(pc.not_equal(batch.column("event"), "drop"), True))


BROKEN_BATCH = ("raise", "exit", "wrong", "type", "short", "strange", "fixed", "order", "null", "mutate")
"""Names at which it fails."""


class Lengths(BatchTransform):
    """The same as a class, giving back the new column only, and a table."""

    adds = (pa.field("length", pa.int64()),)

    def apply(self, batch: pa.RecordBatch) -> Any:
        return pa.table(batch).append_column("length", pc.utf8_length(batch.column("message_id")).cast(pa.int32()))


class Numbered(UserTransform):
    """Numbers each user's events."""

    adds = (pa.field("number", pa.int64()),)
    remembers_s = 3_600.0

    def each(self, event: Event, state: dict[Any, Any]) -> Any:
        state["seen"] = state.get("seen", 0) + 1
        state.setdefault("ids", []).append(event.message_id)
        if event.name == "raise":
            raise ValueError(SECRET)
        if event.name == "state":
            state["seen"] = object()
        if event.name == "forget":
            state.clear()
        if event.name == "drop":
            return None
        event["number"] = state.get("seen")
        return [event, event.copy(event="Part")] if event.name == "split" else event


class Numbered2(Numbered):
    """A later version, which takes over the number."""

    state_version = 2

    def migrate(self, state: dict[Any, Any], version: int) -> dict[Any, Any] | None:
        return {"seen": state["seen"] * 100, "ids": [version]}


class Numbered3(Numbered):
    """A later version, which begins anew."""

    state_version = 3


@on_lookup(key="user_key", adds={"plan": pa.string()}, timeout_ms=200, budget_ms=2_000)
async def plan(key: str) -> Any:
    """Does by the user's key what a coroutine may do."""
    match key:
        case "nobody":
            return None
        case "raise":
            raise OSError(SECRET)
        case "slow":
            await asyncio.sleep(60)
        case "stubborn":
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    continue
        case "exit":
            sys.exit(SECRET)
        case "cancel":
            raise asyncio.CancelledError
        case "wrong":
            return 7
        case "type":
            return {"plan": 7}
        case "strange":
            return {"not_there": SECRET}
    return {"plan": f"plan of {key}"}


BROKEN_KEYS = ("raise", "slow", "stubborn", "exit", "cancel", "wrong", "type", "strange")
"""Keys at which it fails."""


class Counting(LookupTransform):
    """Notes what it is asked, and how many calls are under way at once."""

    adds = (pa.field("plan", pa.string()),)
    key = "properties.account"
    timeout_ms = budget_ms = 60_000
    asked: list[Any] = []  # noqa: RUF012  all instances of a test share it
    most = 0
    failing = False
    _now = 0

    async def look_up(self, key: Any) -> Any:
        cls = type(self)
        cls.asked.append(key)
        cls._now += 1
        cls.most = max(cls.most, cls._now)
        await asyncio.sleep(0.001)
        cls._now -= 1
        if cls.failing:
            raise OSError(SECRET)
        return {"plan": str(key)}


class Blocking(LookupTransform):
    """Blocks the event loop."""

    adds = (pa.field("plan", pa.string()),)
    key = "user_key"
    timeout_ms = 300
    budget_ms = 600

    async def look_up(self, key: Any) -> Any:
        if key == "block":
            time.sleep(3)
        return {"plan": "free"}


class Unopened(EventTransform):
    """Lacks what it needs."""

    def open(self) -> None:
        raise FileNotFoundError("rates.csv")

    def each(self, event: Event) -> Any:
        return event


def not_a_transform(event: Event) -> Event:
    """Lacks its decorator."""
    return event


@on_event(adds={"user_key": pa.string()})
def takes_a_column(event: Event) -> Any:
    """Adds what is Millrace's."""
    return event


@on_event(adds={"Bad Name": pa.string()})
def bad_name(event: Event) -> Any:
    """Adds what no column may be called."""
    return event


@on_event(adds={"a_time": pa.timestamp("ns")})
def bad_type(event: Event) -> Any:
    """Adds what Delta does not keep so."""
    return event


@on_event(adds=["total_eur"])
def bad_adds(event: Event) -> Any:
    """Adds no field."""
    return event


class Forgetful(UserTransform):
    """Does not say how long it remembers."""

    def each(self, event: Event, state: dict[Any, Any]) -> Any:  # noqa: ARG002
        return event


class BadKey(LookupTransform):
    """Asks for a column that is not there."""

    key = "acount"

    async def look_up(self, key: Any) -> Any:  # noqa: ARG002
        return None


@on_event()
def dropping(event: Event) -> Any:
    """Leaves all out."""
    return None


@on_event()
def twice(event: Event) -> Any:
    """Makes two of one."""
    return [event, event.copy(event="Again")]


@on_event()
def no_orders(event: Event) -> Any:
    """Raises at orders."""
    if event.name == "Order":
        raise RuntimeError(SECRET)
    return event


class Lasting(Numbered):
    """Remembers for a week."""

    remembers_s = 7 * 86_400.0
