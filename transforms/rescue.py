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

_EVENT_COLUMNS = frozenset(wire.keys(wire.Event, columns=True).values()) | {"properties", "traits"}
_CONTEXT_COLUMNS = frozenset(wire.keys(wire.Context, columns=True).values())
_OBJECT_COLUMNS = {
    name: frozenset(wire.keys(kind, columns=True).values()) for name, kind in wire.CONTEXT_OBJECTS.items()
}


class Rescued(NamedTuple):
    """An event, its columns apart from the rest."""

    event: wire.Event
    context_rest: bytes | None
    """JSON object text of what context holds beyond its columns."""
    rest: bytes | None
    """JSON object text of what the event holds beyond its columns."""


def rescue_event(payload: bytes, defaults: Mapping[str, msgspec.Raw], max_bytes: int) -> Rescued:
    """Read one event.

    Raises:
        Rejected: TOO_LARGE, NOT_AN_EVENT, NO_USER, and what check_text refuses.
    """
    if len(payload) > max_bytes:
        raise Rejected(Reason.TOO_LARGE, f"one event of {len(payload)} bytes, the cap is {max_bytes}")
    check_text(payload)
    try:
        fields = _with_defaults(_object(payload), defaults)
        rest = _take_rest(fields, _EVENT_COLUMNS)
        context_rest = _split_context(fields)
        for key in ("properties", "traits"):
            _members(fields, key, key)
        event = _event(_encode(_numbers_as_text(fields)))
    except msgspec.ValidationError as error:
        raise Rejected(Reason.NOT_AN_EVENT, str(error)) from error
    if not (event.user_id or "").strip() and not (event.anonymous_id or "").strip():
        raise Rejected(Reason.NO_USER, "neither userId nor anonymousId")
    return Rescued(event, _text(context_rest), _text(rest))


def check_text(text: bytes) -> None:
    """Refuse a JSON text that is broken, or that holds what some reader or warehouse cannot.

    Raises:
        Rejected: NOT_UTF8, NOT_JSON, TOO_DEEP, FORBIDDEN_CHARACTER, NUMBER_OUT_OF_RANGE.
    """
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise Rejected(Reason.NOT_UTF8, str(error)) from error
    if b"\x00" in text or (b"\\u" in text and any(found[1] for found in _FORBIDDEN.finditer(text))):
        raise Rejected(Reason.FORBIDDEN_CHARACTER, "NUL, or half of a surrogate pair")
    check_value(text, MAX_DEPTH)


def check_value(text: bytes, levels: int) -> None:
    """Do what is left of check_text for a text that is UTF-8 without forbidden characters: the cheap part.

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
    if len(text) <= levels:
        return
    if text.count(b"{") + text.count(b"[") > levels and _is_deeper(value, levels):
        raise Rejected(Reason.TOO_DEEP, f"nested deeper than {MAX_DEPTH} levels")
    if len(text) >= _LONG and _ZEROS in text.translate(_DIGITS_AS_ZEROS):  # msgspec takes integers of any length
        for number in _LONG_INTEGER.finditer(_STRING.sub(b'""', text)):
            if math.isinf(float(number[0])):
                raise Rejected(Reason.NUMBER_OUT_OF_RANGE, f"an integer of {len(number[0])} digits")


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
    own = {key: value for key, value in fields.items() if not (key in _EVENT_COLUMNS and _is_null(value))}
    merged = {key: value for key, value in defaults.items() if key != "messageId"} | own
    if "messageId" in defaults:
        merged.setdefault("batch", msgspec.Raw(_encode({"messageId": defaults["messageId"]})))
    if "context" in defaults and "context" in own:
        both = _members(dict(defaults), "context", "context") | _members(own, "context", "context")
        merged["context"] = msgspec.Raw(_encode(both))
    return merged


def _split_context(fields: _Fields) -> _Fields:
    """Leave in fields["context"] what has a column, return the rest."""
    context = _members(fields, "context", "context")
    rest = _take_rest(context, _CONTEXT_COLUMNS)
    for name, columns in _OBJECT_COLUMNS.items():
        members = _members(context, name, f"context.{name}")
        members_rest = _take_rest(members, columns)
        if members_rest:
            rest[name] = msgspec.Raw(_encode(members_rest))
        if members:
            context[name] = msgspec.Raw(_encode(_numbers_as_text(members, f"{name}.")))
    if context:
        fields["context"] = msgspec.Raw(_encode(context))
    return rest


def _members(fields: _Fields, key: str, path: str) -> _Fields:
    """Return the members of an object among fields; drop it where it holds none."""
    _drop_if_empty(fields, key)
    try:
        return _object(fields[key]) if key in fields else {}
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"{error} - at `$.{path}`") from error


def _drop_if_empty(fields: _Fields, key: str) -> None:
    """Drop null, and an empty array: that is how PHP sends an empty object."""
    if key in fields and (_is_null(fields[key]) or b"".join(bytes(fields[key]).split()) == b"[]"):
        del fields[key]


def _is_null(value: msgspec.Raw) -> bool:
    return bytes(value) == b"null"


def _take_rest(fields: _Fields, columns: frozenset[str]) -> _Fields:
    return {key: fields.pop(key) for key in fields.keys() - columns}


def _numbers_as_text(fields: _Fields, prefix: str = "") -> _Fields:
    for key, value in fields.items():
        if prefix + key in wire.NUMBERS_AS_TEXT and bytes(value)[:1] in _NUMBER_STARTS:
            fields[key] = msgspec.Raw(b'"' + bytes(value) + b'"')
    return fields


def _text(rest: _Fields) -> bytes | None:
    return _encode(rest) if rest else None
