"""Rest: the JSON texts of what has no column, put together and looked through."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millrace.schemas.dead_letter import Rejected
from millrace.transforms.check import check_value

Column = Sequence[Any]
"""One value for each row; None where a row has none."""

CHUNK = 256
"""Tuples alive at a time while structs become columns: some thousand would set off the garbage collector."""

_encode = msgspec.json.Encoder().encode


Leftovers = dict[int, list[bytes]]
"""By row, members of an event that turned out not to be told by any column."""


def keep(leftovers: Leftovers, key: str, values: Column, untold: npt.NDArray[np.bool_]) -> None:
    """Add a member of the rows that no column tells."""
    if is_absent(values):
        return
    for row in np.flatnonzero(untold).tolist():
        if values[row] is not None:
            leftovers.setdefault(row, []).append(b'"%b":%b' % (key.encode(), _encode(values[row])))


def join(keys: Mapping[str, str], fields: Mapping[str, Column], size: int) -> Column:
    """Return each row's members as JSON object text; None where it has none."""
    present = [(f'"{key}":'.encode(), fields[name]) for name, key in keys.items() if not is_absent(fields[name])]
    if not present:
        return (None,) * size
    columns = [column for _, column in present]
    if not any(None in column for column in columns):
        template = b"{%b%%b}" % b"%b,".join(prefix for prefix, _ in present)
        return [template % row for row in zip(*columns, strict=True)]
    members: list[bytes | None] = [None] * size
    for prefix, column in present:  # most are rare, so by column: a tuple for each row would cost five times as much
        for row, value in enumerate(column):
            if value is not None:
                told = members[row]
                members[row] = b"{%b%b" % (prefix, value) if told is None else b"%b,%b%b" % (told, prefix, value)
    return [None if each is None else each + b"}" for each in members]


def rest_texts(texts: Column, objects: Mapping[int, bytes | None], leftovers: Leftovers) -> Column:
    """Return object texts, with what events had that were read with care, and with leftovers."""
    if not objects and not leftovers:
        return texts
    merged = list(texts)
    for row, text in objects.items():
        if text is not None:
            merged[row] = text if merged[row] is None else b"%b,%b" % (merged[row][:-1], text[1:])
    for row, members in leftovers.items():
        joined = b"{%b}" % b",".join(members)
        merged[row] = joined if merged[row] is None else b"%b,%b" % (merged[row][:-1], joined[1:])
    return merged


def refused(texts: Column, levels: int) -> list[int]:
    """Return the rows whose text is no object, or that check_value refuses; each distinct text is read once."""
    if is_absent(texts):
        return []
    wrong = set()
    for text in set(texts):
        if text is not None:
            try:
                if type(check_value(text, levels)) is not dict:
                    wrong.add(text)
            except Rejected:
                wrong.add(text)
    return [row for row, text in enumerate(texts) if text in wrong] if wrong else []


def is_absent(values: Column) -> bool:
    """Say whether no row has a value."""
    return not values or (values[0] is None and values.count(None) == len(values))


def transpose(kind: type[msgspec.Struct], structs: Sequence[msgspec.Struct]) -> dict[str, Column]:
    """Return the fields of structs, one column each."""
    columns: list[list[Any]] = [[] for _ in kind.__struct_fields__]
    for start in range(0, len(structs), CHUNK):
        rows = map(msgspec.structs.astuple, structs[start : start + CHUNK])
        for column, values in zip(columns, zip(*rows, strict=True), strict=True):
            column.extend(values)
    return dict(zip(kind.__struct_fields__, columns, strict=True))


def strings(values: Column) -> pa.StringArray:
    """Return texts, or UTF-8 bytes, as an Arrow column."""
    return pa.nulls(len(values), pa.string()) if is_absent(values) else pa.array(values, pa.string())
