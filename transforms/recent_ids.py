"""Recent ids: 64-bit keys of the last hours or minutes, each with 64 bits that belong to it; sixteen bytes an id.

Sorted runs of numpy arrays, merged as they grow and dropped as they age, so that neither a look-up nor an entry costs a
Python object. What the keys stand for is their owner's business: of the committer (sinks/committed_ids.py) what a
commit holds, of the deduplication (transforms/remembered.py) what has passed it.
"""

import bisect
import zlib
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from millrace.transforms.batches import codes, int64s

BUCKETS = 8
"""Into how many parts the horizon is divided: a key is forgotten at most one of them after it."""

Hashes = npt.NDArray[np.uint64]
Keys = npt.NDArray[np.uint64]
"""Shape (n, 2): what is looked up, and what belongs to it."""


_Times = TypeVar("_Times", int, npt.NDArray[np.int64])


class Found(NamedTuple):
    """What is known of each key that was looked up."""

    known: npt.NDArray[np.bool_]
    belongs: Hashes
    """0 where it is not known."""


class _Run(NamedTuple):
    keys: Keys  # sorted by the first column
    bucket: int


def _bucket_of(run: _Run) -> int:
    return run.bucket


class RecentIds:
    """The keys of the last `horizon_s` seconds. One thread may add while others find.

    Args:
        horizon_s: how long a key is remembered, by the times it is added with; 16 bytes each.
        buckets: a key is forgotten between the horizon and one such part of it later.
        run_ids: runs are merged up to so many keys: what `drop_oldest` takes away at once.
    """

    def __init__(self, horizon_s: float, *, buckets: int = BUCKETS, run_ids: int = 1 << 62) -> None:
        self._buckets = buckets
        self._run_ids = run_ids
        self._bucket_us = max(1, round(horizon_s * 1_000_000 / buckets))
        self._runs: list[_Run] = []  # by bucket, then by age

    def __len__(self) -> int:
        return sum(len(run.keys) for run in self._runs)

    def bucket(self, at_us: _Times) -> _Times:
        """Return the number of the bucket of a time, or of each of several; µs since the epoch."""
        return at_us // self._bucket_us

    def add(self, keys: Keys, at_us: int) -> None:
        """Enter keys that came at at_us (µs since the epoch), and forget what that has left behind."""
        bucket = self.bucket(at_us)
        runs = self._kept(bucket)
        if len(keys):
            place = bisect.bisect_right(runs, bucket, key=_bucket_of)
            runs.insert(place, _Run(in_order(keys), bucket))
            # Merge neighbours of like size, so that runs stay few and each key is moved only a few times.
            while place and self._may_merge(runs[place - 1], runs[place]):
                place -= 1
                both = np.concatenate([runs[place].keys, runs.pop(place + 1).keys])
                runs[place] = _Run(in_order(both), bucket)
        self._runs = runs  # at once, so that another thread sees the old ones or the new

    def forget(self, at_us: int) -> None:
        """Forget what is past at at_us."""
        self._runs = self._kept(self.bucket(at_us))

    def drop_oldest(self) -> int:
        """Forget the oldest run before its time; return how many keys it had."""
        runs = list(self._runs)
        oldest = runs.pop(0)
        self._runs = runs
        return len(oldest.keys)

    def find(self, ids: Hashes) -> Found:
        """Return what is known of each id."""
        known, belongs = np.zeros(len(ids), np.bool_), np.zeros(len(ids), np.uint64)
        runs = self._runs
        if not runs or not len(ids):
            return Found(known, belongs)
        by_id = np.argsort(ids, kind="stable")
        ids = ids[by_id]
        for run in runs:
            at = np.searchsorted(run.keys[:, 0], ids)
            at[at == len(run.keys)] = 0
            hit = np.flatnonzero(run.keys[at, 0] == ids)
            known[by_id[hit]] = True
            belongs[by_id[hit]] = run.keys[at[hit], 1]
        return Found(known, belongs)

    def _kept(self, bucket: int) -> list[_Run]:
        # What this time has left behind, and no more: a backlog may be older than all that is remembered.
        return [run for run in self._runs if run.bucket >= bucket - self._buckets]

    def _may_merge(self, before: _Run, last: _Run) -> bool:
        together = len(before.keys) + len(last.keys)
        return before.bucket == last.bucket and together <= min(3 * len(last.keys), self._run_ids)


def in_order(keys: Keys) -> Keys:
    """Return keys sorted by what is looked up. In Fortran order: a search runs over one contiguous column."""
    return np.asfortranarray(keys[np.argsort(keys[:, 0], kind="stable")])


def id_hashes(source_ids: pa.Array, message_ids: pa.Array) -> Hashes:
    """Return 64 bits of each (source_id, message_id)."""
    source_number, sources = codes(source_ids)
    seeds = [zlib.crc32(source.encode()) for source in sources.to_pylist()]
    digest = xxhash.xxh3_64_intdigest
    ids = message_ids.cast(pa.binary()).to_pylist()
    if len(seeds) == 1:
        seed = seeds[0]
        return np.array([digest(message_id, seed) for message_id in ids], np.uint64)
    hashes = [digest(message_id, seeds[source]) for message_id, source in zip(ids, source_number.tolist(), strict=True)]
    return np.array(hashes, np.uint64)


def place_hashes(batch: pa.RecordBatch, seed: int = 0) -> Hashes:
    """Return 64 bits of each row's place in the queue (envelope_id, envelope_index)."""
    number, envelopes = codes(batch.column("envelope_id"))
    digests = [xxhash.xxh3_64_intdigest(each, seed) for each in envelopes.cast(pa.binary()).to_pylist()]
    index = int64s(batch.column("envelope_index")).astype(np.uint64) + np.uint64(1)
    envelope = np.array(digests, np.uint64)[number] if digests else np.zeros(0, np.uint64)
    return mixed(envelope + index * np.uint64(0x9E3779B97F4A7C15))


def mixed(numbers: Hashes) -> Hashes:
    """Return other 64 bits for each number, none for two: the finalizer of SplitMix64 (Steele et al., 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
