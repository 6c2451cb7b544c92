"""Events: the archive's row, and the batch of columns that travels between stages.

An `EventBatch` is a `pyarrow.RecordBatch` of `BATCH`: the archive's columns that are known before an event has its
place in the order, then what only the pipeline needs. Stages may append columns of their own; they keep these.
"""

import pyarrow as pa

from millrace.schemas import avro

ARCHIVE: pa.Schema = avro.arrow_schema(avro.load("event"))

# Known only once a user's events stand in order.
_PLACED = ("released_at", "is_late", "late_by_ms", "order_index", "date")

ARRIVED_AT = pa.field("arrived_at", pa.timestamp("us", tz="UTC"), nullable=False)
"""The element's timestamp: max(published_at, the reader's watermark when it was read)."""

RECEIPT = pa.field("receipt", pa.int64(), nullable=False)
"""Which delivery brought the event (transforms/receipts.py); -1 where the runner acknowledges by itself."""

BATCH: pa.Schema = pa.schema([field for field in ARCHIVE if field.name not in _PLACED] + [ARRIVED_AT, RECEIPT])

TYPES = ("identify", "track", "page", "screen", "group", "alias")
"""The closed set of event types, as in Segment's specification."""
