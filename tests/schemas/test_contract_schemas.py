"""How Avro schemas read JSON: what a schema allows has no violation, and the fast path lets no violation pass."""

import base64
import json
from typing import Any

import fastavro
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.schemas import avro
from millrace.schemas.avro_json import SchemaError, fast_decoder, read_schema
from millrace.schemas.contracts import (
    ADDED,
    Checker,
    event_of_folder,
    folder_of_event,
    version_key,
)
from tests.support.plans import contract, record

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_NAMES = st.sampled_from(["a", "b", "price", "user_id", "z9"])
_IN_JSON: list[tuple[Any, st.SearchStrategy[Any]]] = [
    ("boolean", st.booleans()),
    ("int", st.integers(-(2**31), 2**31 - 1)),
    ("long", st.integers(-(2**63), 2**63 - 1) | st.integers(-(2**40), 2**40).map(float)),
    ("float", st.floats(allow_nan=False, allow_infinity=False, width=32)),
    ("double", st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)),
    ("string", _TEXT),
    ("bytes", st.binary(max_size=8).map(lambda raw: base64.b64encode(raw).decode())),
    ({"type": "string", "logicalType": "uuid"}, st.uuids().map(str)),
    ({"type": "int", "logicalType": "date"}, st.dates().map(str)),
    ({"type": "long", "logicalType": "time-micros"}, st.times().map(lambda at: at.isoformat())),
    ({"type": "long", "logicalType": "timestamp-millis"}, st.datetimes().map(lambda at: at.isoformat() + "Z")),
    ({"type": "long", "logicalType": "local-timestamp-micros"}, st.datetimes().map(lambda at: at.isoformat())),
    ({"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
     st.decimals(-1_000, 1_000, places=2).map(str) | st.integers(-9, 9) | st.floats(-9, 9)),
]  # fmt: skip


@st.composite
def nodes(draw: st.DrawFn, depth: int = 2) -> tuple[Any, st.SearchStrategy[Any]]:
    """Return an Avro type and what it allows in JSON."""
    which = draw(st.integers(0, 9 if depth else 4))
    if which <= 3:
        return _IN_JSON[draw(st.integers(0, len(_IN_JSON) - 1))]
    name = f"T{draw(st.integers(0, 10**9))}"
    if which == 4:
        symbols = draw(st.lists(st.sampled_from(["A", "B", "C_1"]), min_size=1, unique=True))
        return {"type": "enum", "name": name, "symbols": symbols}, st.sampled_from(symbols)
    if which == 5:
        items, values = draw(nodes(depth - 1))
        return {"type": "array", "items": items}, st.lists(values, max_size=3)
    if which == 6:
        items, values = draw(nodes(depth - 1))
        return {"type": "map", "values": items}, st.dictionaries(_TEXT, values, max_size=3)
    if which <= 8:
        return draw(records(depth - 1))
    branches = draw(st.lists(nodes(depth - 1), min_size=1, max_size=3))
    return [each for each, _ in branches], st.one_of(*(values for _, values in branches))


@st.composite
def records(draw: st.DrawFn, depth: int = 2) -> tuple[Any, st.SearchStrategy[Any]]:
    required: dict[str, Any] = {}
    optional: dict[str, Any] = {}
    fields = []
    for name in draw(st.lists(_NAMES, unique=True, max_size=4)):
        kind, values = draw(nodes(depth))
        field: dict[str, Any] = {"name": name, "type": kind}
        key = name
        if draw(st.booleans()):
            key = field["key"] = draw(st.sampled_from([f"{name}-x", f"${name}", f'{name}"', f"ö{name}\\", f" {name}"]))
        if draw(st.booleans()) and not isinstance(kind, list):
            field |= {"type": ["null", kind], "default": None}
            optional[key] = st.none() | values
        else:
            required[key] = values
        fields.append(field)
    name = f"R{draw(st.integers(0, 10**9))}"
    return {"type": "record", "name": name, "fields": fields}, st.fixed_dictionaries(required, optional=optional)


@settings(deadline=None)
@given(data=st.data())
def test_what_a_schema_allows_has_no_violation(data: st.DataObject):
    schema, values = data.draw(records())
    value = data.draw(values)
    checker = Checker(contract("order_completed", schema))
    text = json.dumps(
        value, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 1]))
    ).encode()
    for strip in (False, True):
        found, stripped = checker.check(text, strip=strip)
        assert found == []
        assert stripped == text


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT
    | st.sampled_from(["2026-11-25", "2026-11-25T10:00:00Z", "A", "1.5", "YQ=="]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES | _TEXT, inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None)
@given(data=st.data())
def test_the_fast_path_passes_only_what_has_no_violation_and_what_is_stripped_has_none_left_but_what_is_missing(
    data: st.DataObject,
):
    schema, values = data.draw(records())
    value = data.draw(values)
    for key in data.draw(st.lists(st.sampled_from(sorted(value) or ["a"]), max_size=2)):
        value[key] = data.draw(_JSON)
    value |= data.draw(st.dictionaries(_NAMES, _JSON, max_size=1))
    checker = Checker(contract("order_completed", schema))
    text = json.dumps(value).encode()
    found, stripped = checker.check(text, strip=True)
    assert checker.suspects([text]) in ([0], [] if not found else [0])
    again = checker.check(stripped)
    nulled = {each.field for each in found if each.action.value == "nulled"}
    left = [each for each in again.violations if each.kind.value != "missing_field" and each.field not in nulled]
    assert left == []


def test_the_usual_contract_is_fast_and_one_with_a_union_that_looks_alike_is_slow_but_right():
    fast = record("R", a="string", b=["null", "double"], c={"type": "array", "items": "long"}, d=("int", 3))
    assert fast_decoder(read_schema(fast)) is not None
    assert Checker(contract("a", fast)).suspects([b'{"a":"x","c":[1]}', b'{"a":1}']) == [1]
    one, two = record("One", x="int"), record("Two", y="int", z="int")
    slow = record("R", a=[one, two], b=["string", {"type": "long", "logicalType": "timestamp-micros"}])
    assert fast_decoder(read_schema(slow)) is None
    checker = Checker(contract("a", slow))
    assert checker.suspects([b"{}"]) == [0]
    assert checker.check(b'{"a":{"x":1},"b":"text"}').violations == []
    (wrong,) = checker.check(b'{"a":{"y":1,"z":"2"},"b":"text"}').violations  # of Two, which is nearer
    assert (wrong.field, wrong.found, wrong.expected) == ("properties.a.z", "string", "int")


def test_defaults_open_records_and_keys():
    schema = {**record("R", n=("int", 3), key_="string"), "open": True}
    schema["fields"][1]["key"] = "$key"
    checker = Checker(contract("a", schema))
    texts = [b'{"$key":"x"}', b'{"$key":"x","n":4,"more":[]}', b'{"$key":"x","n":null}', b'{"key_":"x"}']
    assert checker.suspects(texts) == [2, 3]
    assert [checker.check(text).violations for text in texts[:2]] == [[], []]
    (null,), (missing,) = (checker.check(text).violations for text in texts[2:])
    assert (null.kind.value, null.field, null.found) == ("wrong_type", "properties.n", "null")
    assert (missing.kind.value, missing.field) == ("missing_field", "properties.$key")


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("int", [0, 3.0, -(2**31)], [2**31, 1.5, "1", True, None]),
        ("long", [2**63 - 1, 1e3], [2**63, 1e30, 0.1]),
        ("double", [1, 1.5], ["1", False]),
        ("bytes", ["YQ==", ""], ["a", 1]),
        ({"type": "fixed", "name": "F", "size": 1}, ["YQ=="], ["", "YWE=", 1]),
        ({"type": "int", "logicalType": "date"}, ["2026-11-25"], ["2026-13-01", "25.11.2026", 20_000]),
        ({"type": "long", "logicalType": "timestamp-micros"},
         ["2026-11-25T10:00:00Z", "2026-11-25T10:00:00.123456+01:00", "2026-11-25 10:00:00"],
         ["2026-11-25", 1_795_608_000]),
        ({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}, ["9.99", "-1", 1.5, 3],
         ["9,99", "", "NaN", True]),
        ({"type": "string", "logicalType": "uuid"}, ["0b5d1a1e-6b1f-4c55-9d4c-1a2b3c4d5e6f"], ["x", 1]),
        ({"type": "enum", "name": "E", "symbols": ["EUR"]}, ["EUR"], ["eur", "", 1]),
        ({"type": "string", "logicalType": "unknown"}, ["x"], [1]),
        ("null", [None], [0, ""]),
    ],
)  # fmt: skip
def test_each_type_by_its_json(kind: Any, good: list[Any], bad: list[Any]):
    checker = Checker(contract("a", {"type": "record", "name": "R", "fields": [{"name": "v", "type": kind}]}))
    assert [value for value in good if checker.check(json.dumps({"v": value}).encode()).violations] == []
    assert [value for value in bad if not checker.check(json.dumps({"v": value}).encode()).violations] == []


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("string", "a contract has to be a record"),
        (record("R", a="strin"), "a: the type strin is not known; there are: null, boolean"),
        (record("R", a=record("R", b="int")), None),
        (record("R", a={"type": "array", "items": "R"}), "a: the record R inside itself cannot be checked"),
        (record("R", a=[]), "a: a union without types"),
        (record("R", a={"type": "enum", "name": "E"}), "a: an enum needs `symbols`"),
        (record("R", a={"type": "fixed", "name": "F"}), "a: a fixed needs `size`"),
        (record("R", a={"type": "array"}), "a: no Avro type"),
        (record("R", a=3), "a: no Avro type"),
        ({"type": "record", "name": "R"}, "the schema: a record needs `name` and `fields`"),
        ({"type": "record", "name": "R", "fields": [{"name": "a"}]}, "R: a field needs `name` and `type`"),
        ({"type": "record", "name": "R",
          "fields": [{"name": "a", "type": "int"}, {"name": "b", "key": "a", "type": "int"}]},
         "a: stands twice in R; keep one"),
        ({"type": "record", "name": "R", "fields": [{"name": "a", "key": 1, "type": "int"}]},
         "a: `key` has to be a text"),
    ],
)  # fmt: skip
def test_what_can_be_no_contract_is_said(schema: Any, said: str | None):
    if said is None:
        read_schema(schema)
        return
    with pytest.raises(SchemaError) as caught:
        read_schema(schema)
    assert str(caught.value).startswith(said)


def test_named_types_are_known_by_name_and_by_full_name():
    currency = {"type": "enum", "name": "Currency", "namespace": "shop", "symbols": ["EUR"]}
    schema = record("R", a=currency, b="Currency", c=["null", "shop.Currency"])
    fastavro.parse_schema(record("R", a=currency, b="shop.Currency"))
    checker = Checker(contract("a", schema))
    assert checker.suspects([b'{"a":"EUR","b":"EUR","c":"EUR"}', b'{"a":"EUR","b":"x"}']) == [1]


def test_folders_and_events():
    names = ["Order Completed", "Products 2 Viewed", "3 D", "Signed In"]
    assert [event_of_folder(folder_of_event(name)) for name in names] == names
    others = ["order completed", "orderCompleted", "ORDER", "日本", "a--b", " x ", "", "_page"]
    folders = ["order_completed", "order_completed", "order", "event", "a_b", "x", "event", "page"]
    assert [folder_of_event(name) for name in others] == folders
    versions = ["10", "1", "2", "10.0.1", "1.10", "1.2"]
    assert sorted(versions, key=version_key) == ["1", "1.2", "1.10", "2", "10", "10.0.1"]


def test_the_added_columns_are_documented_and_nullable():
    schema = avro.load("added/contracts")
    fastavro.parse_schema(schema)
    assert [field.name for field in ADDED] == ["contract", "violations"]
    assert all(field.nullable for field in ADDED)
    assert all(field["doc"] and field["default"] is None for field in schema["fields"])


def test_a_hostile_value_is_never_in_a_violation():
    checker = Checker(contract("a", record("R", a="int", b={"type": "enum", "name": "E", "symbols": ["X"]})))
    secret = "4111111111111111"  # noqa: S105
    text = json.dumps({"a": secret, "b": secret, "c": {"d": secret}}).encode()
    assert secret not in msgspec.json.encode(checker.check(text).violations).decode()
