"""Per batch: users' functions of a whole batch. Where one raises, it is asked again for less, down to the one row."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.batches import one_batch
from millrace.transforms.custom.declare import BatchTransform
from millrace.transforms.custom.event import FIXED
from millrace.transforms.custom.outcome import Failure, Outcome, Rows, WrongResultError, failure_of, joined
from millrace.transforms.custom.timings import note
from millrace.transforms.steps import with_columns

_FEW_ROWS = 16
"""So few are asked for one by one at once: halving them costs as much."""


def run_batch(transform: BatchTransform, batch: pa.RecordBatch, adds: Sequence[pa.Field], name: str) -> Outcome:
    """Give the batch to a function. A row fails if it fails by itself: that does not hang on its neighbours."""
    schema = pa.schema([*batch.schema, *(field for field in adds if field.name not in batch.schema.names)])
    parts: list[tuple[pa.RecordBatch, Rows]] = []
    failed: list[Failure] = []
    waiting = [(0, batch.num_rows)] if batch.num_rows else []
    while waiting:
        start, end = waiting.pop()
        given = batch if end - start == batch.num_rows else batch.slice(start, end - start)
        began_ns = time.perf_counter_ns()
        try:
            rows, origin = _checked(transform.apply(given), given, schema)
        except BaseException as error:  # noqa: BLE001  it is the user's code
            failure = failure_of(start, error)
            if end - start == 1:
                failed.append(failure)
                note(name, [time.perf_counter_ns() - began_ns])
            elif end - start <= _FEW_ROWS:
                waiting += [(row, row + 1) for row in reversed(range(start, end))]
            else:
                middle = (start + end) // 2
                waiting += [(middle, end), (start, middle)]
        else:
            note(name, [(time.perf_counter_ns() - began_ns) // (end - start)], end - start)
            parts.append((rows, origin + start))
    kept, origin = joined(schema, parts)
    gone = np.ones(batch.num_rows, bool)
    gone[origin] = False
    gone[[failure.row for failure in failed]] = False
    return Outcome(kept, origin, failed, np.flatnonzero(gone).tolist())


def _checked(returned: Any, given: pa.RecordBatch, schema: pa.Schema) -> tuple[pa.RecordBatch, Rows]:
    """Return the rows that a function gave back, as they go on, and which rows of the given ones they are."""
    if isinstance(returned, pa.Table):
        returned = one_batch(returned)
    if isinstance(returned, Mapping):
        changed = {str(name): values for name, values in returned.items()}
        origin, kept = np.arange(given.num_rows), given
    elif isinstance(returned, pa.RecordBatch):
        origin = _rows_of(returned, given)
        kept = given if len(origin) == given.num_rows else given.take(pa.array(origin))
        changed = {name: returned.column(name) for name in returned.schema.names}
    else:
        raise WrongResultError(f"return a RecordBatch or a dict of columns, not {type(returned).__name__}")
    fields, columns = [], []
    for name, values in changed.items():
        at = schema.get_field_index(name)
        if at < 0:
            raise WrongResultError(f"{name} is not a column: declare it in adds")
        column = _column(values, schema.field(at), kept.num_rows)
        if name in FIXED:
            if not column.equals(kept.column(name)):
                raise WrongResultError(f"{name} cannot be changed")
            continue
        fields.append(schema.field(at))
        columns.append(column)
    kept = with_columns(kept, fields, columns)
    return joined(schema, [(kept, origin)])


def _column(values: Any, field: pa.Field, size: int) -> pa.Array:
    try:
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        column = values if isinstance(values, pa.Array) else pa.array(values, field.type)
        if column.type != field.type:
            column = column.cast(field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise WrongResultError(f"column {field.name} has to be {field.type}") from error
    if len(column) != size:
        raise WrongResultError(f"column {field.name} has {len(column)} values for {size} rows")
    if not field.nullable and column.null_count:
        raise WrongResultError(f"column {field.name} may not be null")
    return column


def _rows_of(returned: pa.RecordBatch, given: pa.RecordBatch) -> Rows:
    """Tell which rows came back. They may be fewer, but no others, and in the same order."""
    names = ("message_id", "source_id")
    if not set(names) <= set(returned.schema.names):
        raise WrongResultError("message_id or source_id is missing: keep the columns that were given")
    if all(returned.column(name).equals(given.column(name)) for name in names):
        every: Rows = np.arange(given.num_rows)
        return every
    if len(pc.unique(given.column("message_id"))) == given.num_rows:
        found = pc.index_in(returned.column("message_id"), value_set=given.column("message_id"))
        rows: Rows = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    else:
        place = {
            key: row for row, key in enumerate(zip(*(given.column(name).to_pylist() for name in names), strict=True))
        }
        keys = zip(*(returned.column(name).to_pylist() for name in names), strict=True)
        rows = np.array([place.get(key, -1) for key in keys], np.int64)
    if (rows < 0).any() or (np.diff(rows) <= 0).any():
        raise WrongResultError("rows may be left out, not added, repeated or put in another order")
    return rows
