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
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import TimerSpec, on_timer
from apache_beam.transforms.window import FixedWindows, GlobalWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from millrace.sinks.commit import Committed, Committer, Index, Part
from millrace.sinks.committed_ids import CommittedIds, event_keys, identity_keys, letter_keys, place_keys
from millrace.sinks.delta import Table, open_table
from millrace.sinks.storage import StorageError
from millrace.sinks.tables import ARCHIVE, DEAD_LETTERS, DROPPED, DUPLICATES, IDENTITIES, SPECS, TableSpec, with_columns
from millrace.transforms import in_beam as _in_beam  # noqa: F401  registers how batches travel
from millrace.transforms.batches import one_batch, shard_of
from millrace.transforms.counts import count
from millrace.transforms.steps import Step, users_here

STAGE = "archive"

_LOG = logging.getLogger(__name__)
_LONGEST_PAUSE_S = 30.0
_END_S = 5.0
_RECALLED_BYTES = 64 * 1024 * 1024
"""About so much is sorted and given to a step at once."""
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class Tables:
    """Where a job's tables are, and how it commits to them.

    Attributes:
        archive, duplicates, dead_letters, dropped, identities: URIs: a folder, file:// or gs://.
        alone: this process is the only one that writes them (one node): it remembers what is committed, so that
            redelivery after a crash adds nothing. Elsewhere the runner's own state has to see to that.
        horizon_s: how far back it remembers what is committed.
        run_id: names this run's transactions.
        added: the columns that this job's stages add to the archive.
    """

    archive: str
    duplicates: str
    dead_letters: str
    dropped: str
    identities: str
    alone: bool = True
    horizon_s: float = 600.0
    run_id: str = dataclasses.field(default_factory=lambda: f"millrace-{uuid.uuid4().hex}")
    added: tuple[pa.Field, ...] = ()

    def uri_of(self, spec: TableSpec) -> str:
        """Return where one of the tables is."""
        uri: str = getattr(self, spec.name.replace(" ", "_"))
        return uri

    @classmethod
    def at(cls, root: Path | str, **more: Any) -> "Tables":
        """Return the tables that are side by side in one place, under their names."""
        archive, duplicates, letters, dropped, identities = (f"{root}/{spec.name.replace(' ', '_')}" for spec in SPECS)
        return cls(archive, duplicates, letters, dropped, identities, **more)


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
        # In parts of a shard's users, each of them whole: Arrow holds 2 GiB of text in a column of one batch.
        parts = shards * (1 + sum(batch.nbytes for batch in found) // (shards * _RECALLED_BYTES))
        part_of = [shard_of(batch.column("user_key"), parts) for batch in found]
        for part in range(parts):
            of_part = [batch.filter(pa.array(of == part)) for batch, of in zip(found, part_of, strict=True)]
            rows = pa.Table.from_batches(of_part)
            if rows.num_rows:
                ordered = one_batch(rows.sort_by([("user_key", "ascending"), ("order_index", "ascending")]))
                step.recall(ordered, users_here(step, part % shards))


class Opened(NamedTuple):
    """A job's tables."""

    archive: Table
    duplicates: Table
    dead_letters: Table
    dropped: Table
    identities: Table


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
        open_table(tables.identities, IDENTITIES),
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
                horizon_s = tables.horizon_s
                index = Index(
                    _remembered(opened.archive, CommittedIds(horizon_s), horizon_s),
                    _remembered(opened.duplicates, CommittedIds(horizon_s, place_keys), horizon_s),
                    _remembered(opened.dead_letters, CommittedIds(horizon_s, letter_keys), horizon_s),
                    _remembered(opened.dropped, CommittedIds(horizon_s, event_keys), horizon_s),
                    CommittedIds(horizon_s, identity_keys),  # the links, read back from their table, make no row twice
                )
            found = Committer(**opened._asdict(), index=index, run_id=tables.run_id)
            _COMMITTERS[tables] = found
        return found


def is_archived(tables: Tables, batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """Say which events this process knows the archive to hold: one node."""
    holds: npt.NDArray[np.bool_] = committer(tables).holds(batch)
    return holds


def _remembered(table: Table, ids: CommittedIds, horizon_s: float) -> CommittedIds:
    """Fill an index with what the table holds of the last horizon before its newest row."""
    newest_us = table.newest_us()
    if newest_us is None:
        return ids
    columns = ["message_id", "source_id", "envelope_id", "envelope_index", "stage", "payload", table.spec.time_column]
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
    """Write ordered events to the archive.

    In:      batches by shard, and the repeats of OrderPerUser, in its windows
    Out:     Committed, one per window: what is safe now
    Window:  the input's.  Order: one node: windows are committed oldest first, so that a crash leaves no holes.
    State:   one node: 16 bytes for each event of the horizon; else none.
    Repeats: a record that is committed already is not committed again, see docs/guarantees.md.
    Errors:  one node: a storage that refuses is waited out; elsewhere StorageError fails the bundle, for the runner
             to try again. Nothing is acknowledged before it is committed.
    """

    tables: Tables

    def expand(self, ordered: Any) -> beam.PCollection[Committed]:  # two collections: Beam has no type for that
        batches, repeats = ordered
        parts = (
            batches | "WriteFiles" >> beam.ParDo(_WriteFn(self.tables)).with_output_types(tuple[int, Part]),
            repeats | "Repeats" >> beam.Map(_repeats).with_output_types(tuple[int, Part]),
        )
        gathered = parts | "Gather" >> beam.Flatten()
        if self.tables.alone:
            committed = (
                gathered
                | "OneSequence" >> beam.WindowInto(GlobalWindows())
                | "Commit" >> beam.ParDo(_CommitInOrderFn(self.tables)).with_output_types(Committed)
                | "Window" >> beam.WindowInto(FixedWindows(_END_S))
            )
        else:
            committed = (
                gathered
                | "GroupByWindow" >> beam.GroupByKey()
                | "Commit" >> beam.ParDo(_CommitFn(self.tables)).with_output_types(Committed)
            )
        return committed | "End" >> _End()


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
        yield _commit(self._tables, list(group[1]), window.start.micros)


class _CommitInOrderFn(beam.DoFn):
    """Commits what is due oldest first: one node.

    After a backlog twenty windows are complete at once, and a group of each is handed over in no order (measured, Prism
    2.77). A job killed between two commits would leave holes in users' sequences; but what its steps remember is read
    back from the archive. So what is committed is all up to some time, and nothing after it.

    Parts wait in this process, where all else is that is not committed; a timer tells when they are due.
    """

    DUE = TimerSpec("due", TimeDomain.WATERMARK)

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def process(
        self,
        keyed: tuple[int, Part],
        at: Any = beam.DoFn.TimestampParam,
        due: Any = beam.DoFn.TimerParam(DUE),  # noqa: B008
    ) -> Iterator[Any]:
        with _WAITING_LOCK:
            _WAITING.setdefault(self._tables, {}).setdefault(at.micros, []).append(keyed[1])
        due.set(at, dynamic_timer_tag=str(at.micros))
        return iter(())

    @on_timer(DUE)  # type: ignore[untyped-decorator]  # Beam's
    def when_due(self, now: Any = beam.DoFn.TimestampParam) -> Iterator[Any]:
        """Commit, oldest first; a later timer of the same moment finds nothing left."""
        with _WAITING_LOCK:
            waiting = _WAITING.pop(self._tables, {})
            later = {at_us: parts for at_us, parts in waiting.items() if at_us > now.micros}
            if later:
                _WAITING[self._tables] = later
        for at_us in sorted(waiting.keys() - later.keys()):
            yield TimestampedValue(_commit(self._tables, waiting[at_us], at_us), Timestamp(micros=at_us))


_WAITING: dict[Tables, dict[int, list[Part]]] = {}
_WAITING_LOCK = threading.Lock()


def _commit(tables: Tables, parts: list[Part], window_us: int) -> Committed:
    done = patiently(tables, lambda: committer(tables).commit_events(parts, window_us))
    for name, amount in done._asdict().items():
        count(STAGE, name, amount)
    return done


def _repeats(repeats: pa.RecordBatch) -> tuple[int, Part]:
    return 0, Part(repeats=repeats)


@dataclasses.dataclass(eq=False)
class WriteRecords(beam.PTransform):
    """Write what does not go into the archive to its table: duplicates, dead letters, dropped events, identities.

    In:      several collections of batches of that table's rows, each with its receipt, in any windows
    Out:     Committed, one per window that had any
    Window:  FixedWindows(window_s) on arrival.
    """

    tables: Tables
    table: str
    """`duplicates`, `dead_letters`, `dropped` or `identities`."""
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
