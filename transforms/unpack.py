"""Unpack: an envelope's body, plain or gzip, becomes JSON text; and text becomes the bytes of single events.

One event, a JSON array, `{"batch": [...]}` as in Segment's HTTP API, or one event a line (NDJSON).
"""

import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import msgspec

from millrace.schemas.dead_letter import Reason, Rejected
from millrace.schemas.envelope import CONTENT_ENCODING

MAX_GZIP_MEMBERS = 100
"""Each member costs a copy of what follows: without a limit, empty ones make ten megabytes cost minutes."""

_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"
_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
# Strings match whether they end or not, and never backtrack: else a few megabytes of quotes cost hours.
_MARKS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{},]', re.DOTALL)
_KEY = re.compile(rb'\s*("[^"\\]*+(?:\\.[^"\\]*+)*+")\s*:', re.DOTALL)


class Unpacked(NamedTuple):
    """The single events of an envelope, each with its exact bytes."""

    events: list[bytes]
    defaults: dict[str, msgspec.Raw]
    """What the batch says of all its events (context, integrations, sentAt ...); the event's own word wins."""


def unpack_body(body: bytes, attributes: Mapping[str, str], max_bytes: int) -> bytes:
    """Return the text of a body, unpacked where its attributes say gzip.

    Raises:
        Rejected: EMPTY, TOO_LARGE (as it came, or while unpacking), NOT_GZIP, UNKNOWN_ENCODING.
    """
    encoding = (attributes.get(CONTENT_ENCODING) or attributes.get("content_encoding") or "").strip().lower()
    if len(body) > max_bytes:
        raise Rejected(Reason.TOO_LARGE, f"{len(body)} bytes, the cap is {max_bytes}")
    if encoding in ("gzip", "x-gzip"):
        body = _gunzip(body, max_bytes)
    elif encoding not in ("", "identity"):
        raise Rejected(Reason.UNKNOWN_ENCODING, f"content-encoding {encoding!r}: neither gzip nor identity")
    text = body.removeprefix(_BOM)
    if not text or text.isspace():
        raise Rejected(Reason.EMPTY, "the body is empty")
    return text


def _gunzip(body: bytes, max_bytes: int) -> bytes:
    parts, size, rest = [], 0, body
    for _ in range(MAX_GZIP_MEMBERS):
        unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        try:
            parts.append(unpacker.decompress(rest, max_bytes - size + 1))
        except zlib.error as error:
            raise Rejected(Reason.NOT_GZIP, str(error)) from error
        size += len(parts[-1])
        if size > max_bytes:
            raise Rejected(Reason.TOO_LARGE, f"more than the cap of {max_bytes} bytes when unpacked")
        if not unpacker.eof:
            raise Rejected(Reason.NOT_GZIP, f"the gzip stream breaks off after {size} unpacked bytes")
        rest = unpacker.unused_data.lstrip(b"\x00")  # padding, as gzip(1) ignores it
        if not rest:
            return parts[0] if len(parts) == 1 else b"".join(parts)
    raise Rejected(Reason.NOT_GZIP, f"more than {MAX_GZIP_MEMBERS} gzip members")


def split_events(text: bytes) -> Unpacked:
    """Return the single events of a text, with whatever is wrong inside them left to them.

    Raises:
        Rejected: NOT_JSON where no single events can be told apart, EMPTY where there are none.
    """
    unpacked = _split(text)
    if not unpacked.events:
        raise Rejected(Reason.EMPTY, "a batch without events")
    return unpacked


def _split(text: bytes) -> Unpacked:
    start = text.lstrip(_SPACE)[:1]
    try:
        if start == b"[":
            return Unpacked([bytes(event) for event in _array(text)], {})
        members = _object(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        unpacked = _split_lines(text) if start == b"{" else None
        if unpacked is None and start in (b"[", b"{"):
            unpacked = _split_broken(text)
        if unpacked is None and isinstance(error, msgspec.ValidationError):
            unpacked = Unpacked([text], {})  # a string, a number: JSON, but not an event
        if unpacked is None:
            raise Rejected(_why(text, error), str(error)) from error
        return unpacked
    return _of_members(text, members, _array)


def _why(text: bytes, error: Exception) -> Reason:
    if isinstance(error, RecursionError):
        return Reason.TOO_DEEP
    try:
        text.decode()
    except UnicodeDecodeError:
        return Reason.NOT_UTF8
    return Reason.NOT_JSON


def _split_lines(text: bytes) -> Unpacked | None:
    """Take a text for NDJSON if at least one of its lines is a JSON object by itself."""
    lines = [line for line in text.split(b"\n") if line and not line.isspace()]
    if len(lines) > 1 and any(_is_object(line) for line in lines):
        return Unpacked(lines, {})
    return None


def _is_object(line: bytes) -> bool:
    try:
        _object(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _split_broken(text: bytes) -> Unpacked | None:
    """Split a text that is not JSON for what one of its events holds (NaN, half a surrogate pair): by its brackets.

    None where the brackets do not close, as in a text that breaks off. Each part is still decoded by itself.
    """
    parts = _parts(text)
    if parts is None:
        return None
    if text.lstrip(_SPACE)[:1] == b"[":
        return Unpacked(parts, {})
    members = {}
    for part in parts:
        key = _KEY.match(part)
        if key is None:
            return None
        try:
            members[msgspec.json.decode(key[1], type=str)] = msgspec.Raw(part[key.end() :].strip(_SPACE))
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
    return _of_members(text, members, lambda batch: [msgspec.Raw(part) for part in _parts(bytes(batch)) or []])


def _parts(text: bytes) -> list[bytes] | None:
    """Return what stands between the commas of the outermost array or object; None where brackets do not match."""
    parts, depth, start = [], 0, 0
    for mark in _MARKS.finditer(text):
        sign = mark[0]
        if sign in (b"[", b"{"):
            depth += 1
            if depth == 1:
                start = mark.end()
        elif sign == b"," and depth == 1:
            parts.append(text[start : mark.start()])
            start = mark.end()
        elif sign in (b"]", b"}"):
            depth -= 1
            if depth == 0:
                parts.append(text[start : mark.start()])
                closed = not text[mark.end() :].strip(_SPACE)
                return [part.strip(_SPACE) for part in parts] if closed else None
    return None


def _of_members(
    text: bytes, members: dict[str, msgspec.Raw], split: Callable[[msgspec.Raw], Iterable[msgspec.Raw]]
) -> Unpacked:
    batch = members.get("batch")
    if batch is None or not bytes(batch).startswith(b"["):
        return Unpacked([text], {})
    defaults = {key: value for key, value in members.items() if key != "batch"}
    return Unpacked([bytes(event) for event in split(batch)], defaults)
