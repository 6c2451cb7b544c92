"""Rescue: one event that the fast path could not take, read with care: the unknown is kept, what is wrong is named."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from millrace.schemas import wire
from millrace.schemas.dead_letter import Reason, Rejected

MAX_DEPTH = 64
"""Levels of objects and arrays in one event. Readers of JSON give up at some depth, each at another."""

_Fields = dict[str, msgspec.Raw]

_any = msgspec.json.Decoder().decode
_event = msgspec.json.Decoder(wire.Event).decode
_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode

# The largest double has 309 digits before the point.
_LONG = 309
_ZEROS = b"0" * _LONG
_DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_LONG_INTEGER = re.compile(rb"(?<![0-9.])[0-9]{309,}(?![0-9.eE])")
_NUMBER_STARTS = frozenset(b"%c" % character for character in b"-0123456789")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_PAIR = rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_FORBIDDEN = re.compile(_PAIR + rb"|(\\u0000|\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL)

_KINDS: dict[str, type[msgspec.Struct]] = {"": wire.Event, "context": wire.Context}
_KINDS |= {f"context.{name}": kind for name, kind in wire.CONTEXT_OBJECTS.items()}
_INNER = {"": ("context",), "context": tuple(wire.CONTEXT_OBJECTS)}
_STRICT = {path: msgspec.json.Decoder(kind).decode for path, kind in _KINDS.items()}
_COLUMNS = {path: frozenset(wire.keys(kind, columns=True).values()) for path, kind in _KINDS.items()}
_KNOWN = {path: _COLUMNS[path] | set(wire.keys(kind, columns=False).values()) for path, kind in _KINDS.items()}


class Rescued(NamedTuple):
    """An event, and what the wire format does not list of it."""

    event: wire.Event
    context_rest: bytes | None
    """JSON object text, of context."""
    rest: bytes | None
    """JSON object text."""


def rescue_event(payload: bytes, defaults: Mapping[str, msgspec.Raw], max_bytes: int) -> Rescued:
    """Read one event.

    Raises:
        Rejected: TOO_LARGE, NOT_AN_EVENT, NO_USER, and what check_text refuses.
    """
    if len(payload) > max_bytes:
        raise Rejected(Reason.TOO_LARGE, f"one event of {len(payload)} bytes, the cap is {max_bytes}")
    check_text(payload)
    try:
        rescued = _read(payload, defaults)
        event = rescued.event
        event.properties = _object_or_none(event.properties, "properties")
        event.traits = _object_or_none(event.traits, "traits")
    except msgspec.ValidationError as error:
        raise Rejected(Reason.NOT_AN_EVENT, str(error)) from error
    if not (event.user_id or "").strip() and not (event.anonymous_id or "").strip():
        raise Rejected(Reason.NO_USER, "neither userId nor anonymousId")
    return rescued


def _read(payload: bytes, defaults: Mapping[str, msgspec.Raw]) -> Rescued:
    if not defaults:
        try:  # perhaps it is a neighbour that is odd
            return Rescued(_event(payload), None, None)
        except msgspec.ValidationError:
            pass
    fields = _with_defaults(_object(payload), defaults)
    rest = _split(fields, "")
    context_rest = rest.pop("context", None)
    event = _event(_encode(fields))
    return Rescued(event, None if context_rest is None else bytes(context_rest), _encode(rest) if rest else None)


def _object_or_none(value: wire.Json, path: str) -> wire.Json:
    """Return an object; None for null, and for an empty array: that is how PHP sends an empty object."""
    if value is None or _is_empty(value):
        return None
    if not bytes(value).startswith(b"{"):
        _named(value, path)
    return value


def check_text(text: bytes) -> None:
    """Refuse a JSON text that is broken, or that holds what some reader or warehouse cannot.

    Raises:
        Rejected: NOT_UTF8, NOT_JSON, TOO_DEEP, FORBIDDEN_CHARACTER, NUMBER_OUT_OF_RANGE.
    """
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise Rejected(Reason.NOT_UTF8, str(error)) from error
    if b"\x00" in text or (b"\\" in text and any(found[1] for found in _FORBIDDEN.finditer(text))):
        raise Rejected(Reason.FORBIDDEN_CHARACTER, "NUL, or half of a surrogate pair")
    check_value(text, MAX_DEPTH)


def check_value(text: bytes, levels: int) -> Any:
    """Do what is left of check_text for a text that is UTF-8 without forbidden characters; return its value.

    Raises:
        Rejected: NOT_JSON, TOO_DEEP, NUMBER_OUT_OF_RANGE.
    """
    try:
        value = _any(text)
    except msgspec.ValidationError as error:  # the only thing that can be invalid where anything is allowed
        raise Rejected(Reason.NUMBER_OUT_OF_RANGE, str(error)) from error
    except RecursionError as error:
        raise Rejected(Reason.TOO_DEEP, f"nested deeper than {MAX_DEPTH} levels") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Rejected(Reason.NOT_JSON, str(error)) from error
    if len(text) <= 2 * levels:  # too short to be deep: each level opens and closes
        return value
    if text.count(b"{") + text.count(b"[") > levels and _is_deeper(value, levels):
        raise Rejected(Reason.TOO_DEEP, f"nested deeper than {MAX_DEPTH} levels")
    if len(text) >= _LONG and _ZEROS in text.translate(_DIGITS_AS_ZEROS):  # msgspec takes integers of any length
        for number in _LONG_INTEGER.finditer(_STRING.sub(b'""', text)):
            if math.isinf(float(number[0])):
                raise Rejected(Reason.NUMBER_OUT_OF_RANGE, f"an integer of {len(number[0])} digits")
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    parents = [value]
    for _ in range(levels):
        parents = [
            child
            for parent in parents
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not parents:
            return False
    return True


def _with_defaults(fields: _Fields, defaults: Mapping[str, msgspec.Raw]) -> _Fields:
    """Add what the batch says of all its events. Its messageId is its own: events that share one would be copies."""
    if not defaults:
        return fields
    own = {key: value for key, value in fields.items() if key not in _COLUMNS[""] or bytes(value) != b"null"}
    merged = {key: value for key, value in defaults.items() if key != "messageId"} | own
    if "messageId" in defaults:
        merged.setdefault("batch", msgspec.Raw(_encode({"messageId": defaults["messageId"]})))
    if "context" in defaults and "context" in own:
        both = [{} if _is_empty(value) else _named(value, "context") for value in (defaults["context"], own["context"])]
        merged["context"] = msgspec.Raw(_encode(both[0] | both[1]))
    return merged


def _split(fields: _Fields, path: str) -> _Fields:
    """Leave in fields, the members of the object at `path`, what the wire format lists; return the rest.

    Only objects that are not as listed are taken apart. Of an inner one that has unknown members, those without a
    column go to the rest with them, or its name would stand there twice.
    """
    rest = {key: fields.pop(key) for key in list(fields) if key not in _KNOWN[path]}
    for key in wire.NUMBERS_AS_TEXT.get(path, ()):
        if key in fields and bytes(fields[key])[:1] in _NUMBER_STARTS:
            fields[key] = msgspec.Raw(b'"%b"' % fields[key])
    for key in _INNER.get(path, ()):
        if key not in fields:
            continue
        inner = f"{path}.{key}" if path else key
        try:
            _STRICT[inner](fields[key])
            continue
        except msgspec.ValidationError:
            if _is_empty(fields[key]):
                del fields[key]
                continue
        members = _named(fields[key], inner)
        members_rest = _split(members, inner)
        if members_rest:
            if path:
                members_rest |= {name: members.pop(name) for name in list(members) if name not in _COLUMNS[inner]}
            rest[key] = msgspec.Raw(_encode(members_rest))
        fields[key] = msgspec.Raw(_encode(members))
    return rest


def _named(value: msgspec.Raw, path: str) -> _Fields:
    """Return an object's members.

    Raises:
        msgspec.ValidationError: it is no object; names the path.
    """
    try:
        return _object(value)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"{error} - at `$.{path}`") from error


def _is_empty(value: msgspec.Raw) -> bool:
    text = bytes(value)
    return text == b"null" or (text.startswith(b"[") and not text[1:-1].strip())
