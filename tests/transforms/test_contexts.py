"""Contexts: each is read once, whatever comes before it, and the rows get what is theirs."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.schemas.dead_letter import Rejected
from millrace.transforms import contexts as module
from millrace.transforms.contexts import Contexts
from tests.support.decoding import body, decode, event, refusals, rows

GOOD: list[Any] = [
    None, {}, [], {"ip": "1"}, {"page": {"url": "u", "tab_url": 1}}, {"page": {"url": "u", "odd": 1}}, {"odd": [1.50]},
    {"os": {"version": 16}, "screen": {"width": 1}}, {"app": None, "locale": "de"}, {"app": {"build": 1}, "odd": {}},
]  # fmt: skip
BAD: list[Any] = [7, {"ip": 5}, {"page": {"url": 5}}, {"page": 5, "odd": 1}]


def raw(value: Any) -> msgspec.Raw | None:
    return None if value is None else msgspec.Raw(body(value))


def told(known: Contexts, values: list[Any]) -> list[dict[str, Any]]:
    """What comes out of some contexts, a dictionary each."""
    columns, refused = known.spread([raw(value) for value in values])
    found = {name: column.to_pylist() for name, column in columns.items()} | {"refused": refused.tolist()}
    return [{name: column[row] for name, column in found.items() if column[row]} for row in range(len(values))]


@given(st.lists(st.lists(st.sampled_from(GOOD + BAD), min_size=1, max_size=6), max_size=5))
def test_whatever_was_read_before_a_row_gets_what_its_context_says(chunks: list[list[Any]]) -> None:
    known = Contexts()
    for values in chunks:
        assert told(known, values) == [told(Contexts(), [value])[0] for value in values]


@given(st.lists(st.sampled_from(GOOD + BAD), max_size=4), st.lists(st.sampled_from(GOOD + BAD), min_size=1, max_size=4))
def test_contexts_that_were_only_checked_do_not_shift_the_rows(checked: list[Any], values: list[Any]) -> None:
    known = Contexts()
    for value in checked:
        if value in BAD:
            with pytest.raises(Rejected):
                known.check(body(value))
        else:
            known.check(body(value))
    assert told(known, values) == [told(Contexts(), [value])[0] for value in values]


def test_what_is_known_stays_within_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONTEXTS", 5)
    known = Contexts()
    for number in range(40):
        (row,) = told(known, [{"ip": str(number), "odd": 1}])
        assert row == {"context_ip": str(number), "context_rest": '{"odd":1}'}
        assert len(known._numbers) == len(known._refused) == sum(len(each["context_ip"]) for each in known._pieces) <= 6
    monkeypatch.setattr(module, "MAX_CONTEXT_BYTES", 100)
    told(known, [{"ip": "x" * 200}])
    told(known, [{"ip": "y"}])
    assert len(known._numbers) == 1


def test_one_bad_context_is_the_end_of_the_events_that_have_it_and_of_no_others() -> None:
    good, bad = event(messageId="good", context={"odd": 1}), event(messageId="bad", context={"page": {"url": 5}})
    decoding = decode([good, bad], [bad, good], [good])
    assert rows(decoding, "envelope_id", "message_id") == [("e0", "good"), ("e1", "good"), ("e2", "good")]
    assert refusals(decoding) == [("e0", 1, "not_an_event", body(bad)), ("e1", 0, "not_an_event", body(bad))]
    messages = decoding.letters.column("message").to_pylist()
    assert messages == ["Expected `str | null`, got `int` - at `$.context.page.url`"] * 2


@pytest.mark.parametrize("default", [None, [], {}, {"ip": "1", "odd": 1}, {"ip": 5}, 7])
@pytest.mark.parametrize("own", [None, [], {"ip": "2"}, {"locale": "de", "odd": [2]}, {"page": 5}, "x"])
def test_a_context_of_the_batch_is_merged_alike_on_both_paths(default: Any, own: Any) -> None:
    value = event() | {"context": own}
    fast = decode({"batch": [value, event()], "context": default})
    slow = decode({"batch": [value, event()], "context": default, "odd": 1})
    assert [row | {"rest": None} for row in rows(fast)] == [row | {"rest": None} for row in rows(slow)]
    assert refusals(fast) == refusals(slow)


def test_a_context_of_the_batch_that_no_warehouse_can_hold_refuses_the_batch() -> None:
    text = b'{"context":{"screen":1e999},"batch":[{"type":"track","userId":"u","context":{"screen":1}}]}'
    assert refusals(decode(text)) == [("e0", -1, "number_out_of_range", text)]


def test_the_bytes_of_a_context_without_a_column_stay_as_they_came() -> None:
    text = b'{"type":"track","userId":"u","context":{"odd":[ 1.50 ],"page":{"url":"u"},"screen":{ "w":1e2}}}'
    (found,) = rows(decode(text, text), "context_rest")[:1]
    assert found == '{"screen":{ "w":1e2},"odd":[ 1.50 ]}'
    assert json.loads(found) == {"odd": [1.5], "screen": {"w": 100.0}}
