"""Recent ids: 64-bit keys of the last hours or minutes, each with 56 bits that belong to it; sixteen bytes an id.

Sorted runs of numpy arrays, merged as they grow and dropped as they age, so that neither a look-up nor an entry costs a
Python object. Fifteen bytes are the key and what belongs to it; up to one is a filter in front of large runs: most keys
that are looked up are new, and seven in eight of these are known not to be in a run without a search (measured at ten
million ids: a third of the time).

What the keys stand for is their owner's business: of the committer (sinks/committed_ids.py) what a commit holds, of the
deduplication (transforms/remembered.py) what has passed it.
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
"""Shape (n, 2): what is looked up, and what belongs to it, of which the lower 56 bits are kept."""

BELONGING = np.uint64((1 << 56) - 1)
"""The bits that are kept of what belongs to a key."""

_FILTERED_IDS = 1 << 15
"""Runs of more keys have a filter; smaller ones are searched in the processor's cache."""


_Times = TypeVar("_Times", int, npt.NDArray[np.int64])


class Found(NamedTuple):
    """What is known of each key that was looked up."""

    known: npt.NDArray[np.bool_]
    belongs: Hashes
    """0 where it is not known."""


class _Run(NamedTuple):
    ids: Hashes
    """Sorted."""
    belongs: npt.NDArray[np.void]
    """Seven bytes for each."""
    bucket: int
    filter: npt.NDArray[np.uint8] | None
    """Which leading bits occur among the ids, 4 to 8 bits of filter for each id."""
    shift: int
    """How many bits of an id come behind those."""

    @classmethod
    def of(cls, ids: Hashes, belongs: npt.NDArray[np.void], bucket: int) -> "_Run":
        order = np.argsort(ids)
        ids, belongs = ids[order], belongs[order]
        if len(ids) <= _FILTERED_IDS:
            return cls(ids, belongs, bucket, None, 0)
        bits = (4 * len(ids) - 1).bit_length()
        occurs = np.zeros(1 << bits, np.bool_)
        occurs[ids >> np.uint64(64 - bits)] = True
        return cls(ids, belongs, bucket, np.packbits(occurs, bitorder="little"), 64 - bits)

    def find(self, ids: Hashes) -> npt.NDArray[np.int64]:
        """Return for each of some sorted ids its row here; -1 where it is not here."""
        if self.filter is None:
            return self._search(ids)
        bit = ids >> np.uint64(self.shift)
        byte = self.filter[(bit >> np.uint64(3)).astype(np.int64)]
        may = np.flatnonzero((byte >> (bit & np.uint64(7)).astype(np.uint8)) & 1)
        rows = np.full(len(ids), -1, np.int64)
        rows[may] = self._search(ids[may])
        return rows

    def _search(self, ids: Hashes) -> npt.NDArray[np.int64]:
        at = np.searchsorted(self.ids, ids)
        return np.where(self.ids.take(at, mode="clip") == ids, at, -1)


def _pack(belongs: Hashes) -> npt.NDArray[np.void]:
    return belongs.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :7].copy().view("V7").ravel()


def _unpack(packed: npt.NDArray[np.void]) -> Hashes:
    wide = np.zeros((len(packed), 8), np.uint8)
    wide[:, :7] = packed.view(np.uint8).reshape(-1, 7)
    return wide.view("<u8").ravel()


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
        return sum(len(run.ids) for run in self._runs)

    def bucket(self, at_us: _Times) -> _Times:
        """Return the number of the bucket of a time, or of each of several; µs since the epoch."""
        return at_us // self._bucket_us

    def add(self, keys: Keys, at_us: int) -> None:
        """Enter keys that came at at_us (µs since the epoch), and forget what that has left behind."""
        bucket = self.bucket(at_us)
        runs = self._kept(bucket)
        if len(keys):
            place = bisect.bisect_right(runs, bucket, key=_bucket_of)
            if place and runs[place - 1].bucket < bucket:  # the bucket before is complete, or nearly
                place = self._merge(runs, place - 1, of_like_size=False) + 1
            runs.insert(place, _Run.of(keys[:, 0], _pack(keys[:, 1]), bucket))
            # Of like size only, so that runs stay few and each key is moved only a few times.
            self._merge(runs, place, of_like_size=True)
        self._runs = runs  # at once, so that another thread sees the old ones or the new

    def forget(self, at_us: int) -> None:
        """Forget what is past at at_us."""
        self._runs = self._kept(self.bucket(at_us))

    def drop_oldest(self) -> int:
        """Forget the oldest run before its time; return how many keys it had."""
        runs = list(self._runs)
        oldest = runs.pop(0)
        self._runs = runs
        return len(oldest.ids)

    def find(self, ids: Hashes) -> Found:
        """Return what is known of each id."""
        known, belongs = np.zeros(len(ids), np.bool_), np.zeros(len(ids), np.uint64)
        runs = self._runs
        if not runs or not len(ids):
            return Found(known, belongs)
        by_id = np.argsort(ids)
        ids = ids[by_id]
        for run in runs:
            rows = run.find(ids)
            hit = np.flatnonzero(rows >= 0)
            if len(hit):
                known[by_id[hit]] = True
                belongs[by_id[hit]] = _unpack(run.belongs[rows[hit]])
        return Found(known, belongs)

    def _kept(self, bucket: int) -> list[_Run]:
        # What this time has left behind, and no more: a backlog may be older than all that is remembered.
        return [run for run in self._runs if run.bucket >= bucket - self._buckets]

    def _merge(self, runs: list[_Run], place: int, *, of_like_size: bool) -> int:
        """Merge the run at a place with those before it; return where it is then."""
        first, together = place, len(runs[place].ids)
        while first and runs[first - 1].bucket == runs[place].bucket:
            before = len(runs[first - 1].ids)
            if before + together > self._run_ids or (of_like_size and before > 2 * together):
                break
            first, together = first - 1, together + before
        if first < place:
            some = runs[first : place + 1]
            ids, belongs = (
                np.concatenate(each) for each in zip(*((run.ids, run.belongs) for run in some), strict=True)
            )
            runs[first : place + 1] = [_Run.of(ids, belongs, runs[place].bucket)]
        return first


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
