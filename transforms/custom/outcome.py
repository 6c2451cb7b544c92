"""Outcome: what a user's code made of a batch, row by row; and how it becomes one batch again, in order."""

import functools
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import millrace
from millrace.schemas.event import TYPES
from millrace.transforms.batches import int64s
from millrace.transforms.custom.event import JSON_COLUMNS
from millrace.transforms.steps import user_runs, with_columns

Rows = npt.NDArray[np.int64]
Changes = Mapping[str, Any]

_FRAMES = 6
_OURS = {str(Path(folder).resolve()) for folder in millrace.__path__} | {str(Path(__file__).resolve().parent)}


class Failure(NamedTuple):
    """Why a row has no result. No value of an event is in it, unless the exception's own text has one."""

    row: int
    error: str
    """The exception's type."""
    at: str
    """Where in the user's code, the innermost last: `FILE:LINE in FUNCTION`."""
    text: str
    """The exception's text: shown only where the configuration asks for it."""


class Outcome(NamedTuple):
    """What became of a batch; each row given is in kept, failed or dropped."""

    batch: pa.RecordBatch
    """The rows that go on, with the added columns."""
    origin: Rows
    """Of which given row each is made; rises, and repeats where a row became several."""
    failed: Sequence[Failure] = ()
    dropped: Sequence[int] = ()


@functools.cache
def _theirs(filename: str) -> str:
    """Return the name of a user's file; blank for one of Millrace's."""
    path = Path(filename)
    return "" if str(path.parent) in _OURS else path.name


class WrongResultError(Exception):
    """What the user's code returned cannot be used. One sentence, without values."""


def failure_of(row: int, error: BaseException) -> Failure:
    """Describe what the user's code raised at a row.

    Raises:
        KeyboardInterrupt: it was the user at the keyboard, not the code.
    """
    if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        raise error
    frames = [
        f"{file}:{line} in {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(error.__traceback__)  # not extract_tb: it reads the files
        if (file := _theirs(frame.f_code.co_filename))
    ]
    name = "WrongResult" if isinstance(error, WrongResultError) else type(error).__name__
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  it is the user's class
        text = ""
    return Failure(row, name, ", ".join(frames[-_FRAMES:]), text)


def of_events(
    batch: pa.RecordBatch, kept: Sequence[tuple[int, Changes]], adds: Sequence[pa.Field], transform: str
) -> tuple[pa.RecordBatch, Rows, list[Failure]]:
    """Return the rows of events that go on, their origins, and the rows whose new values fit no column.

    Args:
        batch: what the events were made of.
        kept: (row, new values by column), by rising row; the first of a row is that event itself, further ones are
            made of it.
        adds: the columns that may be new.
        transform: its name, which is part of the ids of those that it makes.
    """
    origin = np.array([row for row, _ in kept], np.int64)
    rows = batch if _is_whole(origin, batch.num_rows) else batch.take(pa.array(origin))
    fields = {field.name: field for field in (*batch.schema, *adds)}
    places: dict[str, list[int]] = {}
    for at, (_, changes) in enumerate(kept):
        for name in changes:
            places.setdefault(name, []).append(at)
    columns: dict[str, pa.Array] = {}
    failed: dict[int, Failure] = {}
    for name, touched in places.items():
        new = [kept[at][1][name] for at in touched]
        try:
            columns[name] = _placed(rows, fields[name], touched, _array(name, new, fields[name].type))
        except Exception:  # noqa: BLE001  it is told value by value
            for at, value in zip(touched, new, strict=True):
                failure = _misfit(kept[at][0], fields[name], value)
                if failure is not None:
                    failed.setdefault(failure.row, failure)
    if failed:
        good = [each for each in kept if each[0] not in failed]
        again, origin, _ = of_events(batch, good, adds, transform)
        return again, origin, list(failed.values())
    missing = [field for field in adds if field.name not in columns and field.name not in batch.schema.names]
    columns |= {field.name: pa.nulls(rows.num_rows, field.type) for field in missing}
    added = [field.name for field in adds if field.name not in batch.schema.names]
    rows = with_columns(rows, [fields[name] for name in columns], list(columns.values()))
    return _told_apart(rows.select([*batch.schema.names, *added]), origin, transform), origin, []


def _misfit(row: int, field: pa.Field, value: Any) -> Failure | None:
    try:
        _array(field.name, [value], field.type)
    except Exception as error:  # noqa: BLE001
        return Failure(row, "WrongResult", f"column {field.name} has to be {field.type}", str(error))
    return None


def _is_whole(origin: Rows, size: int) -> bool:
    return len(origin) == size and bool((origin == np.arange(size)).all())


def _array(name: str, values: list[Any], of: pa.DataType) -> pa.Array:
    if name == "type" and not set(values) <= set(TYPES):
        raise WrongResultError(f"type is one of {', '.join(TYPES)}")
    if pa.types.is_string(of):
        for value in values:
            if value is not None and ("\0" in value or (name in JSON_COLUMNS and "\\u0000" in value)):
                raise WrongResultError("NUL, which no warehouse can hold")
    return pa.array(values, of)


def _placed(rows: pa.RecordBatch, field: pa.Field, places: Sequence[int], new: pa.Array) -> pa.Array:
    """Return a column with new values at some places."""
    if len(places) == rows.num_rows:
        return new
    at = rows.schema.get_field_index(field.name)
    old = rows.column(at) if at >= 0 else pa.nulls(rows.num_rows, field.type)
    taken = np.arange(rows.num_rows)
    taken[list(places)] = rows.num_rows + np.arange(len(places))
    return pa.concat_arrays([old, new]).take(pa.array(taken))


def _told_apart(rows: pa.RecordBatch, origin: Rows, transform: str) -> pa.RecordBatch:
    """Give those that share an origin ids of their own; the receipt is that of all of them."""
    again = np.flatnonzero(np.diff(origin, prepend=-1) == 0)
    if not len(again):
        return rows
    first = np.searchsorted(origin, origin[again])
    ids = rows.column("message_id").take(pa.array(again)).to_pylist()
    derived = [f"{each}/{transform}/{number}" for each, number in zip(ids, again - first, strict=True)]
    field = rows.schema.field("message_id")
    return with_columns(rows, [field], [_placed(rows, field, again.tolist(), pa.array(derived, pa.string()))])


def joined(schema: pa.Schema, parts: Sequence[tuple[pa.RecordBatch, Rows]]) -> tuple[pa.RecordBatch, Rows]:
    """Return rows of several parts as one, by their origin; a column that a part lacks is null there."""
    parts = [part for part in parts if len(part[1])]
    if len(parts) == 1 and (np.diff(parts[0][1]) >= 0).all():
        return _fitted(parts[0][0], schema), parts[0][1]
    if not parts:
        return pa.RecordBatch.from_pylist([], schema=schema), np.array([], np.int64)
    table = pa.Table.from_batches([_fitted(batch, schema) for batch, _ in parts]).combine_chunks()
    origin = np.concatenate([rows for _, rows in parts])
    by_origin = np.argsort(origin, kind="stable")
    return table.to_batches()[0].take(pa.array(by_origin)), origin[by_origin]


def _fitted(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    if batch.schema.names == schema.names:
        return batch
    columns = [
        batch.column(at) if (at := batch.schema.get_field_index(field.name)) >= 0
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]  # fmt: skip
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def in_place(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Give rows that a transform made their place right behind their origin: order_index rises along each user.

    Only what follows such a row within its microsecond moves, by as many places; 2,047 of them are there.
    """
    index = int64s(batch.column("order_index"))
    moved = index.copy()
    for _, start, end in user_runs(batch):
        place = np.arange(end - start)
        moved[start:end] = np.maximum.accumulate(index[start:end] - place) + place
    if (moved == index).all():
        return batch
    return with_columns(batch, [batch.schema.field("order_index")], [pa.array(moved)])
