"""Fingerprint: 64 bits of what an event says, whoever delivered it, how often and in what company.

Two copies of an event have one fingerprint; another event that an SDK gave the same id has another. It is of the
columns that the event itself fills. JSON texts count byte for byte as they came: white space or another order of
members makes another fingerprint, since what a sender sends again is the same bytes.
"""

import itertools

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from millrace.schemas.event import BATCH

_DELIVERED = {
    *("message_id", "source_id", "sent_at", "received_at", "published_at", "envelope_id", "envelope_index"),
    *("arrived_at", "receipt"),
    *("user_key", "occurred_at", "clock_flag"),  # they follow from the others and the delivery
    *("context_ip", "context_user_agent"),  # may be the HTTP request's, and a phone changes its network between two
}
CONTENT = tuple(name for name in BATCH.names if name not in _DELIVERED)
"""The columns that count. Another choice, or order, gives other fingerprints: copies across the change are kept."""

# Neither byte occurs in UTF-8, so no two rows give the same text.
_BETWEEN, _NULL = b"\xff", b"\xfe"
_AT_ONCE_BYTES = 1 << 30  # Arrow's offsets end at 2 GiB


def fingerprints(batch: pa.RecordBatch) -> npt.NDArray[np.uint64]:
    """Return the fingerprint of each event: xxh3 of its content, the same in every process and batch.

    Args:
        batch: schemas.event.BATCH, and whatever columns stages before have added.
    """
    if batch.nbytes > _AT_ONCE_BYTES:
        half = batch.num_rows // 2
        if half:
            return np.concatenate([fingerprints(batch.slice(0, half)), fingerprints(batch.slice(half))])
    columns: list[pa.Array | pa.Scalar] = []
    empty: list[bytes] = []
    for name in CONTENT:
        column = batch.column(name)
        if column.null_count == len(column) and name != CONTENT[0]:  # one is an array at least
            empty.append(_NULL)
            continue
        if empty:
            columns.append(pa.scalar(_BETWEEN.join(empty)))
            empty = []
        if not pa.types.is_string(column.type):
            column = column.cast(pa.int64()).cast(pa.string())
        columns.append(column.cast(pa.binary()))
    columns += [pa.scalar(_BETWEEN.join(empty))] if empty else []
    if not batch.num_rows:
        return np.zeros(0, np.uint64)
    texts = pc.binary_join_element_wise(*columns, _BETWEEN, null_handling="replace", null_replacement=_NULL)
    # Slices of the one buffer: no Python object holds a text.
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1].tolist()
    view, digest = memoryview(data), xxhash.xxh3_64_intdigest
    return np.array([digest(view[start:end]) for start, end in itertools.pairwise(ends)], np.uint64)
