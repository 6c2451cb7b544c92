"""The sink `pubsub`: one Pub/Sub message an event, over raw, asynchronous gRPC, as collector/publish.py has it.

A Publish request is taken whole or not at all, so a request that fails has no events in it to look for; only one that
is against the rules is halved until the event is found that is.
"""

import asyncio
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
import pyarrow as pa
import xxhash
from google.auth.exceptions import DefaultCredentialsError
from google.pubsub_v1 import types

from millrace.collector.publish import MAX_BYTES, MAX_MESSAGES, open_channel
from millrace.sinks.bodies import Bodies, check_format, check_names
from millrace.sinks.column_values import column_texts
from millrace.sinks.sink import (
    DELIVERED,
    CannotOpenSinkError,
    Delivery,
    Fault,
    Memory,
    Outcome,
    Rejected,
    Retry,
    Sink,
    SinkDownError,
)

MAX_TEXT_BYTES = 1_024
"""Of an attribute's value, and of an ordering key: Pub/Sub's limit (https://cloud.google.com/pubsub/quotas)."""
MAX_ATTRIBUTES = 100 - 2
MAX_REQUESTS = 64
"""Under way at once: with ordering keys a delivery is hundreds, and gRPC cancels calls where they are thousands."""

_METHOD = "/google.pubsub.v1.Publisher/Publish"
_PublishRequest = types.PublishRequest.meta.pb
_TOPIC = re.compile(r"projects/[^/\s]+/topics/[A-Za-z][A-Za-z0-9_.~+%-]{2,254}")
# Clients take attributes as keyword arguments beside these, and would take the one for the other.
_TAKEN = frozenset({"message_id", "schema", "topic", "data", "message", "ordering_key", "retry", "timeout", "self"})
_ABSENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
_REFUSED = {
    grpc.StatusCode.NOT_FOUND: "the topic {topic} does not exist: create it, or correct its name",
    grpc.StatusCode.PERMISSION_DENIED: "may not publish to {topic}: give this account roles/pubsub.publisher on it",
    grpc.StatusCode.UNAUTHENTICATED: "Pub/Sub does not know this account: renew its credentials",
    grpc.StatusCode.FAILED_PRECONDITION: "the topic {topic} does not take messages now: look at its state and its key",
    grpc.StatusCode.UNIMPLEMENTED: "what answers for {topic} is no Pub/Sub: correct PUBSUB_EMULATOR_HOST",
}


class _Connection:
    """What an open sink has."""

    bodies: Bodies
    channel: grpc.aio.Channel | None = None
    call: Callable[..., Any]

    def __init__(self) -> None:
        self.closing: list[asyncio.Task[None]] = []
        self.slots = asyncio.Semaphore(MAX_REQUESTS)
        self.confirmed: set[int] = set()
        """Positions that are published, of deliveries that failed in another part: not to be sent again."""


@dataclasses.dataclass(frozen=True)
class PubSub(Sink):
    """Publishes each event as a message, with its id in the attribute `message_id`.

    Attributes:
        topic: projects/P/topics/T; a route's target is another one, `T` alone one of the same project.
        format: json, or avro: single-object encoding, with the schema's fingerprint in the attribute `schema` too.
        schemas: for avro: a folder or gs://bucket/folder that gets each schema as `<fingerprint>.avsc`.
        ordering: give messages an ordering key: the user's. A subscription with ordering then hands them over in each
            user's order. A request holds one ordering key, so this costs about a request a user and delivery.
        ordering_keys: share so many ordering keys among all users instead of one each: fewer requests; 0: one each.
        attributes: columns that are attributes as well, to filter by; an event without a value goes without it.
        patience_s: without an answer for so long, Pub/Sub counts as away.
    """

    topic: str
    format: str = "json"
    schemas: str = ""
    ordering: bool = False
    ordering_keys: int = 0
    attributes: Sequence[str] = ()
    patience_s: float = 20.0

    max_events = MAX_MESSAGES
    keeps_order = True
    _connection: _Connection = dataclasses.field(default_factory=_Connection, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise ValueError for what is wrong with the settings."""
        check_format(self.format, self.schemas)
        if not _TOPIC.fullmatch(self.topic):
            raise ValueError(f"a topic is projects/PROJECT/topics/TOPIC, got {self.topic!r}")
        if self.ordering_keys < 0 or (self.ordering_keys and not self.ordering):
            raise ValueError("ordering_keys is a number of keys, and goes with ordering: true")
        if self.patience_s <= 0:
            raise ValueError(f"patience_s must be positive, got {self.patience_s}")
        if len(self.attributes) > MAX_ATTRIBUTES:
            raise ValueError(f"a message has {MAX_ATTRIBUTES} attributes at most, got {len(self.attributes)}")
        for name in self.attributes:
            if name in _TAKEN or name.lower().startswith("goog") or not name or len(name.encode()) > 256:
                raise ValueError(f"{name!r} cannot be an attribute's name: give the column another in the route")

    def check_columns(self, columns: Mapping[str, str]) -> None:
        """Refuse a route without the columns that are to be attributes, or whose columns Avro cannot name."""
        check_names(self.format, columns)
        if lacks := [name for name in self.attributes if name not in columns]:
            raise ValueError(f"the sink's attributes are columns, which the route leaves out: add {', '.join(lacks)}")

    def check_target(self, target: str) -> None:
        """Refuse what is no topic."""
        if not _TOPIC.fullmatch(self._topic(target)):
            raise ValueError(f"a topic is projects/PROJECT/topics/TOPIC, or TOPIC alone, got {target!r}")

    async def open(self, memory: Memory) -> None:  # noqa: ARG002  it needs none
        """Connect, lazily. Raises CannotOpenSinkError where there are no credentials."""
        connection = self._connection
        if connection.channel is not None:  # what is under way on it, of other deliveries, has its time to end
            connection.closing.append(asyncio.create_task(connection.channel.close(self.patience_s)))
            connection.channel = None
        connection.closing = [task for task in connection.closing if not task.done()]
        connection.bodies = Bodies(self.format, self.schemas)
        try:
            connection.channel = open_channel()
        except DefaultCredentialsError as error:
            raise CannotOpenSinkError(f"no credentials for Pub/Sub: {error}") from error
        connection.call = connection.channel.unary_unary(_METHOD)

    async def close(self) -> None:
        """Disconnect; what is under way fails."""
        for task in self._connection.closing:
            task.cancel()
        await asyncio.gather(*self._connection.closing, return_exceptions=True)
        self._connection.closing.clear()
        channel, self._connection.channel = self._connection.channel, None
        if channel is not None:
            await channel.close()

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        """Publish: with ordering keys a request for each of them, all at once; else one request.

        Raises:
            SinkDownError: Pub/Sub is away, or does not take messages for this topic.
        """
        topic = self._topic_of(delivery)
        bodies, schema = await self._connection.bodies.of(delivery)
        confirmed = self._connection.confirmed
        outcomes: list[Outcome] = [DELIVERED] * len(delivery)
        lines: dict[str, list[tuple[int, bytes]]] = {}
        for row, part in enumerate(self._parts(delivery, bodies, schema)):
            if isinstance(part, Rejected):
                outcomes[row] = part
            elif delivery.positions[row] in confirmed:
                confirmed.discard(delivery.positions[row])
            else:
                lines.setdefault(self._key_of(delivery.user_keys[row]), []).append((row, part))
        found = await asyncio.gather(
            *(self._publish_all(topic, line, outcomes) for line in lines.values()), return_exceptions=True
        )
        failed = next((each for each in found if isinstance(each, BaseException)), None)
        if failed is None:
            return outcomes
        for line, error in zip(lines.values(), found, strict=True):
            if error is None:
                confirmed.update(delivery.positions[row] for row, _ in line if outcomes[row] is DELIVERED)
        raise failed

    def _topic_of(self, delivery: Delivery) -> str:
        topic = self._topic(delivery.target or self.topic)
        if not _TOPIC.fullmatch(topic):
            raise SinkDownError(f"route {delivery.route}: its target {delivery.target!r} is no topic: correct it")
        return topic

    def _topic(self, name: str) -> str:
        return name if "/" in name else f"{self.topic.rpartition('/')[0]}/{name}"

    def _key_of(self, user_key: str) -> str:
        if not self.ordering:
            return ""
        if self.ordering_keys:
            return str(xxhash.xxh3_64_intdigest(user_key.encode()) % self.ordering_keys)
        return user_key

    def _parts(self, delivery: Delivery, bodies: Sequence[bytes], schema: str) -> Iterator[bytes | Rejected]:
        """Yield each row's message, as its part of a PublishRequest: parts are joined to one."""
        common = {"schema": schema} if schema else {}
        columns = [_texts(delivery, name) for name in self.attributes]
        for row, (body, message_id, user_key) in enumerate(
            zip(bodies, delivery.message_ids, delivery.user_keys, strict=True)
        ):
            attributes = {"message_id": message_id, **common}
            for name, column in zip(self.attributes, columns, strict=True):
                if (text := column[row]) is not None:
                    attributes[name] = text
            key = self._key_of(user_key)
            large = _too_large(attributes, key)
            request = _PublishRequest()
            request.messages.add(data=body, attributes=attributes, ordering_key=key)
            part: bytes = request.SerializeToString()
            if len(part) > MAX_BYTES:
                large = f"the event has {len(part):,} bytes as a message, Pub/Sub takes {MAX_BYTES:,}"
            yield Rejected(Fault.REFUSED, large) if large else part

    async def _publish_all(self, topic: str, line: Sequence[tuple[int, bytes]], outcomes: list[Outcome]) -> None:
        """Publish messages in order, in as few requests as they fit in; after one that failed the rest is not sent."""
        requests = _requests(line)
        for request in requests:
            failure = await self._publish(topic, request, outcomes)
            if failure is not None:
                for row, _ in itertools.chain.from_iterable(requests):
                    outcomes[row] = failure
                return

    async def _publish(self, topic: str, parts: Sequence[tuple[int, bytes]], outcomes: list[Outcome]) -> Retry | None:
        """Publish messages in one request, and tell their outcomes; halve a request that is against the rules."""
        head = _PublishRequest(topic=topic).SerializeToString()
        try:
            # Not gRPC's own deadline: that is reckoned from the wall clock, which may be set meanwhile.
            async with self._connection.slots, asyncio.timeout(self.patience_s):
                await self._connection.call(
                    b"".join((head, *(part for _, part in parts))),
                    metadata=(("x-goog-request-params", f"topic={topic}"),),
                )
        except TimeoutError:
            raise SinkDownError(f"Pub/Sub has not answered within {self.patience_s:g} s") from None
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise SinkDownError("the connection to Pub/Sub was closed") from error  # that is how gRPC says so
        except grpc.aio.UsageError as error:
            raise SinkDownError("the connection to Pub/Sub was closed") from error
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if code in _ABSENT:
                raise SinkDownError(f"Pub/Sub cannot be reached: {code.name}: {error.details()}") from error
            if code in _REFUSED:
                raise SinkDownError(f"{_REFUSED[code].format(topic=topic)} ({code.name})") from error
            if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE):
                return await self._halve(topic, parts, outcomes)
            fault = Fault.THROTTLED if code == grpc.StatusCode.RESOURCE_EXHAUSTED else Fault.FAILED
            failure = Retry(fault, f"Pub/Sub answered {code.name}")
            for row, _ in parts:
                outcomes[row] = failure
            return failure
        return None

    async def _halve(self, topic: str, parts: Sequence[tuple[int, bytes]], outcomes: list[Outcome]) -> Retry | None:
        if len(parts) == 1:
            row, part = parts[0]
            outcomes[row] = Rejected(Fault.REJECTED, f"Pub/Sub calls this message of {len(part):,} bytes invalid")
            return None
        middle = len(parts) // 2
        failure = await self._publish(topic, parts[:middle], outcomes)
        if failure is None:
            return await self._publish(topic, parts[middle:], outcomes)
        for row, _ in parts[middle:]:
            outcomes[row] = failure
        return failure


def _requests(parts: Sequence[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    request: list[tuple[int, bytes]] = []
    size = 0
    for row, part in parts:
        if request and (len(request) == MAX_MESSAGES or size + len(part) > MAX_BYTES):
            yield request
            request, size = [], 0
        request.append((row, part))
        size += len(part)
    if request:
        yield request


def _texts(delivery: Delivery, name: str) -> Sequence[str | None]:
    where = delivery.rows.schema.get_field_index(name)
    if where < 0:
        raise SinkDownError(f"route {delivery.route} gives no column {name!r}, which is to be an attribute: add it")
    try:
        return column_texts(delivery.rows.column(where))
    except pa.ArrowNotImplementedError as error:
        raise SinkDownError(f"route {delivery.route}: the column {name!r} cannot be an attribute: {error}") from error


def _too_large(attributes: dict[str, str], key: str) -> str:
    """Say which text is longer than Pub/Sub takes; empty: none. A character has four bytes at most."""
    for name, text in (*attributes.items(), ("the ordering key", key)):
        if len(text) * 4 > MAX_TEXT_BYTES and len(text.encode()) > MAX_TEXT_BYTES:
            return f"{name} has more than {MAX_TEXT_BYTES:,} bytes, which Pub/Sub does not take for an attribute or key"
    return ""
