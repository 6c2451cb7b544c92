"""Avro rows: what fastavro reads is what the columns held, and the fingerprint is the one of the specification."""

import io
import json
from typing import Any

import avro.schema
import fastavro
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.schemas.event import ARCHIVE
from millrace.sinks.avro_rows import AvroRows, NoAvroError
from tests.support.arrow_values import columns
from tests.support.rows import archive_rows


def read(rows: AvroRows, encoded: bytes):
    assert encoded[:10] == b"\xc3\x01" + bytes.fromhex(rows.fingerprint)
    body = io.BytesIO(encoded[10:])
    found = fastavro.schemaless_reader(body, json.loads(rows.text), None)
    assert body.read() == b""
    return found


@st.composite
def batches(draw: st.DrawFn) -> pa.RecordBatch:
    count = draw(st.integers(0, 5))
    found = draw(st.lists(columns(count), min_size=1, max_size=4))
    return pa.RecordBatch.from_arrays(found, [f"column_{number}" for number in range(len(found))])


@given(batches())
def test_rows_are_read_back_as_they_were(batch: pa.RecordBatch):
    rows = AvroRows(batch.schema)
    expected = batch.to_pylist(maps_as_pydicts="strict")
    assert [read(rows, one) for one in rows.encode(batch)] == expected


def test_rows_of_the_archive_are_read_back_as_they_were():
    (batch,) = archive_rows(300).combine_chunks().to_batches()
    rows = AvroRows(ARCHIVE)
    assert [read(rows, one) for one in rows.encode(batch)] == batch.to_pylist()


@given(batches())
def test_the_fingerprint_is_what_apache_avro_says(batch: pa.RecordBatch):
    rows = AvroRows(batch.schema)
    parsed = avro.schema.parse(json.dumps(without_logical_types(rows.schema)))
    assert bytes.fromhex(rows.fingerprint) == bytes(parsed.fingerprint("CRC-64-AVRO"))


def without_logical_types(schema: Any) -> Any:
    """A schema's canonical form has none; Apache Avro 1.12 for Python leaves {"type": "bytes"} where one was."""
    if isinstance(schema, list):
        return [without_logical_types(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return (
        schema["type"]
        if "logicalType" in schema
        else {key: without_logical_types(value) for key, value in schema.items()}
    )


def test_columns_and_their_parts_may_be_called_alike():
    """`a_b` and the b of `a`; both records."""
    inner = pa.struct([("c", pa.int64())])
    batch = pa.RecordBatch.from_pylist(
        [{"a": {"b": {"c": 1}}, "a_b": {"c": 2}}], schema=pa.schema([("a", pa.struct([("b", inner)])), ("a_b", inner)])
    )
    rows = AvroRows(batch.schema)
    assert [read(rows, one) for one in rows.encode(batch)] == batch.to_pylist()


def test_other_columns_have_another_fingerprint():
    one, two = pa.schema([("a", pa.string())]), pa.schema([("a", pa.string()), ("b", pa.int64())])
    assert AvroRows(one).fingerprint != AvroRows(two).fingerprint
    assert AvroRows(one).fingerprint == AvroRows(one.with_metadata({"x": "y"})).fingerprint


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (pa.schema([("Order ID", pa.string())]), "the column 'Order ID' has no Avro name"),
        (pa.schema([("took", pa.duration("s"))]), "the column 'took' has the type duration"),
        (
            pa.schema([("a", pa.struct([("b", pa.month_day_nano_interval())]))]),
            "the column 'a.b' has the type month_day",
        ),
    ],
)
def test_what_avro_does_not_have_is_said_of_its_column(schema: pa.Schema, says: str):
    with pytest.raises(NoAvroError, match=says):
        AvroRows(schema)


def test_null_where_a_column_never_has_one_is_an_error():
    schema = pa.schema([pa.field("a", pa.string(), nullable=False)])
    batch = pa.RecordBatch.from_arrays([pa.array([None], pa.string())], schema=schema)
    with pytest.raises((ValueError, TypeError)):
        AvroRows(schema).encode(batch)
