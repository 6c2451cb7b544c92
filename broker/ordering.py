"""Ordering keys: each key's undelivered and unacknowledged messages stand in line, in publish order.

One delivery may take several messages from the front of a line; until all of them are acknowledged nobody gets more of
that key. When one of them comes back, the later ones of its key come back too, even those already acknowledged: an ack
counts once everything before it is acknowledged.

Source: https://docs.cloud.google.com/pubsub/docs/ordering
"""

from collections import deque
from dataclasses import dataclass, field

WAITING_LIMIT = 10_000
"""Messages that may wait behind their keys in memory; from there on the backlog is not read further."""


class Pending:
    """A message that was read from the backlog and is not acknowledged: out with a client, or to be delivered again."""

    __slots__ = ("acked", "attempt", "batch", "deadline", "held", "id", "key", "lease", "stream")

    def __init__(self, message_id: int, batch: int, key: str = "") -> None:
        self.id = message_id
        self.batch = batch  # first id of its batch: where its bytes are found
        self.key = key  # "" where the subscription does not order
        self.lease = ""  # what its ack id starts with; "" while no client has it
        self.deadline = 0.0  # monotonic seconds: when the lease ends
        self.attempt = 0  # deliveries so far
        self.acked = False  # acknowledged, but not yet all before it in line
        self.held = False  # in no queue on purpose: it waits for its back-off, or is on its way to the dead letters
        self.stream: Flow | None = None

    def free(self) -> None:
        """End its lease."""
        self.lease = ""
        if self.stream is not None:
            self.stream.gave_back(self.id)
            self.stream = None


@dataclass
class Flow:
    """What one StreamingPull has out, and may have out; 0 or less: no limit."""

    max_messages: int = 0
    max_bytes: int = 0
    messages: int = 0
    bytes: int = 0
    sizes: dict[int, int] = field(default_factory=dict)

    def room(self) -> tuple[int, int]:
        """Messages and bytes that may be sent now; none where either is used up."""
        messages = self.max_messages - self.messages if self.max_messages > 0 else 1_000
        size = self.max_bytes - self.bytes if self.max_bytes > 0 else 1 << 40
        return (messages, size) if messages > 0 and size > 0 else (0, 0)

    def took(self, message_id: int, size: int) -> None:
        """Count a message that goes out."""
        self.sizes[message_id] = size
        self.messages += 1
        self.bytes += size

    def gave_back(self, message_id: int) -> None:
        """Count a message that was acknowledged, refused or has expired."""
        size = self.sizes.pop(message_id, None)
        if size is not None:
            self.messages -= 1
            self.bytes -= size


@dataclass
class _Line:
    messages: deque[Pending] = field(default_factory=deque)
    taken: int = 0  # the first so many are out with a client (or acknowledged behind one that is)
    lease: str = ""  # whose they are


class Lines:
    """The lines of one subscription, by key."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self.waiting = 0

    def join(self, pending: Pending) -> None:
        """Add a message that was just read from the backlog to the end of its line."""
        self._lines.setdefault(pending.key, _Line()).messages.append(pending)
        self.waiting += 1

    def may_go(self, pending: Pending, lease: str) -> bool:
        """Whether this message may leave with this delivery: it is next, and no other delivery holds its key."""
        line = self._lines[pending.key]
        free = line.taken == 0 or line.lease == lease
        return free and line.taken < len(line.messages) and line.messages[line.taken] is pending

    def go(self, pending: Pending, lease: str) -> Pending | None:
        """Take the message, and return the one behind it, which the same delivery may take too."""
        line = self._lines[pending.key]
        line.taken += 1
        line.lease = lease
        self.waiting -= 1
        return line.messages[line.taken] if line.taken < len(line.messages) else None

    def ack(self, pending: Pending) -> tuple[list[Pending], Pending | None]:
        """Acknowledge one; return those whose ack counts now, and the next of the key where the key is free again."""
        line = self._lines[pending.key]
        pending.acked = True
        counted = []
        while line.taken and line.messages[0].acked:
            counted.append(line.messages.popleft())
            line.taken -= 1
        if not line.messages:
            del self._lines[pending.key]
            return counted, None
        return counted, line.messages[0] if line.taken == 0 else None

    def back(self, pending: Pending) -> tuple[list[Pending], bool]:
        """Bring one back with all behind it that are out; return the later ones, and whether the key is free again."""
        line = self._lines[pending.key]
        place = next(at for at, one in enumerate(line.messages) if one is pending)
        later = [line.messages[at] for at in range(place + 1, line.taken)]
        self.waiting += line.taken - place
        line.taken = place
        for one in later:
            one.acked = False
        pending.acked = False
        return later, place == 0

    def first(self, key: str) -> Pending | None:
        """The message at the front of a line."""
        line = self._lines.get(key)
        return line.messages[0] if line is not None and line.messages else None

    def leave(self, pending: Pending) -> Pending | None:
        """Take out a message that is not to be delivered any more; return the new front of a free key."""
        line = self._lines[pending.key]
        place = next(at for at, one in enumerate(line.messages) if one is pending)
        del line.messages[place]
        if place < line.taken:
            line.taken -= 1
        else:
            self.waiting -= 1
        if not line.messages:
            del self._lines[pending.key]
            return None
        return line.messages[0] if line.taken == 0 and place == 0 else None
