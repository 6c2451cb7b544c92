"""The parts of the queue in a lane's hands: what became of each row, and the columns of those that wait.

A user who is blocked for an hour has an event in each of some hundred parts, all of whose other events went at once.
What is kept for such a part must not be the columns of all its rows, nor their marks.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millrace.delivery.feed import Row
from millrace.delivery.ledger import Ledger
from millrace.delivery.pending import Pending
from millrace.delivery.records import ROW_BITS, ROW_MASK, Mark

_SHED = 4
"""Columns are cut down to the rows that wait when those are a quarter of them: all of it copies a third of the rows."""
_MARKS = 64
"""The marks of so many parts are kept in memory; those of others are read from the ledger again."""

Marks = npt.NDArray[np.uint8]


class Parts:
    """Marks of rows, in memory until they are written. For one thread.

    Args:
        ledger: open, for writing.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._marks: dict[int, Marks] = {}
        self._changed: set[int] = set()
        self._held: dict[int, list[Pending]] = {}  # of each part, events whose payload is a row of it

    def __len__(self) -> int:
        """Return how many parts have changed since they were written."""
        return len(self._changed)

    def set(self, seq: int, marks: Marks) -> None:
        """Take in the marks of a whole part."""
        self._marks[seq] = marks
        self._changed.add(seq)

    def hold(self, seq: int, events: Sequence[Pending]) -> None:
        """Take in a part's events that wait."""
        if events:
            self._held.setdefault(seq, []).extend(events)

    def mark(self, position: int, mark: Mark) -> None:
        """Note what became of an event."""
        seq = position >> ROW_BITS
        if seq not in self._marks:
            self._marks[seq] = self._ledger.marks(seq)
        self._marks[seq][position & ROW_MASK] = mark
        self._changed.add(seq)

    def write(self) -> None:
        """Write what has changed, in the transaction under way; `written` when it is committed."""
        for seq in self._changed:
            self._ledger.set_marks(seq, self._marks[seq])

    def written(self) -> None:
        """Let go of what nobody waits for."""
        for seq in self._changed:
            waiting = int(np.count_nonzero(self._marks[seq] == Mark.WAITING))
            if not waiting:
                del self._marks[seq]
                self._held.pop(seq, None)
            elif seq in self._held and waiting * _SHED <= len(self._held[seq]):
                self._held[seq] = self._shed(seq)
        self._changed.clear()
        for seq in list(self._marks)[:-_MARKS]:
            del self._marks[seq]

    def _shed(self, seq: int) -> list[Pending]:
        marks = self._marks[seq]
        waiting = [event for event in self._held[seq] if marks[event.position & ROW_MASK] == Mark.WAITING]
        by_batch: dict[int, list[Pending]] = {}
        for event in waiting:
            by_batch.setdefault(id(event.payload.rows), []).append(event)
        for events in by_batch.values():
            old: list[Row] = [event.payload for event in events]
            rows = old[0].rows.take(pa.array([row.at for row in old], pa.int64()))
            for at, (event, row) in enumerate(zip(events, old, strict=True)):
                event.payload = Row(rows, at, row.user_key)  # the loop may have the old one in its hands: the same row
        return waiting
