"""Plans for tests: write what a contract holds, get the settings or the folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from millrace.schemas.contracts import Contract, Contracts, event_of_folder


def record(name: str = "R", **fields: Any) -> dict[str, Any]:
    """Return an Avro record; a field's type, or (type, default) where it has one, or a list with null: null then."""
    listed = []
    for field, kind in fields.items():
        if isinstance(kind, tuple):
            listed.append({"name": field, "type": kind[0], "default": kind[1]})
        else:
            listed.append({"name": field, "type": kind} | ({"default": None} if _may_be_null(kind) else {}))
    return {"type": "record", "name": name, "fields": listed}


def _may_be_null(kind: Any) -> bool:
    return isinstance(kind, list) and kind[:1] == ["null"]


def contract(folder: str, schema: Mapping[str, Any], version: str = "1") -> Contract:
    """Return a contract as the folder would give it."""
    kind = folder.removeprefix("_") if folder.startswith("_") else "track"
    event = schema.get("event", event_of_folder(folder)) if kind == "track" else None
    return Contract(folder, version, kind, event, json.dumps(schema))


def plan(*contracts: Contract, **more: Any) -> Contracts:
    """Return settings."""
    return Contracts(contracts, **more)


def write_plan(folder: Path, **schemas: Mapping[str, Any]) -> Path:
    """Write a plan's folder; `order_completed__2` is version 2."""
    for name, schema in schemas.items():
        event, _, version = name.partition("__")
        file = folder / event / f"{version or 1}.avsc"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(schema, indent=2, ensure_ascii=False), encoding="utf-8")
    return folder
