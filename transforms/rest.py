"""Rest: the JSON texts of what has no column, put together and looked through."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from millrace.schemas.dead_letter import Rejected
from millrace.transforms.rescue import check_value

Column = Sequence[Any]
"""One value for each row; None where a row has none."""

_encode = msgspec.json.Encoder().encode


class Rest(NamedTuple):
    """What of an event the wire format does not list, as JSON object text."""

    context_rest: bytes | None
    rest: bytes | None


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
    prefixes = [prefix for prefix, _ in present]
    members = [
        b",".join([prefix + value for prefix, value in zip(prefixes, row, strict=True) if value is not None])
        for row in zip(*columns, strict=True)
    ]
    return [b"{%b}" % each if each else None for each in members]


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


def refused(texts: Column, levels: int, *, repeats: bool) -> list[int]:
    """Return the rows whose text is no object, or that check_value refuses.

    `repeats`: most texts are alike, so each is read only once.
    """
    if is_absent(texts):
        return []
    wrong = set()
    for text in set(texts) if repeats else texts:
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
