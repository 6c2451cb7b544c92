"""The parts around a lane, in memory, which do as they are told: a feed, a sink, a table of dead letters."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from millrace.delivery.books import Ledgers
from millrace.delivery.feed import Row
from millrace.delivery.lane import Lane
from millrace.delivery.ledger import Ledger
from millrace.delivery.pending import Pending
from millrace.delivery.records import Mark, Status, Trying
from millrace.delivery.settings import LaneSettings
from millrace.delivery.undelivered import Dead
from millrace.sinks.sink import DELIVERED, Delivery, Memory, Outcome, Sink
from tests.support.lanes import lane_settings


def events(*names: str, first: int = 1, route: int = 0) -> list[Pending]:
    """Events called `ann1`, `bob7`: a user and a number; their positions follow one another."""
    rows = pa.RecordBatch.from_pydict({"message_id": list(names)})
    users = [name.rstrip("0123456789") for name in names]
    return [
        Pending(first + at, user, name, route, 100, Row(rows, at, user))
        for at, (name, user) in enumerate(zip(names, users, strict=True))
    ]


class MemoryFeed:
    """Gives windows of events.

    Attributes:
        windows: what is to be read yet.
        reads: how many events were read.
        marks: what became of each event, as far as it was saved.
        trying: what was being retried at the last save.
        broken: what saving raises.
    """

    def __init__(self, windows: Iterable[Sequence[Pending]] = ()) -> None:
        self.windows = list(windows)
        self.reads = 0
        self.marks: dict[str, Mark] = {}
        self.trying: list[str] = []
        self._trying: dict[int, str] = {}
        self.broken: Exception | None = None
        self.unreadable: Exception | None = None
        self.left: tuple[list[Pending], list[Pending]] = ([], [])
        self.saves = 0
        self._noted: dict[str, Mark] = {}
        self._parked: list[Pending] = []

    def note(self) -> str:
        return ""

    def open(self) -> tuple[list[Pending], list[Pending]]:
        return self.left

    def read(self) -> list[Pending]:
        if self.unreadable is not None:
            raise self.unreadable
        if not self.windows:
            time.sleep(0.002)
            return []
        found = list(self.windows.pop(0))
        self.reads += len(found)
        return found

    def settle(self, events: Sequence[Pending], mark: Mark) -> None:
        self._noted |= {event.message_id: mark for event in events}
        if mark is Mark.PARKED:
            self._parked += events

    def save(self, trying: Sequence[Trying], over: Sequence[int], now_us: int) -> None:  # noqa: ARG002  its time
        self.saves += 1
        if self.broken is not None:
            raise self.broken
        self.marks |= self._noted
        self._noted.clear()
        for position in over:
            self._trying.pop(position, None)
        self._trying |= {each.position: each.message_id for each in trying}
        self.trying = [self._trying[position] for position in sorted(self._trying)]

    def bring_back(self, subject: str) -> list[Pending]:
        wanted = [e for e in self._parked if subject in ("all", f"event:{e.message_id}", f"user:{e.payload.user_key}")]
        self._parked = [event for event in self._parked if event not in wanted]
        return [Pending(e.position, None, e.message_id, e.route, e.size, e.payload) for e in wanted]

    def lag_us(self, now_us: int) -> int:  # noqa: ARG002  the protocol's
        return 0

    def behind(self) -> int:
        return sum(map(len, self.windows))

    def close(self) -> None:
        pass


Answer = Callable[[Delivery], Sequence[Outcome] | Awaitable[Sequence[Outcome]]]


class ScriptedSink(Sink):
    """Answers each delivery by the next of its script, and takes everything once that is over.

    Attributes:
        script: exceptions to raise, outcomes to return, or functions of the delivery, which may wait.
        at_open: the same for `open`: exceptions, or None.
        asked: the ids of each delivery, in the order in which they came.
        deliveries: them.
        taken: the ids that were answered with DELIVERED.
    """

    def __init__(self, *script: object, at_open: Sequence[BaseException | None] = (), **settings: object) -> None:
        for name, value in settings.items():
            setattr(self, name, value)
        self.script = list(script)
        self.at_open = list(at_open)
        self.always: object = None
        self.asked: list[list[str]] = []
        self.deliveries: list[Delivery] = []
        self.taken: list[str] = []
        self.opened = self.closed = 0

    async def open(self, memory: Memory) -> None:  # noqa: ARG002  it needs none
        self.opened += 1
        problem = self.at_open.pop(0) if self.at_open else None
        if problem is not None:
            raise problem

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        self.asked.append(list(delivery.message_ids))
        self.deliveries.append(delivery)
        step = self.script.pop(0) if self.script else self.always
        if isinstance(step, BaseException):
            raise step
        if callable(step):
            step = step(delivery)
            if asyncio.iscoroutine(step):
                step = await step
        outcomes: Sequence[Outcome] = [DELIVERED] * len(delivery) if step is None else step  # type: ignore[assignment]
        self.taken += [i for i, outcome in zip(delivery.message_ids, outcomes, strict=False) if outcome is DELIVERED]
        return outcomes

    async def close(self) -> None:
        self.closed += 1


class MemoryUndelivered:
    """The table of dead letters; writing waits while `may_write` is not set, and fails while `broken` is."""

    def __init__(self) -> None:
        self.records: list[tuple[str, str, str]] = []
        self.may_write = threading.Event()
        self.may_write.set()
        self.writing = threading.Event()
        self.broken: Exception | None = None

    def write(self, dead: Sequence[Dead]) -> None:
        self.writing.set()
        assert self.may_write.wait(60)
        if self.broken is not None:
            raise self.broken
        self.records += [(each.event.message_id, each.fault.value, each.detail) for each in dead]


class Running:
    """A lane at work."""

    def __init__(self, lane: Lane, ledger: Ledger, undelivered: MemoryUndelivered) -> None:
        self.lane = lane
        self.ledger = ledger
        self.undelivered = undelivered
        self.task = asyncio.create_task(lane.run())

    async def until(self, condition: Callable[[], object], seconds: float = 60) -> None:
        """Wait until something is so."""
        end = time.monotonic() + seconds
        while not condition():
            assert not self.task.done() or self.task.exception() is None, self.task.exception()
            assert time.monotonic() < end, "it never came"
            await asyncio.sleep(0.002)

    async def end(self, drain_s: float = 0.0) -> float:
        """Tell it to end, and return how long that took."""
        began = time.monotonic()
        self.lane.stop(drain_s)
        await self.task
        return time.monotonic() - began

    def status(self) -> Status:
        """What it said last."""
        said = self.ledger.status()
        assert said is not None
        return said[1]


@contextlib.asynccontextmanager
async def running(
    folder: Path, feed: MemoryFeed, sink: Sink, settings: LaneSettings | None = None
) -> AsyncIterator[Running]:
    """Run a lane; at the end it is over, however the test went."""
    ledger, memory, undelivered = Ledger(folder / "out.sqlite"), Ledger(folder / "out.sqlite"), MemoryUndelivered()
    ledgers = Ledgers(ledger, memory, undelivered)  # type: ignore[arg-type]
    found = Running(Lane(settings or lane_settings(), feed, sink, ledgers), ledger, undelivered)
    try:
        yield found
    finally:
        undelivered.may_write.set()
        feed.broken = undelivered.broken = None
        if not found.task.done():
            found.lane.stop()
            found.lane.stop()
        await asyncio.gather(found.task, return_exceptions=True)
        ledger.close()
        memory.close()
