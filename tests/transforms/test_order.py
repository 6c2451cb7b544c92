"""Order: release times, shards, the order itself, copies, and that none of it hangs on how events came."""

from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing import test_pipeline
from apache_beam.testing.util import assert_that
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from millrace.transforms.batches import concat
from millrace.transforms.order import OrderPerUser, Piece, order, release, window_start
from tests.support.batches import NOON_US, batch, event

WAIT_US, WINDOW_US = 10_000_000, 5_000_000


def released(rows: list[dict[str, Any]], shards: int = 1) -> list[tuple[int, int, list[str]]]:
    pieces = release(batch(rows), wait_us=WAIT_US, window_us=WINDOW_US, shards=shards)
    return [(p.shard, (p.window_us - NOON_US) // 1_000_000, p.batch.column("message_id").to_pylist()) for p in pieces]


def pieces_of(rows: list[dict[str, Any]], shards: int, turns: int) -> list[Piece]:
    return release(batch(rows), wait_us=WAIT_US, window_us=WINDOW_US, shards=shards, turns=turns)


def archived(batches: list[pa.RecordBatch], shards: int = 4) -> list[tuple[Any, ...]]:
    """Take batches through release and order; return the rows by user and place, as they would be archived."""
    groups: dict[tuple[int, int], list[pa.RecordBatch]] = {}
    for each in batches:
        for piece in release(each, wait_us=WAIT_US, window_us=WINDOW_US, shards=shards):
            groups.setdefault((piece.window_us, piece.shard), []).append(piece.batch)
    rows: list[dict[str, Any]] = []
    for pieces in groups.values():
        rows += order(pieces)[0].to_pylist()
    kept = ("user_key", "order_index", "message_id", "occurred_at", "released_at", "is_late", "late_by_ms", "date")
    return sorted(tuple(row[name] for name in kept) for row in rows)


def test_an_event_leaves_when_the_wait_is_over_and_one_past_it_leaves_at_once():
    rows = [event("in time", 1, arrived_s=3), event("just in time", 2, arrived_s=12), event("late", 3, arrived_s=13.5)]
    assert released(rows) == [(0, 10, ["in time", "just in time", "late"])]
    (piece,) = release(batch(rows), wait_us=WAIT_US, window_us=WINDOW_US, shards=1)
    leaves = [(time - NOON_US) / 1e6 for time in piece.batch.column("released_at").cast(pa.int64()).to_pylist()]
    assert leaves == [11, 12, 13.5]
    assert piece.batch.column("is_late").to_pylist() == [False, False, True]
    assert piece.batch.column("late_by_ms").to_pylist() == [0, 0, 500]


def test_a_piece_never_spans_two_windows_or_two_shards():
    rows = [event(f"m{second}-{user}", second, user=f"u{user}") for second in range(12) for user in range(6)]
    found = released(rows, shards=3)
    assert sorted(id_ for _, _, ids in found for id_ in ids) == sorted(row["message_id"] for row in rows)
    assert len({(shard, window) for shard, window, _ in found}) == len(found)
    shard_of = {id_.partition("-")[2]: shard for shard, _, ids in found for id_ in ids}
    assert all(shard_of[id_.partition("-")[2]] == shard for shard, _, ids in found for id_ in ids)


def test_shards_take_turns_each_with_windows_of_the_same_length():
    rows = [event(f"m{second}-{user}", second, user=f"u{user}") for second in range(20) for user in range(8)]
    found = pieces_of(rows, shards=6, turns=4)
    assert sorted(id_ for piece in found for id_ in piece.batch.column("message_id").to_pylist()) == sorted(
        row["message_id"] for row in rows
    )
    starts = {piece.shard: piece.window_us % WINDOW_US / 1e6 for piece in found}
    assert starts == {shard: shard % 4 * 1.25 for shard in starts}
    assert set(starts.values()) == {0, 1.25, 2.5, 3.75}


@given(
    times=st.lists(st.integers(NOON_US, NOON_US + 30_000_000), min_size=1).map(sorted),
    shard=st.integers(0, 9),
    turns=st.sampled_from([1, 2, 4, 5, 8]),
)
def test_an_event_leaves_within_a_window_of_its_release_and_never_before_an_earlier_one(times, shard, turns):
    starts = [window_start(time, shard, WINDOW_US, turns) for time in times]
    assert all(start <= time < start + WINDOW_US for start, time in zip(starts, times, strict=True))
    assert starts == sorted(starts)
    turn_us = WINDOW_US // turns
    assert all(start % turn_us == 0 for start in starts)
    # with links, whose an event is is known at the end of its turn: all of a turn have one window
    assert starts == [window_start(time // turn_us * turn_us, shard, WINDOW_US, turns) for time in times]


def test_a_user_has_the_same_shard_in_every_process():
    # crc32, not hash(): a golden value, since state and files of running jobs hang on it.
    assert [shard for shard, _, _ in released([event("m", user="ann")], shards=1_000)] == [347]


def test_an_empty_batch_has_no_pieces():
    assert release(batch([]), wait_us=WAIT_US, window_us=WINDOW_US, shards=4) == []


def test_a_user_s_events_stand_in_the_order_in_which_they_occurred():
    rows = [event("c", 3), event("a", 1), event("x", 2, user="bob"), event("b", 2)]
    ordered, repeats = order([piece.batch for piece in release(batch(rows), wait_us=0, window_us=WINDOW_US, shards=1)])
    assert ordered.column("message_id").to_pylist() == ["a", "b", "c", "x"]
    seconds = [(index / 2**11 - NOON_US) / 1e6 for index in ordered.column("order_index").to_pylist()]
    assert seconds == [1, 2, 3, 2]
    assert repeats.num_rows == 0


def test_of_a_message_delivered_twice_one_stays_and_of_the_other_its_receipt():
    rows = [
        event("m", 1, envelope_id="first", receipt=1),
        event("m", 1, envelope_id="second", receipt=2),  # a copy, of which the deduplication has seen to it
        event("m", 1, envelope_id="first", envelope_index=1, receipt=1),
        event("m", 1, envelope_id="first", source_id="app", receipt=3),
        event("m", 1, envelope_id="first", receipt=4),
        event("m", 1, envelope_id="first", receipt=5),
        event("n", 2, receipt=6),
    ]
    ordered, repeats = order([piece.batch for piece in release(batch(rows), wait_us=0, window_us=WINDOW_US, shards=1)])
    assert repeats.schema.names == ["receipt"]
    found = ordered.column("receipt").to_pylist()
    assert sorted(found + repeats.column("receipt").to_pylist()) == [1, 1, 2, 3, 4, 5, 6]
    kept = [tuple(row[name] for name in ("message_id", "source_id", "envelope_id", "envelope_index"))
            for row in ordered.to_pylist()]  # fmt: skip
    assert sorted(kept) == [
        ("m", "app", "first", 0), ("m", "shop", "first", 0), ("m", "shop", "first", 1), ("m", "shop", "second", 0),
        ("n", "shop", "e-n", 0),
    ]  # fmt: skip


def test_ties_are_broken_by_message_id_and_never_by_arrival():
    rows = [event(name, 1) for name in ("d", "b", "a", "c")] + [event("z", 1, user="zoe"), event("y", 0, user="zoe")]
    expected = ["a", "b", "c", "d", "y", "z"]
    for arranged in (rows, rows[::-1]):
        pieces = [piece.batch for piece in release(batch(arranged), wait_us=0, window_us=WINDOW_US, shards=1)]
        assert order(pieces)[0].column("message_id").to_pylist() == expected


events = st.builds(
    lambda number, at, delay, user: event(f"m{number}", at, arrived_s=at + delay, user=user),
    st.integers(0, 30),
    st.integers(0, 40),
    st.sampled_from([0, 0.5, 3, 9, 10]),
    st.sampled_from(["ann", "bob", "eve"]),
)


@given(rows=st.lists(events, max_size=30, unique_by=lambda row: row["message_id"]), data=st.data())
def test_any_arrangement_duplication_and_split_gives_the_same_rows(rows, data):
    expected = archived([batch(rows)])
    copies = data.draw(st.lists(st.sampled_from(rows), max_size=10)) if rows else []
    arranged = data.draw(st.permutations([*rows, *copies]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(arranged)), max_size=5)))
    parts = [arranged[start:end] for start, end in zip([0, *cuts], [*cuts, len(arranged)], strict=True)]
    assert archived([batch(part) for part in parts]) == expected


@given(rows=st.lists(events, max_size=40, unique_by=lambda row: row["message_id"]))
def test_within_the_wait_order_index_rises_with_occurred_at_across_windows(rows):
    found = archived([batch(rows)])
    assert len(found) == len(rows)
    for user in {row[0] for row in found}:
        sequence = [row for row in found if row[0] == user]
        assert [row[1] for row in sequence] == sorted({row[1] for row in sequence})  # rises, and none twice
        assert not any(row[5] for row in sequence)
        assert [row[3] for row in sequence] == sorted(row[3] for row in sequence)


def test_columns_that_stages_add_travel_along():
    one, two = batch([event("a", 1)]), batch([event("b", 2)])
    one = one.append_column("country", pa.array(["NL"]))
    pieces = [p.batch for each in (one, two) for p in release(each, wait_us=0, window_us=WINDOW_US, shards=1)]
    assert order(pieces)[0].column("country").to_pylist() == ["NL", None]


@pytest.mark.parametrize("wrong", [{"wait_s": -1}, {"window_s": 0.5}, {"shards": 0}])
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ValueError, match="need wait_s >= 0, window_s >= 1, shards >= 1"):
        OrderPerUser(**wrong)


@pytest.mark.parametrize(("window_s", "turns"), [(5, 0), (5, 3), (1.001, 4)])
def test_turns_that_are_not_whole_milliseconds_are_refused(window_s: float, turns: int):
    with pytest.raises(ValueError, match=f"{turns} do not divide a window of {window_s} s"):
        OrderPerUser(window_s=window_s, turns=turns)


def test_in_a_pipeline_every_event_leaves_by_one_door():
    rows = [
        event(f"m{number % 40}", number % 40 % 4, user=f"u{number % 40 % 5}", receipt=number) for number in range(60)
    ]
    batches = [TimestampedValue(batch(rows[start : start + 7]), Timestamp(micros=NOON_US)) for start in range(0, 60, 7)]

    def check_batches(found: list[tuple[int, pa.RecordBatch]]) -> None:
        ids = [id_ for _, each in found for id_ in each.column("message_id").to_pylist()]
        assert sorted(ids) == sorted({row["message_id"] for row in rows})

    def check_repeats(found: list[pa.RecordBatch]) -> None:
        assert len(set(concat(found).column("receipt").to_pylist())) == 20

    with test_pipeline.TestPipeline() as pipeline:
        ordered = pipeline | beam.Create(batches) | "Stamp" >> beam.Map(lambda each: each) | OrderPerUser(shards=3)
        assert_that(ordered.batches, check_batches, label="batches")
        assert_that(ordered.repeats, check_repeats, label="repeats")
