"""PostgreSQL's binary COPY made from columns: what the server reads is what the columns hold."""

import asyncio
import datetime as dt
import decimal
import itertools
import math
from typing import Any

import asyncpg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millrace.sinks.copy_binary import Column, copy_data, encode, natural_type
from millrace.sinks.json_rows import JSON
from millrace.sinks.postgres import Postgres
from millrace.sinks.sink import DELIVERED, Delivery
from tests.support.deliveries import Remembered
from tests.support.postgres import PostgresServer

_tables = itertools.count()

_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
FIELDS: list[tuple[pa.Field, st.SearchStrategy[Any]]] = [
    (pa.field("flag", pa.bool_()), st.booleans()),
    (pa.field("tiny", pa.int8()), st.integers(-(2**7), 2**7 - 1)),
    (pa.field("small", pa.int16()), st.integers(-(2**15), 2**15 - 1)),
    (pa.field("middle", pa.int32()), st.integers(-(2**31), 2**31 - 1)),
    (pa.field("large", pa.int64()), st.integers(-(2**63), 2**63 - 1)),
    (pa.field("single", pa.float32()), st.floats(width=32)),
    (pa.field("double", pa.float64()), st.floats()),
    (pa.field("day", pa.date32()), st.dates()),
    (pa.field("at", pa.timestamp("us", tz="UTC")), st.datetimes(timezones=st.just(dt.UTC))),
    (pa.field("bytes", pa.binary()), st.binary(max_size=20)),
    (pa.field("text", pa.string()), _text),
    (pa.field("json", pa.string(), metadata=JSON), st.sampled_from(["[1]", '{"a": 1}', "null", '"é"'])),
    (pa.field("price", pa.decimal128(9, 2)), st.decimals(-9_999_999, 9_999_999, places=2)),
]
SCHEMA = pa.schema([pa.field("message_id", pa.string()), *(field for field, _ in FIELDS)])
_rows = st.lists(st.tuples(*(st.none() | values for _, values in FIELDS)), min_size=1, max_size=8)


def _comparable(value: Any) -> Any:
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value
    return value.normalize() if isinstance(value, decimal.Decimal) else value


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(rows=_rows, skipped=st.integers(0, 2))
def test_a_table_holds_what_the_columns_held(postgres_server: PostgresServer, rows: list[Any], skipped: int):
    skipped = min(skipped, len(rows) - 1)
    ids = [f"m{n}" for n in range(len(rows))]
    columns = [pa.array(ids), *map(pa.array, zip(*rows, strict=True), [field.type for field, _ in FIELDS])]
    batch = pa.RecordBatch.from_arrays(columns, schema=SCHEMA).slice(skipped)
    table = f"copied{next(_tables)}"

    async def main() -> list[Any]:
        sink = Postgres(postgres_server.dsn, table=table)
        await sink.open(Remembered())
        count = len(batch)
        each = Delivery(batch, ids[skipped:], ["ann"] * count, range(count), [True] * count, [0] * count, "all")
        assert await sink.deliver(each) == [DELIVERED] * count
        watcher = await asyncpg.connect(postgres_server.dsn)
        found = await watcher.fetch(f"SELECT * FROM {table} ORDER BY message_id")  # noqa: S608
        await watcher.execute(f"DROP TABLE {table}")
        await watcher.close()
        await sink.close()
        rows_there: list[Any] = found
        return rows_there

    found = [tuple(map(_comparable, row)) for row in asyncio.run(main())]
    written = zip(ids, rows, strict=True)
    assert found == [(each, *map(_comparable, row)) for each, row in written][skipped:]


def test_the_bytes_are_those_of_postgresqls_own_format():
    """As https://www.postgresql.org/docs/15/sql-copy.html describes them: a header, counted rows of counted values."""
    batch = pa.record_batch({"a": pa.array(["é", None]), "b": pa.array([1, 2], pa.int16())})
    encoded = encode(batch, [Column.of(field) for field in batch.schema])
    header = b"PGCOPY\n\xff\r\n\0" + b"\0\0\0\0" + b"\0\0\0\0"
    first = b"\0\x02" + b"\0\0\0\x02" + "é".encode() + b"\0\0\0\x02\0\x01"
    second = b"\0\x02" + b"\xff\xff\xff\xff" + b"\0\0\0\x02\0\x02"
    assert copy_data(encoded) == header + first + second + b"\xff\xff"
    assert copy_data(encoded.slice(1)) == header + second + b"\xff\xff"
    assert copy_data(encoded.slice(1, 0)) == header + b"\xff\xff"


def test_a_column_that_postgresql_has_no_type_for_is_told():
    with pytest.raises(TypeError, match=r"column a is list<item: int64>, for which there is no column in PostgreSQL"):
        natural_type(pa.field("a", pa.list_(pa.int64())))
