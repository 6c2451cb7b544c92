"""Deliveries for processes that are killed: made without the test kit, whose imports take longer than the test."""

import datetime as dt

import pyarrow as pa

from millrace.sinks.json_rows import JSON
from millrace.sinks.sink import Delivery

PART = 20
_TEXT = "x" * 500
_NOON = dt.datetime(2026, 1, 5, 12, tzinfo=dt.UTC)
_SCHEMA = pa.schema([
    pa.field("message_id", pa.string()),
    pa.field("user_key", pa.string()),
    pa.field("received_at", pa.timestamp("us", "UTC")),
    pa.field("properties", pa.string(), metadata=JSON),
])  # fmt: skip


def deliveries(count: int) -> list[Delivery]:
    """Return events m000000 ... of one user, PART a delivery."""
    found = []
    for start in range(0, count, PART):
        numbers = range(start, min(count, start + PART))
        ids = [f"m{n:06}" for n in numbers]
        rows = [
            {"message_id": each, "user_key": "ann", "received_at": _NOON, "properties": f'{{"n":{n},"text":"{_TEXT}"}}'}
            for n, each in zip(numbers, ids, strict=True)
        ]
        size = len(ids)
        found.append(
            Delivery(
                rows=pa.RecordBatch.from_pylist(rows, schema=_SCHEMA),
                message_ids=ids,
                user_keys=["ann"] * size,
                positions=[(1 << 24) + n for n in numbers],
                is_ordered=[True] * size,
                attempts=[0] * size,
                route="route",
            )
        )
    return found
