"""What the sink `bigquery` remembers of a table: which append is under way, and which events are in.

An append is noted before it is sent: its stream, its offset, and the ids of its events, but not its rows: whatever ends
the process, the stream says later whether that append is in, and the lane offers again what is not.
"""

from collections.abc import Iterable

import msgspec

from millrace.sinks.recent_ids import RecentIds
from millrace.sinks.sink import Memory

_TABLES = "tables"


class Intent(msgspec.Struct, array_like=True, frozen=True):
    """An append that may have been sent."""

    stream: str
    offset: int
    ids: tuple[str, ...]
    span: tuple[int, int] | None
    """From when to when its rows are, by the column that partitions the table; microseconds since the epoch."""


_encode = msgspec.msgpack.Encoder().encode
_intent = msgspec.msgpack.Decoder(Intent | None).decode


def remembered_tables(memory: Memory) -> list[str]:
    """Return the tables that something is remembered of."""
    found = memory.get(_TABLES)
    return [] if found is None else msgspec.msgpack.decode(found, type=list[str])


class TableMemory:
    """The memory of one table.

    Attributes:
        recent: ids of what is in the table.
        unsettled: the append that is under way, or was when the last process ended.
    """

    def __init__(self, memory: Memory, table: str, created_us: int) -> None:
        """Read what is remembered; nothing of a table of the same name that was created at another time."""
        tables = remembered_tables(memory)
        if table not in tables:
            memory.put(_TABLES, _encode([*tables, table]))
        self.recent = RecentIds(memory, table, str(created_us))
        self.unsettled: Intent | None = _intent(self.recent.note) if self.recent.note else None

    def intend(self, intent: Intent) -> None:
        """Note an append: durable when it returns. Call it after the one before is settled."""
        self.unsettled = intent
        self.recent.write(_encode(intent))

    def settle(self, landed: Iterable[str]) -> None:
        """Take the append as settled: these events are in; durable with the next one, or `save`."""
        self.recent.add(landed)
        self.unsettled = None

    def save(self) -> None:
        """Write what was settled."""
        self.recent.write(_encode(None))
