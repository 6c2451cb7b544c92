"""The columns that stages add: contracts that parse, documented, of different names, as the documents list them."""

import re
from pathlib import Path

import fastavro
import pyarrow as pa
import pytest

from millrace.schemas import avro, event

FOLDER = Path(avro.__file__).parent / "added"
NAMES = sorted(path.stem for path in FOLDER.glob("*.avsc"))
DOCUMENT = Path(__file__).parents[2] / "docs" / "event_model.md"
ENRICHMENTS = ("user_agent", "url", "referrer", "campaign", "locale", "geo", "bots", "lineage")


@pytest.mark.parametrize("name", NAMES)
def test_a_contract_parses_and_each_column_is_documented_and_may_be_null(name: str):
    record = avro.load(f"added/{name}")
    fastavro.parse_schema(record)
    assert [field["name"] for field in record["fields"] if not field.get("doc")] == []
    assert all(field["default"] is None for field in record["fields"])
    assert all(field.nullable for field in avro.arrow_schema(record))


def test_no_two_columns_of_the_archive_have_one_name():
    added = [field.name for name in NAMES for field in avro.arrow_schema(avro.load(f"added/{name}"))]
    names = [*event.ARCHIVE.names, *event.BATCH.names[-2:], *added]
    assert len(set(names)) == len(names)


def test_the_document_lists_the_enrichments_columns_with_their_contract_s_words():
    section = DOCUMENT.read_text(encoding="utf-8").split("\n## Enrichments\n")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.+) \|$", section, re.MULTILINE)
    assert listed == [
        (field["name"], name, field["doc"]) for name in ENRICHMENTS for field in avro.load(f"added/{name}")["fields"]
    ]


def test_types_are_those_that_every_reader_of_a_table_knows():
    kinds = {field.type for name in NAMES for field in avro.arrow_schema(avro.load(f"added/{name}"))}
    assert kinds <= {
        pa.string(),
        pa.bool_(),
        pa.int32(),
        pa.int64(),
        pa.float64(),
        pa.date32(),
        pa.timestamp("us", tz="UTC"),
    }
