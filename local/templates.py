"""Templates: the shop's events serialised once; afterwards only ids and times are new.

For benchmarks: the publisher must not be what limits them, nor take the cores from what is measured.
"""

import itertools
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from google.pubsub_v1.types import PublishRequest

from millrace.local.send import Request
from millrace.local.shop import Habits, Shop
from millrace.local.shoppers import iso
from millrace.local.wire import read_body
from millrace.schemas import envelope

_NOTHING_WRONG = Habits(duplicates=0, broken=0, late=0, delayed=0, slow=0, shuffled=0)
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_TAIL = 12  # hex digits of a UUID that are a counter here
_STAMP = len("2026-01-01T00:00:00.000Z")
_AGES_MS = np.arange(0, 2_000, 50)  # how long before its request an event occurred; few, so that stamps are shared
# Markers: as long as what takes their place, and nothing else looks like them.
_TAIL_MARK, _OCCURRED_MARK, _SENT_MARK, RECEIVED_MARK = (
    b"\x7fid........\x7f",
    *(b"\x7f%s%s\x7f" % (name, b"." * (_STAMP - 2 - len(name))) for name in (b"occurred", b"sent", b"received")),
)


class Template:
    """Serialised events whose ids and times are written anew each time; the bytes stay as long as they are."""

    def __init__(self, serialised: bytes, rng: np.random.Generator) -> None:
        """Find the marks of `marked_events` (and RECEIVED_MARK) in bytes that hold them in whatever format."""
        self._buffer = np.frombuffer(bytearray(serialised), np.uint8)
        self._tails = _places(serialised, _TAIL_MARK)
        self._occurred = _places(serialised, _OCCURRED_MARK)
        self._ages = rng.integers(0, len(_AGES_MS), len(self._occurred))
        self._stamps = _places(serialised, _SENT_MARK), _places(serialised, RECEIVED_MARK)

    def filled(self, first: int, now_ms: int) -> bytes:
        """Return the bytes with ids counted from `first`, of events that occurred in the 2 s up to `now_ms`."""
        numbers = np.arange(first, first + len(self._tails), dtype=np.int64)
        digits = numbers[:, None] >> np.arange(4 * (_TAIL - 1), -1, -4, dtype=np.int64) & 15
        self._buffer[self._tails] = _HEX[digits]
        sent_ms = now_ms - 30  # what the network took
        ages = np.frombuffer("".join(iso(sent_ms - int(age)) for age in _AGES_MS).encode(), np.uint8)
        self._buffer[self._occurred] = ages.reshape(-1, _STAMP)[self._ages]
        for places, ms in zip(self._stamps, (sent_ms, now_ms), strict=True):
            self._buffer[places] = np.frombuffer(iso(ms).encode(), np.uint8)
        return self._buffer.tobytes()


def marked_events(seed: int, users: int) -> Iterator[bytes]:
    """Yield events of a shop where nothing goes wrong, each as JSON with marks for a `Template`."""
    shop = Shop(seed, users, habits=_NOTHING_WRONG)
    for sent in shop:
        for event in read_body(sent.body, sent.attributes):
            yield _marked(event)


class PreparedRequests:
    """Endless publish requests of one size, of sane events without duplicates, each event new by id and time."""

    def __init__(self, topic: str, events_a_message: int, messages: int, users: int = 2_000, seed: int = 0) -> None:
        """Serialise four requests' worth of events (some 0.1 s for every 3,000).

        Args:
            topic: `projects/P/topics/T`.
            events_a_message: 1 makes single events, more a {"batch": [...]}.
            messages: a request; Pub/Sub takes at most 1,000, and 10 MB.
            users: of the shop.
            seed: of the shop; ids are new in every run nevertheless.

        Raises:
            ValueError: no events or messages, or more messages than Pub/Sub takes.
        """
        if events_a_message <= 0 or not 0 < messages <= 1_000:
            raise ValueError(f"need 1 event and 1 to 1,000 messages, got {events_a_message} in each of {messages}")
        self.events = events_a_message * messages
        """Of one request."""
        self._messages = messages
        rng = np.random.default_rng(seed)
        events = marked_events(seed, users)
        serialised = [_request(topic, events, events_a_message, messages) for _ in range(4)]
        self._templates = [Template(request, rng) for request in serialised]
        self._made = 0

    def take(self, now_s: float) -> Request:
        """Return the next request, of events that occurred up to `now_s`, seconds since the epoch."""
        template = self._templates[(self._made // self.events) % len(self._templates)]
        payload = template.filled(self._made, int(now_s * 1_000))
        self._made += self.events
        return Request(payload, self._messages, self.events)


def _request(topic: str, events: Iterator[bytes], events_a_message: int, messages: int) -> bytes:
    request = PublishRequest.pb(PublishRequest(topic=topic))
    for _ in range(messages):
        taken = list(itertools.islice(events, events_a_message))
        body = taken[0] if events_a_message == 1 else b'{"batch":[' + b",".join(taken) + b"]}"
        attributes = {envelope.SOURCE_ID: "bench", envelope.RECEIVED_AT: RECEIVED_MARK.decode()}
        request.messages.add(data=body, attributes=attributes)
    serialised: bytes = request.SerializeToString()
    return serialised


def _marked(event: dict[str, Any]) -> bytes:
    head = str(uuid.uuid4())[:-_TAIL]  # new in each run: a seed must not give a second run the ids of the first
    original = "originalTimestamp" if "originalTimestamp" in event else "timestamp"
    text = msgspec.json.encode({**event, "messageId": f"{head}<id>", original: "<occurred>", "sentAt": "<sent>"})
    marks = ((b"<id>", _TAIL_MARK), (b"<occurred>", _OCCURRED_MARK), (b"<sent>", _SENT_MARK))
    for name, mark in marks:  # JSON would escape the marks themselves
        text = text.replace(name, mark)
    return text


def _places(serialised: bytes, mark: bytes) -> npt.NDArray[np.int64]:
    """Return where a mark's bytes stand, one row for each of its occurrences."""
    starts, at = [], serialised.find(mark)
    while at >= 0:
        starts.append(at)
        at = serialised.find(mark, at + len(mark))
    return np.array(starts, np.int64)[:, None] + np.arange(len(mark))
