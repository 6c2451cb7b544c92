"""Write the archive: ordered batches become Parquet files, and each window one commit."""

import dataclasses
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import TimerSpec, on_timer
from apache_beam.transforms.window import FixedWindows, GlobalWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from millrace.sinks.commit import Committed, Part
from millrace.sinks.job_tables import Tables, committer, patiently
from millrace.transforms import in_beam as _in_beam  # noqa: F401  registers how batches travel
from millrace.transforms.counts import count

STAGE = "archive"
_END_S = 5.0


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
    back from the archive. So of each shard is committed all up to some time, and nothing after it.

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
