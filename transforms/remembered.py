"""Remembered: which events have passed the deduplication lately, and what that makes of those that come now.

For each: 64 bits of (source_id, message_id), 32 of the fingerprint, 24 of the place in the queue. Events that were kept
under a derived id are remembered by 64 bits of id and fingerprint together.

**When bits collide.** Another id with the same 64 bits has another fingerprint: the event is taken for one that reuses
an id, and kept under a derived id (among n remembered ids: n / 2^64 for each event; 5e-12 at 10^8). It would be lost
only if the 32 bits of the fingerprint were the same too: n / 2^96, 1e-21. Of events that do reuse an id, 1 in 2^32 is
taken for a copy. Of copies, 1 in 2^24 is taken for the same message delivered again: on one node it passes, and the
archive has a row too many; elsewhere its record is missing.
"""

import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.batches import int64s
from millrace.transforms.recent_ids import BUCKETS, Hashes, Keys, RecentIds, id_hashes, mixed, place_hashes

UNKNOWN = np.uint64(0)
"""The fingerprint of events that were archived without one: equal to any."""

_PLACE_BITS = np.uint64(24)
_PLACE = np.uint64((1 << 24) - 1)

FIRST, OTHER, REPEAT, COPY = 0, 1, 2, 3
"""What an event is: the first of its id; another one with an id that was taken; a message that has passed before, from
this very place in the queue; a copy of one that has passed, from another place."""

Verdicts = npt.NDArray[np.int8]
Rows = npt.NDArray[np.int64]


class Facts(NamedTuple):
    """What is known of each row of a batch before anything is looked up."""

    ids: Hashes
    places: Hashes
    prints: Hashes

    @classmethod
    def of(cls, batch: pa.RecordBatch, prints: Hashes) -> "Facts":
        """Return the facts of a batch and its fingerprints."""
        return cls(id_hashes(batch.column("source_id"), batch.column("message_id")), place_hashes(batch), prints)

    def tails(self) -> Hashes:
        """Return what is remembered beside the id: 32 bits of the fingerprint, never 0, above 24 of the place."""
        prints = np.maximum(self.prints >> np.uint64(32), np.uint64(1))
        tails: Hashes = (prints << _PLACE_BITS) | (self.places & _PLACE)
        return tails

    def both(self) -> Hashes:
        """Return 64 bits of id and fingerprint together."""
        return mixed(self.ids ^ mixed(self.prints))


class Judged(NamedTuple):
    """What each row of a batch is."""

    verdicts: Verdicts
    derived: npt.NDArray[np.bool_]
    """It is, or repeats, or copies, one that was kept under a derived id."""
    kept: Rows
    """Of a copy: the row here that it is a copy of; -1 where that came before."""
    ids: Keys
    """What is new to remember by id; by id and fingerprint:"""
    others: Keys


class Remembered:
    """What has passed in the last `horizon_s` seconds of arrival.

    Not for use by several threads at once but under its lock.

    Args:
        horizon_s: how long an event is remembered.
        max_ids: how many at most; beyond that the oldest are forgotten, an eighth at a time.
        buckets: as of RecentIds.
    """

    def __init__(self, horizon_s: float, max_ids: int, *, buckets: int = BUCKETS) -> None:
        self.lock = threading.Lock()
        self._max_ids = max_ids
        run_ids = max(1, max_ids // 8)
        self._ids = RecentIds(horizon_s, buckets=buckets, run_ids=run_ids)
        self._others = RecentIds(horizon_s, buckets=buckets, run_ids=run_ids)
        self._recorded: Hashes = np.zeros(0, np.uint64)

    def __len__(self) -> int:
        return len(self._ids) + len(self._others)

    def record(self, places: Hashes) -> None:
        """Enter places in the queue whose events are on record as duplicates, whatever they were copies of."""
        self._recorded = np.unique(np.concatenate([self._recorded, places]))

    def add(self, ids: Keys, others: Keys, at_us: int) -> int:
        """Remember events that passed at at_us; return how many older ones had to go before their time."""
        self._ids.add(ids, at_us)
        self._others.add(others, at_us)
        forgotten = 0
        while len(self) > self._max_ids:
            forgotten += max(self._ids, self._others, key=len).drop_oldest()
        return forgotten

    def recall(self, rows: pa.RecordBatch) -> None:
        """Remember again what the archive holds.

        Args:
            rows: source_id, message_id, envelope_id, envelope_index, published_at, fingerprint, duplicate_of.
        """
        for at_us, part in self.by_bucket(rows, "published_at"):
            derived = part.column("duplicate_of").is_valid().to_numpy(zero_copy_only=False)
            known = part.column("fingerprint").is_valid().to_numpy(zero_copy_only=False)
            prints = int64s(part.column("fingerprint").fill_null(0)).view(np.uint64)
            own = pc.coalesce(part.column("duplicate_of"), part.column("message_id"))
            facts = Facts(id_hashes(part.column("source_id"), own), place_hashes(part), prints)
            tails = np.where(known, facts.tails(), facts.places & _PLACE)
            numbers = np.arange(part.num_rows)
            self.add(_keys(facts.ids, tails, numbers[~derived]), _keys(facts.both(), tails, numbers[derived]), at_us)

    def by_bucket(self, batch: pa.RecordBatch, time: str) -> list[tuple[int, pa.RecordBatch]]:
        """Split a batch by the buckets of a time column: (the earliest time, rows), in the order of time."""
        if not batch.num_rows:
            return []
        times = int64s(batch.column(time))
        buckets = self._ids.bucket(times)
        return [
            (int(times[of].min()), batch.filter(pa.array(of)) if len(distinct) > 1 else batch)
            for distinct in [np.unique(buckets)]
            for of in (buckets == bucket for bucket in distinct)
        ]

    def judge(self, batch: pa.RecordBatch, facts: Facts, at_us: int, *, repeats_pass: bool) -> Judged:
        """Say what each row is, given all that has been added.

        Args:
            batch: the rows, for their times and places.
            facts: of the same rows.
            at_us: when they arrived, µs since the epoch.
            repeats_pass: whether a message that is delivered again goes on: then its place alone tells it, since a
                changed privacy rule may have made another fingerprint of the same message.
        """
        self._ids.forget(at_us)
        self._others.forget(at_us)
        size = batch.num_rows
        tails = facts.tails()
        verdicts, derived, kept = np.full(size, COPY, np.int8), np.zeros(size, np.bool_), np.full(size, -1, np.int64)
        rows = np.arange(size)
        if len(self._recorded):
            at = np.searchsorted(self._recorded, facts.places)
            at[at == len(self._recorded)] = 0
            rows = rows[self._recorded[at] != facts.places]

        # An event under a derived id may be all that is left of its id, the first of which is archived or to come.
        apart = rows[:0]
        if len(self._others):
            lone = self._others.find(facts.both()[rows]).known
            lone[lone] = ~self._ids.find(facts.ids[rows[lone]]).known
            rows, apart = rows[~lone], rows[lone]

        level = _compare(batch, rows, facts.ids[rows], tails, self._ids, repeats_pass=repeats_pass)
        verdicts[rows], kept[rows] = level.verdicts, level.kept
        ids = _keys(facts.ids, tails, rows[level.verdicts == FIRST])

        rows = np.concatenate([rows[level.verdicts == OTHER], apart])
        if not len(rows):
            return Judged(verdicts, derived, kept, ids, _keys(facts.ids, tails, rows))
        both = facts.both()
        level = _compare(batch, rows, both[rows], tails, self._others, repeats_pass=repeats_pass)
        derived[rows] = True
        kept[rows] = level.kept
        verdicts[rows] = np.where(level.verdicts == FIRST, OTHER, level.verdicts)
        return Judged(verdicts, derived, kept, ids, _keys(both, tails, rows[level.verdicts == FIRST]))


class _Level(NamedTuple):
    verdicts: Verdicts
    kept: Rows


def _compare(
    batch: pa.RecordBatch, rows: Rows, keys: Hashes, all_tails: Hashes, remembered: RecentIds, *, repeats_pass: bool
) -> _Level:
    """Compare rows with what is remembered under their keys, else with the first here that has the same."""
    tails = all_tails[rows]
    known, belongs = remembered.find(keys)
    leader = _leaders(keys, lambda some: _precedence(batch, rows[some]))
    against = np.where(known, belongs, tails[leader])
    is_first = ~known & (leader == np.arange(len(rows)))
    its_print = against >> _PLACE_BITS
    same_print = (its_print == tails >> _PLACE_BITS) | (its_print == UNKNOWN)
    same_place = against & _PLACE == tails & _PLACE
    if not repeats_pass:
        same_place &= same_print  # what ends here must be sure
    verdicts = np.select([is_first, same_place, same_print], [FIRST, REPEAT, COPY], OTHER).astype(np.int8)
    return _Level(verdicts, np.where(known | is_first, -1, rows[leader]))


def _leaders(keys: Hashes, precedence: Callable[[Rows], Rows]) -> Rows:
    """Return for each row the row with the same key that goes before all others; itself where it is alone."""
    leaders = np.arange(len(keys))
    by_key = np.argsort(keys)
    same = np.diff(keys[by_key]) == 0
    if not same.any():
        return leaders
    several = by_key[np.append(same, False) | np.insert(same, 0, False)]
    several = several[np.lexsort((precedence(several), keys[several]))]
    _, start, number = np.unique(keys[several], return_index=True, return_inverse=True)
    leaders[several] = several[start[number]]
    return leaders


def _precedence(batch: pa.RecordBatch, rows: Rows) -> Rows:
    """Return the ranks of some rows: which of several with one id is the first hangs on the events alone."""
    names = ["occurred_at", "received_at", "published_at", "envelope_id", "envelope_index"]
    some = batch.select(names).take(pa.array(rows))
    order = pc.sort_indices(some, sort_keys=[(name, "ascending") for name in names]).to_numpy()
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks


def _keys(hashes: Hashes, tails: Hashes, rows: Rows) -> Keys:
    return np.column_stack([hashes[rows], tails[rows]])
