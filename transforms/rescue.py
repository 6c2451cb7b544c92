"""Rescue: one event that the fast path could not take, read with care: the unknown is kept, what is wrong is named."""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from millrace.schemas import wire
from millrace.schemas.dead_letter import Reason, Rejected
from millrace.transforms.check import check_text
from millrace.transforms.contexts import Contexts
from millrace.transforms.members import (
    COLUMNS,
    Fields,
    encode,
    is_empty,
    members_of,
    merge_contexts,
    read_members,
    split_members,
)

_event = msgspec.json.Decoder(wire.Event).decode
_NULL_IS_ABSENT = COLUMNS[""] | {"context"}


class Rescued(NamedTuple):
    """An event, and what the wire format does not list of it."""

    event: wire.Event
    rest: bytes | None
    """JSON object text."""


def rescue_event(payload: bytes, defaults: Mapping[str, msgspec.Raw], max_bytes: int, contexts: Contexts) -> Rescued:
    """Read one event; its context stays unread in it, but is known to be one.

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
    if event.context is not None:
        contexts.check(bytes(event.context))
    if not (event.user_id or "").strip() and not (event.anonymous_id or "").strip():
        raise Rejected(Reason.NO_USER, "neither userId nor anonymousId")
    return rescued


def _read(payload: bytes, defaults: Mapping[str, msgspec.Raw]) -> Rescued:
    if not defaults:
        try:  # perhaps it is a neighbour that is odd
            return Rescued(_event(payload), None)
        except msgspec.ValidationError:
            pass
    fields = _with_defaults(read_members(payload), defaults)
    rest = split_members(fields, "")
    return Rescued(_event(encode(fields)), encode(rest) if rest else None)


def _object_or_none(value: wire.Json, path: str) -> wire.Json:
    """Return an object; None for what counts as absent."""
    if value is None or is_empty(value):
        return None
    if not bytes(value).startswith(b"{"):
        members_of(value, path)
    return value


def _with_defaults(fields: Fields, defaults: Mapping[str, msgspec.Raw]) -> Fields:
    """Add what the batch says of all its events. Its messageId is its own: events that share one would be copies."""
    if not defaults:
        return fields
    own = {key: value for key, value in fields.items() if key not in _NULL_IS_ABSENT or bytes(value) != b"null"}
    merged = {key: value for key, value in defaults.items() if key != "messageId"} | own
    if "messageId" in defaults:
        merged.setdefault("batch", msgspec.Raw(encode({"messageId": defaults["messageId"]})))
    if "context" in defaults and "context" in own:
        merged["context"] = msgspec.Raw(merge_contexts(defaults["context"], own["context"]))
    return merged
