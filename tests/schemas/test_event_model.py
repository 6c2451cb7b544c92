"""The documents, the wire format and the Avro contract tell the same story."""

import re
import typing
from pathlib import Path

import pytest

from millrace.schemas import avro, dead_letter, event, wire

DOCUMENT = Path(__file__).parents[2] / "docs" / "event_model.md"


def table(heading: str) -> list[str]:
    section = DOCUMENT.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([a-z0-9_]+)` \|", section, re.MULTILINE)


def test_the_document_lists_the_columns_of_the_contract_in_their_order() -> None:
    assert table("Columns") == [field["name"] for field in avro.load("event")["fields"]]


def test_the_document_lists_the_columns_that_identity_adds() -> None:
    assert table("Added by identity") == [field["name"] for field in avro.load("added/identity")["fields"]]


def test_the_document_lists_every_reason() -> None:
    assert table("What is refused") == [reason.value for reason in dead_letter.Reason]


def test_the_context_columns_are_the_typed_fields_of_the_wire_format() -> None:
    context = [f"context_{name}" for name in wire.keys(wire.Context, columns=True) if name not in wire.CONTEXT_OBJECTS]
    objects = [
        f"context_{name}_{attribute}"
        for name, kind in wire.CONTEXT_OBJECTS.items()
        for attribute in wire.keys(kind, columns=True)
    ]
    columns = [name for name in event.ARCHIVE.names if name.startswith("context_") and name != "context_rest"]
    assert objects + context == columns


def test_the_wire_format_knows_the_event_types_of_the_contract() -> None:
    assert typing.get_args(wire.Type) == event.TYPES


@pytest.mark.parametrize("path", wire.NUMBERS_AS_TEXT)
def test_numbers_are_taken_as_text_only_where_a_field_is_text(path: str) -> None:
    kind = {"": wire.Event} | {f"context.{name}": kind for name, kind in wire.CONTEXT_OBJECTS.items()}
    assert set(wire.NUMBERS_AS_TEXT[path]) <= set(wire.keys(kind[path], columns=True).values())


@pytest.mark.parametrize("step", ["sessions", "touch"])
def test_the_document_lists_the_columns_that_the_steps_with_memory_add(step: str) -> None:
    assert table(f"Columns that `{step}` adds") == [field["name"] for field in avro.load(f"added/{step}")["fields"]]
