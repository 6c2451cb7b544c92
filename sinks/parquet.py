"""Parquet files of a table: written once, whole, with the statistics that the Delta log keeps for each.

Workers write files here; nothing is part of the table until a commit (sinks/delta.py) refers to it.
"""

import dataclasses
import datetime as dt
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from millrace.sinks.storage import Location
from millrace.sinks.tables import TableSpec

ROW_GROUP_ROWS = 65_536
"""A reader that wants one user decodes at most this many rows of a compacted file."""

STATISTICS_CHARACTERS = 64
"""Longer strings are shortened in the log: a UUID fits, a URL does not bloat every checkpoint."""


@dataclasses.dataclass(frozen=True)
class DataFile:
    """A Parquet file, written but not yet part of the table.

    Attributes:
        path: relative to the table's root.
        size: bytes.
        rows: how many.
        partition: the partition's value, as the Delta log spells it (YYYY-MM-DD).
        statistics: Delta's per-file statistics, as JSON.
        modified_ms: when it was written, ms since the epoch.
    """

    path: str
    size: int
    rows: int
    partition: str
    statistics: str
    modified_ms: int


def write_files(location: Location, spec: TableSpec, rows: pa.Table, name: str) -> list[DataFile]:
    """Write rows, in the order of `spec.sort_columns`, as one file per date; most often that is one.

    Args:
        location: the table's root.
        spec: what the table looks like.
        rows: at least the columns of `spec.schema`, in any order of columns.
        name: the file's name without suffix. Unique to this attempt: a retry must not replace a file that a commit may
            already refer to.

    Raises:
        OSError: the storage refused the file.
        ValueError: a row has no partition date.
    """
    dates = rows.column(spec.partition_column)
    if dates.null_count:
        raise ValueError(f"{spec.name}: {dates.null_count} rows without {spec.partition_column}")
    body = rows.select(spec.body.names).cast(spec.body)
    days = sorted(pc.unique(dates).to_pylist())
    if len(days) == 1:
        return [_write(location, spec, body, days[0], name)]
    return [_write(location, spec, body.filter(pc.equal(dates, pa.scalar(day, dates.type))), day, name) for day in days]


def _write(location: Location, spec: TableSpec, body: pa.Table, day: dt.date, name: str) -> DataFile:
    return write_stream(location, spec, iter([body]), day, name)


def write_stream(location: Location, spec: TableSpec, parts: Iterator[pa.Table], day: dt.date, name: str) -> DataFile:
    """Write one date's rows, given in parts that follow one another in sort order (columns of `spec.body`)."""
    sink = pa.BufferOutputStream()
    # Numbers and times rise slowly from row to row. A third less time than dictionaries, a sixth less space (m).
    packed = [field.name for field in spec.body if pa.types.is_integer(field.type) or pa.types.is_timestamp(field.type)]
    unlike = {*packed, *spec.plain_columns}
    writer = pq.ParquetWriter(
        sink,
        spec.body,
        compression="zstd",
        compression_level=1,  # level 3 takes a third longer and is no smaller on these columns (m)
        use_dictionary=[column for column in spec.body.names if column not in unlike],
        column_encoding=dict.fromkeys(packed, "DELTA_BINARY_PACKED"),
        sorting_columns=[pq.SortingColumn(spec.body.get_field_index(column)) for column in spec.sort_columns],
        store_schema=False,
    )
    with writer:
        for part in parts:
            writer.write_table(part, row_group_size=ROW_GROUP_ROWS)
    content = sink.getvalue()
    metadata = pq.read_metadata(pa.BufferReader(content))
    path = f"{spec.partition_column}={day.isoformat()}/{name}.parquet"
    location.store(path, memoryview(content))
    return DataFile(
        path=path,
        size=content.size,
        rows=metadata.num_rows,
        partition=day.isoformat(),
        statistics=delta_statistics(metadata, spec.statistics_columns),
        modified_ms=time.time_ns() // 1_000_000,
    )


def delta_statistics(metadata: pq.FileMetaData, columns: Sequence[str]) -> str:
    """Return Delta's statistics JSON of a Parquet file, from its footer: the rows themselves are not read again.

    A column whose footer holds no minimum or maximum (all null, or values too long to be kept) has only its null count:
    readers then do not skip the file.
    """
    wanted = set(columns)
    lows: dict[str, Any] = {}
    highs: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for index in range(metadata.num_columns):
        column = metadata.schema.column(index).path
        if column not in wanted:
            continue
        groups = [metadata.row_group(group).column(index) for group in range(metadata.num_row_groups)]
        if any(not group.is_stats_set or not group.statistics.has_null_count for group in groups):
            continue
        found = [group.statistics for group in groups]
        nulls[column] = sum(each.null_count for each in found)
        valued = [each for each in found if each.num_values]
        if valued and all(each.has_min_max for each in valued):
            low, high = _json_low(min(each.min for each in valued)), _json_high(max(each.max for each in valued))
            if low is not None and high is not None:
                lows[column], highs[column] = low, high
    return json.dumps(
        {"numRecords": metadata.num_rows, "minValues": lows, "maxValues": highs, "nullCount": nulls},
        ensure_ascii=False,
        separators=(",", ":"),
    )


def _json_low(value: Any) -> Any:
    if isinstance(value, str):
        return value[:STATISTICS_CHARACTERS]  # a prefix is never greater than the whole
    return _json_exact(value)


def _json_high(value: Any) -> Any:
    return round_up(value) if isinstance(value, str) else _json_exact(value)


def _json_exact(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def round_up(text: str, characters: int = STATISTICS_CHARACTERS) -> str | None:
    """Return a string of at most `characters` code points that is not less than `text`; None where there is none.

    A prefix alone would be less than the string, and a reader would skip files that hold it: its last character is
    raised by one.

    >>> round_up("abc", 2), round_up("ab", 2), round_up("a" + chr(0x10FFFF) * 2, 2)
    ('ac', 'ab', 'b')
    """
    if len(text) <= characters:
        return text
    for end in range(characters, 0, -1):
        code = ord(text[end - 1])
        if code < 0x10FFFF:
            following = 0xE000 if code + 1 == 0xD800 else code + 1  # surrogates are not characters
            return text[: end - 1] + chr(following)
    return None
