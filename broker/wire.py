"""Messages as bytes: encoded once when published, spliced into every response, never parsed in between.

A protobuf message may be extended by appending fields, so the id and the publish time that the broker gives go behind
what the client sent. A batch is what one Publish brought: the end offset of each message (uint32), then the messages.
"""

import array
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from millrace.broker.protocol import timestamp

Message = tuple[int, memoryview, int]
"""What is delivered: id, serialized PubsubMessage, delivery attempt (0: the subscription has no dead-letter policy)."""

_WORD = 4  # bytes of one end offset


def varint(number: int) -> bytes:
    """Encode a number as protobuf does.

    >>> varint(300).hex()
    'ac02'
    """
    if number < 0x80:
        return _SMALL[number]
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_SMALL = [bytes([number]) for number in range(0x80)]


class Batch:
    """The messages of one Publish: ids first .. first + count - 1, published at the same microsecond."""

    __slots__ = ("_ends", "_view", "count", "first", "published_us", "stored")

    def __init__(self, first: int, count: int, published_us: int, stored: bytes) -> None:
        self.first = first
        self.count = count
        self.published_us = published_us
        self.stored = stored
        self._view = memoryview(stored)
        ends = array.array("I")
        ends.frombytes(self._view[: count * _WORD])
        if sys.byteorder == "big":
            ends.byteswap()
        self._ends = ends

    @property
    def end(self) -> int:
        """The id behind the last message's."""
        return self.first + self.count

    def message(self, message_id: int) -> memoryview:
        """Return the serialized PubsubMessage with this id."""
        index = message_id - self.first
        head = self.count * _WORD
        return self._view[head + (self._ends[index - 1] if index else 0) : head + self._ends[index]]


def encode_batch(messages: Iterable[Any], first: int, published_us: int) -> Batch:
    """Store messages under rising ids; what a client wrote into the fields that the server owns is replaced."""
    stamp = timestamp(published_us).SerializeToString()
    stamp = b"\x22" + varint(len(stamp)) + stamp  # field 4, publish_time
    ends = array.array("I")
    parts: list[bytes] = [b""]
    end = 0
    message_id = first
    for message in messages:
        if message.message_id:
            message.ClearField("message_id")
        if message.HasField("publish_time"):
            message.ClearField("publish_time")
        body = message.SerializeToString()
        digits = b"%d" % message_id
        tail = b"\x1a%c%b%b" % (len(digits), digits, stamp)  # field 3, message_id
        parts += (body, tail)
        end += len(body) + len(tail)
        ends.append(end)
        message_id += 1
    if sys.byteorder == "big":
        ends.byteswap()
    parts[0] = ends.tobytes()
    return Batch(first, message_id - first, published_us, b"".join(parts))


def received(lease: str, messages: Sequence[Message]) -> bytes:
    """Encode the `received_messages` of a PullResponse (and StreamingPullResponse: the same field).

    Args:
        lease: what the delivery's ack ids start with.
        messages: id, serialized PubsubMessage and delivery attempt (0: no dead-letter policy) of each.
    """
    parts: list[bytes | memoryview] = []
    for message_id, message, attempt in messages:
        ack_id = b"%b%d" % (lease.encode(), message_id)
        head = b"\x0a%c%b\x12%b" % (len(ack_id), ack_id, varint(len(message)))
        tail = b"\x18%b" % varint(attempt) if attempt else b""
        parts += (b"\x0a" + varint(len(head) + len(message) + len(tail)) + head, message, tail)
    return b"".join(parts)
