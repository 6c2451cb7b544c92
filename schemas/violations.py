"""Violations: what is wrong with a JSON value by a contract, each with its place, and the value without it.

This is the slow and exact path, for the events that the fast one refuses. It works on JSON text: what is not wrong
keeps its bytes, so that stripping a field cannot round a number of another.
"""

import enum
import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from millrace.schemas.avro_json import Array, Choice, Leaf, Map, Node, Record

MOST = 32
"""Of one event are listed; a hostile one could have ten thousand."""
_FIELD_CHARACTERS = 200


class Kind(enum.Enum):
    """What is wrong. A closed set: metrics, alerts and queries hang on it."""

    UNPLANNED_EVENT = "unplanned_event"  # no contract for the event, or not of the version that it names
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    EXTRA_FIELD = "extra_field"


class Action(enum.Enum):
    """What was done about it."""

    KEPT = "kept"  # the value stands as it came, or there is none
    NULLED = "nulled"
    REMOVED = "removed"


class Violation(msgspec.Struct, frozen=True):
    """One thing that is wrong with an event; never a value of it."""

    kind: Kind
    field: str
    """Its path: `properties.products[2].price`."""
    found: str
    """The kind of value there: missing, null, boolean, number, string, array, object."""
    expected: str
    action: Action = Action.KEPT


class Checked(NamedTuple):
    """What came of one value."""

    violations: list[Violation]
    stripped: bytes
    """The JSON text without what is wrong: extra fields removed, wrong values null. Bytes of the rest as they were."""


_read_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_read_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_KINDS = {ord("{"): "object", ord("["): "array", ord('"'): "string", ord("t"): "boolean", ord("f"): "boolean",
          ord("n"): "null"}  # fmt: skip
_PLAIN_KEY = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*")
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def check(text: bytes, record: Record, where: str, *, strip: bool) -> Checked:
    """Find what is wrong with a JSON text by a contract.

    Args:
        text: one JSON value.
        record: what it should be.
        where: the path of the value itself, such as `properties`.
        strip: the violations say that they were nulled or removed, not kept.
    """
    finder = _Finder(strip=strip)
    try:
        stripped = bytes(finder.value(text, record, where))
    except _UNREADABLE:  # not from decode, which lets nothing such pass
        return Checked([Violation(Kind.WRONG_TYPE, where, "no JSON", record.expected)], b"null")
    return Checked(finder.violations[:MOST], stripped)


def kind_of(text: bytes | msgspec.Raw) -> str:
    """Return the kind of a JSON value by its text.

    >>> kind_of(b" 1.5")
    'number'
    """
    return _KINDS.get(bytes(text).lstrip()[:1][0] if bytes(text).strip() else 0, "number")


class _Finder:
    def __init__(self, *, strip: bool) -> None:
        self._strip = strip
        self.violations: list[Violation] = []

    def value(self, text: Any, node: Node, path: str) -> Any:
        """Return the text without what is wrong in it: the same object where nothing is."""
        match node:
            case Choice():
                return self._choice(text, node, path)
            case Leaf():
                return text if _is_leaf(text, node) else self._wrong(text, node, path)
            case _:
                if kind_of(text) not in node.kinds:
                    return self._wrong(text, node, path)
        if isinstance(node, Array):
            items = _read_array(text)
            return self._changed(text, items, [self.value(each, node.items, f"{path}[{number}]")
                                               for number, each in enumerate(items)])  # fmt: skip
        members = _read_object(text)
        if isinstance(node, Map):
            checked = [self.value(each, node.values, _inside(path, key)) for key, each in members.items()]
            same = all(after is before for after, before in zip(checked, members.values(), strict=True))
            return text if same else _encode(dict(zip(members, map(msgspec.Raw, checked), strict=True)))
        return self._record(text, members, node, path)

    def _record(self, text: Any, members: dict[str, msgspec.Raw], record: Record, path: str) -> Any:
        changed: dict[str, msgspec.Raw] = {}
        for field in record.fields:
            if field.key in members:
                if field.decode is not None and _keeps(field.decode, members[field.key]):
                    continue
                after = self.value(members[field.key], field.node, _inside(path, field.key))
                if after is not members[field.key]:
                    changed[field.key] = msgspec.Raw(after)
            elif field.required:
                self._note(Kind.MISSING_FIELD, _inside(path, field.key), "missing", field.node.expected, Action.KEPT)
        extra = set() if record.open else members.keys() - {field.key for field in record.fields}
        for key in [each for each in members if each in extra] if extra else ():
            self._note(Kind.EXTRA_FIELD, _inside(path, key), kind_of(members[key]), "no such field", Action.REMOVED)
        if not changed and not extra:
            return text
        return _encode({key: changed.get(key, value) for key, value in members.items() if key not in extra})

    def _choice(self, text: Any, choice: Choice, path: str) -> Any:
        kind = kind_of(text)
        fitting = [branch for branch in choice.branches if kind in branch.kinds]
        if not fitting or (len(fitting) > 1 and all(isinstance(branch, Leaf) for branch in fitting)):
            return text if any(_is_leaf(text, branch) for branch in fitting) else self._wrong(text, choice, path)
        if len(fitting) == 1:
            return self._one(text, fitting[0], choice, path)
        # Containers that look alike: the first without a violation, else the one with the fewest.
        tried = []
        for branch in fitting:
            finder = _Finder(strip=self._strip)
            after = finder.value(text, branch, path)
            if not finder.violations:
                return text
            tried.append((len(finder.violations), finder.violations, after))
        _, violations, after = min(tried, key=lambda each: each[0])
        self.violations += violations
        return after

    def _one(self, text: Any, branch: Node, choice: Choice, path: str) -> Any:
        if isinstance(branch, Leaf):
            return text if _is_leaf(text, branch) else self._wrong(text, choice, path)
        return self.value(text, branch, path)

    def _wrong(self, text: Any, node: Node, path: str) -> bytes:
        self._note(Kind.WRONG_TYPE, path, kind_of(text), node.expected, Action.NULLED)
        return b"null"

    def _changed(self, text: Any, before: Sequence[Any], after: Sequence[Any]) -> Any:
        if all(new is old for new, old in zip(after, before, strict=True)):
            return text
        return _encode([msgspec.Raw(each) for each in after])

    def _note(self, kind: Kind, path: str, found: str, expected: str, action: Action) -> None:
        if len(self.violations) < MOST:
            action = action if self._strip else Action.KEPT
            self.violations.append(Violation(kind, path[:_FIELD_CHARACTERS], found, expected, action))


def _is_leaf(text: Any, node: Node) -> bool:
    assert isinstance(node, Leaf)
    return _keeps(_decoder_of(node), text) or _is_whole(text, node)


def _keeps(decode: Callable[[Any], Any], text: Any) -> bool:
    try:
        decode(text)
    except _UNREADABLE:
        return False
    return True


@functools.lru_cache(maxsize=4_096)
def _decoder_of(leaf: Leaf) -> Callable[[Any], Any]:
    return msgspec.json.Decoder(leaf.type).decode


def _is_whole(text: Any, leaf: Leaf) -> bool:
    """Tell whether it is a whole number written as 3.0 or 3e2: Python's json writes floats so."""
    if leaf.expected not in {"int", "long"} or kind_of(text) != "number":
        return False
    value = msgspec.json.decode(text, type=float)
    try:
        msgspec.convert(int(value), leaf.type)
    except msgspec.ValidationError:
        return False
    return value.is_integer()


def _inside(path: str, key: str) -> str:
    """Return the path of an object's member; what could be read as two is written as JSON."""
    return f"{path}.{key}" if _PLAIN_KEY.fullmatch(key) else f"{path}[{json.dumps(key, ensure_ascii=False)}]"
