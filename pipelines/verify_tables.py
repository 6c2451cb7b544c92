"""What `millrace verify` reads: the job's tables at one moment, in slices of publish time that fit into memory.

A message has one publish time, whatever its events became: a slice has all rows of its messages, in all tables.
"""

import dataclasses
import datetime as dt
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from millrace.sinks.delta import Table, find_table
from millrace.sinks.tables import ARCHIVE, DEAD_LETTERS, DROPPED, DUPLICATES

SPECS = {"archive": ARCHIVE, "duplicates": DUPLICATES, "dead_letters": DEAD_LETTERS, "dropped": DROPPED}
"""In the order of their doors: a record leaves by just one."""

SLICE_ROWS = 3_000_000
"""Rows of all tables that are looked at together: some 600 MB in DuckDB (measured)."""

_MINUTE_US = 60_000_000
_TIME = pa.timestamp("us", tz="UTC")


class File(NamedTuple):
    """A file of a table, by its log."""

    table: str
    path: str
    rows: int
    low_us: int
    """The earliest publish time in it; where the log has no statistics, the beginning of time."""
    high_us: int


class Slice(NamedTuple):
    """Publish times from low up to high, microseconds since the epoch."""

    low_us: int
    high_us: int


@dataclasses.dataclass(frozen=True)
class Tables:
    """The job's tables at one moment.

    Attributes:
        tables: by the names of SPECS.
        files: those that are there.
        gone: those that a log refers to, and that are not there.
        newest_us: the latest publish time of any row, by the logs; None: there is no row.
    """

    tables: Mapping[str, Table]
    files: tuple[File, ...]
    gone: tuple[File, ...]
    newest_us: int | None

    def slices(self, low_us: int, high_us: int) -> list[Slice]:
        """Return slices of about SLICE_ROWS rows, at least a minute each, that cover all publish times asked for."""
        told = [file for file in self.files if file.high_us < _FOREVER_US]
        begins = min((file.low_us for file in told), default=0) // _MINUTE_US
        ends = max((file.high_us for file in told), default=0) // _MINUTE_US + 1
        by_minute = np.zeros(ends - begins + 1)
        for file in told:  # spread evenly; what matters is that no slice becomes many times too large
            first, last = file.low_us // _MINUTE_US - begins, file.high_us // _MINUTE_US - begins
            by_minute[first : last + 1] += file.rows / (last + 1 - first)
        total = np.cumsum(by_minute)
        marks = np.searchsorted(total, np.arange(SLICE_ROWS, total[-1], SLICE_ROWS)) + 1
        cuts = sorted({int(mark + begins) * _MINUTE_US for mark in marks})
        edges = [-_FOREVER_US, *cuts, _FOREVER_US]
        found = []
        for low, high in itertools.pairwise(edges):
            part = Slice(max(low, low_us), min(high, high_us))
            if part.low_us < part.high_us:
                found.append(part)
        return found

    def read(self, table: str, columns: Sequence[str], part: Slice) -> pa.RecordBatchReader | None:
        """Return some columns of a table's rows of a slice; None where it has none.

        A column that the table lacks is null.
        """
        paths = [
            unquote(each.path)
            for each in self.files
            if each.table == table and each.low_us < part.high_us and each.high_us >= part.low_us
        ]
        if not paths:
            return None
        spec, location = SPECS[table], self.tables[table].location
        known = pa.schema(self.tables[table].delta.schema())
        names = [*columns, *({"published_at"} - set(columns))]
        fields = [known.field(name) if name in known.names else pa.field(name, pa.null()) for name in names]
        assert spec.partition_column not in names, "it is in no file"
        dataset = pads.dataset(paths, schema=pa.schema(fields), format="parquet", filesystem=location.files)
        wanted = None
        if part.low_us > -_FOREVER_US:
            wanted = pc.field("published_at") >= pa.scalar(part.low_us, _TIME)
        if part.high_us < _FOREVER_US:
            before = pc.field("published_at") < pa.scalar(part.high_us, _TIME)
            wanted = before if wanted is None else wanted & before
        scanner = dataset.scanner(columns=list(columns), filter=wanted, batch_readahead=4, fragment_readahead=2)
        return scanner.to_reader()


_FOREVER_US = 1 << 62
ALL = Slice(-_FOREVER_US, _FOREVER_US)


def open_tables(uris: Mapping[str, str]) -> Tables:
    """Open the tables at some locations, by the names of SPECS.

    Raises:
        StorageError: one of them is not there, or is another one.
    """
    tables = {name: find_table(uris[name], [spec]) for name, spec in SPECS.items()}
    files: list[File] = []
    gone: list[File] = []
    newest = None
    for name, table in tables.items():
        there = _names(table)
        for file in _files(name, table):
            (files if unquote(file.path) in there else gone).append(file)
            if file.high_us < _FOREVER_US:
                newest = max(newest or file.high_us, file.high_us)
    return Tables(tables, tuple(files), tuple(gone), newest)


def _names(table: Table) -> set[str]:
    found = table.location.files.get_file_info(pafs.FileSelector("", recursive=True))
    return {info.path for info in found}


def _files(name: str, table: Table) -> Iterator[File]:
    actions = pa.table(table.delta.get_add_actions(flatten=True))
    if not actions.num_rows:
        return
    empty = [None] * actions.num_rows
    lows, highs = (
        actions.column(f"{end}.published_at").cast(_TIME).cast(pa.int64()).to_pylist()
        if f"{end}.published_at" in actions.column_names
        else empty
        for end in ("min", "max")
    )
    paths, rows = (actions.column(column).to_pylist() for column in ("path", "num_records"))
    for path, count, low, high in zip(paths, rows, lows, highs, strict=True):
        # The log's times are to the millisecond where other tools wrote them.
        if low is None or high is None:
            yield File(name, path, count or 0, -_FOREVER_US, _FOREVER_US)
        else:
            yield File(name, path, count or 0, low // 1_000 * 1_000, high // 1_000 * 1_000 + 999)


def iso(at_us: int) -> str:
    """Return a time to the second.

    >>> iso(1_772_366_400_000_000)
    '2026-03-01T12:00:00Z'
    """
    return dt.datetime.fromtimestamp(at_us // 1_000_000, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def hour_name(at_us: int) -> str:
    """Return an hour as the files of collectors are called.

    >>> hour_name(1_772_366_399_999_999)
    '2026-03-01T11'
    """
    return iso(at_us)[: len("2026-03-01T12")]
