"""Deliveries for tests of sinks: rows of the archive as a lane hands them over, and a memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from millrace.schemas.event import ARCHIVE
from millrace.sinks.json_rows import JSON, JSON_COLUMNS
from millrace.sinks.sink import Delivery

NOON_US = 1_795_608_000_000_000
"""2026-11-25T12:00:00Z in µs."""


def archived(message_id: str, at_s: float = 0.0, *, user: str = "ann", **more: Any) -> dict[str, Any]:
    """Return one row of the archive: occurred at_s seconds after noon."""
    occurred = NOON_US + round(at_s * 1_000_000)
    return {
        "message_id": message_id,
        "type": "track",
        "user_key": user,
        "source_id": "shop",
        "received_at": occurred,
        "published_at": occurred,
        "occurred_at": occurred,
        "released_at": occurred,
        "is_late": False,
        "late_by_ms": 0,
        "order_index": occurred << 11,
        "envelope_id": f"e-{message_id}",
        "envelope_index": 0,
        "date": 20_782,
        **more,
    }


def archive_rows(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = (), added: Sequence[pa.Field] = ()
) -> pa.RecordBatch:
    """Return rows with the archive's columns, or those named, and added ones behind them; the rest is null."""
    fields = [_field(field) for field in ARCHIVE if not columns or field.name in columns] + list(added)
    arrays = [_column([row.get(field.name) for row in rows], field.type) for field in fields]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def delivery(
    rows: pa.RecordBatch | Sequence[Mapping[str, Any]],
    positions: Sequence[int] = (),
    *,
    is_ordered: Sequence[bool] = (),
    columns: Sequence[str] = (),
    ids: Sequence[str] = (),
    target: str = "",
) -> Delivery:
    """Return a delivery of rows; positions count up from 1, and all are in order, where nothing else is said."""
    batch = rows if isinstance(rows, pa.RecordBatch) else archive_rows(rows, columns)
    named = batch.schema.names
    return Delivery(
        rows=batch,
        message_ids=ids or batch.column("message_id").to_pylist(),
        user_keys=batch.column("user_key").to_pylist() if "user_key" in named else ["ann"] * len(batch),
        positions=positions or range(1, len(batch) + 1),
        is_ordered=is_ordered or [True] * len(batch),
        attempts=[0] * len(batch),
        route="all",
        target=target,
    )


class Remembered(dict[str, bytes]):
    """A sink's Memory, for as long as the test runs."""

    def put(self, key: str, value: bytes | None) -> None:
        if value is None:
            self.pop(key, None)
        else:
            self[key] = value


def _field(field: pa.Field) -> pa.Field:
    return field.with_metadata(JSON) if field.name in JSON_COLUMNS else field


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind):
        return pa.array(values, pa.int64()).cast(kind)
    if pa.types.is_date32(kind):
        return pa.array(values, pa.int32()).cast(kind)
    return pa.array(values, kind)
