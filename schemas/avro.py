"""Read the Avro contracts of this folder, and the Arrow schemas that follow from them."""

import json
from importlib import resources
from typing import Any

import pyarrow as pa

_PRIMITIVE = {
    "string": pa.string(),
    "bytes": pa.binary(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "double": pa.float64(),
}
_LOGICAL = {"timestamp-micros": pa.timestamp("us", tz="UTC"), "date": pa.date32()}


def load(name: str) -> dict[str, Any]:
    """Return the Avro record schema `name`.avsc of this folder, as parsed JSON."""
    text = resources.files(__package__).joinpath(f"{name}.avsc").read_text(encoding="utf-8")
    record: dict[str, Any] = json.loads(text)
    return record


def names(folder: str) -> list[str]:
    """Return what `load` can load from a folder below this one, sorted; none where there is no such folder."""
    found = resources.files(__package__).joinpath(folder)
    if not found.is_dir():
        return []
    return sorted(
        f"{folder}/{each.name.removesuffix('.avsc')}" for each in found.iterdir() if each.name.endswith(".avsc")
    )


def arrow_schema(record: dict[str, Any]) -> pa.Schema:
    """Return the Arrow schema of an Avro record: same names, same order; only a union with null is nullable.

    >>> arrow_schema({"type": "record", "name": "R", "fields": [{"name": "a", "type": ["null", "long"]}]}).field("a")
    pyarrow.Field<a: int64>

    Raises:
        ValueError: a type that the contracts do not use.
    """
    return pa.schema([_arrow_field(field) for field in record["fields"]])


def _arrow_field(field: dict[str, Any]) -> pa.Field:
    declared = field["type"]
    nullable = isinstance(declared, list)
    if nullable:
        if len(declared) != 2 or declared[0] != "null":
            raise ValueError(f"field {field['name']}: a union must be [null, type], got {declared}")
        declared = declared[1]
    arrow = _LOGICAL.get(declared.get("logicalType", "")) if isinstance(declared, dict) else _PRIMITIVE.get(declared)
    if arrow is None:
        raise ValueError(f"field {field['name']}: no Arrow type for Avro {declared}")
    return pa.field(field["name"], arrow, nullable=nullable)
