"""JSON rows: what comes out is what a plain writer would write, whatever is in the columns."""

import base64
import datetime as dt
import decimal
import json
import math
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.sinks import json_rows as module
from millrace.sinks.json_rows import JSON, JSON_COLUMNS, json_rows
from tests.support.rows import archive_rows


def _in_utc(at: dt.datetime) -> dt.datetime:
    return at.replace(tzinfo=dt.UTC)


def _whole(at: dt.datetime) -> dt.datetime:
    return at.replace(microsecond=0)


TEXTS = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from('"\\\n\x00\x1f/')), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda of: st.lists(of, max_size=3) | st.dictionaries(TEXTS, of, max_size=3),
    max_leaves=6,
)
JSON_TEXTS = st.one_of(
    VALUES.map(json.dumps),
    VALUES.map(lambda value: json.dumps(value, indent=2, ensure_ascii=False)),
    TEXTS,  # hardly ever JSON
    st.sampled_from(
        ["", " ", "{", '{"a":1', "1 2", "NaN", "[1,]", '{"a":\r\n1}', '{"a":1,"a":2}', "[" * 5_000, "1e999"]
    ),
)
KINDS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "text": (pa.string(), TEXTS),
    "large_text": (pa.large_string(), TEXTS),
    "json": (pa.string(), JSON_TEXTS),
    "int": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "small": (pa.uint8(), st.integers(0, 255)),
    "flag": (pa.bool_(), st.booleans()),
    "double": (pa.float64(), st.floats()),
    "float": (pa.float32(), st.floats(width=32)),
    "time": (pa.timestamp("us", tz="UTC"), st.datetimes().map(_in_utc)),
    "seconds": (
        pa.timestamp("s", tz="Europe/Berlin"),
        st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1)).map(_whole),
    ),
    "day": (pa.date32(), st.dates()),
    "amount": (pa.decimal128(20, 4), st.decimals(-(10**12), 10**12, places=4)),
    "bytes": (pa.binary(), st.binary(max_size=8)),
    "words": (pa.list_(pa.string()), st.lists(TEXTS, max_size=3)),
    "coded": (pa.dictionary(pa.int32(), pa.string()), TEXTS),
    "nothing": (pa.null(), st.none()),
}


@st.composite
def batches(draw: st.DrawFn) -> pa.RecordBatch:
    """A batch of some kinds of columns, under names that may need escapes; often a slice of a larger one."""
    size = draw(st.integers(0, 6))
    kinds = draw(st.lists(st.sampled_from(list(KINDS)), max_size=6))
    names = draw(st.lists(TEXTS, min_size=len(kinds), max_size=len(kinds), unique=True))
    arrays, fields = [], []
    for name, kind in zip(names, kinds, strict=True):
        of, values = KINDS[kind]
        drawn = draw(st.lists(st.none() | values, min_size=size, max_size=size))
        arrays.append(pa.array(drawn, of))
        fields.append(pa.field(name, of, metadata=JSON if kind == "json" else None))
    if not arrays or draw(st.booleans()):
        fields.append(pa.field("last" * 4, pa.int32()))
        arrays.append(pa.array(range(size), pa.int32()))
    start = draw(st.integers(0, size))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)).slice(start, draw(st.integers(0, size)))


def plainly(rows: pa.RecordBatch) -> list[dict[str, Any]]:
    """What the rows say, value by value."""
    found = []
    for row in rows.to_pylist():
        told = {}
        for field in rows.schema:
            value = row[field.name]
            if value is None or (isinstance(value, float) and not math.isfinite(value)):
                continue
            told[field.name] = _json(value) if field.metadata else _plain(value)
        found.append(told)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value) if isinstance(value, dt.date | decimal.Decimal) else value


def _json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text


@given(batches())
def test_each_row_is_one_line_that_says_what_the_columns_say(rows: pa.RecordBatch):
    lines = json_rows(rows)
    assert [msgspec.json.decode(line) for line in lines] == plainly(rows)
    assert not any(b"\n" in line or b"\r" in line for line in lines)
    order = list(rows.schema.names)
    assert all([*json.loads(line)] == [name for name in order if name in json.loads(line)] for line in lines)


@given(st.lists(JSON_TEXTS, min_size=1, max_size=5))
def test_json_texts_stand_in_the_line_as_they_came_but_for_line_ends(texts: list[str]):
    lines = json_rows(pa.record_batch([pa.array(texts)], schema=pa.schema([pa.field("p", pa.string(), metadata=JSON)])))
    for text, line in zip(texts, lines, strict=True):
        if "\n" in text or "\r" in text or _json(text) is text:
            continue
        assert line == b'{"p":' + text.encode() + b"}"


def test_a_row_of_the_archive_as_it_is_written():
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("at", pa.timestamp("us", tz="UTC")),
            pa.field("properties", pa.string(), metadata=JSON),
            ("n", pa.int64()),
            ("x", pa.float64()),
            ("late", pa.bool_()),
            ("day", pa.date32()),
            ("eur", pa.decimal128(9, 2)),
            ("raw", pa.binary()),
            ("none", pa.string()),
        ]
    )
    at = dt.datetime(2026, 12, 31, 18, tzinfo=dt.UTC)
    row = ['say "hi"', at, '{"total": 12.50}', 7, 1.0, False, at.date(), decimal.Decimal("9.90"), b"\x00\xff", None]
    rows = pa.RecordBatch.from_pylist([dict(zip(schema.names, row, strict=True)), {}], schema=schema)
    line = (
        b'{"id":"say \\"hi\\"","at":"2026-12-31T18:00:00.000000Z","properties":{"total": 12.50},"n":7,"x":1.0,'
        b'"late":false,"day":"2026-12-31","eur":"9.90","raw":"AP8="}'
    )
    assert json_rows(rows) == [line, b"{}"]


def test_a_batch_that_is_too_large_for_one_text_is_written_in_parts(monkeypatch: pytest.MonkeyPatch):
    (rows,) = archive_rows(200).to_batches()
    whole = json_rows(rows)
    monkeypatch.setattr(module, "_AT_ONCE_BYTES", 10_000)
    assert json_rows(rows) == whole
    assert [msgspec.json.decode(line) for line in whole] == plainly(rows)


def test_years_of_other_than_four_digits_are_written_too():
    at = pa.array([253_402_300_800_000_000, 0, None], pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    assert json_rows(pa.record_batch([at], names=["at"])) == [
        b'{"at":"10000-01-01T00:00:00.000000Z"}',
        b'{"at":"1970-01-01T00:00:00.000000Z"}',
        b"{}",
    ]


def test_the_columns_of_json_text_are_those_that_the_contracts_call_so():
    from millrace.config.columns import known_columns
    from millrace.schemas import avro

    texts = [
        field["name"]
        for name in ("event", *avro.names("added"))
        for field in avro.load(name)["fields"]
        if "JSON" in field["doc"]
    ]
    assert {*texts, "transform_errors"} == JSON_COLUMNS
    assert set(texts) < set(known_columns().names)
