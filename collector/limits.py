"""Limits: what one request may bring, and how strictly its events are judged."""

from typing import NamedTuple


class Limits(NamedTuple):
    """What one request may bring. Sizes in bytes."""

    body_bytes: int = 4 * 1024 * 1024
    """Of a request's body, as it came and unpacked. RudderStack's gateway takes as much, Segment 500 KB."""
    gzip_ratio: int = 100
    """Unpacked bytes to packed ones, past which a body counts as a bomb. JSON of events packs 5 to 30 times."""
    events: int = 2_500
    """In one request; Segment's limit."""
    event_bytes: int = 1024 * 1024
    """Of one event; one that is larger is rejected. Decode has the same limit."""
    event_bytes_soft: int = 32 * 1024
    """Of one event; one that is larger is counted and goes on. Segment and RudderStack document it as their limit."""
    message_id_characters: int = 100
    """Segment's limit."""
    preflight_max_age_s: int = 86_400
    """How long a browser may remember a preflight's answer. Chromium caps it at 7,200 s."""
    lenient: bool = False
    """Answer as Segment does: 200 and success, whatever became of the single events."""
