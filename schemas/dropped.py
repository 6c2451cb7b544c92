"""Dropped: events that a rule of the job left out on purpose, as small records, so that the accounts still close."""

from collections.abc import Sequence

import pyarrow as pa

from millrace.schemas import avro
from millrace.schemas.event import RECEIPT

SCHEMA: pa.Schema = avro.arrow_schema(avro.load("dropped"))

BATCH: pa.Schema = SCHEMA.append(RECEIPT)
"""As it travels between stages."""

_DAY_US = 86_400_000_000


def records(batch: pa.RecordBatch, rows: Sequence[int], rule: str, now_us: int) -> pa.RecordBatch:
    """Return the records of some rows of a batch of events.

    Args:
        batch: schemas.event.BATCH, and whatever stages have added.
        rows: which of them are left out.
        rule: what leaves them out.
        now_us: the job's clock, µs since the epoch.
    """
    left_out = batch.take(pa.array(rows, pa.int64()))
    size = left_out.num_rows
    columns = {
        "rule": pa.array([rule] * size, pa.string()),
        "dropped_at": pa.array([now_us] * size, pa.int64()).cast(BATCH.field("dropped_at").type),
        "date": pa.array([now_us // _DAY_US] * size, pa.int32()).cast(pa.date32()),
    }
    arrays = [columns[name] if name in columns else left_out.column(name) for name in BATCH.names]
    return pa.RecordBatch.from_arrays(arrays, schema=BATCH)
