"""Sessions: the rules one by one, and that they hold however events arrive, are cut into windows, or come again."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from millrace.transforms.batches import concat
from millrace.transforms.enrich.sessions import FIELDS, SESSIONS_REMEMBERED, Sessions
from millrace.transforms.steps import Users, with_columns
from tests.support.along import Row, in_order, micros, sessions_of, windows
from tests.support.batches import NOON_US, event

MINUTE = 60.0
HOUR = 3_600.0
DAY = 86_400.0
NAMES = [field.name for field in FIELDS]


def through(step: Sessions, batches: Sequence[pa.RecordBatch], users: Users | None = None) -> list[Row]:
    """Return the rows of batches after the step, one batch after the other."""
    users = Users() if users is None else users
    return [row for each in batches for row in step.apply(each, users).batch.to_pylist()]


def of(rows: Sequence[Row], step: Sessions | None = None) -> dict[str, tuple[int | None, float, str]]:
    """Return by message_id: session_index, seconds after noon of the start, and what made the session."""
    return {
        row["message_id"]: (row["session_index"], (micros(row["session_start"]) - NOON_US) / 1e6, row["session_by"])
        for row in through(step or Sessions(), windows(rows))
    }


def sdk(session: Any, **more: Any) -> dict[str, Any]:
    return {"context_rest": json.dumps({"traits": {"sessionId": 7}, "sessionId": session} | more)}


def late(message_id: str, at_s: float, arrived_s: float, **more: Any) -> Row:
    return event(message_id, at_s, arrived_s=arrived_s, **more)


def test_a_session_ends_when_the_gap_is_longer_and_not_when_it_is_as_long():
    rows = [event("1"), event("2", 30 * MINUTE), event("3", 60 * MINUTE + 0.000001), event("4", 61 * MINUTE)]
    start = 60 * MINUTE + 0.000001
    assert of(rows) == {"1": (1, 0, "gap"), "2": (1, 0, "gap"), "3": (2, start, "gap"), "4": (2, start, "gap")}


def test_the_gap_is_set_by_the_job_and_so_is_the_longest_session():
    rows = [event(str(minute), minute * MINUTE) for minute in range(0, 200, 20)]
    assert {index for index, _, _ in of(rows).values()} == {1}
    assert [index for index, _, _ in of(rows, Sessions(gap_min=10)).values()] == list(range(1, 11))
    starts = [start / MINUTE for _, start, _ in of(rows, Sessions(longest_h=1)).values()]
    assert starts == [0, 0, 0, 0, 80, 80, 80, 80, 160, 160]


def test_the_longest_session_holds_within_one_batch_too():
    rows = [late(str(minute), minute * MINUTE, 500 * MINUTE) for minute in range(0, 200, 20)]
    (one,) = windows(rows)
    starts = [(micros(row["session_start"]) - NOON_US) / 60e6 for row in through(Sessions(longest_h=1), [one])]
    assert starts == [0, 0, 0, 0, 80, 80, 80, 80, 160, 160]


def test_the_id_follows_from_user_and_start_alone():
    rows = [event("1"), event("2", 1), event("3", user="bob")]
    first, second, bobs = (row["session_id"] for row in through(Sessions(), windows(rows)))
    assert first == second != bobs
    assert first == "f687858807c10e1ff1ae7cc3ec748038"  # stable: archives hold it


def test_users_are_told_apart_and_each_counts_their_own():
    rows = [event("a1", 0, user="ann"), event("b1", 1, user="bob"), event("a2", HOUR, user="ann")]
    assert of(rows) == {"a1": (1, 0, "gap"), "a2": (2, HOUR, "gap"), "b1": (1, 1, "gap")}


def test_a_late_event_goes_into_the_session_that_was_open_then_the_current_or_an_earlier_one():
    rows = [event("1"), event("2", 20 * MINUTE), event("3", 2 * HOUR), event("4", 2.4 * HOUR)]
    rows += [late("in the current", 2.2 * HOUR, 2.5 * HOUR), late("in the one before", 10 * MINUTE, 2.5 * HOUR)]
    rows += [late("just after the one before", 45 * MINUTE, 2.5 * HOUR)]
    told = of(rows)
    assert told["in the current"] == told["3"] == (2, 2 * HOUR, "gap")
    assert told["in the one before"] == told["just after the one before"] == told["1"] == (1, 0, "gap")


def test_a_late_event_that_was_in_no_session_opens_one_of_its_own_flagged_and_those_beside_it_join():
    rows = [event("1", 5 * HOUR), event("2", 5.4 * HOUR)]
    rows += [late("a", 2 * HOUR, 5.5 * HOUR), late("b", 2.3 * HOUR, 5.5 * HOUR), late("c", 4.9 * HOUR, 5.5 * HOUR)]
    told = of(rows)
    assert told["a"] == told["b"] == (2, 2 * HOUR, "late")
    assert told["c"] == (3, 4.9 * HOUR, "late")  # a session's start never moves, not even to where it would fit


def test_a_late_event_never_moves_the_end_back():
    rows = [event("1"), event("2", 25 * MINUTE), late("late", 1 * MINUTE, 26 * MINUTE), event("3", 54 * MINUTE)]
    assert {index for index, _, _ in of(rows).values()} == {1}


def test_a_late_event_never_makes_one_session_of_two():
    rows = [event("1"), event("2", 50 * MINUTE), late("between", 25 * MINUTE, 51 * MINUTE), event("3", 52 * MINUTE)]
    told = of(rows)
    assert told["between"] == told["1"] == (1, 0, "gap")
    assert told["3"] == told["2"] == (2, 50 * MINUTE, "gap")


def test_late_events_that_come_together_go_over_from_one_session_into_the_next_where_that_begins():
    rows = [event("1"), event("2", 50 * MINUTE)]
    rows += [late(str(minute), minute * MINUTE, 60 * MINUTE) for minute in (10, 25, 45, 55)]
    told = of(rows)
    assert [told[name][0] for name in ("1", "10", "25", "45", "55", "2")] == [1, 1, 1, 1, 2, 2]


def test_a_phone_that_was_offline_sends_whole_sessions_late():
    at = [0, 5, 10, 120, 125, 300]
    rows = [late(str(minute), minute * MINUTE, 10 * HOUR) for minute in at]
    assert [(index, by) for index, _, by in of(rows).values()] == [(1, "gap")] * 3 + [(2, "gap")] * 2 + [(3, "gap")]


def test_the_sdk_s_id_decides_where_there_is_one():
    same = [event("1", **sdk(1_795_608_000_123)), event("2", 2 * HOUR, **sdk(1_795_608_000_123))]
    other = [event("3", 2 * HOUR + 1, **sdk(1_795_615_201_000)), event("4", 2 * HOUR + 2, **sdk("night"))]
    rows = through(Sessions(), windows([*same, *other]))
    assert [(row["session_id"], row["session_index"], row["session_by"]) for row in rows] == [
        ("1795608000123", 1, "sdk"), ("1795608000123", 1, "sdk"), ("1795615201000", 2, "sdk"), ("night", 3, "sdk"),
    ]  # fmt: skip
    assert [micros(row["session_start"]) for row in rows[:2]] == [NOON_US, NOON_US]


def test_two_devices_of_one_user_have_their_sessions_side_by_side():
    rows = [event(str(second), second, **sdk(second % 2 + 10)) for second in range(6)]
    assert [index for index, _, _ in of(rows).values()] == [1, 2, 1, 2, 1, 2]


def test_an_event_without_an_id_joins_the_session_that_is_open_whatever_made_it():
    rows = [
        event("1", **sdk(1)),
        event("server", 29 * MINUTE),
        event("later", 2 * HOUR),
        event("2", 2.1 * HOUR, **sdk(1)),
    ]
    told = of(rows)
    assert told["server"] == told["2"] == (1, 0, "sdk")
    assert told["later"] == (2, 2 * HOUR, "gap")


def test_sdk_ids_can_be_left_alone():
    rows = [event("1", **sdk(1)), event("2", 1, **sdk(2)), event("3", 2 * HOUR, **sdk(2))]
    assert [index for index, _, _ in of(rows, Sessions(respect_sdk=False)).values()] == [1, 1, 2]


@pytest.mark.parametrize("wrong", [None, True, 1.5, [], {}, "", "  ", "x" * 101])
def test_what_is_no_id_counts_as_none(wrong: Any):
    assert of([event("1", **sdk(wrong))]) == {"1": (1, 0, "gap")}


@pytest.mark.parametrize(
    "text", ['{"sessionId":', '"sessionId"', '["sessionId"]', '{"a":"\\"sessionId\\":1"}', "[" * 9_000]
)
def test_no_text_of_a_context_breaks_a_batch_or_its_neighbours(text: str):
    rows = [event("1", context_rest=text + '"sessionId"' if text[0] == "[" else text), event("2", 1, **sdk("x"))]
    assert of(rows) == {"1": (1, 0, "gap"), "2": (2, 1, "sdk")}


def test_a_batch_without_rows_and_one_that_has_only_what_it_must():
    users = Users()
    empty = Sessions().apply(windows([event("1")])[0].slice(0, 0), users).batch
    assert (empty.num_rows, empty.schema.names[-4:], len(users)) == (0, NAMES, 0)
    assert [empty.schema.field(name) for name in NAMES] == list(FIELDS)
    assert of([event("1")]) == {"1": (1, 0, "gap")}


def test_columns_are_of_the_declared_types():
    done = Sessions().apply(windows([event("1"), event("2", 1)])[0], Users()).batch
    assert [done.schema.field(name) for name in NAMES] == list(FIELDS)
    done.validate(full=True)


def test_after_the_time_of_remembering_sessions_are_counted_anew_however_it_was_swept():
    step = Sessions(remember_days=1)
    rows = [event("1"), event("2", HOUR), event("3", 25 * HOUR + 1), event("4", 25 * HOUR + 2)]
    assert [index for index, _, _ in of(rows, step).values()] == [1, 2, 1, 1]
    within = [event("1"), event("2", HOUR), event("3", 25 * HOUR)]
    assert [index for index, _, _ in of(within, step).values()] == [1, 2, 3]


def test_no_more_users_are_remembered_than_asked_for_and_the_latest_are():
    users = Users()
    rows = [event(f"m{number}", number, user=f"u{number}") for number in range(100)]
    through(Sessions(remember_users=16), windows(rows), users)
    assert 14 <= len(users) <= 16
    assert users.get("u99") is not None
    assert users.get("u0") is None


# Whatever users do: two users, some SDK ids, events in time and hours late.
MOMENTS = st.integers(0, 60).map(lambda step: step * 10 * MINUTE) | st.integers(0, 600).map(lambda step: step * MINUTE)
DELAYS = st.sampled_from([0.0, 0.0, 0.0, 5.0, 40 * MINUTE, 3 * HOUR])
IDS = st.sampled_from([None, None, None, 1, 2, "x"])


@st.composite
def histories(draw: st.DrawFn, ids: st.SearchStrategy[Any] = IDS) -> list[Row]:
    drawn = draw(st.lists(st.tuples(st.sampled_from(["ann", "bob"]), MOMENTS, DELAYS, ids), min_size=1, max_size=25))
    return [
        late(f"m{number}", at, at + delay, user=user, **({} if id_ is None else sdk(id_)))
        for number, (user, at, delay, id_) in enumerate(drawn)
    ]


def told(rows: Sequence[Row]) -> dict[str, tuple[int, int, str]]:
    return {row["message_id"]: (row["session_index"], micros(row["session_start"]), row["session_by"]) for row in rows}


@settings(deadline=None)
@given(histories(), st.sampled_from([1.0, 24.0]))
def test_it_is_what_the_rule_says_event_by_event(rows: list[Row], longest_h: float):
    ordered = windows(rows)
    found = through(Sessions(longest_h=longest_h), ordered)
    expected = sessions_of([row for each in ordered for row in each.to_pylist()], longest_h=longest_h)
    assert told(found) == expected
    for row in found:
        is_sdk = row["session_by"] == "sdk"
        assert len(row["session_id"]) == (1 if is_sdk else 32)
    by_id = {(row["user_key"], row["session_id"], row["session_index"]) for row in found}
    by_index = {(row["user_key"], row["session_index"]) for row in found}
    assert len(by_id) == len(by_index)


@settings(deadline=None)
@given(histories(), st.permutations(range(25)), st.sampled_from([1.0, 5.0, 3_600.0, 1e6]))
def test_neither_the_order_of_arrival_nor_the_windows_matter(rows: list[Row], places: list[int], window_s: float):
    shuffled = [rows[place] for place in places if place < len(rows)]
    expected = in_order(through(Sessions(), windows(rows)))
    assert in_order(through(Sessions(), windows(shuffled, window_s=window_s))) == expected


@settings(deadline=None)
@given(histories(), st.data())
def test_a_process_that_dies_after_any_window_and_reads_the_archive_goes_on_as_if_it_had_not(
    rows: list[Row], data: st.DataObject
):
    step = Sessions()
    ordered = windows(rows)
    cut = data.draw(st.integers(0, len(ordered)))
    expected = through(step, ordered)
    archived = [step.apply(each, users).batch for users in [Users()] for each in ordered[:cut]]
    assert through(step, ordered[cut:], recalled(step, archived)) == expected[sum(each.num_rows for each in archived) :]


@settings(deadline=None)
@given(histories(), st.data())
def test_what_was_archived_and_comes_again_is_told_the_same_session_and_changes_nothing(
    rows: list[Row], data: st.DataObject
):
    step = Sessions()
    ordered = windows(rows)
    expected = through(step, ordered)
    cut = data.draw(st.integers(0, len(ordered)))
    back = data.draw(st.integers(0, cut))
    users = Users()
    archived = [step.apply(each, users).batch for each in ordered[:cut]]
    users = recalled(step, archived)
    before = users.to_bytes()
    repeats = [row for each in archived[back:] for row in each.to_pylist()]
    for row, first in zip(through(step, ordered[back:cut], users), repeats, strict=True):
        assert row == first or row["session_index"] != first["session_index"]  # None, or another that it fits into
    assert users.to_bytes() == before
    assert through(step, ordered[cut:], users) == expected[sum(each.num_rows for each in archived) :]


def recalled(step: Sessions, archived: Sequence[pa.RecordBatch]) -> Users:
    """Return what a new process remembers."""
    users = Users()
    if archived:
        rows = pa.table(concat(archived)).select([*step.recalls, "user_key", "order_index", "released_at"])
        (batch_,) = (
            rows.sort_by([("user_key", "ascending"), ("order_index", "ascending")]).combine_chunks().to_batches()
        )
        step.recall(batch_, users)
    return users


@settings(deadline=None)
@given(histories(ids=st.none()), st.data())
def test_what_comes_again_and_looks_later_than_it_was_changes_nothing_either(rows: list[Row], data: st.DataObject):
    step, users = Sessions(), Users()
    ordered = windows(rows)
    expected = through(step, ordered)
    assume(max(row["session_index"] for row in expected) <= SESSIONS_REMEMBERED)
    cut = data.draw(st.integers(1, len(ordered)))
    archived = [step.apply(each, users).batch for each in ordered[:cut]]
    repeat = data.draw(st.sampled_from(archived)).slice(0, 1)
    newest = max(max(each.column("order_index").to_pylist()) for each in archived)
    repeat = with_columns(repeat, [repeat.schema.field("order_index")], [[newest + 1]]).drop_columns(NAMES)
    (again,) = through(step, [repeat], users)
    assert again in [again | {name: row[name] for name in NAMES} for row in expected if is_of(row, again)]
    assert through(step, ordered[cut:], users) == expected[sum(each.num_rows for each in archived) :]


def is_of(row: Row, other: Row) -> bool:
    return bool(row["message_id"] == other["message_id"])


def test_one_user_of_a_hundred_thousand_events_in_one_batch():
    (one,) = windows([late(str(number), number, 2e5) for number in range(100_000)], window_s=1e6)
    rows = Sessions().apply(one, Users()).batch
    # 27.8 hours without a gap: the longest session is 24 hours, and the second at which they are over is still in it.
    assert rows.column("session_index").to_pylist() == [1] * 86_401 + [2] * (100_000 - 86_401)


def test_a_hundred_thousand_users_of_one_event_and_then_of_another():
    users = Users()
    for index, at_s in enumerate((0.0, HOUR), 1):
        (one,) = windows([event(f"{at_s}-{user}", at_s, user=f"u{user}") for user in range(100_000)])
        assert set(Sessions().apply(one, users).batch.column("session_index").to_pylist()) == {index}
    assert len(users) == 100_000
