"""The filter language: what it means, and what it refuses."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from millrace.broker.errors import Refused
from millrace.broker.filters import parse_filter


@pytest.mark.parametrize(
    ("source", "attributes", "expected"),
    [
        ('attributes."a name" = "x"', {"a name": "x"}, True),
        ('attributes:"iana.org/language_tag"', {"iana.org/language_tag": ""}, True),
        ('attributes.a-b = "x"', {"a-b": "x"}, True),
        (r'attributes.a = "say \"x\" \\ \u0041"', {"a": 'say "x" \\ A'}, True),
        ('attributes.a = ""', {}, False),
        ('attributes.a != ""', {}, True),
        ("NOT (attributes:a OR attributes:b)", {"c": ""}, True),
        ("NOT NOT attributes:a", {"a": ""}, True),
        (" attributes : a\n AND\tattributes:b ", {"a": "", "b": ""}, True),
        ("attributes:a AND attributes:b AND attributes:c", {"a": "", "b": ""}, False),
        ('hasPrefix(attributes.a, "")', {"a": "x"}, True),
        ('hasPrefix(attributes.a, "")', {}, False),
        ("attributes:AND", {"AND": ""}, None),
    ],
)
def test_what_a_filter_means(source: str, attributes: dict[str, str], expected: bool | None) -> None:
    if expected is None:
        with pytest.raises(Refused):
            parse_filter(source)
    else:
        assert parse_filter(source)(attributes) is expected


@pytest.mark.parametrize(
    "source",
    [
        *(" ", "x", "attributes", "attributes.", "attributes:", "attributes.a", "attributes.a =", "attributes.a = b"),
        *(
            'attributes.a = "b',
            'attributes.a == "b"',
            'attributes.a < "b"',
            "attributes:a attributes:b",
            "attributes:a AND",
        ),
        *("(attributes:a", "attributes:a)", "AND", "NOT", "attributes:a and attributes:b", "data:a", "()"),
        *("attributes:a AND attributes:b OR attributes:c", 'hasPrefix(a, "b")', "hasPrefix(attributes.a, b)", "é"),
        "attributes:" + "a" * 246,
    ],
)
def test_what_is_no_filter_is_refused(source: str) -> None:
    with pytest.raises(Refused):
        parse_filter(source)


@given(st.text(alphabet='attributes.:=!"\\ ()AND-ORhasPrefix,x', max_size=60))
def test_any_text_is_a_filter_or_refused(source: str) -> None:
    try:
        predicate = parse_filter(source)
    except Refused:
        return
    assert predicate({"a": "x"}) in (True, False)


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_value_can_be_asked_for(value: str, other: str) -> None:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    predicate = parse_filter(f'attributes.a = "{quoted}"')
    assert predicate({"a": value})
    assert predicate({"a": other}) is (other == value)
