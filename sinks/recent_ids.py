"""Recent ids: what the archive has committed lately, so that a redelivered event is not archived twice.

Sixteen bytes an id: 96 bits say which event, 32 say which delivery of it. Sorted runs of numpy arrays, merged as they
grow and dropped as they age, so that neither a look-up nor an entry costs a Python object.
"""

import bisect
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from millrace.transforms.batches import codes, int64s

_BUCKETS = 8  # the horizon is kept to within an eighth of itself

NEW, REDELIVERED, COPY = 0, 1, 2
"""What `RecentIds.find` says of a row: not seen; seen, in this very place of the queue; seen, in another place."""

Keys = npt.NDArray[np.uint64]
"""Shape (n, 2): 64 bits of the id; 32 more of the id above 32 of the delivery."""


def event_keys(batch: pa.RecordBatch) -> Keys:
    """Return the keys of events: which (source_id, message_id), and delivered by which envelope."""
    source_number, sources = codes(batch.column("source_id"))
    seeds = [zlib.crc32(source.encode()) for source in sources.to_pylist()]
    digest = xxhash.xxh3_128_digest
    ids = batch.column("message_id").cast(pa.binary()).to_pylist()
    if len(seeds) == 1:
        digests = [digest(message_id, seeds[0]) for message_id in ids]
    else:
        digests = [digest(message_id, seeds[source]) for message_id, source in zip(ids, source_number, strict=True)]
    return _with_delivery(digests, batch)


def place_keys(batch: pa.RecordBatch) -> Keys:
    """Return the keys of dead letters and duplicates: they are told apart by their place in the queue."""
    return _with_delivery([xxhash.xxh3_128_digest(place) for place in _places(batch)], batch)


def dropped_keys(batch: pa.RecordBatch) -> Keys:
    """Return the keys of dropped events: by place and id, since a transform may make several of one message."""
    ids = batch.column("message_id").to_pylist()
    return _with_delivery(
        [
            xxhash.xxh3_128_digest(b"%b/%b" % (place, each.encode()))
            for place, each in zip(_places(batch), ids, strict=True)
        ],
        batch,
    )


def _places(batch: pa.RecordBatch) -> list[bytes]:
    places = zip(batch.column("envelope_id").to_pylist(), batch.column("envelope_index").to_pylist(), strict=True)
    return [f"{envelope}/{index}".encode() for envelope, index in places]


def _with_delivery(digests: list[bytes], batch: pa.RecordBatch) -> Keys:
    keys = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2).copy()
    envelope_number, envelopes = codes(batch.column("envelope_id"))
    envelope = np.array([xxhash.xxh32_intdigest(each) for each in envelopes.cast(pa.binary()).to_pylist()], np.uint64)
    place = (int64s(batch.column("envelope_index")).astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B1)
    delivery = (envelope[envelope_number] ^ place) & np.uint64(0xFFFFFFFF) if len(digests) else place
    keys[:, 1] = (keys[:, 1] & np.uint64(0xFFFFFFFF00000000)) | delivery
    return keys


class _Run(NamedTuple):
    keys: Keys  # sorted by the first column
    bucket: int


def _bucket_of(run: _Run) -> int:
    return run.bucket


class RecentIds:
    """The keys of the last `horizon_s` seconds. One thread may add while others find.

    Args:
        horizon_s: how long a key is remembered, in the tables' own time; 16 bytes each.
        keys_of: how the rows of its table are told apart.
    """

    def __init__(self, horizon_s: float, keys_of: Callable[[pa.RecordBatch], Keys] = event_keys) -> None:
        self.keys_of = keys_of
        self._bucket_us = max(1, round(horizon_s * 1_000_000 / _BUCKETS))
        self._runs: list[_Run] = []  # by bucket

    def __len__(self) -> int:
        return sum(len(run.keys) for run in self._runs)

    def add(self, keys: Keys, at_us: int) -> None:
        """Enter keys that were committed with the release window that began at at_us; forget what is past."""
        bucket = at_us // self._bucket_us
        # What this window has left behind, and no more: a backlog may be older than all that is remembered.
        runs = [run for run in self._runs if run.bucket >= bucket - _BUCKETS]
        if len(keys):
            place = bisect.bisect_right(runs, bucket, key=_bucket_of)
            runs.insert(place, _Run(_sorted(keys), bucket))
            # Merge neighbours of like size, so that runs stay few and each key is moved only a few times.
            while place and self._may_merge(runs[place - 1], runs[place]):
                place -= 1
                both = np.concatenate([runs[place].keys, runs.pop(place + 1).keys])
                runs[place] = _Run(_sorted(both), bucket)
        self._runs = runs  # at once, so that another thread sees the old ones or the new

    def find(self, keys: Keys) -> npt.NDArray[np.int8]:
        """Return for each key NEW, REDELIVERED or COPY."""
        found = np.zeros(len(keys), np.int8)
        if not self._runs or not len(keys):
            return found
        by_key = np.argsort(keys[:, 0], kind="stable")
        ids, rests = keys[by_key, 0], keys[by_key, 1]
        half = np.uint64(32)
        for run in self._runs:
            at = np.searchsorted(run.keys[:, 0], ids)
            at[at == len(run.keys)] = 0
            hit = np.flatnonzero(run.keys[at, 0] == ids)
            if not len(hit):
                continue
            known = run.keys[at[hit], 1]
            hit, known = hit[same := (known >> half) == (rests[hit] >> half)], known[same]
            found[by_key[hit]] = np.where(known == rests[hit], REDELIVERED, COPY)
        return found

    def _may_merge(self, before: _Run, last: _Run) -> bool:
        return before.bucket == last.bucket and len(before.keys) <= 2 * len(last.keys)


def _sorted(keys: Keys) -> Keys:
    # Fortran order: a search runs over one contiguous column.
    return np.asfortranarray(keys[np.argsort(keys[:, 0], kind="stable")])
