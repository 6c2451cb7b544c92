"""How an Avro schema reads JSON, as SDKs send it: not Avro's own JSON encoding, but what people mean by the schema.

docs/contracts.md has the mapping. Two attributes that Avro leaves to users widen it: `key` of a field is its name in
JSON where Avro allows no such name; `open` of a record means that fields which it does not list are no violation.
"""

import dataclasses
import datetime as dt
import json
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union

import msgspec


class SchemaError(Exception):
    """A schema that cannot be a contract. `word` is the name in it that is at fault, to find its line by."""

    def __init__(self, message: str, word: str) -> None:
        super().__init__(message)
        self.word = word


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A single value."""

    type: Any
    """What msgspec reads it as."""
    expected: str
    """For a person."""
    kinds: frozenset[str]
    """Which kinds of JSON values it can be."""


@dataclasses.dataclass(frozen=True)
class Array:
    """A list of one kind of items."""

    items: "Node"
    expected: str = "array"
    kinds: frozenset[str] = frozenset({"array"})


@dataclasses.dataclass(frozen=True)
class Map:
    """An object with any keys and one kind of values."""

    values: "Node"
    expected: str = "map"
    kinds: frozenset[str] = frozenset({"object"})


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a record."""

    key: str
    """Its name in JSON."""
    node: "Node"
    required: bool
    """It has no default, and its type no null."""
    decode: Callable[[Any], Any] | None = dataclasses.field(compare=False)
    """Of its value; see fast_decoder."""


@dataclasses.dataclass(frozen=True)
class Record:
    """An object with known fields."""

    fields: tuple[Field, ...]
    open: bool
    expected: str
    kinds: frozenset[str] = frozenset({"object"})


@dataclasses.dataclass(frozen=True)
class Choice:
    """A union."""

    branches: tuple["Node", ...]

    @property
    def kinds(self) -> frozenset[str]:
        """Which kinds of JSON values it can be."""
        return frozenset().union(*(branch.kinds for branch in self.branches))

    @property
    def expected(self) -> str:
        """For a person."""
        return " or ".join(branch.expected for branch in self.branches)


Node = Leaf | Array | Map | Record | Choice

_INT = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
_LONG = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_DECIMAL = Annotated[str, msgspec.Meta(pattern=r"^-?[0-9]+(\.[0-9]+)?$")] | int | float
_NUMBER = frozenset({"number"})
_STRING = frozenset({"string"})

_PRIMITIVE = {
    "null": Leaf(None, "null", frozenset({"null"})),
    "boolean": Leaf(bool, "boolean", frozenset({"boolean"})),
    "int": Leaf(_INT, "int", _NUMBER),
    "long": Leaf(_LONG, "long", _NUMBER),
    "float": Leaf(float, "float", _NUMBER),
    "double": Leaf(float, "double", _NUMBER),
    "string": Leaf(str, "string", _STRING),
    "bytes": Leaf(bytes, "bytes in base64", _STRING),
}
_TIMESTAMP = Leaf(dt.datetime, "time in ISO 8601", _STRING)
_TIME = Leaf(dt.time, "time of day in ISO 8601", _STRING)
_DECIMAL_LEAF = Leaf(_DECIMAL, "decimal", _NUMBER | _STRING)
_LOGICAL = {
    ("string", "uuid"): Leaf(uuid.UUID, "uuid", _STRING),
    ("int", "date"): Leaf(dt.date, "date in ISO 8601", _STRING),
    ("int", "time-millis"): _TIME,
    ("long", "time-micros"): _TIME,
    ("bytes", "decimal"): _DECIMAL_LEAF,
    ("fixed", "decimal"): _DECIMAL_LEAF,
    **{
        ("long", f"{local}timestamp-{unit}"): _TIMESTAMP
        for local in ("", "local-")
        for unit in ("millis", "micros", "nanos")
    },
}
_MOST_SHOWN = 10


def read_schema(schema: Any) -> Record:
    """Return what a parsed Avro record schema says of JSON.

    Raises:
        SchemaError: it is no record, or holds what no contract can: a record inside itself, a type that is not known.
    """
    node = _Reader().node(schema, "the schema")
    if not isinstance(node, Record):
        raise SchemaError('a contract has to be a record: {"type": "record", "name": ..., "fields": [...]}', "type")
    return node


class _Reader:
    """Knows the named types seen so far; one still open is a record inside itself."""

    def __init__(self) -> None:
        self._named: dict[str, Node | None] = {}

    def node(self, schema: Any, where: str) -> Node:
        if isinstance(schema, list):
            if not schema:
                raise SchemaError(f"{where}: a union without types; write at least one", where)
            return Choice(tuple(self.node(branch, where) for branch in schema))
        if isinstance(schema, str):
            return self._name(schema, where)
        if not isinstance(schema, Mapping) or "type" not in schema:
            raise SchemaError(f"{where}: no Avro type; write a name, a list, or an object with `type`", where)
        declared = schema["type"]
        if declared == "record":
            return self._record(schema, where)
        if declared == "enum":
            return self._keep(schema, _enum(schema.get("symbols"), where))
        if declared == "array":
            return Array(self.node(schema.get("items"), where))
        if declared == "map":
            return Map(self.node(schema.get("values"), where))
        logical = _LOGICAL.get((str(declared), str(schema.get("logicalType"))))
        if declared == "fixed":
            size = schema.get("size")
            if not isinstance(size, int):
                raise SchemaError(f"{where}: a fixed needs `size`, a number of bytes", where)
            exact = Annotated[bytes, msgspec.Meta(min_length=size, max_length=size)]
            return self._keep(schema, logical or Leaf(exact, f"{size} bytes in base64", _STRING))
        return logical or self.node(declared, where)

    def _name(self, name: str, where: str) -> Node:
        if name in _PRIMITIVE:
            return _PRIMITIVE[name]
        if name not in self._named:
            known = ", ".join([*_PRIMITIVE, "record", "enum", "array", "map", "fixed"])
            raise SchemaError(f"{where}: the type {name} is not known; there are: {known}", name)
        found = self._named[name]
        if found is None:
            raise SchemaError(f"{where}: the record {name} inside itself cannot be checked; use a map or a list", name)
        return found

    def _record(self, schema: Mapping[str, Any], where: str) -> Record:
        name, fields = schema.get("name"), schema.get("fields")
        if not (isinstance(name, str) and isinstance(fields, list)):
            raise SchemaError(f"{where}: a record needs `name` and `fields`, a list", where)
        self._note(schema, None)
        read: dict[str, Field] = {}
        for each in fields:
            if not (isinstance(each, Mapping) and isinstance(each.get("name"), str) and "type" in each):
                raise SchemaError(f"{name}: a field needs `name` and `type`", name)
            if not _NAME.fullmatch(each["name"]):
                plain = re.sub(r"[^A-Za-z0-9_]", "_", each["name"])
                raise SchemaError(
                    f'{each["name"]}: no name that Avro allows; write "name": "{plain}", '
                    f'"key": {json.dumps(each["name"])}',
                    each["name"],
                )
            if "default" in each and not _may_be_default(each["default"], each["type"]):
                raise SchemaError(f"{each['name']}: its default is not of its type; correct one of them", each["name"])
            key = each.get("key", each["name"])
            if not isinstance(key, str):
                raise SchemaError(f"{each['name']}: `key` has to be a text: the field's name in JSON", each["name"])
            if key in read:
                raise SchemaError(f"{key}: stands twice in {name}; keep one", key)
            node = self.node(each["type"], each["name"])
            read[key] = Field(
                key, node, required="default" not in each and "null" not in node.kinds, decode=fast_decoder(node)
            )
        record = Record(tuple(read.values()), open=schema.get("open") is True, expected=f"record {name}")
        self._note(schema, record)
        return record

    def _keep(self, schema: Mapping[str, Any], leaf: Leaf) -> Leaf:
        self._note(schema, leaf)
        return leaf

    def _note(self, schema: Mapping[str, Any], node: Node | None) -> None:
        name, space = schema.get("name"), schema.get("namespace")
        if isinstance(name, str):
            self._named[name] = self._named[name.rpartition(".")[2]] = node
            if isinstance(space, str):
                self._named[f"{space}.{name}"] = node


def _enum(symbols: Any, where: str) -> Leaf:
    if not (isinstance(symbols, list) and symbols and all(isinstance(each, str) for each in symbols)):
        raise SchemaError(f"{where}: an enum needs `symbols`, a list of texts", where)
    for each in symbols:
        if not _NAME.fullmatch(each):
            raise SchemaError(f"{where}: Avro allows no symbol {each!r}; make it a string", each)
    shown = ", ".join(symbols[:_MOST_SHOWN]) + (" ..." if len(symbols) > _MOST_SHOWN else "")
    return Leaf(Literal[tuple(symbols)], f"one of {shown}", _STRING)


def _may_be_default(value: Any, schema: Any) -> bool:
    """Tell whether a default is of a type, as Avro writes defaults: times are numbers, bytes are texts."""
    if isinstance(schema, list):
        return any(_may_be_default(value, branch) for branch in schema)
    if isinstance(schema, Mapping):
        symbols = schema.get("symbols")
        return value in symbols if isinstance(symbols, list) else _may_be_default(value, schema.get("type"))
    kinds = _DEFAULTS.get(str(schema))
    return kinds is None or (isinstance(value, kinds) and isinstance(value, bool) <= (schema == "boolean"))


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DEFAULTS: dict[str, Any] = {"null": type(None), "boolean": bool, "int": int, "long": int, "float": (int, float),
             "double": (int, float), "string": str, "bytes": str, "fixed": str, "array": list, "map": dict,
             "record": dict}  # fmt: skip


def fast_decoder(node: Node) -> Callable[[Any], Any] | None:
    """Return what decodes JSON and refuses what violates a node, and perhaps more; None where msgspec has no such type.

    That is a union of which two branches look alike in JSON, such as two records, or a text and a time.
    """
    try:
        return msgspec.json.Decoder(_type_of(node)).decode
    except (TypeError, ValueError):  # a union, or a key that msgspec cannot look for
        return None


def _type_of(node: Node) -> Any:
    match node:
        case Leaf():
            return node.type
        case Array():
            return list[_type_of(node.items)]  # type: ignore[misc]
        case Map():
            return dict[str, _type_of(node.values)]  # type: ignore[misc]
        case Choice():
            return Union[tuple(_type_of(branch) for branch in node.branches)]  # noqa: UP007  of as many as there are
        case Record():
            fields = [(f"f{number}", *_field_type(field)) for number, field in enumerate(node.fields)]
            names = {f"f{number}": field.key for number, field in enumerate(node.fields)}
            return msgspec.defstruct(
                "Contract", fields, rename=names, kw_only=True, gc=False, forbid_unknown_fields=not node.open
            )


def _field_type(field: Field) -> tuple[Any, ...]:
    kind = _type_of(field.node)
    if field.required:
        return (kind,)
    if "null" in field.node.kinds:
        return kind, None
    return kind | msgspec.UnsetType, msgspec.UNSET
