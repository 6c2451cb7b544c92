"""JSON rows: a batch of columns becomes one JSON object a row, for the sinks that speak JSON.

Column by column in Arrow: `"name":value` for each row that has one, and then these joined. Python touches only what
needs it: texts with something to escape, JSON texts (are they any?), and rare types.
"""

import base64
import functools
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

JSON_COLUMNS = frozenset(
    {"properties", "traits", "context_rest", "rest", "violations", "consent_denied", "lineage", "transform_errors"}
)
"""Columns of the archive whose text is JSON."""

JSON = {b"millrace.json": b"1"}
"""Metadata of a field: its text is JSON, whatever the column is called."""

_AT_ONCE_BYTES = 1 << 27  # escaped six times as much; Arrow's offsets end at 2 GiB
_TEXTS = (pa.large_string(), pa.string_view())
_BYTES = (pa.binary(), pa.large_binary(), pa.binary_view())
_TIME_CHARACTERS = 26
"""Of 2026-12-31 18:00:00.000000; years of other than four digits have more."""

_UTC = pa.timestamp("us")

_encode = msgspec.json.Encoder(enc_hook=str).encode
_check = msgspec.json.Decoder(msgspec.Raw).decode


def is_json(field: pa.Field) -> bool:
    """Say whether the text of a column is JSON."""
    return bool(field.metadata) and b"millrace.json" in field.metadata


def json_rows(rows: pa.RecordBatch) -> list[bytes]:
    """Return each row as a JSON object on one line, without its nulls, its members in the order of the columns.

    Times are RFC 3339 in UTC with microseconds; decimals are texts, since their digits count; bytes are Base64; what
    is not finite is left out, as JSON has no word for it. A JSON text that is none is a text.
    """
    # The first is quick, but counts what a slice leaves out, too.
    if rows.get_total_buffer_size() > _AT_ONCE_BYTES and rows.nbytes > _AT_ONCE_BYTES and rows.num_rows > 1:
        half = rows.num_rows // 2
        return json_rows(rows.slice(0, half)) + json_rows(rows.slice(half))
    members = [
        _members(field, column)
        for field, column in zip(rows.schema, rows.columns, strict=True)
        if column.null_count < rows.num_rows
    ]
    if not members:
        return [b"{}"] * rows.num_rows
    if all(each.null_count for each in members):  # Arrow 25 leaves out the row, not only its nulls, if it has no more
        empty = functools.reduce(pc.and_, (each.is_null() for each in members))
        members.append(pc.if_else(empty, _scalar(""), None))
    joined = pc.binary_join_element_wise(*members, _scalar(","), null_handling="skip")
    lines: list[bytes] = _join(_scalar("{"), joined, _scalar("}")).cast(pa.binary()).to_pylist()
    return lines


def _members(field: pa.Field, column: pa.Array) -> pa.Array:
    """Return `"name":value` for each row; null where it has none."""
    values, before, after = _values(column, is_json=is_json(field))
    return _join(_scalar(f"{_name(field.name)}:{before}"), values, _scalar(after))


def _values(column: pa.Array, *, is_json: bool = False) -> tuple[pa.Array, str, str]:
    """Return what differs of each value as JSON, and what stands before and behind it in all rows."""
    of = column.type
    if of == pa.string():
        return (_json(column), "", "") if is_json else (_escaped(column), '"', '"')
    if pa.types.is_timestamp(of):
        return _times(column), '"', 'Z"'
    if pa.types.is_boolean(of) or pa.types.is_integer(of):
        return column.cast(pa.string()), "", ""
    if pa.types.is_date(of) or pa.types.is_decimal(of):
        return column.cast(pa.string()), '"', '"'
    if pa.types.is_floating(of):
        return _floats(column), "", ""
    if pa.types.is_dictionary(of):
        return _values(column.dictionary_decode(), is_json=is_json)
    if of in _TEXTS:
        return _values(column.cast(pa.string()), is_json=is_json)
    write = _base64 if of in _BYTES else _plain
    return _strings([None if each is None else write(each) for each in column.to_pylist()]), "", ""


def _base64(value: bytes) -> str:
    return f'"{base64.b64encode(value).decode()}"'


def _plain(value: Any) -> str:
    return _encode(value).decode()


def _escaped(texts: pa.Array) -> pa.Array:
    """Return texts as they stand between JSON's quotes."""
    data, _ = _data(texts)
    odd = (data < 0x20) | (data == 0x22) | (data == 0x5C)  # control characters, quotes, backslashes
    if not odd.any():
        return texts
    rows = _rows_at(texts, np.flatnonzero(odd))
    escaped = [
        None if text is None else _encode(text)[1:-1].decode() for text in texts.take(pa.array(rows)).to_pylist()
    ]
    return _replaced(texts, rows, escaped)


def _json(texts: pa.Array) -> pa.Array:
    """Return JSON texts, each on one line; what is none becomes a JSON string."""
    data, _ = _data(texts)
    has_lines = bool(((data == 0x0A) | (data == 0x0D)).any())
    rows, others = [], []
    for row, text in enumerate(texts.to_pylist()):
        if text is None:
            continue
        try:
            _check(text)
        except (msgspec.DecodeError, RecursionError):
            rows.append(row)
            others.append(_encode(text).decode())
        else:
            if has_lines and ("\n" in text or "\r" in text):
                rows.append(row)
                others.append(msgspec.json.format(text, indent=-1))
    return _replaced(texts, np.array(rows, np.int64), others) if rows else texts


def _times(column: pa.Array) -> pa.Array:
    """Return times as 2026-12-31T18:00:00.000000, in UTC."""
    if column.type.unit != "us":
        column = column.cast(pa.timestamp("us"), safe=False)
    texts = column.view(_UTC).cast(pa.string())
    data, starts = _data(texts)
    lengths = np.diff(starts)
    if not ((lengths == _TIME_CHARACTERS) | (lengths == 0)).all():
        return pc.replace_substring(texts, " ", "T")
    written = data.copy()
    written[starts[:-1][lengths > 0] + 10] = ord("T")
    valid = texts.buffers()[0] if texts.offset == 0 else texts.is_valid().buffers()[1]
    return pa.Array.from_buffers(pa.string(), len(texts), [valid, pa.py_buffer(starts), pa.py_buffer(written)])


def _floats(column: pa.Array) -> pa.Array:
    """Return numbers as msgspec writes them: Arrow would write 1.0 as 1; null where they are not finite."""
    texts = _encode(column.cast(pa.float64()).to_pylist())[1:-1].decode().split(",")
    return pc.if_else(pc.is_finite(column), _strings(texts), None)


@functools.lru_cache(4_096)
def _scalar(text: str) -> pa.Scalar:
    return pa.scalar(text)


@functools.lru_cache(4_096)
def _name(name: str) -> str:
    return _encode(name).decode()


def _join(*parts: pa.Array | pa.Scalar) -> pa.Array:
    """Return parts one behind the other, row by row; null where one is."""
    return pc.binary_join_element_wise(*parts, _scalar(""))


def _data(texts: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Return the bytes of texts, one behind the other, and where each begins in them, and the last one ends."""
    _, offsets, data = texts.buffers()
    starts = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    if data is None:
        return np.zeros(0, np.uint8), starts - starts[0]
    return np.frombuffer(data, np.uint8)[starts[0] : starts[-1]], starts - starts[0]


def _rows_at(texts: pa.Array, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the rows in whose text some bytes are."""
    _, starts = _data(texts)
    return np.unique(np.searchsorted(starts, places, side="right") - 1)


def _replaced(texts: pa.Array, rows: npt.NDArray[np.int64], others: Sequence[str | None]) -> pa.Array:
    mask = np.zeros(len(texts), np.bool_)
    mask[rows] = True
    return pc.replace_with_mask(texts, pa.array(mask), _strings(others))


def _strings(values: Sequence[Any]) -> pa.Array:
    return pa.array(values, pa.string())
