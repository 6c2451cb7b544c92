"""Windows of events for the tests of commits: through deduplication and order, and who waits for its ack."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pyarrow as pa

from millrace.schemas import dead_letter
from millrace.sinks import commit
from millrace.sinks.commit import Committed, Committer, Part
from millrace.sinks.delta import open_table
from millrace.sinks.job_tables import Tables, committer, forget_committer
from millrace.sinks.recall import recall_events
from millrace.sinks.storage import StorageError
from millrace.sinks.tables import SPECS, with_columns
from millrace.transforms.copies import ADDS, deduplicate
from millrace.transforms.order import order, release
from millrace.transforms.receipts import Ledger
from millrace.transforms.remembered import Remembered
from tests.support.batches import NOON_US, batch

WINDOW_US = 5_000_000
Row = dict[str, Any]


class Done(NamedTuple):
    """What came of a window's events, in all tables."""

    rows: int
    late: int
    duplicates: int
    redelivered: int


class Window(NamedTuple):
    """A window on its way to its commits."""

    parts: list[Part]
    duplicates: list[pa.RecordBatch]


def parts_of(batches: Sequence[pa.RecordBatch], committer: Committer, shards: int = 3) -> list[Part]:
    """Return the parts of batches that leave in one window, as `WriteFiles` and `Repeats` make them."""
    pieces = [piece for each in batches for piece in release(each, wait_us=0, window_us=WINDOW_US, shards=shards)]
    assert len({piece.window_us for piece in pieces}) <= 1, "rows of several windows"
    parts = []
    for shard in sorted({piece.shard for piece in pieces}):
        ordered, repeats = order([piece.batch for piece in pieces if piece.shard == shard])
        parts.append(committer.write_ahead(ordered))
        if repeats.num_rows:
            parts.append(Part(repeats=repeats))
    return parts


def letters(rows: Sequence[Row]) -> pa.RecordBatch:
    """Return dead letters in the places of rows."""
    full = [
        {"payload": row["message_id"].encode(), "attributes": None, "stage": "decode", "reason": "empty",
         "message": "empty", "source_id": "shop", "refused_at": row["arrived_at"],
         "date": row["arrived_at"] // 86_400_000_000}
        | {name: row[name] for name in ("envelope_id", "envelope_index", "published_at", "receipt")}
        for row in rows
    ]  # fmt: skip
    columns = []
    for field in dead_letter.BATCH:
        values = pa.array([row[field.name] for row in full], _plain(field.type))
        columns.append(values.cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=dead_letter.BATCH)


def _plain(kind: pa.DataType) -> pa.DataType:
    return pa.int64() if pa.types.is_timestamp(kind) else pa.int32() if pa.types.is_date(kind) else kind


class Desk:
    """Deduplication and committer on tables in a folder, and a ledger of its own that says what may be acknowledged."""

    def __init__(
        self, folder: Path, *, alone: bool = True, horizon_s: float = 600.0, dedup_s: float = 86_400.0
    ) -> None:
        self.folder = folder
        self.dedup_s = dedup_s
        self.tables = Tables.at(folder, alone=alone, horizon_s=horizon_s, added=ADDS)
        self._remembered: Remembered | None = None
        self.ledger = Ledger()
        self._deliveries = 0

    @property
    def committer(self) -> Committer:
        """The committer of the process that lives now."""
        return committer(self.tables)

    def restart(self) -> None:
        """Die and come back: the index and the receipts are gone, the tables stay."""
        forget_committer(self.tables)
        self._remembered = None
        self.ledger = Ledger()

    @property
    def remembered(self) -> Remembered:
        """What the deduplication of the process that lives now remembers."""
        if self._remembered is None:
            self._remembered = Remembered(self.dedup_s, 1_000_000)
            recall_events(self.tables, self._remembered, self.dedup_s)
        return self._remembered

    def deliver(self, rows: Sequence[Row]) -> list[Row]:
        """Return rows with a receipt for each delivered envelope; its ack id is `delivery/envelope`."""
        self._deliveries += 1
        by_envelope: dict[str, list[Row]] = {}
        for row in rows:
            by_envelope.setdefault(row["envelope_id"], []).append(row)
        ack_ids = [f"{self._deliveries}/{envelope}" for envelope in by_envelope]
        first = self.ledger.open(ack_ids, [1] * len(ack_ids), 1e9, NOON_US)
        receipts = {envelope: first + number for number, envelope in enumerate(by_envelope)}
        counts = [len(each) for each in by_envelope.values()]
        self.ledger.expect(np.arange(first, first + len(counts)), np.array(counts, np.int64))
        return [{**row, "receipt": receipts[row["envelope_id"]]} for row in rows]

    def prepare(self, rows: Sequence[Row], shards: int = 3) -> Window:
        """Take delivered rows through deduplication and order, up to their commits."""
        unique = [done.unique for done in deduplicate(batch(rows), self.remembered, repeats_pass=self.tables.alone)]
        parts = parts_of([each.batch for each in unique if each.batch.num_rows], self.committer, shards)
        return Window(parts, [each.duplicates for each in unique if each.duplicates.num_rows])

    def commit(self, window: Window, window_us: int = NOON_US, *, duplicates_first: bool = False) -> Done:
        """Commit a window; the graph promises nothing of the order in which its two commits come."""
        if duplicates_first:
            copied = self._commit_duplicates(window, window_us)
            archived = self._commit_events(window, window_us)
        else:
            archived = self._commit_events(window, window_us)
            copied = self._commit_duplicates(window, window_us)
        return Done(archived.rows, archived.late, copied.rows, archived.redelivered + copied.redelivered)

    def _commit_events(self, window: Window, window_us: int) -> Committed:
        with mock.patch.object(commit, "LEDGER", self.ledger):
            return self.committer.commit_events(window.parts, window_us)

    def _commit_duplicates(self, window: Window, window_us: int) -> Committed:
        if not window.duplicates:
            return Committed(0, 0, 0)
        with mock.patch.object(commit, "LEDGER", self.ledger):
            return self.committer.commit_records("duplicates", window.duplicates, window_us)

    def window(self, *rows: Row, window_us: int = NOON_US) -> Done:
        """Deliver rows and commit them as one window."""
        return self.commit(self.prepare(self.deliver(rows)), window_us)

    def refuse(self, *rows: Row, window_us: int = NOON_US) -> Committed:
        """Deliver rows and commit them as dead letters, in two batches."""
        given = self.deliver(rows)
        halves = [letters(half) for half in (given[: len(given) // 2], given[len(given) // 2 :]) if half]
        with mock.patch.object(commit, "LEDGER", self.ledger):
            return self.committer.commit_records("dead_letters", halves, window_us)

    def acked(self) -> list[str]:
        """Return what became ready to acknowledge since the last call: `delivery/envelope`."""
        return sorted(self.ledger.take_ready())

    def table(self, name: str) -> pa.Table:
        """Return all rows of a table."""
        (spec,) = (spec for spec in SPECS if spec.name == name.replace("_", " "))
        spec = with_columns(spec, ADDS) if name == "archive" else spec
        return open_table(str(self.folder / name), spec).delta.to_pyarrow_table().select(spec.schema.names)

    def places(self, name: str) -> list[tuple[str, str, int]]:
        """Return (id, envelope, index) of every row of a table, sorted; of a dead letter its payload is the id."""
        id_ = "payload" if name == "dead_letters" else "message_id"
        rows = self.table(name).select([id_, "envelope_id", "envelope_index"]).to_pylist()
        found = [(row[id_], row["envelope_id"], row["envelope_index"]) for row in rows]
        return sorted((id_.decode() if isinstance(id_, bytes) else id_, *place) for id_, *place in found)

    @contextlib.contextmanager
    def failing(self, name: str, *, after: bool = False) -> Iterator[None]:
        """Let every commit to a table raise StorageError: before it went in, or after."""
        committer = self.committer
        tables = {"archive": committer.archive, **committer._records}
        table = tables[name]
        real = table.commit

        def fail(*arguments: Any, **named: Any) -> bool:
            if after:
                assert real(*arguments, **named)
            raise StorageError("the store is away")

        with mock.patch.object(table, "commit", fail):
            yield
