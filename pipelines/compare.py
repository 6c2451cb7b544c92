"""Compare: rows as they are archived against rows as a changed configuration would make them."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

NOT_COMPARED = frozenset({"arrived_at", "receipt", "config_hash", "lineage"})
"""What travels only, and what says which configuration made a row: that is another one on purpose."""

_SHOWN_CHARACTERS = 40


@dataclasses.dataclass
class Column:
    """What is found of one column."""

    values: int = 0
    """That are not null, in the rows made anew."""
    differ: int = 0
    examples: list[tuple[str, Any, Any]] = dataclasses.field(default_factory=list)
    """(message_id, archived, made anew)"""


class Comparison:
    """Adds up what differs, part by part.

    Args:
        archived: the archive's columns.
        examples: how many to keep of each column.
    """

    def __init__(self, archived: pa.Schema, examples: int = 3) -> None:
        self._archived = archived
        self._examples = examples
        self.rows = self.same = self.changed = self.added = self.removed = 0
        self.columns: dict[str, Column] = collections.defaultdict(Column)
        self.new: dict[str, pa.DataType] = {}

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.changed or self.added or self.removed or self.new)

    def add(self, archived: pa.RecordBatch, made: pa.RecordBatch) -> None:
        """Compare the rows of one part; those that belong together have one id and source."""
        old_keys, new_keys = _keys(archived), _keys(made)
        at = pc.index_in(old_keys, value_set=new_keys)
        both = np.flatnonzero(at.is_valid())
        old = archived.take(pa.array(both))
        new = made.take(pc.drop_null(at))
        self.rows += archived.num_rows
        self.removed += archived.num_rows - len(both)
        self.added += made.num_rows - len(both)
        differs = np.zeros(len(both), bool)
        for field in made.schema:
            if field.name in NOT_COMPARED:
                continue
            found = self.columns[field.name]
            column = made.column(field.name)
            found.values += made.num_rows - column.null_count
            if self._archived.get_field_index(field.name) < 0:
                self.new[field.name] = field.type
                continue
            here = _differs(old.column(field.name), new.column(field.name))
            found.differ += int(here.sum())
            differs |= here
            ids = old.column("message_id")
            for row in np.flatnonzero(here)[: self._examples - len(found.examples)].tolist():
                values = (old.column(field.name)[row].as_py(), new.column(field.name)[row].as_py())
                found.examples.append((ids[row].as_py(), *values))
        self.changed += int(differs.sum())
        self.same += len(both) - int(differs.sum())

    def lines(self) -> list[str]:
        """Say what differs."""
        of_rows = f"{self.same:,} the same, {self.changed:,} changed, {self.removed:,} removed; {self.added:,} added"
        lines = [f"{self.rows:,} rows archived: {of_rows}"]
        for name, of in self.new.items():
            lines.append(f"new column {name} ({of}): {self.columns[name].values:,} values")
        for name, column in self.columns.items():
            if column.differ:
                lines.append(f"{name}: {column.differ:,} values differ")
                lines += [f"  {id_}: {_shown(old)} -> {_shown(new)}" for id_, old, new in column.examples]
        return lines


def _keys(rows: pa.RecordBatch) -> pa.Array:
    return pc.binary_join_element_wise(rows.column("source_id"), rows.column("message_id"), "\0")


def _differs(old: pa.Array, new: pa.Array) -> Any:
    if old.type != new.type:
        values = zip(old.to_pylist(), new.to_pylist(), strict=True)
        return np.array([one != other for one, other in values], bool)
    unequal = pc.fill_null(pc.not_equal(old, new), False)
    either = pc.or_(unequal, pc.xor(old.is_null(), new.is_null()))
    return either.to_numpy(zero_copy_only=False).astype(bool)


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def errors(found: Sequence[tuple[str, str]]) -> list[str]:
    """Say what failed, by its message, the most frequent first."""
    counts = collections.Counter(found)
    return [f"{door}: {message}: {count:,} events" for (door, message), count in counts.most_common(10)]
