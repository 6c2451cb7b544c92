"""What a ledger records: the parts of a lane's queue, what became of events, what operators told, how the lane is."""

import dataclasses
import enum

import msgspec

ROW_BITS = 24
"""A position is an entry's number shifted by this, with the row below: 16.7 million rows an entry."""

ROW_MASK = (1 << ROW_BITS) - 1


class Mark(enum.IntEnum):
    """What became of a row on this lane: one byte of `entries.outcomes`."""

    NOT_ROUTED = 0
    WAITING = 1
    """Not tried yet, behind another event of its user, or to be tried again."""
    DELIVERED = 2
    DEAD = 3
    """In the table of what could not be delivered."""
    SKIPPED = 4
    """An operator told the lane to go on without it."""
    PARKED = 5
    """An operator put it aside; `retry` brings it back."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A part of the queue: what one commit added to the archive."""

    version: int
    window_us: int | None
    committed_us: int
    files: tuple[str, ...]
    rows: int
    seq: int = 0


@dataclasses.dataclass(frozen=True)
class Trying:
    """An event that failed and will be tried again."""

    position: int
    user_key: str
    message_id: str
    attempts: int
    first_us: int
    next_us: int
    fault: str
    detail: str
    waiting: int = 0


@dataclasses.dataclass(frozen=True)
class Parked:
    """An event that an operator put aside; `rows` is what its route sends, as an Arrow IPC stream of one row."""

    position: int
    user_key: str
    message_id: str
    route: str
    rows: bytes


NOT_FOUND = "not found: "
"""So begins the result of an order about a user or an event of which the lane has nothing that failed."""


@dataclasses.dataclass(frozen=True)
class Order:
    """What an operator told the lane: retry, skip or park; of a user (`user:KEY`), an event (`event:ID`) or `all`."""

    id: int
    told_us: int
    told_by: str
    verb: str
    subject: str
    reason: str
    done_us: int | None = None
    result: str | None = None

    @property
    def found_nothing(self) -> bool:
        """Whether it was carried out, and there was nothing that it could be about."""
        return self.result is not None and self.result.startswith(NOT_FOUND)


class Status(msgspec.Struct, kw_only=True):
    """What a lane says of itself, every second."""

    sink: str
    is_ordered: bool
    state: str
    """running; down: the sink is; failed: the lane cannot go on, as `detail` says; stopped: it was told to."""
    detail: str = ""
    down_since_us: int | None = None
    waiting: int = 0
    """Events in the lane's hands that are not settled, those under way included."""
    in_flight: int = 0
    concurrency: int = 0
    blocked_users: int = 0
    lag_s: float = 0.0
    """How long the oldest event that is not settled has been committed (ordered) or published (live)."""
    behind: int = 0
    """Rows of the archive that the lane has not looked at yet."""
    totals: dict[str, int] = {}
    pid: int = 0
