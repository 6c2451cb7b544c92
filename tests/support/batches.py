"""Builders of event batches: name what matters, the rest is plausible."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from millrace.schemas.event import BATCH

NOON_US = 1_795_608_000_000_000
"""2026-11-25T12:00:00Z in µs."""


def event(
    message_id: str, at_s: float = 0.0, *, arrived_s: float | None = None, user: str = "ann", **more: Any
) -> dict[str, Any]:
    """Return one row of an EventBatch: occurred at_s seconds after noon, arrived at once unless said otherwise."""
    occurred = NOON_US + round(at_s * 1_000_000)
    arrived = occurred if arrived_s is None else NOON_US + round(arrived_s * 1_000_000)
    return {
        "message_id": message_id,
        "type": "track",
        "user_key": user,
        "source_id": "shop",
        "received_at": arrived,
        "published_at": arrived,
        "occurred_at": occurred,
        "arrived_at": arrived,
        "envelope_id": f"e-{message_id}",
        "envelope_index": 0,
        "receipt": -1,
        **more,
    }


def batch(rows: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    """Return an EventBatch of rows; columns that none names are null."""
    columns = [_column([row.get(field.name) for row in rows], field.type) for field in BATCH]
    return pa.RecordBatch.from_arrays(columns, schema=BATCH)


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind):
        return pa.array(values, pa.int64()).cast(kind)
    return pa.array(values, kind)
