"""Bodies: what came becomes JSON text, within the limits; and how many events are in it, and how large."""

from collections.abc import Mapping, Sequence

import msgspec

from millrace.collector.answers import Code, Refusal
from millrace.collector.limits import Limits
from millrace.schemas.dead_letter import Reason, Rejected
from millrace.schemas.envelope import CONTENT_ENCODING
from millrace.transforms.unpack import unpack_body

_HARMLESS_BYTES = 1024 * 1024
"""Below this any ratio is let through: a few alike events pack 100 times."""
_MARKS = (b"{", b"[", b",", b'"', b"\n")
_MOST_MARKS = 500_000
"""2,500 events have some 350,000. Each costs up to 0.7 µs where a text is taken apart by its brackets."""


class _Batch(msgspec.Struct):
    batch: list[msgspec.Raw]


_read_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_read_anything = msgspec.json.Decoder(msgspec.Raw).decode
_read_batch = msgspec.json.Decoder(_Batch).decode


def check_length(headers: Mapping[bytes, bytes], limits: Limits) -> int | None:
    """Return what content-length says; None where the header is missing.

    Raises:
        Refusal: BAD_LENGTH, BODY_TOO_LARGE.
    """
    said = headers.get(b"content-length")
    if said is None:
        return None
    if not said.isdigit() or len(said) > 18:  # isdigit of bytes knows ASCII only
        raise Refusal(Code.BAD_LENGTH, "content-length is no number")
    check_size(int(said), limits)
    return int(said)


def check_size(size: int, limits: Limits) -> None:
    """Refuse a body of so many bytes, packed or not.

    Raises:
        Refusal: BODY_TOO_LARGE.
    """
    if size > limits.body_bytes:
        raise Refusal(Code.BODY_TOO_LARGE, f"{size} bytes, at most {limits.body_bytes} are taken")


def unpack(body: bytes, encoding: str | None, limits: Limits) -> bytes:
    """Return the text of a body; never unpacks more than the limit allows.

    Raises:
        Refusal: BODY_TOO_LARGE.
        Rejected: EMPTY, NOT_GZIP.
    """
    check_size(len(body), limits)
    most = limits.body_bytes
    if encoding is not None:
        most = min(most, max(len(body) * limits.gzip_ratio, _HARMLESS_BYTES))
    try:
        return unpack_body(body, {CONTENT_ENCODING: encoding} if encoding else {}, most)
    except Rejected as rejected:
        if rejected.reason is not Reason.TOO_LARGE:
            raise
        if most < limits.body_bytes:
            message = f"unpacks to more than {limits.gzip_ratio} times its size"
        else:
            message = f"unpacks to more than {limits.body_bytes} bytes"
        raise Refusal(Code.BODY_TOO_LARGE, message) from rejected


def event_sizes(text: bytes, limits: Limits) -> list[int] | None:
    """Return the bytes of each event of a text; None where they cannot be told apart at once.

    >>> event_sizes(b'{"batch":[{"a":1},{}]}', Limits())
    [7, 2]

    Raises:
        Refusal: TOO_MANY_EVENTS.
    """
    events: Sequence[msgspec.Raw | bytes]
    try:
        if text.startswith(b"["):
            events = _read_array(text)
        elif b'"batch"' in text:
            events = _read_batch(text).batch
        elif b"}\n" in text:
            events = [line for line in text.split(b"\n") if line and not line.isspace()]
        else:
            events = [text]
    except (msgspec.DecodeError, RecursionError):
        return None
    check_events(len(events), limits)
    return [len(bytes(event)) for event in events]


def check_repairable(text: bytes) -> None:
    """Refuse a text that is no JSON, and in which looking for single events would hold up everybody else.

    Raises:
        Rejected: NOT_JSON.
    """
    if len(text) < _MOST_MARKS:
        return
    try:
        _read_anything(text)
    except (msgspec.DecodeError, RecursionError) as error:
        if sum(map(text.count, _MARKS)) > _MOST_MARKS:
            raise Rejected(Reason.NOT_JSON, str(error)) from error


def check_events(count: int, limits: Limits) -> None:
    """Refuse a body of so many events.

    Raises:
        Refusal: TOO_MANY_EVENTS.
    """
    if count > limits.events:
        raise Refusal(Code.TOO_MANY_EVENTS, f"{count} events, at most {limits.events} are taken at once")
