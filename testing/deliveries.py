"""Deliveries: what a lane would give a sink of events, and a memory in place of the lane's."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from millrace.schemas.event import ARCHIVE
from millrace.sinks.json_rows import JSON, JSON_COLUMNS
from millrace.sinks.sink import Delivery
from millrace.testing.builders import batches_of
from millrace.transforms.batches import concat


class DictMemory:
    """A sink's memory in a dict: what was put stays for the next sink that is given it."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        """Return what was put."""
        return self.held.get(key)

    def put(self, key: str, value: bytes | None) -> None:
        """Keep a value."""
        if value is None:
            self.held.pop(key, None)
        else:
            self.held[key] = bytes(value)


_positions = itertools.count(1 << 24)


def deliveries_of(
    events: Sequence[Mapping[str, Any]], *, route: str = "route", target: str = "", max_events: int = 500
) -> list[Delivery]:
    """Return what an ordered lane would give a sink of events: all columns of the archive, under their own names."""
    if not events:
        return []
    kept = concat(batches_of(events)).select([field.name for field in ARCHIVE])
    fields = [field.with_metadata(JSON) if field.name in JSON_COLUMNS else field for field in kept.schema]
    rows = pa.RecordBatch.from_arrays(kept.columns, schema=pa.schema(fields))
    return [
        delivery_of(rows.slice(start, max_events), route=route, target=target)
        for start in range(0, rows.num_rows, max_events)
    ]


def delivery_of(rows: pa.RecordBatch, *, route: str = "route", target: str = "") -> Delivery:
    """Return rows that have the columns message_id and user_key as one delivery."""
    count = rows.num_rows
    return Delivery(
        rows=rows,
        message_ids=rows.column("message_id").to_pylist(),
        user_keys=rows.column("user_key").to_pylist(),
        positions=list(itertools.islice(_positions, count)),
        is_ordered=[True] * count,
        attempts=[0] * count,
        route=route,
        target=target,
    )
