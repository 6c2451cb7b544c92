"""Feed a sink as its lane does, in small: for tests of one sink alone with its real server.

events = made_events(users=20, each=50)
asyncio.run(feed(sink, events, max_events=100))
"""

import asyncio
import dataclasses
import datetime as dt
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from millrace.sinks.json_rows import JSON
from millrace.sinks.sink import DELIVERED, Delivery, Outcome, Rejected, Sink, SinkDownError

SCHEMA = pa.schema(
    [
        pa.field("message_id", pa.string(), nullable=False),
        pa.field("user_key", pa.string(), nullable=False),
        pa.field("event", pa.string()),
        pa.field("occurred_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("order_index", pa.int64(), nullable=False),
        pa.field("properties", pa.string(), metadata=JSON),
    ]
)
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


@dataclasses.dataclass(frozen=True)
class Made:
    """An event of a test: the nth of its user."""

    user: str
    number: int
    text: str = ""

    @property
    def id(self) -> str:
        return f"{self.user}-{self.number}"


def made_events(users: int, each: int, text: str = "") -> list[Made]:
    """Return each user's events in their order, the users mixed."""
    return [Made(f"user-{user}", number, text) for number in range(each) for user in range(users)]


def delivery_of(events: Sequence[Made], first: int = 0, target: str = "", route: str = "test") -> Delivery:
    """Return events as a delivery; their positions count from `first`."""
    columns: list[list[Any]] = [
        [event.id for event in events],
        [event.user for event in events],
        ["Order Completed" if event.number % 2 else None for event in events],
        [NOON + dt.timedelta(seconds=event.number) for event in events],
        [event.number for event in events],
        [f'{{"number":{event.number},"text":"{event.text}"}}' for event in events],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return Delivery(
        rows=pa.RecordBatch.from_arrays(arrays, schema=SCHEMA),
        message_ids=columns[0],
        user_keys=columns[1],
        positions=range(first, first + len(events)),
        is_ordered=[True] * len(events),
        attempts=[0] * len(events),
        route=route,
        target=target,
    )


@dataclasses.dataclass
class Fed:
    """What became of the events: who was rejected, what the sink said when it was down, how often it was cancelled."""

    rejected: dict[str, Rejected] = dataclasses.field(default_factory=dict)
    downs: list[str] = dataclasses.field(default_factory=list)
    cancelled: int = 0


class Feeder:
    """Brings events to a sink until each is settled: no user in two deliveries at once, and none overtaken."""

    def __init__(
        self,
        sink: Sink,
        events: Sequence[Made],
        *,
        max_events: int = 100,
        max_in_flight: int = 8,
        deadline_s: float = 30.0,
        on_settled: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.fed = Fed()
        self._sink = sink
        self._waiting: dict[str, deque[tuple[int, Made]]] = {}
        for position, event in enumerate(events):
            self._waiting.setdefault(event.user, deque()).append((position, event))
        self._ready = deque(self._waiting)
        self._left = len(events)
        self._settled = 0
        self._max_events = max_events
        self._lanes = max_in_flight
        self.deadline_s = deadline_s
        self._on_settled = on_settled
        self._opening = asyncio.Lock()

    async def run(self) -> Fed:
        """Deliver everything; the sink is open."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._lanes):
                group.create_task(self._work())
        return self.fed

    async def _work(self) -> None:
        while self._left:
            taken = self._take()
            if not taken:
                await asyncio.sleep(0.001)
                continue
            events = [event for _, event in taken]
            delivery = dataclasses.replace(delivery_of(events), positions=[position for position, _ in taken])
            try:
                async with asyncio.timeout(self.deadline_s):
                    outcomes = await self._sink.deliver(delivery)
            except TimeoutError:
                self.fed.cancelled += 1
                self._put_back(taken)
            except SinkDownError as down:
                self.fed.downs.append(down.detail)
                self._put_back(taken)
                await self._open()
            else:
                self._settle(taken, outcomes)

    async def _open(self) -> None:
        async with self._opening:
            while True:
                await asyncio.sleep(0.05)
                try:
                    await self._sink.open(NoMemory())
                except SinkDownError:
                    continue
                return

    def _take(self) -> list[tuple[int, Made]]:
        taken: list[tuple[int, Made]] = []
        while self._ready and len(taken) < self._max_events:
            waiting = self._waiting[self._ready.popleft()]
            count = min(len(waiting), self._max_events - len(taken)) if self._sink.keeps_order else 1
            taken += [waiting.popleft() for _ in range(count)]
        return taken

    def _put_back(self, taken: Sequence[tuple[int, Made]]) -> None:
        for position, event in reversed(taken):
            self._waiting[event.user].appendleft((position, event))
        for user in dict.fromkeys(event.user for _, event in taken):
            self._ready.append(user)

    def _settle(self, taken: Sequence[tuple[int, Made]], outcomes: Sequence[Outcome]) -> None:
        assert len(outcomes) == len(taken)
        again = []
        for (position, event), outcome in zip(taken, outcomes, strict=True):
            if outcome is DELIVERED or isinstance(outcome, Rejected):
                self._left -= 1
                self._settled += 1
                if isinstance(outcome, Rejected):
                    self.fed.rejected[event.id] = outcome
            else:
                again.append((position, event))
        for position, event in reversed(again):
            self._waiting[event.user].appendleft((position, event))
        for user in dict.fromkeys(event.user for _, event in taken):
            if self._waiting[user]:
                self._ready.append(user)
        self._on_settled(self._settled)


class NoMemory:
    """A sink's memory that keeps nothing."""

    def get(self, key: str) -> bytes | None:  # noqa: ARG002
        return None

    def put(self, key: str, value: bytes | None) -> None:
        pass


def first_order(found: Sequence[tuple[str, int]]) -> dict[str, list[int]]:
    """Return each user's numbers in the order in which they came first, from (user, number) as they came."""
    orders: dict[str, list[int]] = {}
    for user, number in dict.fromkeys(found):
        orders.setdefault(user, []).append(number)
    return orders


def whole_order(events: Sequence[Made]) -> dict[str, list[int]]:
    """Return what `first_order` has to be where every event came, in its user's order."""
    return first_order([(event.user, event.number) for event in events])


async def feed(sink: Sink, events: Sequence[Made], **settings: Any) -> Fed:
    """Open a sink, bring it all events (settings as in Feeder), and close it."""
    feeder = Feeder(sink, events, **settings)
    await sink.open(NoMemory())
    try:
        return await feeder.run()
    finally:
        await sink.close()
