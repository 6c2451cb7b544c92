"""Pixel: an event in the query of an image's address, for mails and pages without scripts."""

import base64
import binascii
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from millrace.collector.answers import Code, Refusal

MAX_FIELDS = 1_000

_URL_SAFE = bytes.maketrans(b"-_ ", b"+/+")
"""Base64 as URLs may have it; a plus sign that was not escaped comes as a space."""


def event_of_query(query: bytes) -> bytes:
    """Return the event in a query as JSON: Segment's `data` (base64 or plain JSON), else RudderStack's flat fields.

    >>> event_of_query(b"writeKey=k&userId=u&properties.size=M&context.page.path=%2F")
    b'{"userId":"u","properties":{"size":"M"},"context":{"page":{"path":"/"}}}'

    Raises:
        Refusal: BAD_QUERY.
    """
    text = query.decode("latin-1")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="replace", max_num_fields=MAX_FIELDS)
    except ValueError as error:
        raise Refusal(Code.BAD_QUERY, f"more than {MAX_FIELDS} fields") from error
    data = next((value for name, value in pairs if name == "data"), None)
    if data is not None:
        return _event_of_data(data.encode(errors="replace"))
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name != "writeKey":
            _set(fields, name.split("."), value)
    return msgspec.json.encode(fields)


def _event_of_data(data: bytes) -> bytes:
    if data.lstrip().startswith(b"{"):
        return data
    packed = data.translate(_URL_SAFE).rstrip(b"=")
    try:
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except binascii.Error as error:
        raise Refusal(Code.BAD_QUERY, "data is neither base64 nor JSON") from error


def _set(fields: dict[str, Any], path: list[str], value: str) -> None:
    """Set a field within objects; of two that contradict each other the later one counts."""
    for name in path[:-1]:
        inner = fields.get(name)
        if not isinstance(inner, dict):
            inner = fields[name] = {}
        fields = inner
    fields[path[-1]] = value
