"""Wire format: how SDKs write an event, and how they pack events into a body."""

import gzip
from collections.abc import Mapping
from typing import Any

import msgspec

from millrace.local.shoppers import Device, Happening, Shape
from millrace.schemas.envelope import CONTENT_ENCODING


def write_event(device: Device, step: Happening, message_id: str, at_ms: int) -> dict[str, Any]:
    """Return the event of a step at a true time, ms since the epoch; `sentAt` is added when it is sent."""
    event: dict[str, Any] = {"type": step.type}
    if step.event is not None:
        event["event" if step.type == "track" else "name"] = step.event
    event["messageId"] = message_id
    event["anonymousId"] = device.anonymous_id
    if device.user_id is not None:
        event["userId"] = device.user_id
    elif not device.mobile and device.original_key == "originalTimestamp":
        event["userId"] = ""  # as RudderStack's browser SDK writes "nobody yet"
    event["context"] = device.context
    if step.page is not None:
        event["context"] = {**device.context, "page": step.page}
        if step.campaign is not None:
            event["context"]["campaign"] = {key: value for key, value in step.campaign._asdict().items() if value}
    if step.properties is not None:
        event["properties"] = step.properties
    if step.traits is not None:
        event["traits"] = step.traits
    if step.group_id is not None:
        event["groupId"] = step.group_id
    if step.previous_id is not None:
        event["previousId"] = step.previous_id
    if step.type != "track":
        event["integrations"] = {"All": True}
    event[device.original_key] = device.stamp(at_ms)
    return event


def write_body(shape: Shape, parts: list[bytes], sent_at: str | None) -> bytes:
    """Pack written events into a body; a batch repeats `sent_at`, the clock of the request, as SDKs do.

    >>> write_body(Shape.ARRAY, [b"{}", b"{}"], None)
    b'[{},{}]'
    """
    if shape is Shape.SINGLE:
        return parts[0]
    if shape is Shape.LINES:
        return b"\n".join(parts) + b"\n"
    listed = b"[" + b",".join(parts) + b"]"
    if shape is Shape.ARRAY:
        return listed
    return b'{"batch":' + listed + (b"}" if sent_at is None else b',"sentAt":"' + sent_at.encode() + b'"}')


def path_of(device: Device, shape: Shape, event_type: str) -> str:
    """Return where a device's SDK posts a body: Segment's browser SDK abbreviates, RudderStack's leaves by beacons."""
    match shape:
        case Shape.SINGLE:
            segment = not device.mobile and device.original_key == "timestamp"
            return f"/v1/{event_type[0] if segment else event_type}"
        case Shape.BATCH:
            return "/v1/batch" if device.mobile else "/beacon/v1/batch"
        case Shape.ARRAY:
            return "/v1/batch"
        case Shape.LINES:
            return "/v1/import"


def read_body(body: bytes, attributes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Unpack what `write_body` packed; for bodies that are not broken."""
    plain = gzip.decompress(body) if attributes.get(CONTENT_ENCODING) == "gzip" else body
    if plain.endswith(b"\n"):
        return [msgspec.json.decode(line) for line in plain.splitlines()]
    whole = msgspec.json.decode(plain)
    listed: list[dict[str, Any]] = whole["batch"] if "batch" in whole else whole if isinstance(whole, list) else [whole]
    return listed
