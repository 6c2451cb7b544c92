"""Builders: events as SDKs send them, and the batches that the job makes of them: decoded, released, in order.

What they make goes through the job's own code, so a test sees the columns that a transform will see.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from millrace.schemas.envelope import Envelope
from millrace.transforms.decode import decode_envelopes
from millrace.transforms.order import order, release

START = dt.datetime(2026, 1, 5, 12, tzinfo=dt.UTC)
"""When the builders' clock is at 0."""

WAIT_S = 10.0
"""The order wait: what is delivered later than this is late."""
WINDOW_S = 5.0
SOURCE = "test"

_START_US = int(START.timestamp()) * 1_000_000


class WireEvent(dict[str, Any]):
    """An event as an SDK sends it, and how long it was on its way."""

    delay_s: float = 0.0


def track(event: str, **more: Any) -> WireEvent:
    """Return a track event; see _event for what more there may be.

    >>> track("Order Completed", user="ann", at=5, properties={"total": 3})["originalTimestamp"]
    '2026-01-05T12:00:05.000000Z'
    """
    return _event("track", event=event, **more)


def identify(**more: Any) -> WireEvent:
    """Return an identify; say who by user and anonymous_id, and what by traits."""
    return _event("identify", **more)


def page(name: str | None = None, **more: Any) -> WireEvent:
    """Return a page view."""
    return _event("page", name=name, **more)


def screen(name: str | None = None, **more: Any) -> WireEvent:
    """Return a screen view."""
    return _event("screen", name=name, **more)


def group(group_id: str, **more: Any) -> WireEvent:
    """Return a group call."""
    return _event("group", groupId=group_id, **more)


def alias(previous_id: str, **more: Any) -> WireEvent:
    """Return an alias call."""
    return _event("alias", previousId=previous_id, **more)


def _event(
    kind: str,
    *,
    user: str | None = None,
    anonymous_id: str | None = None,
    at: float | dt.datetime = 0.0,
    delay_s: float = 0.0,
    message_id: str | None = None,
    **more: Any,
) -> WireEvent:
    """Return an event.

    Args:
        kind: its type.
        user: the user's id; without one and without an anonymous_id it is "user-1".
        anonymous_id: the device's.
        at: when it occurred: seconds after START, or a time.
        delay_s: how long it is on its way; more than WAIT_S: it is late.
        message_id: without one it is m1, m2 ... by its place among the events given.
        more: other members by their names on the wire: properties, traits, context ...
    """
    when = at if isinstance(at, dt.datetime) else START + dt.timedelta(seconds=at)
    members = {
        "type": kind,
        "messageId": message_id,
        "userId": user or (None if anonymous_id else "user-1"),
        "anonymousId": anonymous_id,
        "originalTimestamp": when.astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        **more,
    }
    built = WireEvent({name: value for name, value in members.items() if value is not None})
    built.delay_s = delay_s
    return built


def with_ids(events: Sequence[Mapping[str, Any]]) -> list[WireEvent]:
    """Return events that all have a message id: m1, m2 ... by their place."""
    numbered = []
    for number, event in enumerate(events, 1):
        one = WireEvent({"messageId": f"m{number}", **event})
        one.delay_s = getattr(event, "delay_s", 0.0)
        numbered.append(one)
    return numbered


def batches_of(events: Sequence[Mapping[str, Any]]) -> list[pa.RecordBatch]:
    """Return the batches of one shard that the job makes of events, window after window, each user's in order.

    Raises:
        ValueError: one is no event, and would be a dead letter before any transform.
    """
    pieces: dict[int, list[pa.RecordBatch]] = {}
    decoded = decode_envelopes([_envelope(event) for event in with_ids(events)], _START_US)
    if decoded.letters.num_rows:
        reasons = zip(*(decoded.letters.column(name).to_pylist() for name in ("reason", "message")), strict=True)
        raise ValueError(f"no event: {'; '.join(': '.join(reason) for reason in reasons)}")
    for piece in release(decoded.batch, wait_us=round(WAIT_S * 1e6), window_us=round(WINDOW_S * 1e6), shards=1):
        pieces.setdefault(piece.window_us, []).append(piece.batch)
    return [order(pieces[window])[0] for window in sorted(pieces)]


def _envelope(event: WireEvent) -> Envelope:
    at = event.get("originalTimestamp")
    occurred = dt.datetime.fromisoformat(at) if isinstance(at, str) else START
    published_us = round(occurred.timestamp() * 1_000_000) + round(event.delay_s * 1_000_000)
    received = dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=published_us)
    attributes = {"source_id": SOURCE, "received_at": received.isoformat().replace("+00:00", "Z")}
    return Envelope(
        msgspec.json.encode(event), attributes, f"envelope-{event['messageId']}", published_us, published_us
    )
