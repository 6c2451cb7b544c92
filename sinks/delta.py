"""A table: Parquet files that a Delta log refers to. Opening, committing, reading back; no Beam in it.

Every change that Millrace makes is committed at exactly the version after the one it has looked at, and looked at again
after a conflict. Two things hang on it: an application transaction (app_id, version) goes in once, however often
a crash repeats it; and the running totals stay exact. They are kept as application transactions too ("the total of rows
is at version 1,000"), since those are the only numbers of a commit that outlive its entry in the log.
"""

import datetime as dt
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction

from millrace.sinks import tables
from millrace.sinks.parquet import DataFile, write_files
from millrace.sinks.storage import Location, StorageError, explain, locate
from millrace.sinks.tables import TableSpec

METADATA_KEY = "millrace"
"""The key of Millrace's own entry in a commit's information: its `counts`, and what the caller added."""

_TOTAL = "millrace.total."

_ATTEMPTS = 40


class Table:
    """An open table. Not shared between threads; any number of processes may open the same one."""

    def __init__(self, location: Location, spec: TableSpec, delta: DeltaTable) -> None:
        self.location = location
        self.spec = spec
        self.delta = delta
        self._totals_at: tuple[int, dict[str, int]] | None = None

    def write(self, rows: pa.Table, name: str) -> list[DataFile]:
        """Write rows as files that no commit refers to yet: see `sinks.parquet.write_files`."""
        return write_files(self.location, self.spec, rows, name)

    def commit(
        self,
        files: Sequence[DataFile],
        *,
        app_id: str,
        version: int,
        counts: Mapping[str, int] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Make files part of the table, all at once, unless this transaction is in already.

        Args:
            files: written by `write`; none at all is fine: then only the transaction and the counts go in.
            app_id: whose sequence of transactions this is.
            version: its place in that sequence, rising.
            counts: what else happened, added to the totals (`committed_totals`): late, duplicates ... `rows` is added
                by itself. Names are few and without a comma; a new one costs a commit.
            metadata: anything that JSON can hold, kept in this commit's information only.

        Returns:
            True where the files went in; False where the transaction's version, or a later one, was in before.

        Raises:
            StorageError: the storage refused it; nothing went in, or all of it: the same call again finds out.
        """
        adds = [_add_action(self.spec, file, data_change=True) for file in files]
        counted = Counter({"rows": sum(file.rows for file in files)})
        counted.update(counts or {})
        problem: Exception | None = None
        for attempt in range(_ATTEMPTS):
            try:
                self.refresh()
                last = self.delta.transaction_version(app_id)
                if last is not None and last >= version:
                    return problem is not None and last == version  # an attempt that failed after it had gone in
                if self._register(counted):
                    continue
                self.transact(adds, Transaction(app_id, version), counted, metadata)
            except (DeltaError, OSError) as error:
                problem = error
                pause(attempt)
            else:
                return True
        assert problem is not None
        raise explain(self.location, problem) from problem

    def transact(
        self,
        actions: Sequence[AddAction | RemoveAction],
        transaction: Transaction | None,
        counts: Mapping[str, int],
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Commit at exactly the version after the one last refreshed.

        Raises:
            DeltaError: someone else's commit came first (refresh and look again), or the store refused; whether it went
                in is then unknown.
        """
        read = self.delta.version()
        totals = self._totals()
        totals |= {name: totals.get(name, 0) + count for name, count in counts.items()}
        changed = [Transaction(_TOTAL + name, totals[name]) for name in counts]
        self.delta.create_write_transaction(
            list(actions),
            mode="append",
            schema=Schema.from_arrow(self.spec.schema),
            partition_by=[self.spec.partition_column],
            commit_properties=CommitProperties(
                custom_metadata={METADATA_KEY: {"counts": dict(counts), **(metadata or {})}},
                # Not deltalake's own conflict check: it lets two compactions of the same file both in (measured).
                max_commit_retries=0,
                app_transactions=[*([transaction] if transaction else []), *changed],
            ),
        )
        self.location.sync(f"_delta_log/{read + 1:020}.json")
        self._totals_at = (read + 1, totals)

    def refresh(self) -> None:
        """Look at what others have committed since."""
        self.delta.update_incremental()

    def committed_version(self, app_id: str) -> int | None:
        """Return the highest transaction version of `app_id` that is in the table; None where there is none."""
        self.refresh()
        version: int | None = self.delta.transaction_version(app_id)
        return version

    def committed_totals(self) -> dict[str, int]:
        """Return the counts of all commits since the table was created, summed by name."""
        self.refresh()
        return self._totals()

    def uris(self) -> list[str]:
        """Return the URIs of the files that make up the table now: what to hand to DuckDB's read_parquet."""
        self.refresh()
        return sorted(self.delta.file_uris())

    def read_recent(self, columns: Sequence[str], since_us: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows whose time (`spec.time_column`) is at or after `since_us`, µs since the epoch, in no order.

        Files that end before it are not opened, and only the columns asked for are read.
        """
        self.refresh()
        since = dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=since_us)
        time_column = self.spec.time_column
        literal = since.isoformat(timespec="microseconds").replace("+00:00", "Z")
        dataset = self.delta.to_pyarrow_dataset(
            file_pruning_predicate=f"{time_column} >= '{literal}'", filesystem=self.location.files
        )
        wanted = pc.field(time_column) >= pa.scalar(since, pa.timestamp("us", tz="UTC"))
        # Little read-ahead: this runs at start-up beside everything else, and a file is read in a few milliseconds.
        scanner = dataset.scanner(columns=list(columns), filter=wanted, batch_readahead=2, fragment_readahead=2)
        for batch in scanner.to_batches():
            if batch.num_rows:
                yield batch

    def newest_us(self) -> int | None:
        """Return the latest time (`spec.time_column`) of any row, µs since the epoch, by the log's statistics."""
        self.refresh()
        actions = pa.table(self.delta.get_add_actions(flatten=True))
        name = f"max.{self.spec.time_column}"
        if name not in actions.column_names or actions.column(name).null_count == len(actions):
            return None
        newest: int = pc.max(actions.column(name)).cast(pa.timestamp("us", tz="UTC")).value
        return newest

    def read_file(self, file: DataFile) -> pa.RecordBatch:
        """Return the rows of a file that was written here, partition column included."""
        body = pq.read_table(file.path, filesystem=self.location.files)
        day = pa.scalar(dt.date.fromisoformat(file.partition))
        table = body.append_column(self.spec.partition_column, pa.array([day.as_py()] * len(body), pa.date32()))
        return table.select(self.spec.schema.names).cast(self.spec.schema).combine_chunks().to_batches()[0]

    def _totals(self) -> dict[str, int]:
        version = self.delta.version()
        if self._totals_at is None or self._totals_at[0] != version:
            found = {name: self.delta.transaction_version(_TOTAL + name) for name in self._counters()}
            self._totals_at = (version, {name: total for name, total in found.items() if total is not None})
        return dict(self._totals_at[1])

    def _counters(self) -> list[str]:
        names = self.delta.metadata().configuration.get(tables.COUNTERS, "")
        return [name for name in names.split(",") if name]

    def _register(self, names: Iterable[str]) -> bool:
        """Note names that the table has no totals of yet; True where that took a commit."""
        known = self._counters()
        new = sorted(set(names) - set(known))
        if new:
            self.delta.alter.set_table_properties({tables.COUNTERS: ",".join(known + new)}, raise_if_not_exists=False)
        return bool(new)


def open_table(uri: str, spec: TableSpec) -> Table:
    """Open a table, creating it where there is none; several processes may do so at once.

    A table of an older Millrace gets the columns that it lacks, if they may be null; columns that others added stay.

    Raises:
        StorageError: no such place, not writable, something else lives there, or its columns do not fit; one sentence.
    """
    location = locate(uri)
    location.check_writable()
    try:
        delta = tables.load(location) or tables.create(location, spec)
        tables.check(delta, spec, uri)
    except (DeltaError, OSError) as error:
        raise explain(location, error) from error
    return Table(location, spec, delta)


def find_table(uri: str, specs: Sequence[TableSpec]) -> Table:
    """Open a table that exists, whichever of `specs` it is.

    Raises:
        StorageError: there is no table, or it is none of them.
    """
    location = locate(uri)
    try:
        delta = tables.load(location)
    except (DeltaError, OSError) as error:
        raise explain(location, error) from error
    if delta is None:
        raise StorageError(f"There is no Delta table at {location.uri}: correct the location.")
    for spec in specs:
        if delta.metadata().name == spec.name:
            tables.check(delta, spec, uri)
            return Table(location, spec, delta)
    raise StorageError(f"The Delta table at {location.uri} was not made by Millrace.")


def add_actions(spec: TableSpec, files: Sequence[DataFile]) -> list[AddAction]:
    """Return the log's entries for files that hold rows which the table had before: compaction's output."""
    return [_add_action(spec, file, data_change=False) for file in files]


def _add_action(spec: TableSpec, file: DataFile, *, data_change: bool) -> AddAction:
    return AddAction(
        path=file.path,
        size=file.size,
        partition_values={spec.partition_column: file.partition},
        modification_time=file.modified_ms,
        data_change=data_change,
        stats=file.statistics,
    )


def pause(attempt: int) -> None:
    """Wait a moment before another attempt: conflicts are over in milliseconds, a store's hiccup in seconds."""
    time.sleep(random.uniform(0.5, 1) * min(0.005 * 1.3**attempt, 2.0))  # noqa: S311  not for secrets
