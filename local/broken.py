"""What goes wrong on the way from an SDK: records and bodies that no pipeline can take, each with its reason."""

import gzip
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from millrace.schemas.dead_letter import Reason
from millrace.schemas.envelope import CONTENT_ENCODING

_encode = msgspec.json.encode


class BrokenBody(NamedTuple):
    """A body that counts as one record, with the content-encoding it claims."""

    body: bytes
    attributes: dict[str, str]
    reason: Reason


def broken_record(rng: random.Random, event: dict[str, Any]) -> tuple[bytes, Reason]:
    """Spoil one event so that the records beside it in a body stay readable."""
    spoil, reason = rng.choice(_RECORDS)
    return spoil(event), reason


def broken_body(rng: random.Random, event: dict[str, Any]) -> BrokenBody:
    """Spoil a whole body made of one event."""
    return rng.choice(_BODIES)(rng, event)


def _without_user(event: dict[str, Any]) -> bytes:
    return _encode({key: value for key, value in event.items() if key not in {"userId", "anonymousId"}})


def _with(**fields: Any) -> Callable[[dict[str, Any]], bytes]:
    return lambda event: _encode({**event, **fields})


_RECORDS: tuple[tuple[Callable[[dict[str, Any]], bytes], Reason], ...] = (
    (_without_user, Reason.NO_USER),
    (_with(userId="", anonymousId=None), Reason.NO_USER),
    (_with(type="purchase"), Reason.NOT_AN_EVENT),
    (_with(type=17), Reason.NOT_AN_EVENT),
    (_with(userId=["u-1", "u-2"]), Reason.NOT_AN_EVENT),
    (_with(messageId={"id": 1}), Reason.NOT_AN_EVENT),
    (_with(context="none"), Reason.NOT_AN_EVENT),
)


def _truncated(rng: random.Random, event: dict[str, Any]) -> BrokenBody:
    whole = _encode({"batch": [event, event]} if rng.random() < 0.5 else event)
    # Cut between characters: half a character would be another fault.
    cut = whole[: rng.randrange(2, len(whole) - 2)].decode(errors="ignore").encode()
    return BrokenBody(cut, {}, Reason.NOT_JSON)


def _empty(rng: random.Random, event: dict[str, Any]) -> BrokenBody:  # noqa: ARG001  all bodies are made alike
    return BrokenBody(rng.choice((b"", b" \r\n", b'{"batch":[]}')), {}, Reason.EMPTY)


def _not_utf8(rng: random.Random, event: dict[str, Any]) -> BrokenBody:
    marked = _encode({**event, "event": "Caf@@"})
    return BrokenBody(marked.replace(b"@@", rng.choice((b"\xe9", b"\xff\xfe", b"\xc3"))), {}, Reason.NOT_UTF8)


def _nul(rng: random.Random, event: dict[str, Any]) -> BrokenBody:  # noqa: ARG001
    return BrokenBody(_encode({**event, "event": "Order\0Completed"}), {}, Reason.FORBIDDEN_CHARACTER)


def _not_gzip(rng: random.Random, event: dict[str, Any]) -> BrokenBody:
    plain = _encode(event)
    body = plain if rng.random() < 0.5 else gzip.compress(plain, 1, mtime=0)[:-12]  # cut off on the way
    return BrokenBody(body, {CONTENT_ENCODING: "gzip"}, Reason.NOT_GZIP)


def _unknown_encoding(rng: random.Random, event: dict[str, Any]) -> BrokenBody:  # noqa: ARG001
    return BrokenBody(_encode(event), {CONTENT_ENCODING: "br"}, Reason.UNKNOWN_ENCODING)


_BODIES: tuple[Callable[[random.Random, dict[str, Any]], BrokenBody], ...] = (
    _truncated,
    _truncated,
    _empty,
    _not_utf8,
    _nul,
    _not_gzip,
    _unknown_encoding,
)
