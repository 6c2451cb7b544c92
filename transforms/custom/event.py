"""Event: one row of a batch, as users' code sees it: read as it is asked for, changed without touching the batch."""

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pyarrow as pa

from millrace.schemas.event import ARCHIVE, BATCH

JSON_COLUMNS = ("properties", "traits", "context_rest", "rest")
"""Seen as dicts."""

_CHANGEABLE = {"type", "event", "user_id", "anonymous_id", *JSON_COLUMNS}
FIXED = frozenset(
    name for name in (*ARCHIVE.names, *BATCH.names) if name not in _CHANGEABLE and not name.startswith("context_")
)
"""What tells an event apart, when it was, and its place: no transform may change it."""

_read = msgspec.json.Decoder().decode
write_json = msgspec.json.Encoder().encode


class Columns:
    """A batch's columns as Python values, each made when it is first asked for."""

    def __init__(self, batch: pa.RecordBatch, added: frozenset[str]) -> None:
        self.batch = batch
        self.names = frozenset(batch.schema.names) | added
        self._values: dict[str, list[Any]] = {}

    def value(self, name: str, row: int) -> Any:
        """Return one value; JSON as its text; None in a column that is yet to be added.

        Raises:
            KeyError: there is no such column.
        """
        values = self._values.get(name)
        if values is None:
            if name not in self.names:
                raise KeyError(name)
            at = self.batch.schema.get_field_index(name)
            values = self.batch.column(at).to_pylist() if at >= 0 else [None] * self.batch.num_rows
            self._values[name] = values
        return values[row]


class Event:
    """One event: its columns by name, `event["context_page_path"]`, the main ones as attributes, too.

    `properties`, `traits`, `rest` and `context_rest` are dicts, empty where there is nothing. To change an event, set a
    column (`event["total_eur"] = 3.5`) or change a dict in place, and return it. What tells events apart and orders
    them (message_id, user_key, the times ...) cannot be changed; a column that is new has to be in `adds`.
    """

    __slots__ = ("_changed", "_columns", "_parsed", "_row")

    def __init__(self, columns: Columns, row: int) -> None:
        self._columns = columns
        self._row = row
        self._changed: dict[str, Any] = {}
        self._parsed: dict[str, dict[str, Any]] = {}

    def __getitem__(self, name: str) -> Any:
        if name in JSON_COLUMNS:
            return self._json(name)
        if name in self._changed:
            return self._changed[name]
        return self._columns.value(name, self._row)

    def __setitem__(self, name: str, value: Any) -> None:
        if name in FIXED:
            raise ValueError(f"{name} cannot be changed")
        if name not in self._columns.names:
            raise KeyError(f"{name} is not a column: declare it in adds")
        if name in JSON_COLUMNS:
            if value is not None and not isinstance(value, dict):
                raise TypeError(f"{name} has to be a dict")
            self._parsed[name] = {} if value is None else value
        self._changed[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self._columns.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns.names)

    def __repr__(self) -> str:
        return f"<Event {self.message_id}>"

    def get(self, name: str, default: Any = None) -> Any:
        """Return a column's value; the default where it is null or there is no such column."""
        if name not in self._columns.names:
            return default
        value = self[name]
        return default if value is None else value

    def copy(self, **changes: Any) -> "Event":
        """Return another event like this one, with some columns set: to be returned beside it."""
        copy = Event(self._columns, self._row)
        copy._changed.update({name: value for name, value in self._changed.items() if name not in JSON_COLUMNS})
        for name in {*self._parsed, *(set(self._changed) & set(JSON_COLUMNS))}:
            copy[name] = _read(write_json(self._json(name)))
        for name, value in changes.items():
            copy[name] = value
        return copy

    @property
    def message_id(self) -> str:
        return str(self._columns.value("message_id", self._row))

    @property
    def source_id(self) -> str:
        return str(self._columns.value("source_id", self._row))

    @property
    def user_key(self) -> str:
        return str(self._columns.value("user_key", self._row))

    @property
    def occurred_at(self) -> dt.datetime:
        at: dt.datetime = self._columns.value("occurred_at", self._row)
        return at

    @property
    def type(self) -> str:
        return str(self["type"])

    @property
    def name(self) -> str | None:
        """Its column `event`: of a track event its name, of a page or screen, too."""
        name: str | None = self["event"]
        return name

    @property
    def user_id(self) -> str | None:
        user: str | None = self["user_id"]
        return user

    @property
    def properties(self) -> dict[str, Any]:
        return self._json("properties")

    @property
    def traits(self) -> dict[str, Any]:
        return self._json("traits")

    def _json(self, name: str) -> dict[str, Any]:
        parsed = self._parsed.get(name)
        if parsed is None:
            parsed = _object(self._columns.value(name, self._row))
            self._parsed[name] = parsed
        return parsed

    def is_of(self, columns: Columns, row: int) -> bool:
        """Whether it stands for this row of this batch."""
        return self._columns is columns and self._row == row

    def changes(self) -> Mapping[str, Any]:
        """Return the new values, by column; of JSON columns the text.

        Raises:
            TypeError, ValueError: a dict holds what JSON cannot.
        """
        if not self._parsed:
            return self._changed
        changed = {name: value for name, value in self._changed.items() if name not in JSON_COLUMNS}
        for name, value in self._parsed.items():
            is_set = name in self._changed
            if is_set and self._changed[name] is None and not value:
                changed[name] = None
                continue
            text = write_json(value).decode()
            before = self._columns.value(name, self._row)
            # Mostly the client wrote it just so; else what was read is written again, to tell whether it was changed.
            if is_set or (text != before and text != write_json(_object(before)).decode()):
                changed[name] = text
        return changed


def _object(text: str | None) -> dict[str, Any]:
    found = _read(text) if text else None
    return found if isinstance(found, dict) else {}
