"""Recent ids: which events a destination has that cannot tell by itself, over the end of the process.

A lane writes down what was delivered only after the sink has said so: what it had in its hands when its process ended
it offers again. A sink that notes the ids of what is in, in one write with how far the destination is (a note), knows
those events again and adds nothing. As many are kept as a lane holds at most.
"""

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from millrace.sinks.sink import Memory

SLOTS = 16
"""Keys that are used in turn."""
SLOT_IDS = 4_096
"""Events in each: together more than the 50,000 that a lane holds in its hands."""
_DIGEST_BYTES = 16


class _Slot(msgspec.Struct, array_like=True):
    serial: int
    owner: str
    digests: bytes
    note: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Slot).decode


def digest(message_id: str) -> bytes:
    """Return a short name of an id; not to be forged, since clients choose ids."""
    return hashlib.blake2b(message_id.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()


class RecentIds:
    """The ids that one destination (a table, a folder) took last, and a note of it.

    Attributes:
        note: as it was written last; empty: nothing was.
        known: digests of events that are in, and that the lane may not have heard of: what was written before this
            process, and what `remember` adds.
    """

    def __init__(self, memory: Memory, name: str, owner: str = "") -> None:
        """Read what is remembered; nothing where it is of another owner, such as a table that was dropped since."""
        self._memory, self._name = memory, name
        slots = [_decode(found) for i in range(SLOTS) if (found := memory.get(f"{name}/{i}")) is not None]
        slots = sorted((slot for slot in slots if slot.owner == owner), key=lambda slot: slot.serial)
        self._now = slots[-1] if slots else _Slot(0, owner, b"", b"")
        self._unwritten = b""
        self.note = self._now.note
        self.known: set[bytes] = set()
        for slot in slots:
            digests = slot.digests
            self.known.update(digests[at : at + _DIGEST_BYTES] for at in range(0, len(digests), _DIGEST_BYTES))

    def add(self, ids: Iterable[str]) -> None:
        """Take ids as in; durable with the next `write`."""
        self._unwritten += b"".join(map(digest, ids))

    def write(self, note: bytes) -> None:
        """Write the note and what was added, in one: durable when it returns."""
        now = self._now
        if len(now.digests) >= SLOT_IDS * _DIGEST_BYTES:
            now = _Slot(now.serial + 1, now.owner, b"", b"")
        now = _Slot(now.serial, now.owner, now.digests + self._unwritten, note)
        self._memory.put(f"{self._name}/{now.serial % SLOTS}", _encode(now))
        self._now, self._unwritten, self.note = now, b"", note

    def remember(self, ids: Iterable[str]) -> None:
        """Know ids again in this process: the lane will not hear that they are in."""
        self.known.update(map(digest, ids))

    def forget(self, ids: Iterable[str]) -> None:
        """Take ids out of what is known: the lane heard of them."""
        if self.known:
            self.known.difference_update(map(digest, ids))

    def are_known(self, ids: Sequence[str]) -> list[bool]:
        """Say of each event whether it is in, as far as the lane may not have heard of it."""
        return [digest(each) in self.known for each in ids] if self.known else [False] * len(ids)
