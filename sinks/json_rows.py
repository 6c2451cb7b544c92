"""JSON rows: a batch of columns becomes one JSON object a row, for the sinks that speak JSON."""

import datetime as dt
from typing import Any

import msgspec
import pyarrow as pa

JSON_COLUMNS = frozenset({"properties", "traits", "context_rest", "rest"})
"""Columns of the archive whose text is JSON."""

JSON = {b"millrace.json": b"1"}
"""Metadata of a field: its text is JSON, whatever the column is called."""


def json_rows(rows: pa.RecordBatch) -> list[bytes]:
    """Return each row as a JSON object without its nulls; times are RFC 3339 in UTC with microseconds."""
    texts = [i for i, field in enumerate(rows.schema) if field.metadata and b"millrace.json" in field.metadata]
    names = [rows.schema.names[i] for i in texts]
    encode = msgspec.json.Encoder(enc_hook=_other).encode
    found = []
    for row in rows.to_pylist():
        kept: dict[str, Any] = {name: value for name, value in row.items() if value is not None}
        for name in names:
            if name in kept:
                kept[name] = msgspec.Raw(kept[name].encode())
        found.append(encode(kept))
    return found


def _other(value: Any) -> Any:
    if isinstance(value, dt.date):
        return value.isoformat()
    raise TypeError(f"no JSON for {type(value).__name__}")
