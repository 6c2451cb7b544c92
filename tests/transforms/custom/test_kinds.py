"""Users' transforms: every kind of result, with each error policy, and no row lost."""

import pickle
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.schemas.dead_letter import Reason
from millrace.transforms.steps import Users
from tests.support.batches import event
from tests.support.custom import configured, ordered, run
from tests.support.transforms import BROKEN, BROKEN_BATCH, BROKEN_KEYS, SECRET

Rows = list[dict[str, Any]]


def brief(rows: Rows, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in ("message_id", *names)) for row in rows]


@pytest.mark.parametrize("use", ["euros", "Euros"])
def test_a_function_of_one_event_changes_leaves_out_and_splits(use: str):
    rows = [
        event("1", event="Order", properties='{"total": 2.5}', receipt=4),
        event("2", event="drop"),
        event("3", event="split", properties='{"kept":  1}', receipt=9),
        event("4", 1, event="yield", receipt=5),
        event("5", 1, event=None),
    ]
    found = run(configured(f"{use}, with: {{rate: 3}}"), rows)
    at = ordered(rows).column("order_index").to_pylist()
    assert brief(found.rows, "event", "properties", "total_eur", "receipt", "order_index") == [
        ("1", "Order", '{"total": 2.5}', 7.5, 4, at[0]),
        ("3", "split", '{"kept":  1}', None, 9, at[2]),
        (f"3/{use.lower()}/1", "Part", '{"part":1}', None, 9, at[2] + 1),
        (f"3/{use.lower()}/2", "Part", '{"kept":  1}', None, 9, at[2] + 2),
        ("4", "Part 0", None, None, 5, at[3]),
        (f"4/{use.lower()}/1", "Part 1", None, None, 5, at[3] + 1),
        ("5", None, None, 0.0, -1, at[3] + 2),  # it moved on by as many places as were taken before it
    ]
    assert found.dropped == ["2"]
    assert found.refused == []


def test_what_is_changed_in_place_is_changed_and_what_is_not_stays_byte_for_byte():
    step = configured("euros")[0]
    rows = ordered([event("1", event="x", properties='{"total" :1e0}'), event("2", event="json", properties="{}")])
    applied = step.apply(rows, Users())
    assert applied.batch.column("properties").to_pylist() == ['{"total" :1e0}']
    assert [each.reason for each in applied.refused] == [Reason.TRANSFORM_FAILED]


@pytest.mark.parametrize("name", BROKEN)
def test_an_event_at_which_a_function_fails_is_a_dead_letter_and_its_neighbours_go_on(name: str):
    rows = [event("1", event="a"), event("2", event=name), event("3", event="b")]
    found = run(configured("euros"), rows)
    assert brief(found.rows, "event", "total_eur") == [("1", "a", 0.0), ("3", "b", 0.0)]
    ((message_id, message),) = found.refused
    assert message_id == "2"
    assert message.startswith("euros 3: ")
    assert SECRET not in message


@pytest.mark.parametrize("name", BROKEN)
def test_or_it_passes_unchanged_and_flagged(name: str):
    rows = [event("1", event="a"), event("2", event=name, receipt=7), event("3", event="b")]
    found = run(configured("euros, on_error: pass"), rows)
    assert brief(found.rows, "event", "total_eur", "receipt") == [
        ("1", "a", 0.0, -1), ("2", name, None, 7), ("3", "b", 0.0, -1),
    ]  # fmt: skip
    assert [row["transform_errors"] is None for row in found.rows] == [True, False, True]
    (flag,) = msgspec.json.decode(found.rows[1]["transform_errors"])
    assert (flag["transform"], flag["version"]) == ("euros", "3")
    assert SECRET not in found.rows[1]["transform_errors"]


def test_a_message_names_type_and_place_and_the_text_only_where_it_is_asked_for():
    rows = [event("1", event="raise")]
    ((_, message),) = run(configured("euros"), rows).refused
    assert message.startswith("euros 3: KeyError (transforms.py:")
    assert message.endswith(" in euros)")
    ((_, message),) = run(configured("euros, error_text: true"), rows).refused
    assert message.startswith(f"euros 3: KeyError: '{SECRET}' (transforms.py:")


def test_flags_of_several_transforms_stand_side_by_side():
    steps = configured("euros, on_error: pass", "lengths, on_error: pass")
    assert [[field.name for field in step.adds] for step in steps] == [["total_eur", "transform_errors"], ["length"]]
    (row,) = run(steps, [event("1", event="raise")]).rows
    flags = msgspec.json.decode(row["transform_errors"])
    assert [(flag["transform"], flag["error"]) for flag in flags] == [("euros", "KeyError"), ("lengths", "ValueError")]


@pytest.mark.parametrize("use", ["lengths", "Lengths"])
def test_a_function_of_a_batch_adds_a_column(use: str):
    found = run(configured(use), [event("1"), event("22", receipt=3), event("333")])
    assert brief(found.rows, "length", "receipt") == [("1", 1, -1), ("22", 2, 3), ("333", 3, -1)]


def test_a_function_of_a_batch_may_leave_rows_out():
    found = run(configured("lengths"), [event("1"), event("2", event="drop"), event("3")])
    assert brief(found.rows, "length") == [("1", 1), ("3", 1)]
    assert found.dropped == ["2"]


@pytest.mark.parametrize("name", BROKEN_BATCH)
def test_a_batch_at_which_a_function_fails_is_asked_for_row_by_row(name: str):
    names = ["a"] * 40
    names[3] = names[37] = name
    rows = [event(f"{number:02}", number, event=each) for number, each in enumerate(names)]
    found = run(configured("lengths"), rows)
    assert brief(found.rows, "length") == [(f"{number:02}", 2) for number in range(40) if number not in {3, 37}]
    assert [message_id for message_id, _ in found.refused] == ["03", "37"]
    assert all(message.startswith("lengths ") and SECRET not in message for _, message in found.refused)
    passed = run(configured("lengths, on_error: pass"), rows)
    assert [row["message_id"] for row in passed.rows] == [f"{number:02}" for number in range(40)]
    assert [row["message_id"] for row in passed.rows if row["transform_errors"]] == ["03", "37"]


def test_a_key_is_looked_up_and_what_has_no_answer_goes_without():
    users = ["ann", "ann", "nobody", *BROKEN_KEYS]
    rows = [event(str(number), user=user) for number, user in enumerate(users)]
    found = run(configured("plan"), rows)
    plans = {row["user_key"]: (row["plan"], row["transform_errors"]) for row in found.rows}
    assert len(found.rows) == len(rows)
    assert plans.pop("ann") == ("plan of ann", None)
    assert plans.pop("nobody") == (None, None)
    errors = {
        user: msgspec.json.decode(flag)[0]["error"] for user, (value, flag) in plans.items() if value is None and flag
    }
    late = dict.fromkeys(("slow", "stubborn", "cancel"), "TimeoutError")
    wrong = dict.fromkeys(("wrong", "type", "strange"), "WrongResult")
    assert errors == {"raise": "OSError", "exit": "SystemExit"} | late | wrong
    assert not [flag for _, flag in plans.values() if SECRET in flag]
    refused = run(configured("plan, on_error: dead_letter"), rows)
    assert len(refused.refused) == len(BROKEN_KEYS)
    assert len(refused.rows) == 3


@pytest.mark.parametrize("use", ["euros", "lengths", "Numbered", "plan"])
def test_when_says_for_which_rows(use: str):
    rows = [event("1", event="a"), event("2", event="raise"), event("3", event=None), event("4", event="a", user="bob")]
    (step,) = configured(f'{use}, when: event == "a" and user_key != "bob"')
    (added,) = step.own
    found = run([step], rows)
    assert [row["message_id"] for row in found.rows] == ["1", "2", "3", "4"]
    assert [row["message_id"] for row in found.rows if row[added.name] is not None] == ["1"]
    assert found.refused == []


@pytest.mark.parametrize("use", ["euros", "lengths", "Numbered", "plan"])
def test_an_empty_batch_has_the_columns(use: str):
    (step,) = configured(use)
    empty = ordered([event("1")]).slice(0, 0)
    for rows in (empty, ordered([event("1", event="never")])):
        (step.when,) = [each.when for each in configured('euros, when: event == "a"')]
        applied = step.apply(rows, Users())
        assert applied.batch.schema.names == [*rows.schema.names, *(field.name for field in step.adds)]
        assert (applied.batch.num_rows, applied.refused, applied.dropped) == (rows.num_rows, [], [])


NAMES = st.sampled_from(["a", "a", "drop", "split", "raise", "type", "yield"])
CHAINS = [
    ["euros"],
    ["euros, on_error: pass"],
    ["lengths"],
    ["lengths, on_error: pass; when: event != 'a'"],
    ["Numbered"],
    ["Numbered, on_error: pass", "euros", "lengths, on_error: pass"],
    ["euros, name: first; when: event == 'split'", "lengths", "Numbered"],
]


@pytest.mark.parametrize("chain", CHAINS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_wherever_batches_begin_the_rows_are_the_same_and_each_leaves_once(chain: list[str], data: st.DataObject):
    size = data.draw(st.integers(1, 12))
    rows = [
        event(f"m{number:02}", data.draw(st.integers(0, 3)), user=data.draw(st.sampled_from("ab")), receipt=number,
              event=data.draw(NAMES))
        for number in range(size)
    ]  # fmt: skip
    # A cut between events of one user and µs cannot be: those leave in one window.
    whole = ordered(rows)
    places = whole.select(["user_key", "released_at"]).to_pylist()
    cuts = [at for at in range(1, size) if places[at] != places[at - 1]]
    steps = [pickle.loads(pickle.dumps(step)) for step in configured(*chain)]  # noqa: S301  our own
    once = run(steps, rows)
    again = run(configured(*chain), data.draw(st.permutations(rows)), *data.draw(st.sets(st.sampled_from(cuts or [0]))))
    assert again.rows == once.rows
    assert (sorted(again.refused), sorted(again.dropped)) == (sorted(once.refused), sorted(once.dropped))
    receipts = [row["receipt"] for row in once.rows if "/" not in row["message_id"]]
    gone = [message_id for message_id, _ in once.refused] + once.dropped
    assert sorted(receipts + [int(each[1:]) for each in gone if "/" not in each]) == list(range(size))
    ids = [row["message_id"] for row in once.rows]
    assert len(set(ids)) == len(ids)
    for user in "ab":
        index = [row["order_index"] for row in once.rows if row["user_key"] == user]
        assert index == sorted(set(index))


def test_the_batch_given_is_not_touched():
    rows = ordered([event("1", event="a", properties="{}"), event("2", event="split")])
    before = rows.to_pylist()
    for step in configured("euros", "lengths", "Numbered"):
        step.apply(rows, Users())
    assert rows.to_pylist() == before
    assert isinstance(rows, pa.RecordBatch)
