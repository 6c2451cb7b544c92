"""Envelopes: Pub/Sub messages as the graph sees them, whoever read them."""

from collections.abc import Mapping
from typing import NamedTuple


class Envelope(NamedTuple):
    """One Pub/Sub message: what one HTTP request brought, 1 to some thousand events."""

    body: bytes
    attributes: Mapping[str, str]
    envelope_id: str
    """Pub/Sub's message id."""
    published_us: int
    """Pub/Sub's clock, µs since the epoch."""
    arrived_us: int
    """max(published_us, the reader's watermark when it was read), µs since the epoch."""
    receipt: int = -1
    """Which delivery this is (transforms/receipts.py); -1 where the runner acknowledges by itself."""


# Attributes that the collector sets, and any publisher may.
SOURCE_ID = "source_id"
RECEIVED_AT = "received_at"
IP = "ip"
USER_AGENT = "user_agent"
CONTENT_ENCODING = "content-encoding"
SCHEMA_VERSION = "schema_version"
EVENT_TYPE = "event_type"
"""From the request's path: the type of the events in the body that name none."""
REQUEST_ID = "request_id"
"""Set before the first try to publish: an event without a messageId gets `<request_id>-<place in the body>`."""
REJECTED = "rejected"
"""The collector refused these events for this dead_letter.Reason: each becomes a dead letter, stage `collect`."""
REJECTED_BECAUSE = "rejected_because"
"""The refusal's message for a person."""
