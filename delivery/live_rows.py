"""Live rows: events of messages, by the route that they take, as their route sends them."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from millrace.delivery.feed import Row
from millrace.delivery.messages import Message
from millrace.delivery.pending import Pending
from millrace.transforms.batches import int64s
from millrace.transforms.route import Route, route_rows, rows_for


class Routed(NamedTuple):
    """What takes one route, side by side."""

    route: int
    sent: pa.RecordBatch
    users: list[str]
    ids: list[str]
    receipts: list[int]
    sizes: list[int]


def by_route(batch: pa.RecordBatch, routes: Sequence[Route]) -> list[Routed]:
    """Return what takes each route; an event takes the first that it fits.

    Args:
        batch: cleaned events (clean.py).
        routes: to one sink.
    """
    found: list[Routed] = []
    if not batch.num_rows:
        return found
    taken = route_rows(batch, routes)
    for number, route in enumerate(routes):
        rows = np.flatnonzero(taken == number)
        if not len(rows):
            continue
        taking = batch if len(rows) == batch.num_rows else batch.take(pa.array(rows))
        sent = rows_for(taking, route)
        users, ids = (taking.column(name).to_pylist() for name in ("user_key", "message_id"))
        found.append(Routed(number, sent, users, ids, int64s(taking.column("receipt")).tolist(), sizes(sent)))
    return found


def sizes(rows: pa.RecordBatch) -> list[int]:
    """Return about how many bytes each row takes: its texts, and eight for each column."""
    total = np.full(rows.num_rows, 8 * rows.num_columns, np.int64)
    for column in rows.columns:
        if column.null_count < len(column) and (pa.types.is_string(column.type) or pa.types.is_binary(column.type)):
            offsets = np.frombuffer(column.buffers()[1], np.int32)
            total += np.diff(offsets[column.offset : column.offset + len(column) + 1])
    found: list[int] = total.tolist()
    return found


class Part:
    """Rows that were read together: they are in memory as long as one of them is not settled."""

    __slots__ = ("bytes", "open", "rows")

    def __init__(self, rows: int, size: int) -> None:
        self.rows = rows
        self.bytes = size
        self.open: set[Pending] = set()

    def thin(self) -> None:
        """Keep only the rows that are not settled. What is under way has been gathered from the others."""
        events = list(self.open)
        rows = events[0].payload.rows.take(pa.array([event.payload.at for event in events], pa.int64()))
        for at, event in enumerate(events):
            event.payload = dataclasses.replace(event.payload, rows=rows, at=at)
        self.rows, self.bytes = len(events), rows.nbytes


@dataclasses.dataclass(slots=True, eq=False)
class LiveRow(Row):
    """Where a pending event is, and which message brought it."""

    message: Message
    part: Part


class Held:
    """The parts in memory."""

    def __init__(self) -> None:
        self.bytes = 0
        """How much they take."""
        self._touched: dict[int, Part] = {}  # those of which something was settled since they were looked at

    def add(self, rows: pa.RecordBatch) -> Part:
        """Enter rows as a part."""
        self.bytes += rows.nbytes
        return Part(rows.num_rows, rows.nbytes)

    def settle(self, event: Pending, part: Part) -> None:
        """Note that one of a part is settled."""
        part.open.discard(event)
        self._touched[id(part)] = part

    def thin(self) -> None:
        """Let go of the rows of what is settled, also where a few of a part still wait."""
        for part in self._touched.values():
            if not part.open:
                self.bytes -= part.bytes
            elif len(part.open) * 4 <= part.rows:
                before = part.bytes
                part.thin()
                self.bytes += part.bytes - before
        self._touched.clear()
