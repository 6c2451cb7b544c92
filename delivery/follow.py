"""Follow the archive: each commit of its Delta log becomes a part of a lane's queue, its rows in delivery order."""

import dataclasses
import datetime as dt
from collections.abc import Callable, Collection
from collections.abc import Set as AbstractSet
from typing import Any
from urllib.parse import unquote

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from deltalake import DeltaTable, Schema
from deltalake.exceptions import DeltaError, TableNotFoundError

from millrace.delivery.ledger import Entry
from millrace.sinks.delta import METADATA_KEY
from millrace.sinks.storage import Location, StorageError, explain

_LOG = "_delta_log"
_MERGED = "compact-"
"""How the files of compaction begin: their rows were in the table before."""

LOCAL_POLL_S = 0.02
REMOTE_POLL_S = 1.0


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the log told since the last look: the parts, and the version up to which it was read."""

    entries: tuple[Entry, ...]
    version: int


class _Add(msgspec.Struct, rename="camel"):
    path: str
    data_change: bool = True
    stats: str = "{}"
    modification_time: int = 0


class _Line(msgspec.Struct, rename="camel"):
    add: _Add | None = None
    commit_info: dict[str, Any] | None = None
    meta_data: dict[str, Any] | None = None


_read_line = msgspec.json.Decoder(_Line).decode


class Log:
    """The log of a table, read entry by entry."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._schema: pa.Schema | None = None

    @property
    def poll_s(self) -> float:
        """How long to wait before another look."""
        return REMOTE_POLL_S if self._location.local is None else LOCAL_POLL_S

    def newest(self) -> int | None:
        """Return the version of the table now; None where there is no table yet.

        Raises:
            StorageError: the storage refused it.
        """
        delta = self._table()
        return None if delta is None else delta.version()

    def since(self, version: int, known: Callable[[], AbstractSet[str]]) -> Seen:
        """Return what was committed after a version.

        Args:
            version: what was seen already; -1: nothing.
            known: gives the files that the queue holds, should the log not reach back to `version`.

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
            if not found and (newest := self._gap(version)) is not None:
                return self._snapshot(newest, known())
        except (OSError, DeltaError) as error:
            raise explain(self._location, error) from error
        return Seen(tuple(found), version)

    def rows(self, entry: Entry, choose: Callable[[list[str]], Collection[str]]) -> pa.RecordBatch:
        """Return the rows of a part in delivery order: by `order_index`, which rises within each user.

        The order is the same at every reading, since files never change.

        Args:
            entry: from `since`.
            choose: of the table's columns, those wanted.

        Raises:
            StorageError: the storage refused it, or the files are no longer there.
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
                    day = pa.array([_day(path)] * len(table), pa.date32())
                    table = table.set_column(schema.get_field_index("date"), schema.field("date"), day)
                parts.append(table)
        except FileNotFoundError as error:
            raise StorageError(
                f"A file of {_time(entry.committed_us)} is no longer in {self._location.uri}: merged and deleted "
                f"before this sink had read it. The rows are in the archive still."
            ) from error
        except OSError as error:
            raise explain(self._location, error) from error
        rows = pa.concat_tables(parts)
        order = np.argsort(rows.column("order_index").to_numpy(), kind="stable")
        if (order[1:] < order[:-1]).any():
            rows = rows.take(pa.array(order))
        batches = rows.combine_chunks().to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=schema)

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
                rows += int(msgspec.json.decode(line.add.stats).get("numRecords", 0))
        if not files:
            return None
        return Entry(version, window_us, committed_ms * 1_000, tuple(sorted(files)), rows)

    def _gap(self, version: int) -> int | None:
        """Return the table's version where the log's next entry was cleaned up before it was read."""
        try:
            with self._location.files.open_input_stream(f"{_LOG}/_last_checkpoint") as stream:
                checkpoint = int(msgspec.json.decode(stream.read())["version"])
        except FileNotFoundError:
            return None
        return self.newest() if checkpoint > version else None

    def _snapshot(self, newest: int, known: AbstractSet[str]) -> Seen:
        """Make parts of the table's files that the queue does not hold: the log no longer tells when each came."""
        delta = self._table()
        assert delta is not None, "it has a checkpoint"
        actions = pa.table(delta.get_add_actions(flatten=True)).to_pylist()
        found = [
            Entry(newest, None, action["modification_time"] * 1_000, (action["path"],), action["num_records"])
            for action in sorted(actions, key=lambda action: (action["min.released_at"], action["path"]))
            if action["path"] not in known and not unquote(action["path"]).rpartition("/")[2].startswith(_MERGED)
        ]
        return Seen(tuple(found), delta.version())


def _day(path: str) -> dt.date:
    return dt.date.fromisoformat(path.partition("date=")[2].partition("/")[0])


def _time(at_us: int) -> str:
    return dt.datetime.fromtimestamp(at_us / 1_000_000, dt.UTC).isoformat(timespec="seconds")
