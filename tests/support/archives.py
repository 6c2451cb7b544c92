"""Archives for tests: a Delta table of events, made without a pipeline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from millrace.sinks.delta import Table, open_table
from millrace.sinks.tables import ARCHIVE, TableSpec
from millrace.transforms.order import order, release
from tests.support.batches import batch


def write_archive(folder: Path, events: pa.RecordBatch | Sequence[dict[str, Any]], spec: TableSpec = ARCHIVE) -> Table:
    """Write events (a batch, or rows of tests.support.batches.event) as a job would; once more adds to it."""
    given = events if isinstance(events, pa.RecordBatch) else batch(events)
    ordered, _ = order([piece.batch for piece in release(given, wait_us=0, window_us=5_000_000, shards=1)])
    table = open_table(str(folder), spec)
    names = [name for name in spec.schema.names if name in ordered.schema.names]
    rows = pa.Table.from_batches([ordered]).select(names)
    version = (table.committed_version("test") or 0) + 1
    table.commit(table.write(rows, f"test-{version}"), app_id="test", version=version)
    return table
