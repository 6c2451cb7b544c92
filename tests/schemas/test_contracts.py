"""The contracts in Avro, Arrow, Delta and msgspec are one; and they cost no import of Beam or of a client."""

import datetime as dt
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from deltalake import Schema
from hypothesis import given
from hypothesis import strategies as st

from millrace.schemas import avro, dead_letter, dropped, duplicate, event, identity, undelivered, wire
from millrace.sinks.tables import SPECS, UNDELIVERED

FOLDER = Path(avro.__file__).parent
CONTRACTS = {
    "event": event.ARCHIVE,
    "dead_letter": dead_letter.SCHEMA,
    "duplicate": duplicate.SCHEMA,
    "dropped": dropped.SCHEMA,
    "identity": identity.SCHEMA,
    "undelivered": undelivered.SCHEMA,
}
PARSED: dict[str, Any] = {name: fastavro.parse_schema(avro.load(name)) for name in CONTRACTS}

_AVRO = {
    pa.string(): "string",
    pa.binary(): "bytes",
    pa.bool_(): "boolean",
    pa.int32(): "int",
    pa.int64(): "long",
    pa.timestamp("us", tz="UTC"): {"type": "long", "logicalType": "timestamp-micros"},
    pa.date32(): {"type": "int", "logicalType": "date"},
}


def test_every_contract_of_the_folder_is_tested_here():
    assert {path.stem for path in FOLDER.glob("*.avsc")} == set(CONTRACTS)


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_contract_parses_and_every_field_is_documented(name: str):
    record = avro.load(name)
    assert PARSED[name]["name"] == f"millrace.{record['name']}"
    assert [field["name"] for field in record["fields"] if not field.get("doc")] == []
    # A reader of an older file fills in what it lacks: only with a default, and null is one only where it stands first.
    optional = [field for field in record["fields"] if isinstance(field["type"], list)]
    assert all(field["default"] is None and field["type"][0] == "null" for field in optional)


@pytest.mark.parametrize("name", CONTRACTS)
def test_arrow_has_the_names_order_types_and_nulls_of_avro(name: str):
    back = [
        (field.name, ["null", _AVRO[field.type]] if field.nullable else _AVRO[field.type]) for field in CONTRACTS[name]
    ]
    assert back == [(field["name"], field["type"]) for field in avro.load(name)["fields"]]


@pytest.mark.parametrize("name", CONTRACTS)
def test_delta_gives_back_the_arrow_schema_it_was_made_of(name: str):
    found = pa.schema(Schema.from_arrow(CONTRACTS[name]))
    assert found == CONTRACTS[name]
    assert [field.nullable for field in found] == [field.nullable for field in CONTRACTS[name]]


def test_the_tables_have_the_contracts_schemas():
    assert sorted(spec.schema.names for spec in (*SPECS, UNDELIVERED)) == sorted(
        schema.names for schema in CONTRACTS.values()
    )
    for spec in (*SPECS, UNDELIVERED):
        named = {*spec.statistics_columns, *spec.sort_columns, *spec.plain_columns}
        assert named | {spec.time_column, spec.partition_column} <= set(spec.schema.names)


def test_what_travels_is_the_contract_and_what_only_the_pipeline_needs():
    placed = {"released_at", "is_late", "late_by_ms", "order_index", "date"}
    assert set(event.ARCHIVE.names) - set(event.BATCH.names) == placed
    assert event.BATCH.names[-2:] == ["arrived_at", "receipt"]
    assert dead_letter.SCHEMA.append(event.RECEIPT) == dead_letter.BATCH
    assert duplicate.SCHEMA.append(event.RECEIPT) == duplicate.BATCH


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_VALUES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.string(): _TEXT,
    pa.binary(): st.binary(max_size=20),
    pa.bool_(): st.booleans(),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.timestamp("us", tz="UTC"): st.datetimes(
        dt.datetime(1970, 1, 1),
        dt.datetime(2262, 1, 1),
        timezones=st.just(dt.UTC),
    ),
    pa.date32(): st.dates(dt.date(1970, 1, 1), dt.date(2262, 1, 1)),
}


def rows_of(schema: pa.Schema) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            field.name: st.none() | _VALUES[field.type] if field.nullable else _VALUES[field.type]
            for field in schema
        }
    )  # fmt: skip


@pytest.mark.parametrize("name", CONTRACTS)
@given(data=st.data())
def test_a_row_written_as_avro_reads_back_as_the_arrow_row(name: str, data: st.DataObject):
    rows = data.draw(st.lists(rows_of(CONTRACTS[name]), max_size=2))
    file = io.BytesIO()
    fastavro.writer(file, PARSED[name], rows)
    file.seek(0)
    table = pa.Table.from_pylist(rows, schema=CONTRACTS[name])
    table.validate(full=True)
    assert list(fastavro.reader(file)) == table.to_pylist() == rows


@pytest.mark.parametrize("name", CONTRACTS)
@given(data=st.data())
def test_a_row_that_lacks_what_may_not_be_null_is_refused_by_avro(name: str, data: st.DataObject):
    row = data.draw(rows_of(CONTRACTS[name]))
    required = data.draw(st.sampled_from([field.name for field in CONTRACTS[name] if not field.nullable]))
    assert fastavro.validation.validate(row, PARSED[name], raise_errors=False)
    assert not fastavro.validation.validate(row | {required: None}, PARSED[name], raise_errors=False)


def test_the_wire_format_covers_exactly_the_context_columns():
    covered = []
    for name, key in wire.keys(wire.Context, columns=True).items():
        assert "_" not in key
        kind = wire.CONTEXT_OBJECTS.get(name)
        covered += [f"{name}_{field}" for field in wire.keys(kind, columns=True)] if kind else [name]
    assert [f"context_{name}" for name in covered] == [
        name for name in event.ARCHIVE.names if name.startswith("context_") and name != "context_rest"
    ]
    documented = {field["name"]: field["doc"] for field in avro.load("event")["fields"]}
    for name in covered:
        path = documented[f"context_{name}"].partition(";")[0].split(".")
        assert path[0] == "context"
        assert "_".join(path[1:]).lower() == name.replace("user_agent", "useragent")


@pytest.mark.parametrize(
    "wrong",
    ["float", ["string", "null"], ["null", "string", "long"], {"type": "array", "items": "string"},
     {"type": "long", "logicalType": "timestamp-millis"}],
)  # fmt: skip
def test_a_type_that_no_contract_uses_is_refused(wrong: Any):
    with pytest.raises(ValueError, match=r"^field a: "):
        avro.arrow_schema({"type": "record", "name": "R", "fields": [{"name": "a", "type": wrong}]})


def test_the_contracts_import_neither_beam_nor_a_client():
    modules = sorted(f"millrace.schemas.{path.stem}" for path in FOLDER.glob("*.py") if path.stem != "__init__")
    # Some installations of Google's libraries load an empty `google` package with Python itself.
    script = f"import sys, json; before = set(sys.modules); import {', '.join(modules)}; "
    script += "print(json.dumps(sorted(set(sys.modules) - before)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    loaded = json.loads(done.stdout)
    assert set(modules) <= set(loaded)
    forbidden = ("apache_beam", "google", "grpc", "deltalake", "duckdb", "fastavro")
    assert [name for name in loaded if name.partition(".")[0] in forbidden] == []
