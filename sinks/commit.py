"""Commit: what one release window brought becomes one Delta commit, exactly once, and only then is acknowledged.

The order of steps is what the guarantee rests on: files, then the table's commit, entered in the index of committed ids
at once, then the receipts. A crash between any two leaves messages unacknowledged; Pub/Sub delivers them again, and the
index, which a new process rebuilds from the tables, tells what a commit already holds.
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

from millrace.schemas.event import RECEIPT
from millrace.sinks.committed_ids import CommittedIds, firsts
from millrace.sinks.delta import Table
from millrace.sinks.parquet import DataFile
from millrace.sinks.storage import StorageError
from millrace.transforms.batches import concat, count_by_receipt
from millrace.transforms.receipts import LEDGER, Counts
from millrace.transforms.recent_ids import Keys

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
    """What one shard brought to a window: rows that travel, rows already in files, or receipts of repeats."""

    rows: pa.RecordBatch | None = None
    written: Written | None = None
    repeats: pa.RecordBatch | None = None


class Committed(NamedTuple):
    """What came of a window's records; each is counted once."""

    rows: int
    late: int
    redelivered: int


class Index(NamedTuple):
    """What is committed already, for a job that is alone in writing its tables: one node."""

    events: CommittedIds
    duplicates: CommittedIds
    dead_letters: CommittedIds
    dropped: CommittedIds
    identities: CommittedIds


class _Entry(NamedTuple):
    """What a commit adds to the index."""

    ids: CommittedIds
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
        self.duplicates = duplicates
        self.identities = identities
        self._records = {
            "duplicates": duplicates,
            "dead_letters": dead_letters,
            "dropped": dropped,
            "identities": identities,
        }
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
            if self._index.events.holds(keys).any():
                return Part(rows=batch)  # the committer will sort it out, in memory
        late = pc.sum(batch.column("is_late")).as_py() or 0
        files = self.archive.write(pa.table(batch), uuid.uuid4().hex)
        return Part(written=Written(files, keys, receipts, counts, late))

    def commit_events(self, parts: Sequence[Part], window_us: int) -> Committed:
        """Commit one release window to the archive, then settle its receipts.

        Raises:
            StorageError: the storage refused it; nothing was settled.
        """
        with self._lock:
            self._resolve_doubts()
            rows = _joined([part.rows for part in parts])
            repeats = _joined([part.repeats for part in parts])
            written = [part.written for part in parts if part.written is not None]
            receipts = [count_by_receipt(batch) for batch in (rows, repeats) if batch is not None]
            receipts += [(each.receipts, each.counts) for each in written]
            arrived = sum(batch.num_rows for batch in (rows, repeats) if batch is not None)
            arrived += sum(file.rows for each in written for file in each.files)

            keys: list[Keys] = []
            if self._index is not None:
                written, reread = self._without_repeats(written)
                rows = _joined([rows, *reread])
                if rows is not None:
                    rows, row_keys = self._new(rows, [each.keys for each in written])
                    keys.append(row_keys)
                keys += [each.keys for each in written if each.keys is not None]
            files = [file for each in written for file in each.files]
            late = sum(each.late for each in written)
            if rows is not None and rows.num_rows:
                ordered = pa.table(rows).sort_by(_ORDER)
                files += self.archive.write(ordered, uuid.uuid4().hex)
                late += pc.sum(rows.column("is_late")).as_py() or 0

            total = sum(file.rows for file in files)
            result = Committed(total, late, arrived - total)
            if files:
                entry = _Entry(self._index.events, keys) if self._index is not None else None
                self._commit(self.archive, files, window_us, {"late": late}, entry)
        _settle(receipts)
        return result

    def holds(self, batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Say which events of a batch are in the archive, as far as the index goes back."""
        if self._index is None:
            return np.zeros(batch.num_rows, np.bool_)
        holds: npt.NDArray[np.bool_] = self._index.events.holds(self._index.events.keys_of(batch))
        return holds

    def commit_records(self, name: str, batches: Sequence[pa.RecordBatch], window_us: int) -> Committed:
        """Commit duplicates, dead letters, dropped events or identities to their table, then settle their receipts.

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
                ids: CommittedIds = getattr(self._index, name)
                keys = ids.keys_of(records)
                new = ~ids.holds(keys) & firsts(keys)
                records, entry = records.filter(pa.array(new)), _Entry(ids, [keys[new]])
            if records.num_rows:
                files = table.write(pa.table(records).sort_by(table.spec.time_column), uuid.uuid4().hex)
                self._commit(table, files, window_us, {}, entry)
        _settle(receipts)
        return Committed(records.num_rows, 0, arrived - records.num_rows)

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
            if distinct and not self._index.events.holds(each.keys).any():
                clean.append(each)
            else:
                reread += [_with_receipt(self.archive.read_file(file)) for file in each.files]
        return clean, reread

    def _new(self, rows: pa.RecordBatch, in_files: Sequence[Keys | None]) -> tuple[pa.RecordBatch, Keys]:
        """Return the rows that neither a commit nor a file of this one holds, once each, and their keys."""
        assert self._index is not None
        keys = self._index.events.keys_of(rows)
        new = ~self._index.events.holds(keys) & firsts(keys)
        for others in in_files:
            if others is not None:
                new &= ~np.isin(keys[:, 0], others[:, 0])
        return (rows, keys) if new.all() else (rows.filter(pa.array(new)), keys[new])


def _joined(batches: Sequence[pa.RecordBatch | None]) -> pa.RecordBatch | None:
    given = [batch for batch in batches if batch is not None]
    return concat(given) if given else None


def _with_receipt(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Give rows read back from a file the receipt column; their receipts are settled with their part."""
    return rows.append_column(RECEIPT, pa.array(np.full(rows.num_rows, -1, np.int64)))


def _settle(receipts: Sequence[tuple[Counts, Counts]]) -> None:
    for numbers, counts in receipts:
        LEDGER.settle(numbers, counts)
