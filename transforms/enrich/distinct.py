"""Distinct: a column is looked up once a distinct value, and remembered from batch to batch within bounds.

Of what customers send nearly everything repeats: a few thousand user agents, addresses and pages make up millions of
events. So a look-up may be a Python function: it runs on what has not been seen lately, the rest is Arrow's `take`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.counts import count

STAGE = "enrich"

ENTRIES = 100_000
"""What one enrichment remembers in a process, at most."""
CHARACTERS = 16_000_000
"""And of how many characters of keys, at most; with what was found that is some 100 MB in the worst case."""
LONGEST_KEPT = 2_048
"""Longer texts are looked up each time: hardly one of them comes again."""
LONGEST = 16_384
"""Longer texts are not looked up: no browser's address line or header is that long, but an attacker's is."""

LookUp = Callable[..., Sequence[Any]]


class Memo:
    """Looks up distinct values, and remembers what it found.

    It forgets in halves: what was not asked for while half of the bound came in anew is gone, so what is in use stays.
    There is no time limit, since what is found hangs on the value and on data that a new Memo comes with. Several
    threads may use it: at worst they look a value up twice.

    Args:
        name: the enrichment's; its counters are `NAME_too_long` and `NAME_failed_look_ups`.
        look_up: takes one value of each key column (None: null), gives one value for each of `fields`; where it raises,
            all of them are null.
        fields: of the columns that it makes.
        entries, characters: the bounds.
    """

    def __init__(
        self,
        name: str,
        look_up: LookUp,
        fields: Sequence[pa.Field],
        *,
        entries: int = ENTRIES,
        characters: int = CHARACTERS,
    ) -> None:
        self._name = name
        self._look_up = look_up
        self._fields = tuple(fields)
        self._nothing = (None,) * len(self._fields)
        self._most_entries = entries // 2
        self._most_characters = characters // 2
        self._young: dict[Any, Sequence[Any]] = {}
        self._old: dict[Any, Sequence[Any]] = {}
        self._characters = 0

    def columns(self, keys: Sequence[pa.Array]) -> list[pa.Array]:
        """Return the columns for some key columns of one length, each of any type that can be a dictionary's."""
        rows, values = distinct(keys)
        found = [self._found(value) for value in values]
        if not found:
            return [pa.nulls(0, field.type) for field in self._fields]
        return [
            spread(column, field.type, rows)
            for field, column in zip(self._fields, zip(*found, strict=True), strict=True)
        ]

    def _found(self, key: tuple[Any, ...]) -> Sequence[Any]:
        found = self._young.get(key)
        if found is not None:
            return found
        found = self._old.get(key)
        if found is None:
            found = self._looked_up(key)
        size = sum(len(part) for part in key if isinstance(part, str))
        if size <= LONGEST_KEPT:
            if len(self._young) >= self._most_entries or self._characters + size > self._most_characters:
                self._old, self._young, self._characters = self._young, {}, 0
            self._young[key] = found
            self._characters += size
        return found

    def _looked_up(self, key: tuple[Any, ...]) -> Sequence[Any]:
        if any(isinstance(part, str) and len(part) > LONGEST for part in key):
            count(STAGE, f"{self._name}_too_long")
            return self._nothing
        try:
            return self._look_up(*key)
        except Exception:  # noqa: BLE001  one value's trouble is no other's; no log: it would hold what a user sent
            count(STAGE, f"{self._name}_failed_look_ups")
            return self._nothing

    def __len__(self) -> int:
        return len(self._young) + len(self._old)


def distinct(keys: Sequence[pa.Array]) -> tuple[pa.Array, list[tuple[Any, ...]]]:
    """Number the distinct combinations of some columns; return the number of each row, and the combinations."""
    encoded = [pc.dictionary_encode(key, null_encoding="encode") for key in keys]
    various = [each for each in encoded if len(each.dictionary) != 1] or encoded[:1]
    if len(various) == 1:
        rows, number = various[0].indices, np.arange(len(various[0].dictionary))
    else:
        combined = pc.dictionary_encode(_combined(various))
        rows, number = combined.indices, combined.dictionary.to_numpy(zero_copy_only=False)
    parts: list[list[Any]] = []
    for each in reversed(encoded):
        values = each.dictionary
        parts.append(values.take(pa.array(number % len(values))).to_pylist() if len(number) else [])
        number = number // max(1, len(values))
    return rows, list(zip(*reversed(parts), strict=True))


def _combined(encoded: Sequence[pa.DictionaryArray]) -> pa.Array:
    """Return one number for each row that tells all of them: digits of a number whose bases are their sizes."""
    first, *others = encoded
    numbers = first.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    for other in others:
        numbers *= len(other.dictionary)
        numbers += other.indices.to_numpy(zero_copy_only=False)
    return pa.array(numbers)


def spread(values: Sequence[Any], kind: pa.DataType, rows: pa.Array) -> pa.Array:
    """Return a column that has for each row the value of its number."""
    if all(value is None for value in values):
        return pa.nulls(len(rows), kind)
    if len(values) == 1:
        return pa.repeat(pa.scalar(values[0], kind), len(rows))
    return pa.array(values, kind).take(rows)
