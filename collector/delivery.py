"""Delivery in words: where messages went, why they could not, how things are, and how much may wait for how long."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import NamedTuple

from millrace.collector.breaker import BreakerState


class How(enum.Enum):
    """Where messages are durable."""

    PUBLISHED = "published"
    SPOOLED = "spooled"


class Delivered(NamedTuple):
    """All messages of a request are durable."""

    how: How
    """SPOOLED where any of them is not in Pub/Sub yet."""


class Undelivered(enum.Enum):
    """Why messages could not be made durable."""

    OVERLOADED = "overloaded"
    """More is waiting than memory may hold."""
    SPOOL_FAILED = "spool_failed"
    """Pub/Sub does not answer, and the spool is full or broken."""
    SPOOL_SLOW = "spool_slow"
    """Pub/Sub does not answer, and the spool's disk does not either."""
    UNFIT = "unfit"
    """It is no message: text that is no UTF-8, or larger than anything may be. No retry can mend it."""
    CLOSED = "closed"
    """This process is ending."""


class NotDurableError(Exception):
    """At least one message is neither in Pub/Sub nor in the spool; or it is, and nobody could say so in time."""

    def __init__(self, reason: Undelivered, retry_after_s: float) -> None:
        super().__init__(f"{reason.value}, try again in {retry_after_s:g} s")
        self.reason = reason
        self.retry_after_s = retry_after_s
        """Whole seconds, at least 1.0."""


class Left(NamedTuple):
    """What a drained Deliverer leaves in the spool, for the next process to replay; in it nothing is left."""

    messages: int
    bytes: int


class Unready(enum.Enum):
    """Why a load balancer should send its requests elsewhere."""

    PUBSUB_REFUSES = "pubsub_refuses"
    """No such topic, no permission. What comes all the same is spooled."""
    NOWHERE = "nowhere"
    """The breaker is open, and the spool failed lately."""
    CLOSED = "closed"
    """This process is ending."""


class DeliveryState(NamedTuple):
    """For health and metrics: how things are now."""

    unready: Unready | None
    """None: ready."""
    why: str
    """For a person; empty where ready."""
    breaker: BreakerState
    waiting_messages: int
    """Accepted, and neither durable nor given up."""
    waiting_bytes: int
    """Their bodies, and 2 KiB each for what is around them."""
    in_flight: int
    """Groups on their way to Pub/Sub, pauses between tries included."""


@dataclasses.dataclass(frozen=True)
class DeliverySettings:
    """How long, how much."""

    deadline_s: float = 1.0
    """From `deliver` until a message that is not acknowledged goes to the spool. Longer: clients wait for an outage."""
    in_flight: int = 4
    """Requests to Pub/Sub at once. More: smaller groups, so more CPU; fewer: a slow answer holds up more."""
    waiting_bytes: int = 64 << 20
    """What may wait for Pub/Sub and the spool together, 2 KiB a message besides its body. Beyond, they are turned away;
    more: a longer stall passes without that, for more memory."""
    spool_wait_s: float = 5.0
    """How long the spool's disk may take."""
    replay_bytes_per_s: float = 32 << 20
    """Most that is sent from the spool; more slows live traffic while a backlog is sent."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} must be positive, got {getattr(self, field.name)}")


class DeliveryTotals(NamedTuple):
    """Everything that is counted since the start, for metrics."""

    published: int
    """Messages that clients delivered to Pub/Sub at once."""
    spooled: int
    """Messages that clients delivered to the spool."""
    undelivered: Mapping[Undelivered, int]
    """Messages by why they could not be delivered."""
    replayed: int
    """Messages sent from the spool to Pub/Sub."""
    set_aside: int
    """Messages that Pub/Sub will never take."""
    requests: int
    """Requests to Pub/Sub that were acknowledged, replay included."""
    request_bytes: int
    """Serialised messages in them."""
    retries: int
    """Requests that were sent again for a client that waits."""
    failures: Mapping[str, int]
    """Requests that were not acknowledged: `passing`, `refused`, `unfit`."""
    breaker_openings: int


@dataclasses.dataclass
class DeliveryCounts:
    """Messages since the start; each that was accepted is counted once in published, spooled or undelivered."""

    published: int = 0
    spooled: int = 0
    undelivered: dict[Undelivered, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(Undelivered, 0))
    """By reason."""
