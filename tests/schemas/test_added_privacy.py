"""What the privacy stage adds: the contract, the document and the configuration tell the same."""

import re
from pathlib import Path

import fastavro
import pyarrow as pa

from millrace.config.privacy import CONSENT_DENIED
from millrace.schemas import avro

ROOT = Path(__file__).parents[2]


def test_the_contract_is_avro_and_each_column_may_be_null():
    record = avro.load("added/privacy")
    fastavro.parse_schema(record)
    schema = avro.arrow_schema(record)
    assert schema == pa.schema([CONSENT_DENIED])
    assert all(field.nullable for field in schema)
    assert all(field["doc"] and field["default"] is None for field in record["fields"])


def test_the_document_lists_the_columns():
    text = (ROOT / "docs" / "event_model.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([a-z_]+)` \| privacy \|", text, re.MULTILINE)
    assert listed == [field["name"] for field in avro.load("added/privacy")["fields"]]
