"""Commit: what one release window brought becomes one Delta commit, exactly once, and only then is acknowledged.

The order of steps is what the guarantee rests on: files, then the archive's commit, then the duplicates', each entered
in the index of recent ids at once, then the receipts. A crash between any two leaves messages unacknowledged; Pub/Sub
delivers them again, and the index, which a new process rebuilds from the tables, tells what a commit already holds.
"""

import itertools
import logging
import threading
import uuid
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millrace.schemas import duplicate
from millrace.schemas.event import RECEIPT
from millrace.sinks.delta import Table
from millrace.sinks.parquet import DataFile
from millrace.sinks.recent_ids import COPY, NEW, REDELIVERED, Keys, RecentIds
from millrace.sinks.storage import StorageError
from millrace.transforms.batches import concat, count_by_receipt
from millrace.transforms.receipts import LEDGER, Counts

_LOG = logging.getLogger(__name__)

TRAVELLING_BYTES = 2 * 1024 * 1024
"""Smaller groups travel to the committer and share a file; larger ones are written where they are."""

_ORDER = [("user_key", "ascending"), ("order_index", "ascending")]


class Written(NamedTuple):
    """A large group, written as files before the commit, and what the committer must know of its rows."""

    files: list[DataFile]
    keys: Keys | None
    receipts: Counts
    counts: Counts
    late: int


class Part(NamedTuple):
    """What one shard brought to a window: rows that travel, rows already in files, or copies."""

    rows: pa.RecordBatch | None = None
    written: Written | None = None
    copies: pa.RecordBatch | None = None


class Committed(NamedTuple):
    """What came of a window's records; each is counted once."""

    rows: int
    late: int
    duplicates: int
    redelivered: int


class Index(NamedTuple):
    """What is committed already, for a job that is alone in writing its tables: one node."""

    events: RecentIds
    duplicates: RecentIds
    dead_letters: RecentIds
    dropped: RecentIds
    identities: RecentIds


class _Entry(NamedTuple):
    """What a commit adds to the index."""

    ids: RecentIds
    keys: Sequence[Keys]

    def make(self, window_us: int) -> None:
        for keys in self.keys:
            self.ids.add(keys, window_us)


class Committer:
    """The one writer of commits in a process. Safe to share: one window is committed at a time.

    Args:
        archive, duplicates, dead_letters, dropped, identities: the tables.
        index: None where another process may commit to the tables too; the runner's own exactly-once state and the
            transaction ids are then what prevents a second copy.
        run_id: names this run's transactions.
    """

    def __init__(
        self,
        *,
        archive: Table,
        duplicates: Table,
        dead_letters: Table,
        dropped: Table,
        identities: Table,
        index: Index | None,
        run_id: str,
    ) -> None:
        self.archive = archive
        self._duplicates = duplicates
        self.identities = identities
        self._records = {"dead_letters": dead_letters, "dropped": dropped, "identities": identities}
        self._index = index
        self._run_id = run_id
        # A sequence of its own: another committer of this run would start from 1 again, and be taken for a repeat.
        self._sequence = f"{run_id}/{uuid.uuid4().hex}"
        self._numbers = itertools.count(1)
        self._doubts: list[tuple[Table, int, _Entry, int]] = []  # commits that failed, perhaps after they had gone in
        self._lock = threading.Lock()

    def write_ahead(self, batch: pa.RecordBatch) -> Part:
        """Prepare one ordered group: write it now if it is large. Called from many threads, before the commit."""
        if batch.nbytes < TRAVELLING_BYTES:
            return Part(rows=batch)
        receipts, counts = count_by_receipt(batch)
        keys = None
        if self._index is not None:
            keys = self._index.events.keys_of(batch)
            if (self._index.events.find(keys) != NEW).any():
                return Part(rows=batch)  # the committer will sort it out, in memory
        late = pc.sum(batch.column("is_late")).as_py() or 0
        files = self.archive.write(pa.table(batch), uuid.uuid4().hex)
        return Part(written=Written(files, keys, receipts, counts, late))

    def commit_events(self, parts: Sequence[Part], window_us: int) -> Committed:
        """Commit one release window to the archive and the duplicates, then settle its receipts.

        Raises:
            StorageError: the storage refused it; nothing was settled.
        """
        with self._lock:
            self._resolve_doubts()
            rows = _joined([part.rows for part in parts])
            copies = _joined([part.copies for part in parts])
            written = [part.written for part in parts if part.written is not None]
            receipts = [count_by_receipt(batch) for batch in (rows, copies) if batch is not None]
            receipts += [(each.receipts, each.counts) for each in written]
            arrived = sum(batch.num_rows for batch in (rows, copies) if batch is not None)
            arrived += sum(file.rows for each in written for file in each.files)

            keys: list[Keys] = []
            if self._index is not None:
                written, reread = self._without_repeats(written)
                rows = _joined([rows, *reread])
                if rows is not None:
                    rows, repeats, row_keys = self._split(rows, [each.keys for each in written])
                    keys.append(row_keys)
                    copies = _joined([copies, repeats])
                keys += [each.keys for each in written if each.keys is not None]
            files = [file for each in written for file in each.files]
            late = sum(each.late for each in written)
            if rows is not None and rows.num_rows:
                ordered = pa.table(rows).sort_by(_ORDER)
                files += self.archive.write(ordered, uuid.uuid4().hex)
                late += pc.sum(rows.column("is_late")).as_py() or 0
            copies = self._true_copies(copies)

            total = sum(file.rows for file in files)
            count = copies.num_rows if copies is not None else 0
            result = Committed(total, late, count, arrived - total - count)
            if files:
                entry = _Entry(self._index.events, keys) if self._index is not None else None
                self._commit(self.archive, files, window_us, {"late": late, "duplicates": count}, entry)
            if copies is not None and copies.num_rows:
                ids = self._index.duplicates if self._index is not None else None
                entry = _Entry(ids, [ids.keys_of(copies)]) if ids is not None else None
                table = pa.table(copies)
                self._commit(self._duplicates, self._duplicates.write(table, uuid.uuid4().hex), window_us, {}, entry)
        _settle(receipts)
        return result

    def commit_records(self, name: str, batches: Sequence[pa.RecordBatch], window_us: int) -> Committed:
        """Commit dead letters, dropped events or identities to their table, then settle their receipts.

        Raises:
            StorageError: the storage refused it; nothing was settled.
        """
        table = self._records[name]
        with self._lock:
            self._resolve_doubts()
            records = concat(batches)
            receipts = [count_by_receipt(records)]
            arrived = records.num_rows
            entry = None
            if self._index is not None:
                ids: RecentIds = getattr(self._index, name)
                keys = ids.keys_of(records)
                new = (ids.find(keys) == NEW) & _is_first(keys)
                records, entry = records.filter(pa.array(new)), _Entry(ids, [keys[new]])
            if records.num_rows:
                files = table.write(pa.table(records).sort_by(table.spec.time_column), uuid.uuid4().hex)
                self._commit(table, files, window_us, {}, entry)
        _settle(receipts)
        return Committed(records.num_rows, 0, 0, arrived - records.num_rows)

    def _commit(
        self, table: Table, files: Sequence[DataFile], window_us: int, counts: dict[str, int], entry: _Entry | None
    ) -> None:
        # With an index a retry finds its rows committed, so a number is enough. Without one, a retry is recognised by
        # its window: a runner gives one window's records once, the same ones again when it retries.
        app_id, version = (self._sequence, next(self._numbers)) if entry else (f"{self._run_id}/{window_us}", 0)
        metadata = {"window_start_s": window_us / 1_000_000}
        try:
            table.commit(files, app_id=app_id, version=version, counts=counts, metadata=metadata)
        except StorageError:
            if entry:
                self._doubts.append((table, version, entry, window_us))
            raise
        if entry:
            entry.make(window_us)

    def _resolve_doubts(self) -> None:
        """Find out whether commits that failed are in nevertheless, before their rows are looked up again."""
        while self._doubts:
            table, version, entry, window_us = self._doubts[0]
            if (table.committed_version(self._sequence) or 0) >= version:
                entry.make(window_us)
            self._doubts.pop(0)

    def _without_repeats(self, written: Sequence[Written]) -> tuple[list[Written], list[pa.RecordBatch]]:
        """Take apart the files that hold what another commit, or another file of this one, holds: a rare race."""
        assert self._index is not None
        ids = [each.keys[:, 0] for each in written if each.keys is not None]
        distinct = not ids or len(np.unique(np.concatenate(ids))) == sum(map(len, ids))
        clean: list[Written] = []
        reread: list[pa.RecordBatch] = []
        for each in written:
            assert each.keys is not None
            if distinct and not (self._index.events.find(each.keys) != NEW).any():
                clean.append(each)
            else:
                reread += [_with_receipt(self.archive.read_file(file)) for file in each.files]
        return clean, reread

    def _split(
        self, rows: pa.RecordBatch, in_files: Sequence[Keys | None]
    ) -> tuple[pa.RecordBatch, pa.RecordBatch | None, Keys]:
        """Part rows into those that are new, with their keys, and copies of committed ones or of others here."""
        assert self._index is not None
        keys = self._index.events.keys_of(rows)
        found = self._index.events.find(keys)
        first = _firsts(keys)
        again = np.where(keys[first, 1] == keys[:, 1], REDELIVERED, COPY)
        found = np.where((found == NEW) & (first != np.arange(len(keys))), again, found)
        for others in in_files:
            if others is not None:
                found[np.isin(keys[:, 0], others[:, 0]) & (found == NEW)] = COPY
        new = found == NEW
        if new.all():
            return rows, None, keys
        return rows.filter(pa.array(new)), _as_copies(rows.filter(pa.array(found == COPY))), keys[new]

    def _true_copies(self, copies: pa.RecordBatch | None) -> pa.RecordBatch | None:
        """Leave out those that are the kept event's own message, delivered again, or are on record already."""
        if copies is None or not copies.num_rows:
            return None
        same = pc.and_(
            pc.equal(copies.column("envelope_id"), copies.column("kept_envelope_id")),
            pc.equal(copies.column("envelope_index"), copies.column("kept_envelope_index")),
        )
        copies = copies.filter(pc.invert(pc.fill_null(same, False)))
        if self._index is None or not copies.num_rows:
            return copies
        # A copy may be the archived event itself, when it is delivered again beside a copy that sorts before it.
        archived = self._index.events.find(self._index.events.keys_of(copies)) == REDELIVERED
        keys = self._index.duplicates.keys_of(copies)
        new = (self._index.duplicates.find(keys) == NEW) & _is_first(keys) & ~archived
        return copies.filter(pa.array(new))


def _joined(batches: Sequence[pa.RecordBatch | None]) -> pa.RecordBatch | None:
    given = [batch for batch in batches if batch is not None]
    return concat(given) if given else None


def _firsts(keys: Keys) -> npt.NDArray[np.int64]:
    """Return for each key the number of the first row with its id."""
    _, first, which = np.unique(keys[:, 0], return_index=True, return_inverse=True)
    firsts: npt.NDArray[np.int64] = first[which]
    return firsts


def _is_first(keys: Keys) -> npt.NDArray[np.bool_]:
    return np.equal(_firsts(keys), np.arange(len(keys)))


def _as_copies(rows: pa.RecordBatch) -> pa.RecordBatch:
    nothing = {"kept_envelope_id": pa.string(), "kept_envelope_index": pa.int32()}
    columns = [
        pa.nulls(rows.num_rows, nothing[name]) if name in nothing else rows.column(name)
        for name in duplicate.BATCH.names
    ]
    return pa.RecordBatch.from_arrays(columns, schema=duplicate.BATCH)


def _with_receipt(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Give rows read back from a file the receipt column; their receipts are settled with their part."""
    return rows.append_column(RECEIPT, pa.array(np.full(rows.num_rows, -1, np.int64)))


def _settle(receipts: Sequence[tuple[Counts, Counts]]) -> None:
    for numbers, counts in receipts:
        LEDGER.settle(numbers, counts)
