"""Recent ids: which events a destination has that cannot tell by itself, over the end of the process.

A lane writes down what was delivered only after the sink has said so: what it had in its hands when its process ended
it offers again. A sink that notes the ids of what is in, in one write with how far the destination is (a note), knows
those events again and adds nothing. As many are kept as a lane holds at most.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

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
    """

    def __init__(self, memory: Memory, name: str, owner: str = "") -> None:
        """Read what is remembered; nothing where it is of another owner, such as a table that was dropped since."""
        self._memory, self._name = memory, name
        read = [_decode(found) for i in range(SLOTS) if (found := memory.get(f"{name}/{i}")) is not None]
        self._slots = {slot.serial % SLOTS: slot for slot in read if slot.owner == owner}
        self._now = max(self._slots.values(), key=lambda slot: slot.serial, default=_Slot(0, owner, b"", b""))
        self._unwritten: list[bytes] = []
        self._known = {each for slot in self._slots.values() for each in _split(slot.digests)}
        self.note = self._now.note

    def add(self, ids: Iterable[str]) -> None:
        """Take ids as in; durable with the next `write`."""
        digests = list(map(digest, ids))
        self._unwritten += digests
        self._known.update(digests)

    def write(self, note: bytes) -> None:
        """Write the note and what was added, in one: durable when it returns."""
        now = self._now
        if len(now.digests) >= SLOT_IDS * _DIGEST_BYTES:
            now = _Slot(now.serial + 1, now.owner, b"", b"")
            oldest = self._slots.get(now.serial % SLOTS)
            self._known.difference_update(() if oldest is None else _split(oldest.digests))
        now = _Slot(now.serial, now.owner, now.digests + b"".join(self._unwritten), note)
        self._memory.put(f"{self._name}/{now.serial % SLOTS}", _encode(now))
        self._slots[now.serial % SLOTS] = self._now = now
        self._unwritten, self.note = [], note

    def are_known(self, ids: Sequence[str]) -> list[bool]:
        """Say of each event whether it is in, as far as that is remembered."""
        return [digest(each) in self._known for each in ids]


def _split(digests: bytes) -> Iterator[bytes]:
    return (digests[at : at + _DIGEST_BYTES] for at in range(0, len(digests), _DIGEST_BYTES))
