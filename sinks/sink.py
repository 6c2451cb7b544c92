"""The protocol of a sink: what a destination has to do, and what it may count on.

A destination is one class: a frozen dataclass of its settings (the `with:` of `millrace.yaml`) that can `open`,
`deliver` and `close`. The lane that feeds it (millrace.delivery) does the rest: the order of each user, retries, the
circuit breaker, concurrency, what is remembered over a restart. Imports neither Beam nor a client library.
"""

import abc
import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Protocol

import pyarrow as pa

from millrace.sinks.json_rows import json_rows


class Fault(enum.Enum):
    """Why an event was not delivered: a closed set, for metrics and for the table of what could not be delivered."""

    REJECTED = "rejected"
    """The destination says that no resend will help: HTTP 4xx but 408 and 429, a value that its schema cannot hold."""
    THROTTLED = "throttled"
    """Too many requests: 429, a quota."""
    FAILED = "failed"
    """The destination failed on this event: HTTP 5xx."""
    TIMED_OUT = "timed_out"
    """No answer in time: it may have arrived."""
    UNREACHABLE = "unreachable"
    """No connection, or the destination as a whole does not work: no single event is to blame."""
    REFUSED = "refused"
    """Not sent at all: the address is not allowed, the event is too large for the destination."""


@dataclasses.dataclass(frozen=True, slots=True)
class Delivered:
    """The destination has it, durably."""


@dataclasses.dataclass(frozen=True, slots=True)
class Retry:
    """Not this time; the same event again, later, with the same idempotency key.

    Attributes:
        fault: why.
        detail: one sentence for people, without what the event says.
        after_s: not before this (Retry-After); None: as the lane's policy says.
    """

    fault: Fault
    detail: str
    after_s: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Rejected:
    """Never: it becomes a dead letter of this sink at once."""

    fault: Fault
    detail: str


Outcome = Delivered | Retry | Rejected

DELIVERED = Delivered()


class SinkDownError(Exception):
    """The destination as a whole cannot be reached or does not work; no event is to blame, and none is used up by it.

    The lane keeps everything that was in the batch and tries again behind its circuit breaker, for as long as it takes.

    Attributes:
        detail: one sentence for people.
        after_s: not before this; None: as the breaker says.
    """

    def __init__(self, detail: str, after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.after_s = after_s


class CannotOpenSinkError(Exception):
    """The sink can never work as it is configured (a secret that is not there, no such database); one sentence."""


@dataclasses.dataclass(frozen=True, slots=True)
class Delivery:
    """A batch for one sink, all of one route.

    A batch and its parts are the same at every try only for the single event: after a failure, or a restart, an event
    may come in another company. What never changes are its position, its message_id and its content.

    Attributes:
        rows: the columns that the route chose, under the names it gave them; in each user's true order.
        message_ids: each row's idempotency key: the same at every resend.
        user_keys: each row's user.
        positions: each row's place in the lane's queue. On an ordered lane it rises within each user: what a sink has
            of a user up to a position it can skip. On an unordered one it is only a name, and differs after a restart.
        is_ordered: for each row, whether it stands in its user's true order: false for unordered routes, and for what a
            user sends beyond the cap of a hot user.
        attempts: for each row, how often it was tried before.
        route: the route's name.
        target: what the route names beside the sink: a topic, a table, a path; empty: the sink's own.
    """

    rows: pa.RecordBatch
    message_ids: Sequence[str]
    user_keys: Sequence[str]
    positions: Sequence[int]
    is_ordered: Sequence[bool]
    attempts: Sequence[int]
    route: str
    target: str = ""

    def __len__(self) -> int:
        return len(self.message_ids)

    def json(self) -> list[bytes]:
        """Return each row as one JSON object, without its nulls; columns that hold JSON text are objects in it."""
        return json_rows(self.rows)


class Memory(Protocol):
    """What a sink wants to know after a restart: small, durable when `put` returns, its own."""

    def get(self, key: str) -> bytes | None:
        """Return what was put; None where nothing was."""

    def put(self, key: str, value: bytes | None) -> None:
        """Keep a value; None forgets the key. Blocks for some milliseconds."""


class Sink(abc.ABC):
    """A destination; derive a frozen dataclass of your settings from it, as sinks/console.py does.

    The class is made twice: by `millrace check`, which never opens it, and in its lane's process. A `__post_init__`
    that raises ValueError, in one sentence, is a mistake in the configuration. Secrets are given by reference
    (`env:NAME`, `file:/path`, `gcp-sm:...`: millrace.config.secrets) and resolved in `open`.
    """

    max_events: int = 500
    """The most events of a delivery; a setting of that name changes it."""
    max_bytes: int = 4 * 1024 * 1024
    """About the most bytes of a delivery, as the columns take them in memory."""
    max_in_flight: int = 16
    """The most deliveries under way at once; the lane finds out how many of them do any good."""
    keeps_order: bool = True
    """Whether a user may be in a delivery more than once: only where the destination takes a batch whole, or a prefix
    of it, in order. Where it does not, a delivery holds one event of a user at most, and no two under way share one."""
    keeps_ids: bool = False
    """Whether the destination itself knows an id again, so that a resend adds nothing: exactly once."""

    def check_columns(self, columns: Mapping[str, str]) -> None:  # noqa: B027  most sinks take any
        """Refuse, before anything runs, a route whose columns this sink can do nothing with.

        Args:
            columns: of a route: the name that each has at the sink, and the archive's column that it is.

        Raises:
            ValueError: one sentence that says what to do; it becomes a mistake of the route's `columns`.
        """

    def check_target(self, target: str) -> None:  # noqa: ARG002  it has none
        """Refuse, before anything runs, what a route names as its `target`. A sink that has targets overrides this.

        Raises:
            ValueError: one sentence that says what to do; it becomes a mistake of the route's `target`.
        """
        raise ValueError(f"{type(self).__name__} has no targets, so it would mean nothing: remove it")

    async def open(self, memory: Memory) -> None:  # noqa: B027  nothing to open is fine
        """Connect. Called once, before any delivery, in the lane's event loop; again after SinkDownError.

        Raises:
            SinkDownError: not now.
            CannotOpenSinkError: never, as configured.
        """

    @abc.abstractmethod
    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        """Deliver a batch; return one outcome for each row.

        Called for up to `max_in_flight` batches at once, which share no user, but for rows that are not ordered. To be
        cancelled at any moment (a deadline, the end). Blocking code goes through `asyncio.to_thread`. An exception that
        is not SinkDownError counts as FAILED for every row.

        Raises:
            SinkDownError: the destination as a whole does not work; all rows are tried again.
        """

    async def close(self) -> None:  # noqa: B027  nothing to close is fine
        """Hand over what is buffered, and disconnect."""
