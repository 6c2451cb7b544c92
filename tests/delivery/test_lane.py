"""A lane in one process: what it does with a sink's answers, how it ends, and what it never holds more of."""

import asyncio
import functools
import itertools
import sqlite3
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest

from millrace.delivery import books, lane
from millrace.delivery.feed import Row
from millrace.delivery.gather import gather
from millrace.delivery.pending import Pending
from millrace.delivery.records import Mark
from millrace.delivery.throttle import Breaker
from millrace.sinks.json_rows import JSON, json_rows
from millrace.sinks.sink import (
    DELIVERED,
    CannotOpenSinkError,
    Delivery,
    Fault,
    Memory,
    Outcome,
    Rejected,
    Retry,
    SinkDownError,
)
from millrace.sinks.storage import StorageError
from tests.support.lane_parts import MemoryFeed, Running, ScriptedSink, events, running
from tests.support.lanes import lane_settings

QUICK = "use: console, retry: {first: 10ms, longest: 20ms, tries: 3, for: 1ms}, deadline: 100ms"
PATIENT = "use: console, retry: {first: 10ms, longest: 20ms, tries: 3, for: 1h}, deadline: 100ms"
FAILED = Retry(Fault.FAILED, "HTTP 500")
BAD = Rejected(Fault.REJECTED, "HTTP 400")


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


@pytest.fixture(autouse=True)
def _quick_breaker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A breaker whose pauses are short."""
    monkeypatch.setattr(lane, "Breaker", functools.partial(Breaker, first_s=0.01, longest_s=0.05))
    monkeypatch.setattr(lane, "_SAVE_S", 0.02)
    monkeypatch.setattr(books, "_PAUSE_S", 0.02)


def many(count: int, size: int, users: int = 7) -> list[list[Pending]]:
    """Windows of `size` events, `count` in all."""
    names = [f"u{'abcdefghij'[n % users]}{n}" for n in range(count)]
    found = events(*names)
    return [list(part) for part in (found[at : at + size] for at in range(0, count, size))]


async def for_ever(_: Delivery) -> list[Outcome]:
    await asyncio.Event().wait()
    raise AssertionError


@in_loop
async def test_everything_is_delivered_noted_and_said(tmp_path: Path) -> None:
    feed, sink = MemoryFeed([events("ann1", "bob2", "ann3"), [], events("ann4", first=4)]), ScriptedSink()
    async with running(tmp_path, feed, sink) as it:
        await it.until(lambda: len(feed.marks) == 4)
        assert await it.end() < 20
        assert [name for names in sink.asked for name in names if name.startswith("ann")] == ["ann1", "ann3", "ann4"]
        assert feed.marks == dict.fromkeys(["ann1", "bob2", "ann3", "ann4"], Mark.DELIVERED)
        assert (sink.opened, sink.closed, it.status().state, it.status().detail) == (1, 1, "stopped", "")
    first = sink.deliveries[0]
    assert (first.route, first.user_keys[0], first.positions[0], first.is_ordered[0], first.attempts[0]) == (
        *("out", "ann", 1, True, 0),
    )
    assert first.json()[0] == b'{"message_id":"ann1"}'


@in_loop
async def test_what_an_earlier_run_left_goes_before_what_is_new(tmp_path: Path) -> None:
    feed, sink = MemoryFeed([events("ann3", first=3)]), ScriptedSink()
    failed, waiting = events("ann1", "ann2")
    failed.attempts, failed.first_us, failed.next_us, failed.fault = 2, 1, 2, "failed"
    feed.left = ([failed], [waiting])
    async with running(tmp_path, feed, sink) as it:
        await it.until(lambda: len(feed.marks) == 3)
    assert sink.asked[0] == ["ann1"]
    assert sink.deliveries[0].attempts == [2]
    assert sink.taken == ["ann1", "ann2", "ann3"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (KeyError("ann"), "failed: KeyError in the sink's code"),
        ([DELIVERED, DELIVERED], "failed: RuntimeError in the sink's code"),
        (for_ever, "timed_out: no answer within 0.1 s"),
        ([FAILED], "failed: HTTP 500"),
    ],
)
@in_loop
async def test_a_failure_is_blamed_on_the_events_which_are_tried_again_and_given_up_in_the_end(
    tmp_path: Path, answer: object, why: str
) -> None:
    feed, sink = MemoryFeed([events("ann1")]), ScriptedSink(answer, answer, answer)
    async with running(tmp_path, feed, sink, lane_settings(sink=QUICK)) as it:
        await it.until(lambda: len(feed.marks) == 1)
        assert [tuple(each.attempts) for each in sink.deliveries] == [(0,), (1,), (2,)]
        assert feed.marks == {"ann1": Mark.DEAD}
        assert [f"{fault}: {detail}" for _, fault, detail in it.undelivered.records] == [why]


@in_loop
async def test_a_sink_that_is_down_blames_no_event_however_long(tmp_path: Path) -> None:
    down = SinkDownError("connection refused")
    feed = MemoryFeed([events("ann1", "ann2")])
    sink = ScriptedSink(*[down] * 6, at_open=[down] * 10_000)
    async with running(tmp_path, feed, sink, lane_settings(sink=QUICK)) as it:
        await it.until(lambda: it.ledger.status() and it.status().state == "down")
        assert it.status().detail == "connection refused"
        sink.at_open = [down, None, down, None, TimeoutError()]
        await it.until(lambda: len(feed.marks) == 2)
        await it.until(lambda: it.status().state == "running")
    assert sink.asked == [["ann1", "ann2"]] * 7
    assert {each for delivery in sink.deliveries for each in delivery.attempts} == {0}
    assert sink.opened >= 9  # again after each


@in_loop
async def test_a_sink_that_can_never_work_ends_the_lane_and_says_why(tmp_path: Path) -> None:
    sink = ScriptedSink(at_open=[CannotOpenSinkError("there is no database shop: create it")])
    async with running(tmp_path, MemoryFeed(), sink) as it:
        with pytest.raises(CannotOpenSinkError):
            await it.task
        assert (it.status().state, it.status().detail) == ("failed", "there is no database shop: create it")


@in_loop
async def test_a_queue_that_cannot_be_read_is_said_and_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "_UNREADABLE_S", 0.01)
    monkeypatch.setattr(books, "_STATUS_S", 0.01)
    feed, sink = MemoryFeed([events("ann1")]), ScriptedSink()
    feed.unreadable = StorageError("Cannot reach Google Cloud Storage.")
    async with running(tmp_path, feed, sink) as it:
        await it.until(lambda: it.ledger.status() and it.status().state == "failed")
        assert it.status().detail == "Cannot reach Google Cloud Storage."
        feed.unreadable = None
        await it.until(lambda: len(feed.marks) == 1 and it.status().state == "running")
        assert it.status().detail == ""


@in_loop
async def test_a_routes_rate_is_kept_and_nothing_is_left_out(tmp_path: Path) -> None:
    feed, sink = MemoryFeed(many(150, 150)), ScriptedSink()
    began = time.monotonic()
    async with running(tmp_path, feed, sink, lane_settings("- {to: out, rate: 100}")) as it:
        await it.until(lambda: len(sink.taken) == 150)
        took = time.monotonic() - began
    assert took >= 0.45  # 100 at once, 50 more in half a second
    assert sorted(sink.taken) == sorted(each.message_id for part in many(150, 150) for each in part)


# Memory


@pytest.mark.parametrize("answer", [for_ever, SinkDownError("connection refused"), "refuses"])
@in_loop
async def test_behind_a_sink_that_takes_nothing_no_more_is_read_than_there_is_room_for(
    tmp_path: Path, answer: object
) -> None:
    feed, sink = MemoryFeed(many(10_000, 50)), ScriptedSink()
    sink.always = (lambda delivery: [FAILED] * len(delivery)) if answer == "refuses" else answer
    if isinstance(answer, SinkDownError):
        sink.always = None
        sink.at_open = [answer] * 1_000
    async with running(tmp_path, feed, sink, lane_settings(sink=f"{PATIENT}, max_waiting: 500")) as it:
        await it.until(lambda: feed.reads == 500)
        saves = feed.saves
        await it.until(lambda: feed.saves >= saves + 10)
        assert (feed.reads, len(it.lane._barrier)) == (500, 500)
        assert await it.end(drain_s=0.2) < 20  # it ends though it is full


@in_loop
async def test_where_nothing_can_be_written_down_delivery_does_not_run_away(tmp_path: Path) -> None:
    feed, sink = MemoryFeed(many(10_000, 50)), ScriptedSink()
    feed.broken = sqlite3.OperationalError("database or disk is full")
    async with running(tmp_path, feed, sink, lane_settings(sink=f"{PATIENT}, max_waiting: 500")) as it:
        await it.until(lambda: len(sink.taken) == 500)
        saves = feed.saves
        await it.until(lambda: feed.saves >= saves + 5)
        assert (feed.reads, len(sink.taken)) == (500, 500)
        await it.until(lambda: it.status().state == "failed")
        assert it.status().detail == "cannot write down what it did: database or disk is full"
        feed.broken = None
        await it.until(lambda: len(feed.marks) == 10_000)
    assert sorted(sink.taken) == sorted(feed.marks)


# The order, over dead letters and crashes


@in_loop
async def test_a_user_goes_on_only_once_their_dead_letter_is_written(tmp_path: Path) -> None:
    feed, sink = MemoryFeed([events("ann1", "ann2", "bob3", "bob4")]), ScriptedSink(keeps_order=False, max_events=1)
    sink.always = lambda delivery: [BAD if delivery.message_ids[0] in ("ann1", "bob3") else DELIVERED]
    async with running(tmp_path, feed, sink) as it:
        it.undelivered.may_write.clear()
        await it.until(it.undelivered.writing.is_set)
        for _ in range(20):
            it.lane._wake.set()
            await asyncio.sleep(0.002)
        assert {name for names in sink.asked for name in names} <= {"ann1", "bob3"}
        it.undelivered.may_write.set()
        await it.until(lambda: len(feed.marks) == 4)
    assert {record[0] for record in it.undelivered.records} == {"ann1", "bob3"}
    assert sink.taken == ["ann2", "bob4"]


@in_loop
async def test_a_save_under_way_which_others_began_has_to_end_too_before_a_user_goes_on(tmp_path: Path) -> None:
    may_answer, may_open = asyncio.Event(), asyncio.Event()

    async def rejects(_: Delivery) -> list[Outcome]:
        await may_answer.wait()
        return [BAD]

    class Reopens(ScriptedSink):
        async def open(self, memory: Memory) -> None:
            await super().open(memory)
            if self.opened > 1:
                await may_open.wait()

    feed = MemoryFeed([events("ann1", "ann2", "bob3")])
    sink = Reopens(rejects, SinkDownError("connection reset"), max_events=1)
    async with running(tmp_path, feed, sink) as it:
        await it.until(lambda: sink.opened == 2)  # the lane waits for that, not for books
        it.undelivered.may_write.clear()
        may_answer.set()
        await it.until(it.undelivered.writing.is_set)  # by the save of every moment
        may_open.set()
        for _ in range(20):
            it.lane._wake.set()
            await asyncio.sleep(0.002)
        assert sink.asked == [["ann1"], ["bob3"]]
        it.undelivered.may_write.set()
        await it.until(lambda: len(feed.marks) == 3)
    assert (sink.taken, feed.marks["ann1"]) == (["bob3", "ann2"], Mark.DEAD)


@in_loop
async def test_while_dead_letters_cannot_be_written_nothing_goes_and_the_reason_is_said(tmp_path: Path) -> None:
    feed, sink = MemoryFeed([events("ann1", "ann2")]), ScriptedSink([BAD], max_events=1)
    async with running(tmp_path, feed, sink) as it:
        it.undelivered.broken = StorageError("Cannot write to /full.")
        await it.until(lambda: it.ledger.status() and it.status().state == "failed")
        assert it.status().detail == "cannot write down what it did: Cannot write to /full."
        assert (sink.asked, feed.marks) == ([["ann1"]], {})
        it.undelivered.broken = None
        await it.until(lambda: len(feed.marks) == 2)
    assert it.undelivered.records == [("ann1", "rejected", "HTTP 400")]
    assert feed.marks == {"ann1": Mark.DEAD, "ann2": Mark.DELIVERED}


# The end


@in_loop
async def test_draining_ends_as_soon_as_all_is_settled(tmp_path: Path) -> None:
    feed, sink = MemoryFeed(many(2_000, 100)), ScriptedSink([FAILED] * 100, max_events=100)
    async with running(tmp_path, feed, sink, lane_settings(sink=PATIENT)) as it:
        assert await it.end(drain_s=200) < 60
    assert len(feed.marks) == 2_000


@in_loop
async def test_at_the_end_what_is_under_way_arrives(tmp_path: Path) -> None:
    may_answer = asyncio.Event()

    async def late(_: Delivery) -> list[Outcome]:
        await may_answer.wait()
        return [DELIVERED]

    feed, sink = MemoryFeed([events("ann1")]), ScriptedSink(late)
    async with running(tmp_path, feed, sink) as it:
        await it.until(lambda: sink.asked)
        it.lane.stop()
        await asyncio.sleep(0.02)
        assert not it.task.done()
        may_answer.set()
        await it.task
    assert feed.marks == {"ann1": Mark.DELIVERED}


@in_loop
async def test_told_twice_it_ends_at_once_and_what_was_under_way_comes_again(tmp_path: Path) -> None:
    feed, sink = MemoryFeed([events("ann1")]), ScriptedSink(for_ever)
    async with running(tmp_path, feed, sink) as it:  # with a deadline of 30 s
        await it.until(lambda: sink.asked)
        it.lane.stop(60)
        await asyncio.sleep(0.02)
        assert await it.end(60) < 20
    assert feed.marks == {}


@in_loop
async def test_it_ends_though_the_sink_neither_opens_nor_closes_nor_can_be_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "_CLOSES_S", 0.05)

    class Stubborn(ScriptedSink):
        async def open(self, memory: object) -> None:  # noqa: ARG002  it needs none
            if self.opened:
                await asyncio.Event().wait()
            self.opened += 1

        async def close(self) -> None:
            await asyncio.Event().wait()

    over = asyncio.Event()

    async def stubborn(_: Delivery) -> list[Outcome]:
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                continue
        return [DELIVERED]

    feed, sink = MemoryFeed([events("ann1")]), Stubborn(stubborn, SinkDownError("reset"), max_events=1)
    async with running(tmp_path, feed, sink) as it:
        await it.until(lambda: sink.asked)
        feed.windows.append(events("bob2", first=2))
        await it.until(lambda: len(sink.asked) == 2)
        it.lane.stop()
        assert await it.end() < 20
        assert it.status().state == "stopped"
        over.set()


@in_loop
async def test_it_ends_though_nothing_can_be_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "_LAST_TRIES_S", 0.1)
    feed, sink = MemoryFeed([events("ann1", "ann2")]), ScriptedSink([BAD], max_events=1)
    feed.broken = sqlite3.OperationalError("database or disk is full")
    async with running(tmp_path, feed, sink) as it:
        await it.until(lambda: sink.asked)
        assert await it.end() < 20
    assert (feed.marks, sink.asked) == ({}, [["ann1"]])  # whose death is not on record: ann2 waits


# What the operator says


async def _told(it: Running, verb: str, subject: str) -> str:
    order = it.ledger.tell(verb, subject, "bob", "why not")
    await it.until(lambda: it.ledger.orders()[order - 1].result is not None)
    return str(it.ledger.orders()[order - 1].result)


@in_loop
async def test_retry_skip_and_park_are_carried_out_and_stay_on_record(tmp_path: Path) -> None:
    feed = MemoryFeed([events("ann1", "ann2", "bob3", "bob4", "eve5", "eve6")])
    sink = ScriptedSink(keeps_order=False)
    fails = {"ann1", "bob3", "eve5"}
    sink.always = lambda delivery: [FAILED if each in fails else DELIVERED for each in delivery.message_ids]
    slow = "use: console, retry: {first: 1h, longest: 1h}"
    async with running(tmp_path, feed, sink, lane_settings(sink=slow)) as it:
        await it.until(lambda: feed.trying == ["ann1", "bob3", "eve5"])
        assert await _told(it, "skip", "user:ann") == "1 skipped: ann1"
        assert await _told(it, "park", "event:bob3") == "1 parked: bob3"
        not_failed = "not found: nothing of event:ann2 has failed"
        assert await _told(it, "skip", "event:ann2") == await _told(it, "park", "event:ann2") == not_failed
        nobody = "not found: nothing of user:nobody has failed or is parked"
        assert await _told(it, "retry", "user:nobody") == nobody
        assert await _told(it, "dance", "all") == "not understood"
        assert await _told(it, "skip", "cat:x") == "not understood"
        await it.until(lambda: {"ann2", "bob4"} <= set(sink.taken))
        fails.clear()
        assert await _told(it, "retry", "all") == "1 tried again now, 1 brought back from parking"
        await it.until(lambda: len(feed.marks) == 6 and feed.marks["bob3"] is Mark.DELIVERED)
        assert [(o.verb, o.subject, o.told_by, o.reason) for o in it.ledger.orders()] == [
            ("skip", "user:ann", "bob", "why not"),
            ("park", "event:bob3", "bob", "why not"),
            ("skip", "event:ann2", "bob", "why not"),
            ("park", "event:ann2", "bob", "why not"),
            ("retry", "user:nobody", "bob", "why not"),
            ("dance", "all", "bob", "why not"),
            ("skip", "cat:x", "bob", "why not"),
            ("retry", "all", "bob", "why not"),
        ]
        assert all(order.done_us is not None for order in it.ledger.orders())
        assert [order.id for order in it.ledger.orders() if order.found_nothing] == [3, 4, 5]
    assert feed.marks == {name: Mark.SKIPPED if name == "ann1" else Mark.DELIVERED for name in feed.marks}


@in_loop
async def test_an_order_about_all_does_not_wait_for_a_moment_in_which_nothing_is_tried(tmp_path: Path) -> None:
    feed = MemoryFeed([events("ann1", "bob2")])
    sink = ScriptedSink([FAILED], [FAILED], max_events=1, keeps_order=False)
    sink.always = for_ever
    settings = lane_settings(sink="use: console, retry: {first: 10ms, longest: 10ms}, max_in_flight: 1")
    async with running(tmp_path, feed, sink, settings) as it:
        await it.until(lambda: len(sink.asked) == 3)
        under_way = sink.asked[2][0]
        other = "ann1" if under_way == "bob2" else "bob2"
        assert await _told(it, "skip", "all") == f"1 skipped: {other}; what is being tried just now was left alone"
        order = it.ledger.tell("skip", f"event:{under_way}", "bob", "")
        await asyncio.sleep(0.1)
        assert it.ledger.orders()[order - 1].result is None  # it waits: whether it arrives is not known
        await it.until(lambda: feed.marks == {other: Mark.SKIPPED})


@in_loop
async def test_what_came_of_an_order_is_written_later_where_it_cannot_be_now(tmp_path: Path) -> None:
    feed, sink = MemoryFeed([events("ann1")]), ScriptedSink([FAILED])
    async with running(tmp_path, feed, sink, lane_settings(sink="use: console, retry: {first: 1h, longest: 1h}")) as it:
        await it.until(lambda: feed.trying == ["ann1"])
        fails = itertools.chain([sqlite3.OperationalError("disk full")] * 3, itertools.repeat(None))
        done = it.ledger.done

        def may_fail(order: int, result: str) -> None:
            if (problem := next(fails)) is not None:
                raise problem
            done(order, result)

        with mock.patch.object(it.ledger, "done", may_fail):
            assert await _told(it, "skip", "all") == "1 skipped: ann1"


# What a delivery holds


def test_rows_of_before_and_after_a_column_came_go_in_one_delivery() -> None:
    (route,) = lane_settings().routes
    old = pa.RecordBatch.from_pydict(
        {"message_id": ["a", "b"], "properties": ['{"x":1}', None]},
        schema=pa.schema([("message_id", pa.string()), pa.field("properties", pa.string(), metadata=JSON)]),
    )
    new = old.append_column("plan", pa.array(["gold", "free"])).slice(0, 2)
    rows = [Row(old, 1, "u"), Row(old, 0, "u"), Row(new, 0, "u"), Row(new, 1, "v"), Row(old, 0, "w")]
    delivery = gather([Pending(n, "u", f"m{n}", 0, 1, row) for n, row in enumerate(rows)], route)
    assert json_rows(delivery.rows) == [
        b'{"message_id":"b"}',
        b'{"message_id":"a","properties":{"x":1}}',
        b'{"message_id":"a","properties":{"x":1},"plan":"gold"}',
        b'{"message_id":"b","plan":"free"}',
        b'{"message_id":"a","properties":{"x":1}}',
    ]
    assert (delivery.user_keys, delivery.positions) == (["u", "u", "u", "v", "w"], [0, 1, 2, 3, 4])
