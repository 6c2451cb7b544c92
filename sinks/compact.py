"""Compaction: many small files of one date become few, sorted; the rows stay the same.

Commits every few seconds leave thousands of small files a day, and every query opens them all. `compact` merges
files that follow one another in time. It may run beside the pipeline, beside other compactions, and be killed
at any moment: the swap of files is one commit, made only while every file that it replaces is still in the table.
"""

import argparse
import dataclasses
import logging
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction

from millrace.sinks.bookmarks import held_since_ms
from millrace.sinks.compact_plan import Entry, plan
from millrace.sinks.delta import Table, add_actions, find_table, pause
from millrace.sinks.parquet import ROW_GROUP_ROWS, DataFile, write_stream
from millrace.sinks.storage import StorageError, explain
from millrace.sinks.tables import SPECS, UNDELIVERED, TableSpec

logger = logging.getLogger(__name__)

TARGET_BYTES = 32 * 1024 * 1024
MAX_ROWS = 250_000
"""Rows that one merge holds in memory: 450 MiB of events of 700 bytes (m)."""

MAX_DECODED_BYTES = 512 * 1024 * 1024
"""The same bound for rows that are larger than events: a small file can decode to a lot."""

_ATTEMPTS = 60
_READABLE_FEATURES = {"timestampNtz"}  # with others (deletion vectors) a file's rows are not all the table's rows


@dataclasses.dataclass
class Report:
    """What one run of compaction did."""

    files_before: int = 0
    files_after: int = 0
    rows: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    abandoned: int = 0
    """Merges thrown away because someone else had replaced one of their files."""
    vacuumed: int = 0
    """Files deleted that no version within the retention refers to."""


def compact(
    table: Table,
    *,
    target_bytes: int = TARGET_BYTES,
    min_files: int = 8,
    older_than_s: float = 60,
    max_rows: int = MAX_ROWS,
) -> Report:
    """Merge small files; each group of them is one commit.

    Args:
        table: open.
        target_bytes: merged files are at most about this large; files of half of it and more are left alone.
        min_files: fewer small files than this in a row are left for a later run, unless they fill half a target.
        older_than_s: files younger than this are left for a later run.
        max_rows: the most rows held in memory at once.

    Raises:
        StorageError: the storage refused; what was committed before stays.
        ValueError: the table uses a Delta feature under which its files cannot be read one by one.
    """
    features = set(table.delta.protocol().reader_features or ()) - _READABLE_FEATURES
    if features:
        raise ValueError(f"Cannot compact a table with {', '.join(sorted(features))}: use the engine that wrote it.")
    table.refresh()
    newest_ms = min(int((time.time() - older_than_s) * 1000), held_since_ms(table.location))
    report = Report()
    ripe = [entry for entry in entries(table) if entry.modified_ms <= newest_ms]
    for planned in plan(ripe, target_bytes=target_bytes, min_files=min_files, max_rows=max_rows):
        for group in _within_memory(table, planned):
            try:
                merged = _merge(table, group)
                swapped = _swap(table, group, merged)
            except FileNotFoundError:  # another compaction's files went through vacuum meanwhile
                swapped = False
            except (DeltaError, OSError) as error:
                raise explain(table.location, error) from error
            finally:
                pa.default_memory_pool().release_unused()
            if not swapped:
                report.abandoned += 1
                continue
            report.files_before += len(group)
            report.files_after += 1
            report.rows += merged.rows
            report.bytes_before += sum(entry.size for entry in group)
            report.bytes_after += merged.size
    return report


def vacuum(table: Table, retention_hours: int | None = None) -> int:
    """Delete files that no version of the last hours refers to, left-overs of crashes too; return how many.

    Args:
        table: open.
        retention_hours: None for the table's own (`delta.deletedFileRetentionDuration`). A query that runs longer may
            miss its files; a file that waits longer for its commit is lost, so never less than a restart may take.
    """
    try:
        table.refresh()  # files that it has not heard of look like left-overs to it
        deleted = table.delta.vacuum(
            retention_hours=retention_hours, dry_run=False, enforce_retention_duration=False, full=True
        )
    except (DeltaError, OSError) as error:
        raise explain(table.location, error) from error
    return len(deleted)


def entries(table: Table) -> list[Entry]:
    """Return the table's files as of the last refresh; those without statistics, which others wrote, are left out."""
    spec = table.spec
    found = pa.table(table.delta.get_add_actions(flatten=True))
    names = ("path", f"partition.{spec.partition_column}", "size_bytes", "num_records", f"min.{spec.time_column}")
    if not found.num_rows or any(name not in found.column_names for name in names):
        return []
    columns = [found.column(name).to_pylist() for name in (*names, "modification_time")]
    rows = zip(*columns, strict=True)
    return [Entry(*row) for row in rows if all(value is not None for value in row)]


def _within_memory(table: Table, group: list[Entry]) -> Iterator[list[Entry]]:
    """Split a group whose files decode to more than memory should hold."""
    part: list[Entry] = []
    held = 0
    for entry in group:
        with table.location.files.open_input_file(unquote(entry.path)) as stream:
            metadata = pq.read_metadata(stream)
        decoded = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
        if held + decoded > MAX_DECODED_BYTES:
            if len(part) > 1:
                yield part
            part, held = [], 0
        if decoded <= MAX_DECODED_BYTES:
            part.append(entry)
            held += decoded
    if len(part) > 1:
        yield part


def _merge(table: Table, group: Sequence[Entry]) -> DataFile:
    """Write the rows of a group as one sorted file; nothing refers to it yet."""
    # All columns that the table has, those that others added too.
    spec: TableSpec = dataclasses.replace(table.spec, schema=pa.schema(table.delta.schema()))
    paths = [unquote(entry.path) for entry in group]
    files = pads.dataset(paths, schema=spec.body, format="parquet", filesystem=table.location.files)
    rows = files.to_table(batch_readahead=1, fragment_readahead=1)  # read-ahead would hold the files a second time
    order = pc.sort_indices(rows, sort_keys=[(column, "ascending") for column in spec.sort_columns])
    slices = (
        rows.take(order.slice(offset, ROW_GROUP_ROWS)) for offset in range(0, max(rows.num_rows, 1), ROW_GROUP_ROWS)
    )
    return write_stream(table.location, spec, slices, group[0].day, f"compact-{uuid.uuid4().hex}")


def _swap(table: Table, group: Sequence[Entry], merged: DataFile) -> bool:
    """Replace a group by its merged file in one commit; False where one of the group is no longer in the table."""
    replaced = {entry.path for entry in group}
    now_ms = time.time_ns() // 1_000_000
    removes = [
        RemoveAction(
            path=entry.path,
            data_change=False,
            deletion_timestamp=now_ms,
            size=entry.size,
            partition_values={table.spec.partition_column: entry.day.isoformat()},
        )
        for entry in group
    ]
    actions: list[AddAction | RemoveAction] = [*removes, *add_actions(table.spec, [merged])]
    problem: Exception | None = None
    for attempt in range(_ATTEMPTS):
        try:
            table.refresh()
            active = set(pa.table(table.delta.get_add_actions()).column("path").to_pylist())
            if merged.path in active:  # the attempt that failed had gone in
                return True
            if not replaced <= active:
                table.location.discard(merged.path)
                return False
            table.transact(actions, None, {})
        except (DeltaError, OSError) as error:
            problem = error
            pause(attempt)
        else:
            return True
    assert problem is not None
    raise explain(table.location, problem) from problem  # the file stays: whether it went in is not known


def main(arguments: Sequence[str]) -> int:
    """Run `millrace compact`: 0 when done, 2 when the table cannot be compacted."""
    parser = argparse.ArgumentParser(
        prog="millrace compact",
        description="Merge a table's small files, beside a running pipeline if need be, and clear what nobody needs.",
    )
    parser.add_argument("uri", help="the table: a folder, file:// or gs://bucket/folder")
    parser.add_argument(
        "--target_mib",
        type=float,
        default=32,
        help="size of a merged file; more takes more memory (default: %(default)s)",
    )
    parser.add_argument(
        "--max_rows",
        type=int,
        default=MAX_ROWS,
        help="rows merged at once; more takes more memory (default: %(default)s)",
    )
    parser.add_argument(
        "--min_files",
        type=int,
        default=8,
        help="leave fewer small files than this for a later run (default: %(default)s)",
    )
    parser.add_argument(
        "--older_than_s", type=float, default=60, help="leave younger files for a later run (default: %(default)s)"
    )
    parser.add_argument(
        "--retention_hours",
        type=int,
        default=None,
        help="keep replaced files so long, for queries that still read them and for files that wait for their commit; "
        "at least 1 (default: what the table says, 6)",
    )
    parser.add_argument("--no_vacuum", action="store_true", help="merge only; delete nothing")
    given = parser.parse_args(list(arguments))
    if given.retention_hours is not None and given.retention_hours < 1:
        parser.error("--retention_hours must be 1 or more: a running pipeline's files wait for their commit")
    try:
        table = find_table(given.uri, (*SPECS, UNDELIVERED))
        report = compact(
            table,
            target_bytes=int(given.target_mib * 1024 * 1024),
            min_files=given.min_files,
            older_than_s=given.older_than_s,
            max_rows=given.max_rows,
        )
        if not given.no_vacuum:
            report.vacuumed = vacuum(table, given.retention_hours)
    except (StorageError, ValueError) as error:
        print(f"millrace compact: {error}", file=sys.stderr)
        return 2
    print(
        f"{report.files_before} files became {report.files_after} "
        f"({report.rows:,} rows, {report.bytes_before:,} -> {report.bytes_after:,} bytes); "
        f"{report.abandoned} merges abandoned to others; {report.vacuumed} old files deleted."
    )
    return 0
