"""JSON paths: one value is replaced, all else stays; however a hostile text spells it, nothing slips through."""

import copy
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.transforms.json_paths import Tree, rewrite

KEYS = ["a", "b", "email", "ä", 'q"', "x/y"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "a", "email", '"email":1', "\\", "ä", "\u0000"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
PATHS = st.lists(st.sampled_from(KEYS), min_size=1, max_size=3)
GONE = object()


def mark(value: bytes) -> bytes:
    return value if value == b"null" else b'"*"'


def drop(_: bytes) -> None:
    return None


def tree(*paths: Any, act: Any = mark, each: bool = False) -> Tree:
    found = Tree()
    for path in paths:
        found.add(path, act, each=each)
    return found


def expected(value: Any, path: list[str], left: Any) -> Any:
    """Do the same to a value: slowly, and in place of the whole."""
    if isinstance(value, list):
        return [each for each in (expected(each, path, left) for each in value) if each is not GONE] if path else left
    if not path:
        return None if value is None and left is not GONE else left
    if not isinstance(value, dict) or path[0] not in value:
        return value
    inner = value[path[0]]
    new = (None if inner is None and left is not GONE else left) if len(path) == 1 else expected(inner, path[1:], left)
    found = {key: new if key == path[0] else each for key, each in value.items()}
    return {key: each for key, each in found.items() if each is not GONE}


@pytest.mark.parametrize(
    ("text", "path", "left"),
    [
        ('{"a":1,"b" : 2}', ["a"], '{"a":"*","b" : 2}'),
        ('{ "a": {"b": "x" , "c":[1.50,1e3]} }', ["a", "b"], '{ "a": {"b": "*" , "c":[1.50,1e3]} }'),
        ('{"items":[{"sku":1},{"q":2},3,[{"sku":4}]]}', ["items", "sku"],
         '{"items":[{"sku":"*"},{"q":2},3,[{"sku":"*"}]]}'),
        ('{"a":null}', ["a"], '{"a":null}'),
        ('{"b":"a"}', ["a"], '{"b":"a"}'),
        ('{"a":[1]}', ["a", "b"], '{"a":[1]}'),
        ('{"\\u0061":1}', ["a"], '{"a":"*"}'),
        ('{"a":1,"a":2}', ["a"], '{"a":"*"}'),
        ('{"a":"secret","a":null}', ["a"], '{"a":null}'),
        ('{"a":{"b":1},"a":{"c":2}}', ["a", "b"], '{"a":{"c":2}}'),
        ('{"n":{"a":1},"\\u0061":1}', ["a"], '{"n":{"a":1},"a":"*"}'),
        ('{"x\\"a":1,"a":1}', ["a"], '{"x\\"a":1,"a":"*"}'),
        ('{"x/y":1}', ["x/y"], '{"x/y":"*"}'),
        ('{"x\\/y":1}', ["x/y"], '{"x/y":"*"}'),
        ('{"\\u00e4":1}', ["ä"], '{"ä":"*"}'),
        ('{"a":12,"b":{"a":1}}', ["a"], '{"a":"*","b":{"a":1}}'),
        ("{}", ["a"], "{}"),
    ],
)  # fmt: skip
def test_one_value_is_replaced(text: str, path: list[str], left: str):
    assert rewrite(text.encode(), tree(path)) == left.encode()


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('{"a":1}', "{}"), ('{"a":1,"b":2}', '{"b":2}'), ('{"b":2,"a":1}', '{"b":2}'), ('{"b":2,"a":1,"c":3}',
        '{"b":2,"c":3}'), ('{"b": 2, "a": 1}', '{"b": 2}'), ('{"a": 1, "b": 2}', '{"b": 2}'), ('{"a":null}', "{}"),
        ('{"b":"\\",","a":1}', '{"b":"\\","}'), ('{ "a":1 }', "{}"), ('{"a":12,"b":{"a":1}}', '{"b":{"a":1}}'),
    ],
)  # fmt: skip
def test_a_member_is_dropped_with_its_name(text: str, left: str):
    assert rewrite(text.encode(), tree(["a"], act=drop)) == left.encode()


def test_of_an_array_each_element_or_the_whole():
    text = b'{"tags":["x",null,["y"]]}'
    assert rewrite(text, tree(["tags"])) == b'{"tags":"*"}'
    assert rewrite(text, tree(["tags"], each=True)) == b'{"tags":["*",null,["*"]]}'
    assert rewrite(text, tree(["tags"], each=True, act=drop)) == b'{"tags":[[]]}'
    assert rewrite(b'{"tags":"x"}', tree(["tags"], each=True)) == b'{"tags":"*"}'


def test_the_first_of_a_path_counts_and_the_whole_takes_what_is_inside():
    both = tree(["a"], ["b"])
    both.add(["a"], drop)
    assert rewrite(b'{"a":1,"b":2}', both) == b'{"a":"*","b":"*"}'
    for paths in (["a", "b"], ["a"]), (["a"], ["a", "b"]):
        assert rewrite(b'{"a":{"b":1,"c":2}}', tree(*paths)) == b'{"a":"*"}'
    kept = Tree()
    kept.add(["a", "b"], mark)
    kept.add(["a"], bytes, whole=False)
    assert rewrite(b'{"a":{"b":1,"c":2}}', kept) == b'{"a":{"b":"*","c":2}}'


@pytest.mark.parametrize("ascii_only", [True, False])
@given(
    value=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4), path=PATHS, drops=st.booleans(), data=st.data()
)
def test_all_else_has_its_value(ascii_only: bool, value: dict[str, Any], path: list[str], drops: bool, data: Any):
    separators = data.draw(st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")]))
    text = json.dumps(value, ensure_ascii=ascii_only, separators=separators).encode()
    left = rewrite(text, tree(path, act=drop if drops else mark))
    assert left is not None
    assert msgspec.json.decode(left) == expected(copy.deepcopy(value), path, GONE if drops else "*")


@given(value=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4), path=PATHS)
def test_twice_is_once_and_a_text_without_the_path_keeps_its_bytes(value: dict[str, Any], path: list[str]):
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    once = rewrite(text, tree(path))
    assert once is not None
    assert rewrite(once, tree(path)) == once
    if expected(copy.deepcopy(value), path, "*") == value:
        assert json.loads(once) == value


@given(st.binary(max_size=60) | st.sampled_from([b"[" * 100_000, b'{"a":' * 100_000, b'{"a":NaN}', b'{"a"', b"\xff"]))
def test_what_is_no_json_is_said_to_be_none_or_left(text: bytes):
    try:
        rewrite(text, tree(["a"], ["b"]))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
