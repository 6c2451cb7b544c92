"""For tests of delivery: a Pub/Sub and a spool in memory that do as they are told, and the parts around them."""

import asyncio
import contextlib
import copy
import dataclasses
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from google.pubsub_v1 import types

from millrace.collector.deliver import Deliverer
from millrace.collector.delivery import DeliverySettings
from millrace.collector.message import Message
from millrace.collector.publish import Failure, PublishFailed

_PublishRequest = types.PublishRequest.meta.pb


def message(name: str, body_bytes: int = 0) -> Message:
    """A message that is known by its name, in a body of at least `body_bytes`."""
    return Message(name.encode().ljust(body_bytes, b"."), {"request_id": name})


def names_of(parts: Sequence[bytes]) -> list[str]:
    """The names of encoded messages."""
    asked = _PublishRequest.FromString(b"".join(parts))
    return [one.attributes["request_id"] for one in asked.messages]


class Request(NamedTuple):
    """What a MemoryPubSub was asked, and when."""

    at_s: float
    names: list[str]


@dataclasses.dataclass
class MemoryPubSub:
    """A publisher that records all requests; how it answers may be set while it runs."""

    takes_s: float = 0.0
    """Until it answers, in either way; `math.inf`: never."""
    fails: Failure | None = None
    stores_failed: bool = False
    """Whether what it fails is stored all the same."""
    unfit: frozenset[str] = frozenset()
    """Messages that it calls unfit, and every request with them."""
    requests: list[Request] = dataclasses.field(default_factory=list)
    stored: list[str] = dataclasses.field(default_factory=list)
    """Names, in the order in which they were stored."""

    async def publish(self, parts: Sequence[bytes], timeout_s: float) -> list[str]:
        loop = asyncio.get_running_loop()
        names = names_of(parts)
        self.requests.append(Request(loop.time(), names))
        fails, stores = self.fails, self.fails is None or self.stores_failed
        if self.unfit & set(names):
            fails, stores = Failure.UNFIT, False
        if self.takes_s > timeout_s:
            await asyncio.sleep(timeout_s)
            if self.stores_failed:
                self.stored += names
            raise PublishFailed(Failure.PASSING, "no answer")
        await asyncio.sleep(self.takes_s)
        if stores:
            self.stored += names
        if fails is not None:
            raise PublishFailed(fails, f"told to fail: {fails.value}")
        return [f"{len(self.requests)}-{place}" for place in range(len(names))]

    async def close(self) -> None:
        self.fails = Failure.PASSING


class MemoryStats(NamedTuple):
    """What delivery asks of a spool's statistics."""

    messages: int
    bytes: int


@dataclasses.dataclass
class MemorySpool:
    """A spool whose disk does as it is told."""

    takes_s: float = 0.0
    """Until an append is on disk."""
    writes_at_once: bool = False
    """Whether an append that takes its time cannot be cancelled: the disk has it already."""
    refuses: Exception | None = None
    """What appends end with."""
    broken: Exception | None = None
    """What reading and settling raise."""
    held: dict[int, Message] = dataclasses.field(default_factory=dict)
    appended: list[str] = dataclasses.field(default_factory=list)

    def append(self, message: Message) -> Future[None]:
        future: Future[None] = Future()
        if self.writes_at_once:
            future.set_running_or_notify_cancel()
        if self.takes_s:
            asyncio.get_running_loop().call_later(self.takes_s, self._end, message, future)
        else:
            self._end(message, future)
        return future

    def _end(self, message: Message, future: Future[None]) -> None:
        if not future.running() and not future.set_running_or_notify_cancel():
            return
        if self.refuses is not None:
            future.set_exception(copy.copy(self.refuses))
            return
        self.held[len(self.appended)] = message
        self.appended.append(message.attributes["request_id"])
        future.set_result(None)

    def oldest(self, limit_bytes: int) -> list[tuple[int, Message]]:
        self._may_be_broken()
        found: list[tuple[int, Message]] = []
        size = 0
        for place, message in self.held.items():
            size += len(message.body)
            if found and size > limit_bytes:
                break
            found.append((place, message))
        return found

    def settle(self, places: Sequence[Any]) -> None:
        self._may_be_broken()
        for place in places:
            del self.held[place]

    def stats(self) -> MemoryStats:
        return MemoryStats(len(self.held), sum(len(message.body) for message in self.held.values()))

    def names(self) -> list[str]:
        """What is in it, oldest first."""
        return [message.attributes["request_id"] for message in self.held.values()]

    def _may_be_broken(self) -> None:
        if self.broken is not None:
            raise copy.copy(self.broken)  # or the tracebacks of all times would gather on it


@dataclasses.dataclass
class Delivery:
    """A Deliverer between a Pub/Sub and a spool in memory."""

    pubsub: MemoryPubSub
    spool: MemorySpool
    deliverer: Deliverer
    aside: list[tuple[str, str]]
    """Name and reason of each message that was set aside."""

    async def send(self, *names: str, body_bytes: int = 0) -> list[str]:
        """Deliver each in a request of its own, all at once; return how each ended: published, spooled, or why not."""
        ends = await asyncio.gather(
            *(self.deliverer.deliver([message(name, body_bytes)]) for name in names), return_exceptions=True
        )
        return [end_of(end) for end in ends]


def end_of(end: Any) -> str:
    """How a delivery ended, in a word; unforeseen errors are raised."""
    if isinstance(end, Exception):
        reason = getattr(end, "reason", None)
        if reason is None:
            raise end
        return str(reason.value)
    return str(end.how.value)


@contextlib.asynccontextmanager
async def delivery(
    pubsub: MemoryPubSub | None = None, spool: MemorySpool | None = None, **settings: Any
) -> AsyncIterator[Delivery]:
    """Start a Deliverer on a loop in virtual time; drained at the end."""
    pubsub, spool = pubsub or MemoryPubSub(), spool or MemorySpool()
    aside: list[tuple[str, str]] = []

    def set_aside(message: Message, why: str) -> None:
        aside.append((message.attributes["request_id"], why))

    clock = asyncio.get_running_loop().time
    deliverer = Deliverer(pubsub, spool, DeliverySettings(**settings), set_aside=set_aside, clock=clock)
    deliverer.start()
    try:
        yield Delivery(pubsub, spool, deliverer, aside)
    finally:
        await deliverer.drain(1.0)
