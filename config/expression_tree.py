"""What an expression is made of: nodes that compute a column of true, false or null from a batch."""

import dataclasses
import enum
from collections.abc import Iterator
from typing import Any, Union

import pyarrow as pa
import pyarrow.compute as pc

from millrace.config.json_paths import Keys, Parsed, flags_of, numbers_of, texts_of


class Kind(enum.Enum):
    """What can be compared with what."""

    TEXT = "text"
    NUMBER = "number"
    FLAG = "flag"
    TIME = "time"
    DAY = "day"
    JSON = "json"  # a value at a path: of whatever kind it is compared with, else null
    OTHER = "other"  # only null or not


def kind_of(of: pa.DataType) -> Kind:
    """Return the kind of an Arrow type."""
    if pa.types.is_string(of) or pa.types.is_large_string(of):
        return Kind.TEXT
    if pa.types.is_boolean(of):
        return Kind.FLAG
    if pa.types.is_integer(of) or pa.types.is_floating(of) or pa.types.is_decimal(of):
        return Kind.NUMBER
    if pa.types.is_timestamp(of):
        return Kind.TIME
    return Kind.DAY if pa.types.is_date32(of) else Kind.OTHER


class Rows:
    """A batch that an expression is computed on; what is parsed of it is parsed once."""

    def __init__(self, batch: pa.RecordBatch, root: "Node | Column | Path") -> None:
        self.batch = batch
        self._paths: dict[str, list[Keys]] = {}
        for node in walk(root):
            if isinstance(node, Path):
                self._paths.setdefault(node.column, []).append(node.keys)
        self._parsed: dict[str, Parsed] = {}

    def column(self, name: str, of: pa.DataType) -> pa.Array:
        """Return a column; nulls where the batch lacks it: its stage is off."""
        at = self.batch.schema.get_field_index(name)
        return self.batch.column(at) if at >= 0 else pa.nulls(self.batch.num_rows, of)

    def at(self, column: str, keys: Keys) -> list[Any]:
        """Return the values at a path."""
        if column not in self._parsed:
            self._parsed[column] = Parsed(self.column(column, pa.string()), self._paths[column])
        return self._parsed[column].at(keys)


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the batch."""

    at: int
    """Where in the expression's text, from 1."""
    kind: Kind
    column: str
    of: pa.DataType

    def array(self, rows: Rows, _: Kind) -> pa.Array:
        return rows.column(self.column, self.of)

    def values(self, rows: Rows) -> list[Any]:
        values: list[Any] = rows.column(self.column, self.of).to_pylist()
        return values

    def is_null(self, rows: Rows) -> pa.Array:
        return pc.is_null(self.array(rows, self.kind))

    def __str__(self) -> str:
        return self.column


@dataclasses.dataclass(frozen=True)
class Path:
    """A value inside a column of JSON text."""

    at: int
    kind: Kind
    column: str
    keys: Keys

    def array(self, rows: Rows, kind: Kind) -> pa.Array:
        of = {Kind.TEXT: texts_of, Kind.NUMBER: numbers_of, Kind.FLAG: flags_of}[kind]
        return of(rows.at(self.column, self.keys))

    def values(self, rows: Rows) -> list[Any]:
        return rows.at(self.column, self.keys)

    def is_null(self, rows: Rows) -> pa.Array:
        return pa.array([value is None for value in rows.at(self.column, self.keys)], pa.bool_())

    def __str__(self) -> str:
        return ".".join(map(str, (self.column, *self.keys)))


@dataclasses.dataclass(frozen=True)
class Literal:
    """A value that is written in the expression."""

    at: int
    kind: Kind
    of: Any

    def array(self, _: Rows, __: Kind) -> pa.Scalar:
        return pa.scalar(self.of)

    def __str__(self) -> str:
        return repr(self.of)


_COMPARE = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_RELATE = {
    "contains": pc.match_substring,
    "startswith": pc.starts_with,
    "endswith": pc.ends_with,
    "matches": pc.match_substring_regex,
}


@dataclasses.dataclass(frozen=True)
class Compare:
    """Two operands, of which the first is no literal, and the second no path unless the first is one."""

    left: Column | Path
    operator: str
    right: Column | Path | Literal

    def value(self, rows: Rows) -> pa.Array:
        kinds = [kind for kind in (self.left.kind, self.right.kind) if kind is not Kind.JSON]
        compare = _COMPARE[self.operator]
        if kinds:
            return compare(self.left.array(rows, kinds[0]), self.right.array(rows, kinds[0]))
        kinds = [Kind.TEXT, Kind.NUMBER]
        if self.operator in {"==", "!="}:
            kinds.append(Kind.FLAG)
        return pc.coalesce(*(compare(self.left.array(rows, kind), self.right.array(rows, kind)) for kind in kinds))


@dataclasses.dataclass(frozen=True)
class Among:
    """One of some literals of one kind."""

    left: Column | Path
    literals: tuple[Literal, ...]

    def value(self, rows: Rows) -> pa.Array:
        array = self.left.array(rows, self.literals[0].kind)
        # Compared one by one, as == does it: is_in would first turn the literals into the column's type.
        found = [pc.equal(array, pa.scalar(literal.of)) for literal in self.literals]
        result = found[0]
        for each in found[1:]:
            result = pc.or_kleene(result, each)
        return result


@dataclasses.dataclass(frozen=True)
class Relate:
    """A text, and what it may contain."""

    left: Column | Path
    word: str
    right: Literal

    def value(self, rows: Rows) -> pa.Array:
        return _RELATE[self.word](self.left.array(rows, Kind.TEXT), self.right.of)


@dataclasses.dataclass(frozen=True)
class IsNull:
    """Whether there is nothing."""

    left: Column | Path

    def value(self, rows: Rows) -> pa.Array:
        return self.left.is_null(rows)


@dataclasses.dataclass(frozen=True)
class Truth:
    """A boolean by itself."""

    of: Column | Path

    def value(self, rows: Rows) -> pa.Array:
        return self.of.array(rows, Kind.FLAG)


@dataclasses.dataclass(frozen=True)
class Not:
    """The opposite; null stays null."""

    of: "Node"

    def value(self, rows: Rows) -> pa.Array:
        return pc.invert(self.of.value(rows))


@dataclasses.dataclass(frozen=True)
class AllOf:
    """And."""

    parts: tuple["Node", ...]

    def value(self, rows: Rows) -> pa.Array:
        result = self.parts[0].value(rows)
        for part in self.parts[1:]:
            result = pc.and_kleene(result, part.value(rows))
        return result


@dataclasses.dataclass(frozen=True)
class AnyOf:
    """Or."""

    parts: tuple["Node", ...]

    def value(self, rows: Rows) -> pa.Array:
        result = self.parts[0].value(rows)
        for part in self.parts[1:]:
            result = pc.or_kleene(result, part.value(rows))
        return result


Node = Union[Compare, Among, Relate, IsNull, Truth, Not, AllOf, AnyOf]  # noqa: UP007  the names are forward references


def walk(node: Any) -> Iterator[Any]:
    """Yield a node and all below it."""
    yield node
    for field in dataclasses.fields(node):
        below = getattr(node, field.name)
        for each in below if isinstance(below, tuple) else (below,):
            if dataclasses.is_dataclass(each):
                yield from walk(each)
