"""Committed ids: which records the tables hold already, so that one that is delivered again is not written twice.

A record is known by its place in the queue; an event also by its id, since a stage may have made several of one. Copies
in other places are none of its business: they were told apart before (transforms/deduplicate.py).
"""

from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from millrace.transforms.batches import int64s
from millrace.transforms.recent_ids import BELONGING, Keys, RecentIds, id_hashes, mixed, place_hashes


def event_keys(batch: pa.RecordBatch) -> Keys:
    """Return the keys of events: 120 bits of (source_id, message_id) and of the place in the queue."""
    places = place_hashes(batch)
    ids = id_hashes(batch.column("source_id"), batch.column("message_id"))
    return np.column_stack([mixed(ids ^ places), places])


def place_keys(batch: pa.RecordBatch) -> Keys:
    """Return the keys of other records: 120 bits of their place in the queue."""
    return np.column_stack([place_hashes(batch), place_hashes(batch, seed=1)])


def letter_keys(batch: pa.RecordBatch) -> Keys:
    """Return the keys of dead letters: of their place in the queue, and of the event's id where a step refused it.

    A step may have made several events of one, and each may be refused. Other stages refuse what came, once.
    """
    places = place_hashes(batch)
    ids = np.zeros(batch.num_rows, np.uint64)
    by_steps = pc.match_substring(batch.column("stage"), ": ").to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(by_steps).tolist():
        ids[row] = xxhash.xxh3_64_intdigest(_message_id(batch.column("payload")[row].as_py()))
    return np.column_stack([mixed(ids ^ places), place_hashes(batch, seed=1)])


class _Named(msgspec.Struct):
    message_id: str = msgspec.field(name="messageId", default="")


_named = msgspec.json.Decoder(_Named).decode


def _message_id(payload: bytes) -> bytes:
    try:
        return _named(payload).message_id.encode()
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return b""


def identity_keys(batch: pa.RecordBatch) -> Keys:
    """Return the keys of identities: of one id, from one time on."""
    rows = zip(batch.column("id").to_pylist(), int64s(batch.column("linked_at")).tolist(), strict=True)
    ids = np.array([xxhash.xxh3_64_intdigest(f"{linked_us}/{id_}".encode()) for id_, linked_us in rows], np.uint64)
    return np.column_stack([ids, mixed(ids)])


class CommittedIds:
    """The keys of the records that were committed in the last `horizon_s` seconds of the table's own time.

    One thread may add while others look up.
    """

    def __init__(self, horizon_s: float, keys_of: Callable[[pa.RecordBatch], Keys] = event_keys) -> None:
        self.keys_of = keys_of
        self._recent = RecentIds(horizon_s)

    def __len__(self) -> int:
        return len(self._recent)

    def add(self, keys: Keys, at_us: int) -> None:
        """Enter keys that were committed with the window that began at at_us; forget what is past."""
        self._recent.add(keys, at_us)

    def holds(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Say of each record whether it is committed."""
        found = self._recent.find(keys[:, 0])
        holds: npt.NDArray[np.bool_] = found.known & (found.belongs == keys[:, 1] & BELONGING)
        return holds


def firsts(keys: Keys) -> npt.NDArray[np.bool_]:
    """Say of each record whether none before it here is the same."""
    _, first = np.unique(keys[:, 0], return_index=True)
    is_first = np.zeros(len(keys), np.bool_)
    is_first[first] = True
    return is_first
