"""Expressions: they select what the same words select in Python, and a mistake points at its column."""

import json
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.config.expressions import Expression, ExpressionError, compile_expression, compile_value
from millrace.schemas.event import ARCHIVE
from tests.support.batches import batch, event

SCHEMA = pa.schema(
    [
        pa.field("event", pa.string()),
        pa.field("user_id", pa.string()),
        pa.field("late_by_ms", pa.int64()),
        pa.field("score", pa.float64()),
        pa.field("is_late", pa.bool_()),
        pa.field("properties", pa.string()),
    ]
)
Row = dict[str, Any]


def selected(text: str, *rows: Row) -> list[bool]:
    table = batch([event(str(number), **row) for number, row in enumerate(rows)])
    mask: list[bool] = compile_expression(text, ARCHIVE).mask(table).to_pylist()
    return mask


ORDER = {
    "event": "Order Completed",
    "properties": '{"total": 120, "items": [{"sku": "a"}], "Order Id": "9", "gift": true}',
}
VIEW = {"event": "Viewed", "context_locale": "de-DE", "properties": '{"total": "120"}'}
NOTHING: Row = {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('event == "Order Completed" and properties.total > 100', [True, False, False]),
        ("event = 'Viewed'", [False, True, False]),
        ('"Viewed" == event', [False, True, False]),
        ('event != "Viewed"', [True, False, False]),
        ('not event == "Viewed"', [True, False, False]),
        ("event is null", [False, False, True]),
        ("event IS NOT NULL", [True, True, False]),
        ('event in ["Viewed", "Seen"] or properties.gift', [True, True, False]),
        ("event not in ('Viewed',)", [True, False, False]),
        ('context_locale startswith "de"', [False, True, False]),
        ('not (context_locale contains "de")', [False, False, False]),
        ('context_locale matches "^d.-"', [False, True, False]),
        ('context_locale endswith "DE"', [False, True, False]),
        ('properties.total == "120"', [False, True, False]),
        ("120 <= properties.total", [True, False, False]),
        ("properties.total is not null", [True, True, False]),
        ('properties.items[0].sku == "a"', [True, False, False]),
        ('properties.items[1].sku is null', [True, True, True]),
        ('properties."Order Id" in ["9", "10"]', [True, False, False]),
        ('properties.in is null', [True, True, True]),
        ("properties.total == properties.total", [True, True, False]),
        ("user_key != event", [True, True, False]),
        ('occurred_at >= "2026-11-25"', [True, True, True]),
        ('"2026-11-25T13:00:00+01:00" == occurred_at', [True, True, True]),
        ('event == "Viewed" or event == "Order Completed" and properties.gift', [True, True, False]),
        ("properties.gift == true", [True, False, False]),
    ],
)  # fmt: skip
def test_what_is_selected(text: str, expected: list[bool]):
    assert selected(text, ORDER, VIEW, NOTHING) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("evnt == 'x'", "column 1: evnt is not a column; did you mean event?"),
        ("event == 'x' and zzz is null", "column 18: zzz is not a column; docs/event_model.md lists them"),
        ("event == 1", "column 10: event is text: compare it with a text in quotes, not 1"),
        ("late_by_ms > 'x'", "column 14: late_by_ms is a number: compare it with a number, not 'x'"),
        ("occurred_at > 'x'", ("column 15: occurred_at is a time: compare it with a time in quotes, such as "
         "\"2026-12-31T18:00:00Z\", not 'x'")),
        ("date == 'x'", "column 9: date is a day: compare it with a day in quotes, such as \"2026-12-31\", not 'x'"),
        ("event == null", "column 10: nothing equals null; write `is null` or `is not null`"),
        ("user_key.a == 1", "column 1: user_key has no members; only properties, traits, context_rest, rest hold JSON"),
        ("1 == 2", "column 6: 2: on one side there has to be a column or a path in one"),
        ("event matches '('", "column 15: no regular expression (RE2's syntax): missing ): ("),
        ("late_by_ms contains 'x'", "column 1: late_by_ms is a number: only texts can be asked for contains"),
        ("event contains 3", "column 16: after contains there has to be a text in quotes"),
        ("event", "column 1: event is text, not true or false: compare it with something"),
        ("is_late > true", "column 1: is_late is true or false: it has no order; use == or !="),
        ("event == late_by_ms", "column 1: event is text and late_by_ms is a number: they cannot be compared"),
        ("properties.a > occurred_at", ("column 16: occurred_at is a time and properties.a is a JSON value: they "
         "cannot be compared")),
        ("properties.a in [1, 'x']", "column 18: a list holds values of one kind: texts, or numbers; split it with or"),
        ("properties.a[-1] == 1", "column 14: [-1]: a place in a list is a number from 0"),
        ("", 'column 1: it is empty; write a condition such as event == "Order Completed"'),
        ("event == ", "column 10: the end cannot stand here; expected a column, a text in quotes, a number, null"),
        ("event = = 'x'", "column 9: '=' cannot stand here; expected a column, a text in quotes, a number, null"),
        ("event ; 'x'", ("column 7: ';' cannot stand here; expected a comparison (== != < <= > >=), contains, "
         "startswith, endswith or matches, in, is null, and, or")),
        ("(event is null", "column 15: the end cannot stand here; expected )"),
        ("event == 'x' event", ("column 14: 'event' cannot stand here; expected a comparison (== != < <= > >=), "
         "contains, startswith, endswith or matches, in, is null, and, or")),
        ("event == 'a\\x'", "column 10: 'a\\x' is no text: write \\\\ for a backslash"),
        ("__import__('os')", ("column 11: '(' cannot stand here; expected a comparison (== != < <= > >=), contains, "
         "startswith, endswith or matches, in, is null, and, or")),
    ],
)  # fmt: skip
def test_a_mistake_says_where_it_is_and_what_to_do(text: str, problem: str):
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text, ARCHIVE)
    assert str(caught.value) == problem


def test_it_knows_its_columns_and_travels():
    text = 'event == "x" and properties.a.b > 1 and properties.c is null'
    found: Expression = pickle.loads(pickle.dumps(compile_expression(text, ARCHIVE)))  # noqa: S301  our own
    assert (found.text, str(found), found.columns) == (text, text, ("event", "properties"))
    assert found.mask(batch([])).to_pylist() == []


def test_a_column_that_a_batch_lacks_is_null():
    schema = pa.schema([*ARCHIVE, pa.field("session_index", pa.int64())])
    rows = batch([event("1")])
    assert compile_expression("session_index is null", schema).mask(rows).to_pylist() == [True]
    assert compile_expression("session_index != 1", schema).mask(rows).to_pylist() == [False]


def test_text_that_is_no_json_has_nothing_at_any_path():
    rows = batch([event("1", properties=text) for text in ('{"a', "[1]", '"a"', "1", "{}", None)])
    assert compile_expression("properties.a is null", ARCHIVE).mask(rows).to_pylist() == [True] * 6
    assert compile_expression("properties[0] is null", ARCHIVE).mask(rows).to_pylist() == [True, False, *[True] * 4]


def test_the_value_at_a_path_or_in_a_column():
    rows = batch([event("1", user="ann", properties=text) for text in ('{"a": {"b": 3}}', '{"a": {"b": [1]}}', None)])
    assert compile_value("properties.a.b", ARCHIVE).values(rows) == [3, None, None]
    assert compile_value("user_key", ARCHIVE).values(rows) == ["ann"] * 3
    with pytest.raises(ExpressionError, match="column 10: '>' cannot stand here"):
        compile_value("user_key > 1", ARCHIVE)


# What an expression means, in plain Python: None is SQL's null.

Meaning = Callable[[Row], bool | None]
OPERATORS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
RELATIONS: dict[str, Callable[[str, str], bool]] = {
    "contains": lambda text, part: part in text,
    "startswith": str.startswith,
    "endswith": str.endswith,
}
texts = st.text(st.sampled_from("ab'\"\\Ä€"), max_size=3)
numbers = st.integers(-3, 3) | st.sampled_from([0.5, -1.5])
KINDS: dict[str, tuple[type[Any] | tuple[type[Any], ...], st.SearchStrategy[Any]]] = {
    "event": (str, texts),
    "user_id": (str, texts),
    "late_by_ms": ((int, float), numbers),
    "score": ((int, float), numbers),
}
PATHS: dict[str, tuple[str | int, ...]] = {
    "properties.a": ("a",),
    "properties.b.a": ("b", "a"),
    'properties."b"[1]': ("b", 1),
}


def value_at(row: Row, name: str) -> Any:
    if name not in PATHS:
        return row[name]
    found = None if row["properties"] is None else json.loads(row["properties"])
    for key in PATHS[name]:
        if isinstance(key, int):
            found = found[key] if isinstance(found, list) and key < len(found) else None
        else:
            found = found.get(key) if isinstance(found, dict) else None
    return found


def is_kind(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def typed(row: Row, name: str, kind: Any) -> Any:
    value = value_at(row, name)
    return value if is_kind(value, kind) else None


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[str, Meaning]:
    name = draw(st.sampled_from([*KINDS, *PATHS]))
    kind, literals = KINDS[name] if name in KINDS else draw(st.sampled_from(list(KINDS.values())))
    sign = draw(st.sampled_from(list(OPERATORS)))
    literal = draw(literals)

    def meaning(row: Row) -> bool | None:
        value = typed(row, name, kind)
        return None if value is None else bool(OPERATORS[sign](value, literal))

    return f"{name} {sign} {json.dumps(literal)}", meaning


@st.composite
def between_paths(draw: st.DrawFn) -> tuple[str, Meaning]:
    left, right = draw(st.sampled_from(list(PATHS))), draw(st.sampled_from([*PATHS, "event", "score"]))
    sign = draw(st.sampled_from(list(OPERATORS)))
    kinds = [str, (int, float), *([bool] if sign in {"==", "!="} else [])]

    def meaning(row: Row) -> bool | None:
        one, other = value_at(row, left), value_at(row, right)
        if any(is_kind(one, kind) and is_kind(other, kind) for kind in kinds):
            return bool(OPERATORS[sign](one, other))
        return None

    return f"{left} {sign} {right}", meaning


@st.composite
def lists(draw: st.DrawFn) -> tuple[str, Meaning]:
    name = draw(st.sampled_from([*KINDS, *PATHS]))
    kind, literals = KINDS[name] if name in KINDS else draw(st.sampled_from(list(KINDS.values())))
    among = draw(st.lists(literals, min_size=1, max_size=3))
    negated = draw(st.booleans())

    def meaning(row: Row) -> bool | None:
        value = typed(row, name, kind)
        return None if value is None else (value in among) is not negated

    return f"{name} {'not ' * negated}in {json.dumps(among)}", meaning


@st.composite
def relations(draw: st.DrawFn) -> tuple[str, Meaning]:
    name = draw(st.sampled_from(["event", "user_id", *PATHS]))
    word, part = draw(st.sampled_from(list(RELATIONS))), draw(texts)

    def meaning(row: Row) -> bool | None:
        value = typed(row, name, str)
        return None if value is None else RELATIONS[word](value, part)

    return f"{name} {word} {json.dumps(part)}", meaning


@st.composite
def nulls(draw: st.DrawFn) -> tuple[str, Meaning]:
    name = draw(st.sampled_from([*SCHEMA.names, *PATHS]))
    negated = draw(st.booleans())
    return f"{name} is {'not ' * negated}null", lambda row: (value_at(row, name) is None) is not negated


@st.composite
def booleans(draw: st.DrawFn) -> tuple[str, Meaning]:
    name = draw(st.sampled_from(["is_late", *PATHS]))
    return name, lambda row: typed(row, name, bool)


def both(parts: list[tuple[str, Meaning]]) -> tuple[str, Meaning]:
    def meaning(row: Row) -> bool | None:
        values = [part(row) for _, part in parts]
        return False if False in values else None if None in values else True

    return " and ".join(f"({text})" for text, _ in parts), meaning


def either(parts: list[tuple[str, Meaning]]) -> tuple[str, Meaning]:
    def meaning(row: Row) -> bool | None:
        values = [part(row) for _, part in parts]
        return True if True in values else None if None in values else False

    return " or ".join(f"({text})" for text, _ in parts), meaning


def opposite(part: tuple[str, Meaning]) -> tuple[str, Meaning]:
    def meaning(row: Row) -> bool | None:
        value = part[1](row)
        return None if value is None else not value

    return f"not ({part[0]})", meaning


expressions = st.recursive(
    comparisons() | between_paths() | lists() | relations() | nulls() | booleans(),
    lambda inner: (
        st.lists(inner, min_size=2, max_size=3).map(both)
        | st.lists(inner, min_size=2, max_size=3).map(either)
        | inner.map(opposite)
    ),
    max_leaves=6,
)
anything = st.none() | st.booleans() | numbers | texts
members = st.fixed_dictionaries(
    {},
    optional={"a": anything, "b": anything | st.lists(anything, max_size=3) | st.fixed_dictionaries({"a": anything})},
)
rows = st.fixed_dictionaries(
    {
        "event": st.none() | texts,
        "user_id": st.none() | texts,
        "late_by_ms": st.none() | st.integers(-3, 3),
        "score": st.none() | numbers.map(float),
        "is_late": st.none() | st.booleans(),
        "properties": st.none() | members.map(json.dumps),
    }
)


@settings(max_examples=300, deadline=None)
@given(expression=expressions, table=st.lists(rows, max_size=6))
def test_it_selects_what_the_same_words_select_in_python(expression: tuple[str, Meaning], table: list[Row]):
    text, meaning = expression
    found = compile_expression(text, SCHEMA).mask(pa.RecordBatch.from_pylist(table, schema=SCHEMA))
    assert found.to_pylist() == [meaning(row) is True for row in table]


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30) | st.text(st.sampled_from(" event=<>()[].'\"1and orisnull\\"), max_size=30))
def test_whatever_is_written_is_an_expression_or_a_mistake_in_it(text: str):
    try:
        found = compile_expression(text, ARCHIVE)
    except ExpressionError as error:
        assert 1 <= error.column <= len(text) + 1  # noqa: PT017  either is right
    else:
        assert len(found.mask(batch([event("1")]))) == 1
