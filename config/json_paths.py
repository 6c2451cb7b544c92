"""JSON paths: values out of a column of JSON text, as Arrow arrays of one kind; what is of another kind is null."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pyarrow as pa

Keys = tuple[str | int, ...]
"""Names of members and places in arrays, from the outside in."""


class Parsed:
    """The values at some paths of one column; each text is decoded once, and only the members asked for.

    Args:
        texts: JSON texts, or nulls.
        paths: all that will be asked for.
    """

    def __init__(self, texts: pa.Array, paths: Sequence[Keys]) -> None:
        roots = tuple(dict.fromkeys(keys[0] for keys in paths if isinstance(keys[0], str)))
        whole = any(isinstance(keys[0], int) for keys in paths)
        read = _anything if whole else _reader(roots)
        self._place = None if whole else {root: f"f{number}" for number, root in enumerate(roots)}
        self._values = [None if text is None else _read(read, text) for text in texts.to_pylist()]

    def at(self, keys: Keys) -> list[Any]:
        """Return each row's value at a path; None where there is none, or null."""
        values = self._values
        if self._place is not None:
            name = self._place[str(keys[0])]
            values, keys = [getattr(value, name, None) for value in values], keys[1:]
        for key in keys:
            values = [_member(value, key) for value in values]
        return values


def texts_of(values: Sequence[Any]) -> pa.Array:
    """Return the texts among values; null for the others."""
    return pa.array([value if isinstance(value, str) else None for value in values], pa.string())


def numbers_of(values: Sequence[Any]) -> pa.Array:
    """Return the numbers among values, as doubles; null for the others."""
    return pa.array([_number(value) for value in values], pa.float64())


def flags_of(values: Sequence[Any]) -> pa.Array:
    """Return the booleans among values; null for the others."""
    return pa.array([value if isinstance(value, bool) else None for value in values], pa.bool_())


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _read(read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except (msgspec.DecodeError, RecursionError):  # no JSON, or no object: nothing is at any path
        return None


def _member(value: Any, key: str | int) -> Any:
    if isinstance(key, str):
        return value.get(key) if isinstance(value, dict) else None
    return value[key] if isinstance(value, list) and key < len(value) else None


_anything = msgspec.json.Decoder().decode


@functools.cache
def _reader(roots: tuple[str, ...]) -> Callable[[str], Any]:
    names = {f"f{number}": root for number, root in enumerate(roots)}
    kind = msgspec.defstruct("Members", [(name, Any, None) for name in names], rename=names)
    return msgspec.json.Decoder(kind).decode
