"""Glance: see in one go whether the events of a body are good, as nearly all are.

What decode (transforms/pending.py) would take is taken here, and nothing more is looked at; an event in which anything
is odd is judged with more care (verdicts.py). Two faults are too dear to look for in an event that seems good else:

- a number that no double holds (`1e999`), and
- more than 64 levels that brackets within strings hide from the count of brackets.

Decode finds both, and makes dead letters of such events.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from millrace.collector.limits import Limits
from millrace.schemas import wire

MOST_LEVELS = 64
"""Of the whole body: then each event has fewer, and a batch's context leaves room for the event around it."""

_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"{}[]")))

Read = TypeVar("Read")

_ABSENT = msgspec.Raw()

_Id = str | int | None
_Time = str | int | float | None


class _Object(msgspec.Struct, gc=False):
    """Any object."""


class _Page(msgspec.Struct, gc=False):
    url: str | None = None
    path: str | None = None
    referrer: str | None = None
    search: str | None = None
    title: str | None = None


class _Campaign(msgspec.Struct, gc=False):
    name: str | None = None
    source: str | None = None
    medium: str | None = None
    term: str | None = None
    content: str | None = None


class _Library(msgspec.Struct, gc=False):
    name: str | None = None
    version: str | int | float | None = None


class _Device(msgspec.Struct, gc=False):
    id: str | int | float | None = None
    type: str | None = None
    manufacturer: str | None = None
    model: str | int | float | None = None
    name: str | None = None


class _Os(msgspec.Struct, gc=False):
    name: str | None = None
    version: str | int | float | None = None


class _App(msgspec.Struct, gc=False):
    name: str | None = None
    version: str | int | float | None = None
    build: str | int | float | None = None
    namespace: str | None = None


class _Context(msgspec.Struct, gc=False, rename="camel"):
    page: _Page | None = None
    campaign: _Campaign | None = None
    library: _Library | None = None
    device: _Device | None = None
    os: _Os | None = None
    app: _App | None = None
    locale: str | None = None
    timezone: str | None = None
    ip: str | None = None
    user_agent: str | None = None


class _Event(msgspec.Struct, gc=False, rename="camel"):
    """The columns of an event, with the types that decode takes; whatever else it has is free."""

    type: wire.Type | None = None
    message_id: _Id = None
    event: str | None = None
    name: str | None = None
    user_id: _Id = None
    anonymous_id: _Id = None
    original_timestamp: _Time = None
    timestamp: _Time = None
    sent_at: _Time = None
    received_at: _Time = None
    context: _Context | None = None
    properties: _Object | None = None
    traits: _Object | None = None
    batch: msgspec.Raw = _ABSENT
    """Which an event has not: this would be a batch, its key written with an escape."""


class _Batch(msgspec.Struct, gc=False, forbid_unknown_fields=True, rename="camel"):
    """What SDKs write beside `batch`; anything else would count for each event, so it wants a closer look."""

    batch: list[_Event]
    sent_at: _Time = None
    write_key: msgspec.Raw = _ABSENT
    integrations: msgspec.Raw = _ABSENT
    context: _Context | None = None


_read_event = msgspec.json.Decoder(_Event).decode
_read_lines = msgspec.json.Decoder(_Event).decode_lines
_read_events = msgspec.json.Decoder(list[_Event]).decode
_read_batch = msgspec.json.Decoder(_Batch).decode


class Rules(NamedTuple):
    """What counts as good."""

    event_type: str | None
    """Of the events that name none."""
    types: Collection[str]
    """Those that the source may send."""
    limits: Limits


def count_good(text: bytes, rules: Rules) -> int | None:
    """Return how many events are in a text that are all good; None where anything asks for more care.

    Args:
        text: a body, unpacked, in which no event is larger than the limit.
        rules: what counts as good.
    """
    events = _tried(_read, text)
    return len(events) if events and _are_good(events, rules) else None


def is_good(payload: bytes, rules: Rules) -> bool:
    """Say whether a text is one good event; False where anything asks for more care."""
    if len(payload) > rules.limits.event_bytes:
        return False
    event = _tried(_read_event, payload)
    return event is not None and _are_good([event], rules)


def is_plain(shared: Mapping[str, msgspec.Raw]) -> bool:
    """Say whether what a batch says of its events leaves each of them as good or bad as it is by itself."""
    return not shared or _tried(_read_batch, msgspec.json.encode({"batch": [], **shared})) is not None


def _tried(read: Callable[[bytes], Read], text: bytes) -> Read | None:
    try:
        if not text.isascii():
            text.decode()  # msgspec does not look into what it skips
        if b"\\u0000" in text or not _is_shallow(text):
            return None
        return read(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _are_good(events: Sequence[_Event], rules: Rules) -> bool:
    event_type, types, most = rules.event_type, rules.types, rules.limits.message_id_characters
    for event in events:
        user = event.user_id or event.anonymous_id
        if not user or (type(user) is str and user.isspace()):
            return False
        if (event.type or event_type) not in types or event.batch is not _ABSENT:
            return False
        message_id = event.message_id
        if type(message_id) is str and len(message_id) > most:
            return False
    return True


def _read(text: bytes) -> Sequence[_Event]:
    if text.startswith(b"["):
        return _read_events(text)
    if b'"batch"' in text:
        return _read_batch(text).batch
    return _read_lines(text) if b"}\n" in text else [_read_event(text)]


def _is_shallow(text: bytes) -> bool:
    """Say whether a text's brackets nest at most MOST_LEVELS deep; False also where they do not match."""
    brackets = text.translate(None, _NOT_BRACKETS)
    if len(brackets) <= 2 * MOST_LEVELS:
        return True
    for _ in range(MOST_LEVELS):
        inner = len(brackets)
        brackets = brackets.replace(b"{}", b"").replace(b"[]", b"")
        if not brackets:
            return True
        if len(brackets) == inner:  # brackets in strings
            return False
    return False
