"""The kit for sinks: it finds what is wrong with one."""

import asyncio
import dataclasses
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest

from millrace.api import DELIVERED, BlockingSink, Delivery, Fault, Memory, Outcome, Retry, Sink
from millrace.testing import DictMemory, SinkError, check_sink, deliveries_of, track


@dataclasses.dataclass(frozen=True)
class Right(Sink):
    """Keeps events in a list, each once."""

    table: ClassVar[dict[str, None]] = {}
    keeps_ids = True

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        self.table.update(dict.fromkeys(delivery.message_ids))
        await asyncio.sleep(0)
        return [DELIVERED] * len(delivery)


class Twice(Right):
    """Adds what is resent."""

    listed: ClassVar[list[str]] = []

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        self.listed.extend(delivery.message_ids)
        return [DELIVERED] * len(delivery)


class Loses(Right):
    """Says that it has what it has not."""

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        self.table.update(dict.fromkeys(delivery.message_ids[1:]))
        return [DELIVERED] * len(delivery)


class Reverses(Right):
    """Turns the order round."""

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        self.table.update(dict.fromkeys(reversed(delivery.message_ids)))
        return [DELIVERED] * len(delivery)


class CountsWrong(Right):
    """Gives one outcome for all rows."""

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        return (await super().deliver(delivery))[:1]


class OpensOnce(Right):
    """Cannot be opened again."""

    async def open(self, memory: Memory) -> None:
        if memory.get("open"):
            raise RuntimeError("it is open")
        memory.put("open", b"1")


class ChokesOnNothing(Right):
    """Needs rows."""

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        assert delivery.message_ids[0]
        return await super().deliver(delivery)


class ChokesOnNulls(Right):
    """Needs values."""

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        if delivery.rows.schema.get_field_index("context_ip") >= 0:
            assert all(text for text in delivery.rows.column("event").to_pylist())
        return await super().deliver(delivery)


class WantsColumns(Right):
    """Needs columns that a route may leave out."""

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        delivery.rows.column("received_at")
        return await super().deliver(delivery)


class SaysWhatItWants(WantsColumns):
    """Needs columns, and says so."""

    def check_columns(self, columns: Mapping[str, str]) -> None:
        if "received_at" not in columns:
            raise ValueError("it needs received_at: add it")


class Aims(Right):
    """Has targets, and does not say so."""

    targets: ClassVar[list[str]] = []

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        self.targets.append(delivery.target)
        return await super().deliver(delivery)


class SaysThatItAims(Aims):
    """Has targets."""

    def check_target(self, target: str) -> None:
        """Take any."""


class GoesOn(Right):
    """Leaves a task behind."""

    tasks: ClassVar[list[asyncio.Task[None]]] = []

    async def open(self, memory: Memory) -> None:
        memory.put("task", b"1")
        self.tasks.append(asyncio.get_running_loop().create_task(asyncio.sleep(60)))


class Delays(Right):
    """Never delivers."""

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        return [Retry(Fault.THROTTLED, "later")] * len(delivery)


class Locks(Right):
    """A cancelled delivery leaves its lock behind."""

    locked: ClassVar[list[bool]] = []

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        if self.locked:
            raise RuntimeError("locked")
        self.locked.append(True)
        await asyncio.sleep(0.05)
        self.locked.clear()
        return await super().deliver(delivery)


class Different(Right):
    """Is not what it is made of."""

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


def test_a_sink_that_keeps_everything_passes_and_is_measured():
    report = check_sink(Right, read=lambda: list(Right.table))
    assert report.events_per_s > 1_000
    assert report.checked == (
        "made", "opens", "delivers", "nothing", "values", "columns", "targets", "redelivers", "cancelled", "together",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sink", "found"),
    [
        (Twice, r"redelivers: there more than once: 2 copies"),
        (Loses, r"delivers: delivered and not there: 3 events"),
        (Reverses, r"delivers: m\d-\d+ comes after m\d-\d+ of its user"),
        (CountsWrong, r"delivers: 1 outcomes for 30 rows"),
        (OpensOnce, r"opens: RuntimeError: it is open"),
        (ChokesOnNothing, r"nothing: IndexError"),
        (ChokesOnNulls, r"values: AssertionError"),
        (WantsColumns, r"columns: KeyError"),
        (Aims, r"targets: it looks at the delivery's target, which no route may name: give it a check_target"),
        (GoesOn, r"opens: a task goes on after close"),
        (Delays, r"delivers: Retry\(.*\) instead of delivered"),
        (Locks, r"cancelled: RuntimeError: locked"),
        (Different, r"made: two of the same settings are not equal"),
    ],
)
def test_what_a_sink_lacks_is_named(sink: type[Sink], found: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("millrace.testing.sink_run._ENDS_S", 0.01)
    read: Callable[[], Sequence[str]] = lambda: Twice.listed if sink is Twice else list(Right.table)  # noqa: E731
    Right.table.clear()
    with pytest.raises(SinkError, match=found), warnings.catch_warnings():
        check_sink(sink, read=read)


def test_a_property_that_need_not_be_is_left_out():
    assert "columns" not in check_sink(WantsColumns, but=["columns"]).checked


@pytest.mark.parametrize("sink", [SaysWhatItWants, SaysThatItAims])
def test_what_a_sink_says_of_routes_is_not_held_against_it(sink: type[Sink]):
    assert {"columns", "targets"} <= {*check_sink(sink).checked}


def test_a_blocking_sink_runs_in_a_thread_one_delivery_at_a_time():
    threads: list[Any] = []

    @dataclasses.dataclass(frozen=True)
    class Slow(BlockingSink):
        def open_now(self) -> None:
            threads.append("opened")

        def deliver_now(self, delivery: Delivery) -> Sequence[Outcome]:
            time.sleep(0.001)
            threads.append(threading.current_thread() is threading.main_thread())
            return [DELIVERED] * len(delivery)

        def close_now(self) -> None:
            threads.append("closed")

    async def story() -> None:
        sink = Slow()
        await sink.open(DictMemory())
        (given,) = deliveries_of([track("x"), track("y")])
        assert await sink.deliver(given) == [DELIVERED] * 2
        await sink.close()
        assert sink.max_in_flight == 1

    asyncio.run(story())
    assert threads == ["opened", False, "closed"]
    check_sink(Slow)
