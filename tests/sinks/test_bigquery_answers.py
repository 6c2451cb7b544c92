"""What the sink `bigquery` makes of each answer of the Storage Write API, and of none."""

import asyncio
import datetime as dt
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from millrace.sinks.bigquery_writer import Writer
from millrace.sinks.sink import DELIVERED, Delivered, Fault, Outcome, Rejected, Retry, SinkDownError
from millrace.testing import DictMemory
from tests.support.write_api import TABLE, Act, WriteApi, write_api

NOON = dt.datetime(2026, 1, 5, 12, tzinfo=dt.UTC)
SCHEMA = pa.schema([("message_id", pa.string()), ("received_at", pa.timestamp("us", "UTC")), ("total", pa.int64())])


def rows(ids: Sequence[str], schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    made = [{"message_id": each, "received_at": NOON, "total": 1} for each in ids]
    return pa.RecordBatch.from_pylist(made, schema=schema)


async def deliver(writer: Writer, *ids: str) -> list[Outcome]:
    return await writer.deliver(rows(ids), ids)


def run(story: Callable[[WriteApi, DictMemory], Coroutine[Any, Any, None]], *acts: Act) -> None:
    async def whole() -> None:
        async with write_api(*acts) as api:
            await story(api, DictMemory())

    asyncio.run(whole())


def test_an_append_whose_answer_is_lost_is_sent_again_at_its_offset_and_adds_nothing():
    async def story(api: WriteApi, memory: DictMemory) -> None:
        async with api.writer(memory) as writer:
            assert await deliver(writer, "a", "b") == [DELIVERED] * 2
            assert await deliver(writer, "c") == [DELIVERED]
            assert await deliver(writer, "d") == [DELIVERED]
        assert api.ids == ["a", "b", "c", "d"]
        assert api.appends == [("s0", 0, 2), ("s0", 0, 2), ("s0", 2, 1), ("s0", 2, 1), ("s0", 3, 1)]

    run(story, Act.TAKE_AND_BREAK, Act.TAKE, Act.TAKE_AND_RESTART)


def test_rows_that_are_refused_by_name_are_rejected_and_the_rest_goes_at_the_same_offset():
    async def story(api: WriteApi, memory: DictMemory) -> None:
        async with api.writer(memory) as writer:
            refused = Rejected(Fault.REJECTED, "BigQuery refuses the row: column total")
            assert await deliver(writer, "a", "bad", "b") == [DELIVERED, refused, DELIVERED]
        assert api.ids == ["a", "b"]
        assert api.appends == [("s0", 0, 3), ("s0", 0, 2)]

    run(story, Act.BAD_ROWS)


def test_the_row_for_which_a_request_is_refused_is_found_by_halves():
    async def story(api: WriteApi, memory: DictMemory) -> None:
        async with api.writer(memory) as writer:
            outcomes = await deliver(writer, "a", "b", "bad", "c")
        assert [type(each) for each in outcomes] == [Delivered, Delivered, Rejected, Delivered]
        assert api.ids == ["a", "b", "c"]

    run(story, *[Act.BAD_REQUEST] * 9)


def test_requests_that_are_all_refused_are_nobody_s_fault():
    async def story(api: WriteApi, memory: DictMemory) -> None:
        async with api.writer(memory) as writer:
            with pytest.raises(SinkDownError, match=f"refuses rows for {re.escape(TABLE)}: INVALID_ARGUMENT"):
                await deliver(writer, "a", "b")
        async with api.writer(memory) as writer:
            assert await deliver(writer, "a", "b") == [DELIVERED] * 2
        assert api.ids == ["a", "b"]

    run(story, Act.REFUSE_ALL, Act.REFUSE_ALL)


@pytest.mark.parametrize("act", [Act.THROTTLE, Act.THROTTLE_AT_THE_END])
def test_a_quota_delays_events_or_is_over_at_the_next_try(act: Act):
    async def story(api: WriteApi, memory: DictMemory) -> None:
        async with api.writer(memory) as writer:
            outcomes = await deliver(writer, "a", "b")
            assert [getattr(each, "fault", None) for each in outcomes] == [Fault.THROTTLED] * 2
            assert all(isinstance(each, Retry) for each in outcomes)
            assert await deliver(writer, "a", "b") == [DELIVERED] * 2
        assert api.ids == ["a", "b"]

    run(story, act)


def test_a_permission_that_is_missing_puts_the_sink_down():
    async def story(api: WriteApi, memory: DictMemory) -> None:
        async with api.writer(memory) as writer:
            with pytest.raises(SinkDownError, match="PERMISSION_DENIED"):
                await deliver(writer, "a")
            with pytest.raises(SinkDownError, match="PERMISSION_DENIED"):
                await deliver(writer, "b")
        assert (api.ids, len(api.appends)) == ([], 1)

    run(story, Act.DENY)


@pytest.mark.parametrize(
    ("act", "asked"),
    [(Act.FINALIZED, 0), (Act.EXPIRED, 1), (Act.FORGET, 1), (Act.INTRUDER, 1), (Act.TAKE_AND_EXPIRE, 1)],
)
def test_a_stream_that_takes_no_more_is_followed_by_another(act: Act, asked: int):
    async def story(api: WriteApi, memory: DictMemory) -> None:
        async with api.writer(memory) as writer:
            assert await deliver(writer, "a") == [DELIVERED]
            assert await deliver(writer, "b") == [DELIVERED]
            assert await deliver(writer, "c") == [DELIVERED]
        assert api.ids == ["a", "b", "c"]
        assert (len(api.streams) + (act in (Act.EXPIRED, Act.TAKE_AND_EXPIRE)), api.tables.asked) == (2, asked)

    run(story, Act.TAKE, act)


def test_columns_that_the_service_has_not_noticed_are_waited_for():
    async def story(api: WriteApi, memory: DictMemory) -> None:
        async with api.writer(memory) as writer:
            with pytest.raises(SinkDownError, match="has not noticed the new columns") as caught:
                await deliver(writer, "a")
            assert caught.value.after_s == 5.0
        async with api.writer(memory) as writer:
            assert await deliver(writer, "a") == [DELIVERED]
        assert api.ids == ["a"]

    run(story, Act.UNKNOWN_COLUMNS)


def test_new_columns_need_a_stream_that_knows_them(monkeypatch: pytest.MonkeyPatch):
    pauses = []

    async def story(api: WriteApi, memory: DictMemory) -> None:
        async def pause(_: float) -> None:
            pauses.append(len(api.streams))
            if len(pauses) == 2:
                api.columns = []

        monkeypatch.setattr("millrace.sinks.bigquery_writer._pause", pause)
        async with api.writer(memory) as writer:
            assert await deliver(writer, "a") == [DELIVERED]
            api.columns = ["message_id", "received_at", "total"]
            more = rows(["b"], SCHEMA.append(pa.field("tax", pa.float64())))
            assert await writer.deliver(more, ["b"]) == [DELIVERED]
        assert api.ids == ["a", "b"]
        assert api.appends[-1] == ("s3", 0, 1)

    run(story)
    assert pauses == [2, 3]


def test_deliveries_that_wait_go_together():
    async def story(api: WriteApi, memory: DictMemory) -> None:
        async with api.writer(memory) as writer:
            outcomes = await asyncio.gather(*(deliver(writer, f"{n}a", f"{n}b") for n in range(50)))
        assert outcomes == [[DELIVERED] * 2] * 50
        assert api.ids == [f"{n}{side}" for n in range(50) for side in "ab"]
        assert [size for _, _, size in api.appends] == [100]

    run(story)


def test_what_is_too_large_for_one_append_goes_in_several_and_a_row_that_is_too_large_is_refused():
    schema = pa.schema([("message_id", pa.string()), ("text", pa.string())])
    ids = [f"m{n}" for n in range(7)]
    large = pa.RecordBatch.from_pylist(
        [{"message_id": each, "text": "x" * (9_000_000 if each == "m3" else 3_000_000)} for each in ids], schema=schema
    )

    async def story(api: WriteApi, memory: DictMemory) -> None:
        async with api.writer(memory) as writer:
            outcomes = await writer.deliver(large, ids)
        assert [type(each) for each in outcomes] == [Delivered] * 3 + [Rejected] + [Delivered] * 3
        assert outcomes[3] == Rejected(Fault.REFUSED, "larger than 8000000 bytes, which BigQuery does not take")
        assert api.ids == [each for each in ids if each != "m3"]

    run(story)


def test_without_an_id_column_a_lost_stream_means_at_least_once():
    schema = pa.schema([("message_id", pa.string())])

    async def story(api: WriteApi, memory: DictMemory) -> None:
        async with api.writer(memory, id_column="event_id") as writer:
            assert await writer.deliver(rows(["a"], schema), ["a"]) == [DELIVERED]
        assert (api.ids, api.tables.asked) == (["a", "a"], 0)

    run(story, Act.TAKE_AND_EXPIRE)


# INTRUDER writes rows of its own; what refuses all rows may as well mean one of them.
ACTS = st.sampled_from([act for act in Act if act not in (Act.INTRUDER, Act.REFUSE_ALL)])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.just(Act.TAKE), ACTS), max_size=12), st.lists(st.booleans(), max_size=8))
@example([Act.TAKE, Act.TAKE_AND_EXPIRE, Act.TAKE_AND_EXPIRE, Act.TAKE_AND_BREAK, Act.EXPIRED, Act.THROTTLE], [True])
def test_whatever_the_service_does_each_event_is_in_once_and_in_order(acts: list[Act], restarts: list[bool]):
    """A lane in small: what is not settled is offered again, in order; a crash forgets what was just said."""

    async def story(api: WriteApi, memory: DictMemory) -> None:
        left = [[f"m{n:02}{side}" for side in "abc"] for n in range(4)]
        crashes = list(restarts)
        for _ in range(100):
            if not left:
                break
            async with api.writer(memory) as writer:
                while left:
                    part = left[0]
                    try:
                        outcomes = await deliver(writer, *part)
                    except SinkDownError:
                        break
                    assert not any(isinstance(each, Rejected) for each in outcomes)
                    if crashes and crashes.pop():
                        break  # delivered, and the lane's process ends before it has written that down
                    waiting = [each for each, said in zip(part, outcomes, strict=True) if said is not DELIVERED]
                    left[:1] = [waiting] if waiting else []
        assert api.ids == [f"m{n:02}{side}" for n in range(4) for side in "abc"]

    run(story, *acts)
