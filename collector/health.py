"""Health: is a worker alive, should it get requests, and what is the matter."""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from millrace.collector.answers import JSON, NO_STORE, Answer
from millrace.collector.breaker import BreakerState
from millrace.collector.delivery import DeliveryState
from millrace.collector.spool_stats import Stats

LIVE, READY = "/health/live", "/health/ready"

_BREAKER = {BreakerState.CLOSED: 0.0, BreakerState.HALF_OPEN: 0.5, BreakerState.OPEN: 1.0}


class Health(NamedTuple):
    """How one worker is."""

    ready: bool
    why: str = ""
    """Of a closed set; empty where it is ready."""

    def answer(self, path: str) -> Answer | None:
        """Answer one of the two paths; None for another.

        Ready to strangers: the public port answers it, so it says no more than a load balancer has to know.
        """
        if path == LIVE:
            return _told(200, {"live": True})
        if path == READY:
            said = {"ready": True} if self.ready else {"ready": False, "why": self.why}
            return _told(200 if self.ready else 503, said)
        return None


def health_of(state: DeliveryState, *, draining: bool) -> Health:
    """Return whether a worker should get requests: it can make events durable, and is not about to end."""
    if draining:
        return Health(False, "ending")
    return Health(True) if state.unready is None else Health(False, state.unready.value)


def readings(state: DeliveryState, stats: Stats) -> Mapping[str, tuple[str, float]]:
    """Return what delivery and spool say of themselves, for the metrics: by name, help text and value."""
    values = {
        "ready": ("1: events can be made durable.", float(state.unready is None)),
        "breaker": (
            "0: closed, events go to Pub/Sub; 0.5: trying; 1: open, spooled.",
            _BREAKER[state.breaker],
        ),
        "waiting_messages": ("On their way to Pub/Sub or the disk.", state.waiting_messages),
        "waiting_bytes": ("Of the messages on their way.", state.waiting_bytes),
        "publishes_in_flight": ("Requests to Pub/Sub under way.", state.in_flight),
        "spool_messages": ("On disk, not in Pub/Sub yet.", stats.messages),
        "spool_bytes": ("Of the spool on disk.", stats.bytes),
        "spool_capacity_bytes": ("What the spool may take.", stats.capacity_bytes),
        "spool_oldest_age_seconds": ("Of the oldest message in the spool.", stats.oldest_age_s),
        "spool_refusing": ("1: the disk took nothing the last time.", float(stats.refusing is not None)),
        "spool_appended_total": ("Messages written to the spool.", stats.appended),
        "spool_syncs_total": ("Groups of them, each one fsync.", stats.syncs),
        "spool_corrupt_frames_total": ("Damaged stretches found on disk. Alert.", stats.corrupt_frames),
        "spool_torn_tails_total": ("Segments that a crash had interrupted.", stats.torn_tails),
        "spool_unreadable_segments": ("That the disk does not read. Alert.", stats.unreadable_segments),
    }
    return {f"millrace_collector_{name}": (text, float(value)) for name, (text, value) in values.items()}


def _told(status: int, said: Mapping[str, object]) -> Answer:
    return Answer(status, (JSON, NO_STORE), msgspec.json.encode(said))
