"""Limits: what one request may bring, and how strictly its events are judged."""

from typing import NamedTuple

from millrace.collector.source import SourceLimits


class Limits(NamedTuple):
    """What one request may bring. Sizes in bytes."""

    body_bytes: int = 4 * 1024 * 1024
    """Of a request's body, as it came and unpacked; at most some 9 MB, since a Pub/Sub message holds 10. RudderStack's
    gateway takes 4 MB, Segment 500 KB."""
    gzip_ratio: int = 100
    """Unpacked bytes to packed ones, past which a body of more than a megabyte is a bomb. Events pack 5 to 30 times."""
    events: int = 2_500
    """In one request; Segment's limit."""
    event_bytes: int = 1024 * 1024
    """Of one event; a larger one is rejected. Decode has the same limit."""
    event_bytes_soft: int = 32 * 1024
    """Of one event; a larger one is counted and goes on. Segment and RudderStack document it as their limit."""
    message_id_characters: int = 100
    """Segment's limit."""
    preflight_max_age_s: int = 86_400
    """How long a browser may remember a preflight's answer. Firefox takes a day at most, Chromium two hours."""
    lenient: bool = False
    """Answer as Segment does: 200 and success, whatever became of the single events."""

    def within(self, own: SourceLimits) -> "Limits":
        """Return the limits for one source: the smaller of each pair.

        >>> Limits().within(SourceLimits(request_events=10)).events
        10
        """
        if own.event_bytes is None and own.request_bytes is None and own.request_events is None:
            return self
        return self._replace(
            event_bytes=_smaller(self.event_bytes, own.event_bytes),
            body_bytes=_smaller(self.body_bytes, own.request_bytes),
            events=_smaller(self.events, own.request_events),
        )


def _smaller(ours: int, theirs: int | None) -> int:
    return ours if theirs is None else min(ours, theirs)
