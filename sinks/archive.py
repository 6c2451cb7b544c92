"""Write the archive: ordered batches become Parquet files, and each window one commit."""

import dataclasses
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.window import FixedWindows

from millrace.sinks.commit import Committed, Committer, Index, Part
from millrace.sinks.delta import Table, open_table
from millrace.sinks.recent_ids import RecentIds, dropped_keys, place_keys
from millrace.sinks.storage import StorageError
from millrace.sinks.tables import ARCHIVE, DEAD_LETTERS, DROPPED, DUPLICATES, SPECS, with_columns
from millrace.transforms.batches import one_batch
from millrace.transforms.counts import count
from millrace.transforms.order import shard_of
from millrace.transforms.steps import Step, users_here

STAGE = "archive"

_LOG = logging.getLogger(__name__)
_LONGEST_PAUSE_S = 30.0
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class Tables:
    """Where a job's tables are, and how it commits to them.

    Attributes:
        archive, duplicates, dead_letters, dropped: URIs: a folder, file:// or gs://.
        alone: this process is the only one that writes them (one node): it remembers what is committed, so that
            redelivery after a crash adds nothing. Elsewhere the runner's own state has to see to that.
        horizon_s: how far back it remembers.
        run_id: names this run's transactions.
        added: the columns that this job's stages add to the archive.
    """

    archive: str
    duplicates: str
    dead_letters: str
    dropped: str
    alone: bool = True
    horizon_s: float = 600.0
    run_id: str = dataclasses.field(default_factory=lambda: f"millrace-{uuid.uuid4().hex}")
    added: tuple[pa.Field, ...] = ()

    @classmethod
    def at(cls, root: Path | str, **more: Any) -> "Tables":
        """Return the tables that are side by side in one place, under their names."""
        archive, duplicates, dead_letters, dropped = (f"{root}/{spec.name.replace(' ', '_')}" for spec in SPECS)
        return cls(archive, duplicates, dead_letters, dropped, **more)


def recall(tables: Tables, steps: Iterable[Step], shards: int) -> None:
    """Let steps remember again, in this process, what the archive's newest rows say of their users: one node.

    Raises:
        StorageError: the archive cannot be read; one sentence that says what to do.
    """
    archive = committer(tables).archive
    newest_us = archive.newest_us()
    for step in steps:
        if not (step.remembers_s and step.recalls) or newest_us is None:
            continue
        columns = list(dict.fromkeys([*step.recalls, "user_key", "order_index", "released_at"]))
        columns = [name for name in columns if archive.spec.schema.get_field_index(name) >= 0]  # of stages that are on
        found = list(archive.read_recent(columns, newest_us - round(step.remembers_s * 1_000_000)))
        if not found:
            continue
        rows = one_batch(
            pa.Table.from_batches(found).sort_by([("user_key", "ascending"), ("order_index", "ascending")])
        )
        shard = shard_of(rows.column("user_key"), shards)
        for number in range(shards):
            of_shard = rows.filter(pa.array(shard == number))
            if of_shard.num_rows:
                step.recall(of_shard, users_here(step, number))


class Opened(NamedTuple):
    """A job's tables."""

    archive: Table
    duplicates: Table
    dead_letters: Table
    dropped: Table


def open_tables(tables: Tables) -> Opened:
    """Open a job's tables; create those that are missing, and add the columns that they lack.

    Raises:
        StorageError: one cannot be opened; one sentence that says what to do.
    """
    return Opened(
        open_table(tables.archive, with_columns(ARCHIVE, tables.added)),
        open_table(tables.duplicates, DUPLICATES),
        open_table(tables.dead_letters, DEAD_LETTERS),
        open_table(tables.dropped, DROPPED),
    )


_COMMITTERS: dict[Tables, Committer] = {}
_COMMITTERS_LOCK = threading.Lock()


def committer(tables: Tables) -> Committer:
    """Return this process's committer of these tables; opens them, and reads back recent ids, the first time.

    Raises:
        StorageError: a table cannot be opened; one sentence that says what to do.
    """
    with _COMMITTERS_LOCK:
        found = _COMMITTERS.get(tables)
        if found is None:
            opened = open_tables(tables)
            index = None
            if tables.alone:
                index = Index(
                    _remembered(opened.archive, RecentIds(tables.horizon_s), tables.horizon_s),
                    *(
                        _remembered(table, RecentIds(tables.horizon_s, keys), tables.horizon_s)
                        for table, keys in zip(opened[1:], (place_keys, place_keys, dropped_keys), strict=True)
                    ),
                )
            found = Committer(**opened._asdict(), index=index, run_id=tables.run_id)
            _COMMITTERS[tables] = found
        return found


def _remembered(table: Table, ids: RecentIds, horizon_s: float) -> RecentIds:
    """Fill an index with what the table holds of the last horizon before its newest row."""
    newest_us = table.newest_us()
    if newest_us is None:
        return ids
    columns = ["message_id", "source_id", "envelope_id", "envelope_index", table.spec.time_column]
    columns = [name for name in columns if table.spec.schema.get_field_index(name) >= 0]
    for batch in table.read_recent(columns, newest_us - round(horizon_s * 1_000_000)):
        at_us = pc.max(batch.column(table.spec.time_column)).value
        ids.add(ids.keys_of(batch), at_us)
    return ids


def patiently(tables: Tables, write: Callable[[], _Result], sleep: Callable[[float], None] = time.sleep) -> _Result:
    """Call write; on one node wait out a storage that refuses (full disk, outage); elsewhere the runner tries again.

    Nothing is acknowledged meanwhile, and the reader stops at its bounds. To end the job would not mend the disk.
    """
    pause_s = 1.0
    while True:
        try:
            return write()
        except (StorageError, OSError) as error:
            if not tables.alone:
                raise
            _LOG.error("cannot write, will go on trying: %s", error)
            sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


@dataclasses.dataclass(eq=False)
class WriteArchive(beam.PTransform):
    """Write ordered events to the archive, and what was left out to the duplicates.

    In:      batches by shard and duplicates of OrderPerUser, in its windows
    Out:     Committed, one per window: what is safe now
    Window:  the input's.  State: one node: 16 bytes for each event of the horizon; else none.
    Repeats: a record that is committed already is not committed again, see docs/guarantees.md.
    Errors:  one node: a storage that refuses is waited out; elsewhere StorageError fails the bundle, for the runner
             to try again. Nothing is acknowledged before it is committed.
    """

    tables: Tables

    def expand(self, ordered: Any) -> beam.PCollection[Committed]:  # two collections: Beam has no type for that
        batches, duplicates = ordered
        parts = (
            batches | "WriteFiles" >> beam.ParDo(_WriteFn(self.tables)).with_output_types(tuple[int, Part]),
            duplicates | "Copies" >> beam.Map(_copies).with_output_types(tuple[int, Part]),
        )
        return (
            parts
            | "Gather" >> beam.Flatten()
            | "GroupByWindow" >> beam.GroupByKey()
            | "Commit" >> beam.ParDo(_CommitFn(self.tables)).with_output_types(Committed)
            | "End" >> _End()
        )


class _End(beam.PTransform):
    """Pass on what was committed, behind a group.

    While a stage without outputs runs, Prism 2.77 waits for it in a busy loop (measured: 4.2 s of processor for a
    bundle that slept 4 s; 0.2 s with an output), and a commit takes a while. So commits are not the last stage.
    """

    def expand(self, committed: beam.PCollection[Committed]) -> beam.PCollection[Committed]:
        return (
            committed
            | "Key" >> beam.Map(_same_key).with_output_types(tuple[int, Committed])
            | "Group" >> beam.GroupByKey()
            | "Committed" >> beam.FlatMap(_values).with_output_types(Committed)
        )


class _WriteFn(beam.DoFn):
    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def process(self, keyed: tuple[int, pa.RecordBatch]) -> Iterator[tuple[int, Part]]:
        yield 0, patiently(self._tables, lambda: committer(self._tables).write_ahead(keyed[1]))


class _CommitFn(beam.DoFn):
    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def process(self, group: tuple[int, Iterable[Part]], window: Any = beam.DoFn.WindowParam) -> Iterator[Committed]:
        parts = list(group[1])
        done = patiently(self._tables, lambda: committer(self._tables).commit_events(parts, window.start.micros))
        for name, amount in done._asdict().items():
            count(STAGE, name, amount)
        yield done


def _copies(copies: pa.RecordBatch) -> tuple[int, Part]:
    return 0, Part(copies=copies)


@dataclasses.dataclass(eq=False)
class WriteRecords(beam.PTransform):
    """Write what did not get into the archive to its table: dead letters, or dropped events.

    In:      several collections of batches of schemas.dead_letter.BATCH, or of schemas.dropped.BATCH, in any windows
    Out:     Committed, one per window that had any
    Window:  FixedWindows(window_s) on arrival.
    """

    tables: Tables
    table: str
    """`dead_letters` or `dropped`."""
    window_s: float = 5.0

    def expand(self, records: Any) -> beam.PCollection[Committed]:  # several collections: Beam has no type for that
        windowed = [
            each | f"Window{number}" >> beam.WindowInto(FixedWindows(self.window_s))
            for number, each in enumerate(records, 1)
        ]
        return (
            windowed
            | "Gather" >> beam.Flatten()
            | "Key" >> beam.Map(_same_key).with_output_types(tuple[int, pa.RecordBatch])
            | "GroupByWindow" >> beam.GroupByKey()
            | "Commit" >> beam.ParDo(_CommitRecordsFn(self.tables, self.table)).with_output_types(Committed)
            | "End" >> _End()
        )


class _CommitRecordsFn(beam.DoFn):
    def __init__(self, tables: Tables, table: str) -> None:
        self._tables = tables
        self._table = table

    def process(
        self, group: tuple[int, Iterable[pa.RecordBatch]], window: Any = beam.DoFn.WindowParam
    ) -> Iterator[Committed]:
        records = list(group[1])
        start_us = window.start.micros
        done = patiently(self._tables, lambda: committer(self._tables).commit_records(self._table, records, start_us))
        count(self._table, "rows", done.rows)
        yield done


def _same_key(value: Any) -> tuple[int, Any]:
    return 0, value


def _values(group: tuple[int, Iterable[Any]]) -> Iterable[Any]:
    return group[1]
