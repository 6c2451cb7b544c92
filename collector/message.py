"""What the collector hands on: one request's events as one Pub/Sub message."""

from collections.abc import Mapping
from typing import NamedTuple


class Message(NamedTuple):
    """One Pub/Sub message to be, the body as the client sent it wherever that is possible."""

    body: bytes
    attributes: Mapping[str, str]
    """Those of schemas/envelope.py."""
    events: int = 1
    """How many events are in it; for the metrics."""
