"""What the deduplication adds is in the contract and in the document, with its source."""

from typing import Any

import fastavro
import pyarrow as pa

from millrace.schemas import avro, duplicate
from millrace.transforms.copies import ADDS
from millrace.transforms.fingerprint import CONTENT
from tests.schemas.test_event_model import DOCUMENT, table


def test_the_added_columns_parse_may_be_null_and_are_documented() -> None:
    record = avro.load("added/deduplicate")
    parsed: Any = fastavro.parse_schema(record)
    assert parsed["name"] == "millrace.Deduplicate"
    assert [(field.name, field.type, field.nullable) for field in ADDS] == [
        ("fingerprint", pa.int64(), True),
        ("duplicate_of", pa.string(), True),
    ]
    assert all(field["doc"] and field["default"] is None for field in record["fields"])
    assert table("Added by deduplication") == [field.name for field in ADDS]


def test_the_document_says_which_columns_make_a_fingerprint() -> None:
    section = DOCUMENT.read_text(encoding="utf-8").split("\n## Added by deduplication\n")[1].split("\n## ")[0]
    named = {name for name in CONTENT if not name.startswith("context_")}
    assert {name for name in named if f"`{name}`" not in section} == set()


def test_a_table_of_duplicates_of_an_older_millrace_lacks_only_what_may_be_null() -> None:
    before = {"message_id", "source_id", "user_key", "envelope_id", "envelope_index", "published_at", "released_at",
              "kept_envelope_id", "kept_envelope_index", "date"}  # fmt: skip
    added = [field for field in duplicate.SCHEMA if field.name not in before]
    assert [(field.name, field.nullable) for field in added] == [("fingerprint", True), ("kept_message_id", True)]
    assert before <= set(duplicate.SCHEMA.names)
