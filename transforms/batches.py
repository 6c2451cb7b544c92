"""Batches of columns: the few moves that several stages share."""

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def concat(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Return one batch of all rows; a column that some lack is null there."""
    return one_batch(pa.concat_tables(map(pa.table, batches), promote_options="default"))


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """Return a table's rows as one batch.

    Raises:
        ValueError: a column has more than 2 GiB of text, which no batch can hold.
    """
    chunks = table.combine_chunks().to_batches()
    if len(chunks) > 1:
        raise ValueError(f"{table.num_rows} rows have more than 2 GiB of text in a column: too much for one batch")
    return chunks[0] if chunks else pa.RecordBatch.from_pylist([], schema=table.schema)


def codes(column: pa.Array) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """Number a column's distinct values; return the number of each row, and the values."""
    encoded = pc.dictionary_encode(column)
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary


def run_starts(column: pa.Array) -> npt.NDArray[np.int64]:
    """Return the first row of each run of equal values in a column without nulls."""
    if not len(column):
        return np.zeros(0, np.int64)
    changes = pc.not_equal(column.slice(1), column.slice(0, len(column) - 1)).to_numpy(zero_copy_only=False)
    starts: npt.NDArray[np.int64] = np.flatnonzero(np.insert(changes, 0, True))
    return starts


def int64s(column: pa.Array) -> npt.NDArray[np.int64]:
    """Return a column of times (µs) or whole numbers, without nulls, as numpy sees it."""
    values: npt.NDArray[np.int64] = column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return values


def count_by_receipt(batch: pa.RecordBatch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the receipts in a batch and how many rows each has; rows without one (-1) are left out."""
    receipts, counts = np.unique(int64s(batch.column("receipt")), return_counts=True)
    kept = receipts >= 0
    return receipts[kept], counts[kept].astype(np.int64)


def shard_of(user_keys: pa.Array, shards: int) -> npt.NDArray[np.int64]:
    """Return each user's shard: the same in every process and run."""
    number, keys = codes(user_keys)
    return np.array([zlib.crc32(key.encode()) % shards for key in keys.to_pylist()], np.int64)[number]
