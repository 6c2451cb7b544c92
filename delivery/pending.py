"""Pending: an event in a lane's hands, and what may become of it."""

import dataclasses
import enum
from typing import Any, NamedTuple

from millrace.sinks.sink import Fault


class Place(enum.IntEnum):
    """Where an event is that failed."""

    ELSEWHERE = 0
    """It never failed, or was settled since."""
    PAUSED = 1
    DUE = 2
    UNDER_WAY = 3


@dataclasses.dataclass(slots=True, eq=False)
class Pending:
    """One event in the lane's hands.

    Attributes:
        position: in the lane's queue; rises within a user.
        user_key: whose order it stands in; None: in nobody's, it never waits for another.
        message_id: its idempotency key.
        route: which of the lane's routes.
        size: bytes, towards the most bytes of a delivery.
        payload: the caller's.
        attempts: failures that were counted against it.
        first_us: when the first of them was; 0: none.
        next_us: when it is tried again; 0: at once.
        fault, detail: of the last failure: a Fault's value, and a sentence.
    """

    position: int
    user_key: str | None
    message_id: str
    route: int
    size: int
    payload: Any
    attempts: int = 0
    first_us: int = 0
    next_us: int = 0
    fault: str = ""
    detail: str = ""
    behind: "Pending | None" = dataclasses.field(default=None, init=False, repr=False)
    """The next one of its user: each user's events are a list linked through them, so that nothing is made for it."""
    company: int = dataclasses.field(default=0, init=False, repr=False)
    """The most events of its next delivery; 0: no limit of its own."""
    place: Place = dataclasses.field(default=Place.ELSEWHERE, init=False, repr=False)
    waiting: int = dataclasses.field(default=0, init=False, repr=False)
    """Where it failed: how many of its user wait behind it."""


class Settled(NamedTuple):
    """What became of a delivery's events; those of a user behind one that is retried are in none of the three."""

    delivered: list[Pending]
    dead: list[tuple[Pending, Fault, str]]
    retrying: list[Pending]


class Blocked(NamedTuple):
    """An event that failed and is not settled; it may be under way just now."""

    user_key: str | None
    """None: it blocks nobody."""
    position: int
    message_id: str
    since_us: int
    attempts: int
    next_us: int
    fault: str
    detail: str
    waiting: int
    """How many of its user wait behind it."""


class Changes(NamedTuple):
    """What changed about events that failed, since that was asked last."""

    blocked: list[Blocked]
    """Those that failed, again too, or whose user got further events."""
    over: list[int]
    """Positions of those that are settled."""
