"""What the sink `bigquery` remembers of a table: which append is under way, and which events are in.

An append is noted before it is sent: its stream, its offset, and the ids of its events. Whatever ends the process, the
stream says later whether that append is in. What landed is remembered for as many events as a lane holds in its hands,
since the lane may offer them again: it writes down what was delivered only after it has heard of it.
"""

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from millrace.sinks.sink import Memory

SLOTS = 16
"""Keys that are used in turn."""
SLOT_IDS = 4_096
"""Events in each: together more than the 50,000 that a lane holds at most."""
_DIGEST_BYTES = 16
_TABLES = "tables"


class Intent(msgspec.Struct, array_like=True, frozen=True):
    """An append that may have been sent."""

    stream: str
    offset: int
    ids: tuple[str, ...]
    span: tuple[int, int] | None
    """From when to when its rows are, by the column that partitions the table; microseconds since the epoch."""


class _Slot(msgspec.Struct, array_like=True):
    serial: int
    created_us: int
    landed: bytes
    """Digests of ids, one after the other."""
    intent: Intent | None


_encode = msgspec.msgpack.Encoder().encode
_slot = msgspec.msgpack.Decoder(_Slot).decode


def digest(message_id: str) -> bytes:
    """Return a short name of an id; not to be forged, since ids are given by clients."""
    return hashlib.blake2b(message_id.encode(), digest_size=_DIGEST_BYTES).digest()


def remembered_tables(memory: Memory) -> list[str]:
    """Return the tables that something is remembered of."""
    found = memory.get(_TABLES)
    return [] if found is None else msgspec.msgpack.decode(found, type=list[str])


class TableMemory:
    """The memory of one table.

    Attributes:
        unsettled: the last append of a process that ended: whether it is in has to be found out, and said to `settle`.
        known: digests of events that are in the table, and that the lane may not know of.
    """

    def __init__(self, memory: Memory, table: str, created_us: int) -> None:
        """Read what is remembered; nothing of a table of the same name that was created at another time."""
        self._memory, self._table = memory, table
        tables = remembered_tables(memory)
        if table not in tables:
            memory.put(_TABLES, _encode([*tables, table]))
        slots = [_slot(found) for i in range(SLOTS) if (found := memory.get(self._key(i))) is not None]
        slots = sorted((slot for slot in slots if slot.created_us == created_us), key=lambda slot: slot.serial)
        self._now = slots[-1] if slots else _Slot(0, created_us, b"", None)
        self._fresh = b""  # settled since the last write
        self.unsettled = self._now.intent
        self.known = {
            slot.landed[at : at + _DIGEST_BYTES]
            for slot in slots
            for at in range(0, len(slot.landed), _DIGEST_BYTES)
        }  # fmt: skip

    def intend(self, intent: Intent) -> None:
        """Note an append: durable when it returns. Call it after the one before is settled."""
        if len(self._now.landed) >= SLOT_IDS * _DIGEST_BYTES:
            # What was settled last is not written yet: the slot that was full is not written again.
            self._now = _Slot(self._now.serial + 1, self._now.created_us, self._fresh, None)
        self._now.intent = intent
        self.save()

    def settle(self, landed: Iterable[str]) -> list[bytes]:
        """Take the last append as settled, and return the digests of what is in; durable with the next one, or `save`."""
        digests = [digest(each) for each in landed]
        self._fresh += b"".join(digests)
        self._now.landed += b"".join(digests)
        self._now.intent = self.unsettled = None
        return digests

    def save(self) -> None:
        """Write what was settled."""
        self._memory.put(self._key(self._now.serial % SLOTS), _encode(self._now))
        self._fresh = b""

    @property
    def is_settled(self) -> bool:
        """Whether no append is under way."""
        return self._now.intent is None

    def is_known(self, ids: Sequence[str]) -> list[bool]:
        """Say for each event whether it is in the table, as far as that is not said to the lane yet."""
        return [digest(each) in self.known for each in ids] if self.known else [False] * len(ids)

    def _key(self, slot: int) -> str:
        return f"{self._table}/{slot}"
