"""Follow the archive: each commit of its Delta log becomes a part of a lane's queue, its rows in delivery order."""

import dataclasses
import datetime as dt
import logging
import time
from collections.abc import Callable, Collection
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from deltalake import DeltaTable, Schema
from deltalake.exceptions import DeltaError, TableNotFoundError

from millrace.delivery.records import ROW_BITS, Entry
from millrace.sinks.delta import METADATA_KEY
from millrace.sinks.storage import Location, StorageError, explain

_LOGGER = logging.getLogger(__name__)
_LOG = "_delta_log"
_MERGED = "compact-"
"""How the files of compaction begin: their rows were in the table before."""

LOCAL_POLL_S = 0.02
REMOTE_POLL_S = 1.0
_GAP_S = 1.0
"""How often it is asked whether the log goes on behind a gap: one more request, which nearly always says no."""
_WRITTEN_AHEAD_US = 3_600_000_000
"""A file is never written so long before its commit."""
_SETTLES_US = 300_000_000
"""Half of what bookmarks hold beyond the oldest unread commit (sinks/bookmarks.py): rows released later than this
before the last look are in no file that compaction may have merged, as long as it heeds the bookmark."""


class GoneError(StorageError):
    """The files of a part are no longer in the table, nor in the storage: merged, or erased, and then deleted."""


class Identity(NamedTuple):
    """Which table it is, and how far."""

    id: str
    version: int


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the log told since the last look: the parts, and the version up to which it was read."""

    entries: tuple[Entry, ...]
    version: int


class _Add(msgspec.Struct, rename="camel"):
    path: str
    data_change: bool = True
    stats: str | None = None


class _Remove(msgspec.Struct, rename="camel"):
    data_change: bool = True


class _Stats(msgspec.Struct, rename="camel"):
    num_records: int = 0


class _Line(msgspec.Struct, rename="camel"):
    add: _Add | None = None
    remove: _Remove | None = None
    commit_info: dict[str, Any] | None = None
    meta_data: dict[str, Any] | None = None


_read_line = msgspec.json.Decoder(_Line).decode
_read_stats = msgspec.json.Decoder(_Stats).decode


class Log:
    """The log of a table, read entry by entry."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._schema: pa.Schema | None = None
        self._next_gap_s = 0.0

    @property
    def poll_s(self) -> float:
        """How long to wait before another look."""
        return REMOTE_POLL_S if self._location.local is None else LOCAL_POLL_S

    def identity(self) -> Identity | None:
        """Return which table there is, and its version now; None where there is none yet.

        Raises:
            StorageError: the storage refused it.
        """
        delta = self._table()
        return None if delta is None else Identity(str(delta.metadata().id), delta.version())

    def since(self, version: int, known: Callable[[], AbstractSet[str]], looked_us: int = 0) -> Seen:
        """Return what was committed after a version.

        Where the log no longer reaches back so far, it is what the table holds and the queue does not, as far as it may
        have come since the last look.

        Args:
            version: what was seen already; -1: nothing.
            known: gives the files that the queue holds.
            looked_us: when `version` was the newest, microseconds since the epoch; 0: long ago.

        Raises:
            StorageError: the storage refused it.
        """
        found: list[Entry] = []
        try:
            while (text := self._entry(version + 1)) is not None:
                version += 1
                entry = self._parse(version, text)
                if entry is not None:
                    found.append(entry)
            if not found and self._is_gap(version):
                return self._snapshot(known(), looked_us)
        except (OSError, DeltaError) as error:
            raise explain(self._location, error) from error
        except msgspec.MsgspecError as error:
            raise StorageError(
                f"Version {version} of the log of {self._location.uri} cannot be read: {error}"
            ) from error
        return Seen(tuple(found), version)

    def rows(self, entry: Entry, choose: Callable[[list[str]], Collection[str]]) -> pa.RecordBatch:
        """Return the rows of a part in delivery order: by `order_index`, which rises within each user.

        The order is the same at every reading, since files never change.

        Args:
            entry: from `since`.
            choose: of the table's columns, those wanted.

        Raises:
            GoneError: the files are no longer there, and the table does without them.
            StorageError: the storage refused it, or a file that the table needs is not there, or cannot be read.
        """
        schema = self._columns()
        wanted = {*choose(schema.names), "order_index"}
        schema = pa.schema([field for field in schema if field.name in wanted])
        parts = []
        try:
            for path in map(unquote, entry.files):
                dataset = pads.dataset([path], schema=schema, format="parquet", filesystem=self._location.files)
                table = dataset.to_table()
                if schema.get_field_index("date") >= 0:
                    day = pa.repeat(pa.scalar(_day(path), pa.date32()), len(table))
                    table = table.set_column(schema.get_field_index("date"), schema.field("date"), day)
                parts.append(table)
        except FileNotFoundError as error:
            raise self._missing(entry) from error
        except OSError as error:
            raise explain(self._location, error) from error
        except pa.ArrowException as error:
            raise StorageError(f"{path} of {self._location.uri} cannot be read: {error}") from error
        rows = pa.concat_tables(parts)
        if len(rows) >= 1 << ROW_BITS:
            raise StorageError(f"Version {entry.version} of {self._location.uri} has {len(rows):,} rows: too many.")
        order = np.argsort(rows.column("order_index").to_numpy(), kind="stable")
        if (order[1:] < order[:-1]).any():
            rows = rows.take(pa.array(order))
        batches = rows.combine_chunks().to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=schema)

    def _missing(self, entry: Entry) -> StorageError:
        delta = self._table()
        needed = set() if delta is None else set(pa.table(delta.get_add_actions()).column("path").to_pylist())
        if delta is None or needed & set(entry.files):
            return StorageError(
                f"A file of {_time(entry.committed_us)} is not in {self._location.uri}, though its log has it: "
                f"is all of the storage there?"
            )
        return GoneError(f"A file of {_time(entry.committed_us)} is no longer in {self._location.uri}")

    def _columns(self) -> pa.Schema:
        if self._schema is None:
            delta = self._table()
            assert delta is not None, "a part was found in its log"
            self._schema = pa.schema(delta.schema())
        return self._schema

    def _table(self) -> DeltaTable | None:
        try:
            return DeltaTable(self._location.uri, storage_options=self._location.options)
        except TableNotFoundError:
            return None
        except (OSError, DeltaError) as error:
            raise explain(self._location, error) from error

    def _entry(self, version: int) -> bytes | None:
        path = f"{_LOG}/{version:020}.json"
        if self._location.local is not None:
            try:
                return (self._location.local / path).read_bytes()
            except FileNotFoundError:
                return None
        try:
            with self._location.files.open_input_stream(path) as stream:
                text: bytes = stream.read()
                return text
        except FileNotFoundError:
            return None

    def _parse(self, version: int, text: bytes) -> Entry | None:
        files: list[str] = []
        rows = 0
        rewrites = False
        committed_ms = 0
        window_us = None
        for line in map(_read_line, text.splitlines()):
            if line.meta_data is not None:
                self._schema = pa.schema(Schema.from_json(line.meta_data["schemaString"]))
            elif line.commit_info is not None:
                committed_ms = int(line.commit_info.get("timestamp", 0))
                window_s = (line.commit_info.get(METADATA_KEY) or {}).get("window_start_s")
                window_us = None if window_s is None else round(window_s * 1_000_000)
            elif line.add is not None and line.add.data_change:
                files.append(line.add.path)
                rows += _read_stats(line.add.stats or "{}").num_records
            elif line.remove is not None:
                rewrites = rewrites or line.remove.data_change
        if not files or rewrites:  # who deletes or changes rows writes the others anew: they were here before
            return None
        return Entry(version, window_us, committed_ms * 1_000, tuple(sorted(files)), rows)

    def _is_gap(self, version: int) -> bool:
        """Say whether the log's next entry was cleaned up before it was read."""
        if time.monotonic() < self._next_gap_s:
            return False
        self._next_gap_s = time.monotonic() + _GAP_S
        try:
            with self._location.files.open_input_stream(f"{_LOG}/_last_checkpoint") as stream:
                checkpoint = int(msgspec.json.decode(stream.read())["version"])
        except FileNotFoundError:
            return False
        # It may have come, and the checkpoint with it, since it was looked for.
        return checkpoint > version and self._entry(version + 1) is None

    def _snapshot(self, known: AbstractSet[str], looked_us: int) -> Seen:
        """Make parts of the table's files that came since: the log no longer tells when each did."""
        delta = self._table()
        assert delta is not None, "it has a checkpoint"
        self._schema = pa.schema(delta.schema())
        actions = pa.table(delta.get_add_actions(flatten=True))
        names = ("path", "modification_time", "num_records", "min.released_at", "max.released_at")
        columns = [
            actions.column(name).to_pylist() if name in actions.column_names else [None] * len(actions)
            for name in names[:3]
        ]
        columns += [_microseconds(actions, name) for name in names[3:]]
        found, merged = [], 0
        for path, written_ms, rows, low_us, high_us in zip(*columns, strict=True):
            if path in known:
                continue
            if not unquote(path).rpartition("/")[2].startswith(_MERGED):
                is_new = written_ms * 1_000 >= looked_us - _WRITTEN_AHEAD_US
            else:  # nobody knows which of its rows are new: better all of them twice than one not at all
                is_new = high_us is None or high_us >= looked_us - _SETTLES_US
                merged += is_new
            if is_new:
                found.append((low_us or 0, Entry(delta.version(), None, written_ms * 1_000, (path,), rows or 0)))
        found.sort(key=lambda each: (each[0], each[1].files))
        _LOGGER.warning(
            "The log of %s does not reach back to the last look: of version %d %d files are new, %d of them merged.",
            *(self._location.uri, delta.version(), len(found), merged),
        )
        return Seen(tuple(entry for _, entry in found), delta.version())


def _microseconds(actions: pa.Table, name: str) -> list[int | None]:
    if name not in actions.column_names:
        return [None] * len(actions)
    found: list[int | None] = pc.cast(actions.column(name), pa.timestamp("us", "UTC")).cast(pa.int64()).to_pylist()
    return found


def _day(path: str) -> dt.date:
    return dt.date.fromisoformat(path.partition("date=")[2].partition("/")[0])


def _time(at_us: int) -> str:
    return dt.datetime.fromtimestamp(at_us / 1_000_000, dt.UTC).isoformat(timespec="seconds")
