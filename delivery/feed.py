"""Where a lane's events come from, and who is told what became of them: the archive, or a subscription."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa

from millrace.delivery.ledger import Mark, Trying
from millrace.delivery.pending import Pending


@dataclasses.dataclass(slots=True, eq=False)  # not frozen: a third of the cost of making one, for each event
class Row:
    """Where the columns of a pending event are: its `payload`.

    Attributes:
        rows: what its route sends, of many events.
        at: which row of them it is.
        user_key: the event's user, whether or not it is in order.
    """

    rows: pa.RecordBatch
    at: int
    user_key: str


class CannotReadError(Exception):
    """The lane's events cannot be had as it is configured, and waiting does not help; one sentence."""


class Feed(Protocol):
    """Gives events in queue order. Its methods block, and are called by one thread at a time."""

    def open(self) -> tuple[list[Pending], list[Pending]]:
        """Return what an earlier run left unsettled: the events that were being retried, and the others."""

    def read(self) -> list[Pending]:
        """Return the next events; [] where there are none now. Waits for some milliseconds at most."""

    def settle(self, events: Sequence[Pending], mark: Mark) -> None:
        """Note in memory that events are settled; `save` makes it durable."""

    def save(self, trying: Sequence[Trying], over: Sequence[int], now_us: int) -> None:
        """Make durable what was settled since the last call, and which events are being retried.

        Args:
            trying: those that failed, or of which something else changed, since the last call; at the first all.
            over: positions of those that are being retried no more.
            now_us: the time.
        """

    def bring_back(self, subject: str) -> list[Pending]:
        """Return events that were parked, to be tried again: of a user (`user:KEY`), one (`event:ID`) or `all`."""

    def lag_us(self, now_us: int) -> int:
        """Return how long the oldest event that is not settled has been in the queue."""

    def behind(self) -> int:
        """Return how many events are in the queue that were not read yet, as far as that is known."""

    def note(self) -> str:
        """Return what people should know of the queue, behind the lane's name; empty: nothing."""

    def close(self) -> None:
        """Let go of everything: what is unsettled comes again."""
