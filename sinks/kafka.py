"""The sink `kafka`: one record an event, keyed by its user, by librdkafka's idempotent producer.

The order of a user within a partition holds through failures because nothing is ever let past: the producer is
gap-less, so one record that a broker refuses for good ends it before a later one is written, and records do not expire
on their own (docs/sinks/kafka.md). Until a partition knows the producer that is not enough, and a user has one record
under way there (kafka_under_way.py). What a delivery handed over and then gave up waiting for stays in the producer,
and the same event that comes again joins it: no second copy, and no place lost.
"""

import asyncio
import dataclasses
import re
from collections.abc import Mapping, Sequence

from confluent_kafka import KafkaError, KafkaException

from millrace.config.secrets import SecretError, SecretReference
from millrace.sinks.bodies import Bodies, check_format, check_names
from millrace.sinks.kafka_errors import ABOUT_EVENTS, LOST, down
from millrace.sinks.kafka_producer import Producer, Record
from millrace.sinks.kafka_under_way import Batch, UnderWay
from millrace.sinks.sink import (
    CannotOpenSinkError,
    Delivery,
    Fault,
    Memory,
    Outcome,
    Rejected,
    Sink,
    SinkDownError,
)

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_SECRETS = frozenset(
    {
        "sasl.password",
        "sasl.oauthbearer.client.secret",
        "ssl.key.password",
        "ssl.key.pem",
        "ssl.keystore.password",
        "sasl.oauthbearer.config",
    }
)
_OURS = frozenset(
    {
        *("bootstrap.servers", "metadata.broker.list", "enable.idempotence", "acks", "request.required.acks"),
        *("enable.gapless.guarantee", "message.timeout.ms", "delivery.timeout.ms", "transactional.id"),
        *("delivery.report.only.error", "log.queue", "logger", "opaque"),
    }
)
_MOST_RESTARTS = 5
_ALONE = {"linger.ms": 0, "batch.num.messages": 1}


class _Connection:
    """What an open sink has."""

    bodies: Bodies

    def __init__(self) -> None:
        self.settings: dict[str, object] = {}
        self.producer: Producer | None = None
        self.careful: Producer | None = None
        self.under_way = UnderWay()
        self.topics: dict[str, int] = {}
        """How many partitions each has; 0 until that is known."""


@dataclasses.dataclass(frozen=True)
class Kafka(Sink):
    """Writes each event as a record: the key is its user's, the header `message_id` its id.

    Attributes:
        brokers: host:port, some of them, with commas between.
        topic: of the records; a route's target is another one.
        format: json, or avro: single-object encoding, with the schema's fingerprint in the header `schema` too.
        schemas: for avro: a folder or gs://bucket/folder that gets each schema as `<fingerprint>.avsc`.
        config: more settings of librdkafka, by their names there; passwords and keys by reference (`env:NAME` ...).
        patience_s: where not everything is written after so long, Kafka counts as away.
    """

    brokers: str
    topic: str
    format: str = "json"
    schemas: str = ""
    config: Mapping[str, str | int | float | bool] = dataclasses.field(default_factory=dict)
    patience_s: float = 20.0

    max_events = 1_000
    keeps_order = True

    _connection: _Connection = dataclasses.field(default_factory=_Connection, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise ValueError for what is wrong with the settings."""
        check_format(self.format, self.schemas)
        if not self.brokers.strip():
            raise ValueError("brokers has to name one broker at least, as host:port")
        self.check_target(self.topic)
        if self.patience_s <= 0:
            raise ValueError(f"patience_s must be positive, got {self.patience_s}")
        for name, value in self.config.items():
            if name in _OURS or name.endswith("_cb"):
                raise ValueError(f"config: {name} is set by the sink, since its promises hang on it: leave it out")
            if name in _SECRETS:
                try:
                    SecretReference.parse(str(value))
                except ValueError as error:
                    raise ValueError(f"config: {name} {error}") from error

    def check_columns(self, columns: Mapping[str, str]) -> None:
        """Refuse a route whose columns Avro cannot name."""
        check_names(self.format, columns)

    def check_target(self, target: str) -> None:
        """Refuse what is no name of a topic."""
        if not _TOPIC.fullmatch(target):
            raise ValueError(f"a topic has 1 to 249 letters, digits, dots, _ or -, got {target!r}")

    async def open(self, memory: Memory) -> None:  # noqa: ARG002  Kafka needs none
        """Connect, and ask for the topics.

        Raises:
            SinkDownError: no broker answers, or a topic is not there.
            CannotOpenSinkError: a setting that librdkafka does not take, a secret that is not there.
        """
        connection = self._connection
        connection.bodies = Bodies(self.format, self.schemas)
        connection.settings = self._settings()
        for topic in {self.topic, *connection.topics}:
            await self._look_up(topic)

    async def close(self) -> None:
        """Hand over what is buffered, for a moment, and disconnect."""
        connection = self._connection
        for producer in (connection.producer, connection.careful):
            if producer is not None:
                await producer.close()
        connection.producer = connection.careful = None
        connection.under_way.clear()

    async def _look_up(self, topic: str) -> None:
        """Learn how many partitions a topic has; raise as `open` does."""
        try:
            found = await asyncio.to_thread(self._producer().look_up, topic, min(self.patience_s, 10.0))
        except KafkaException as error:
            raise SinkDownError(f"Kafka at {self.brokers} does not answer: {error.args[0].str()}") from error
        if isinstance(found, KafkaError):
            raise down(topic, found)
        self._connection.topics[topic] = found

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        """Hand over records in order, and wait until the brokers have them.

        Raises:
            SinkDownError: not all of them within `patience_s`, or a topic takes none.
        """
        topic = delivery.target or self.topic
        if not _TOPIC.fullmatch(topic):
            raise SinkDownError(f"route {delivery.route}: its target {topic!r} is no topic: correct it")
        if not self._connection.topics.setdefault(topic, 0):
            await self._look_up(topic)
        bodies, schema = await self._connection.bodies.of(delivery)
        more: list[tuple[str, str | bytes | None]] = [("schema", schema.encode())] if schema else []
        records = [
            Record(topic, key.encode(), body, [("message_id", message_id.encode()), *more])
            for key, body, message_id in zip(delivery.user_keys, bodies, delivery.message_ids, strict=True)
        ]
        batch = Batch(topic, self._connection.topics[topic], records, delivery.positions)
        try:
            async with asyncio.timeout(self.patience_s):
                await self._deliver(batch)
        except TimeoutError:
            raise SinkDownError(f"Kafka at {self.brokers} has not taken all within {self.patience_s:g} s") from None
        return [batch.outcomes[row] for row in range(len(records))]

    async def _deliver(self, batch: Batch) -> None:
        """Fill in the outcome of every row: as one, and where a row may be unfit, one by one."""
        for _ in range(_MOST_RESTARTS):
            producer = self._producer()
            failed = await self._connection.under_way.send(producer, batch, batch.left())
            if not failed:
                return
            if any(error.code() in ABOUT_EVENTS for error in failed.values()):
                await self._deliver_one_by_one(batch)
                return
            for error in failed.values():
                if error.code() not in LOST:
                    raise down(batch.topic, error)
            producer.end()  # by another delivery's record: the same again, with a new one
        raise SinkDownError(f"Kafka at {self.brokers} made the producer give up {_MOST_RESTARTS} times")

    async def _deliver_one_by_one(self, batch: Batch) -> None:
        """Find the record that a broker refuses: it refuses all that came with it in a request."""
        connection = self._connection
        if connection.careful is None or connection.careful.is_ended:
            connection.careful = Producer(connection.settings | _ALONE, is_gapless=False)
        for row in batch.left():
            failed = await connection.under_way.send(connection.careful, batch, [row])
            for error in failed.values():
                if error.code() not in ABOUT_EVENTS:
                    raise down(batch.topic, error)
                batch.outcomes[row] = Rejected(Fault.REJECTED, f"Kafka refuses it for {batch.topic}: {error.str()}")

    def _producer(self) -> Producer:
        """Return the producer; a new one where the last was ended by an error."""
        connection = self._connection
        if connection.producer is None or connection.producer.is_ended:
            try:
                connection.producer = Producer(connection.settings, is_gapless=True)
            except KafkaException as error:
                raise CannotOpenSinkError(f"librdkafka does not take the settings: {error.args[0].str()}") from error
        return connection.producer

    def _settings(self) -> dict[str, object]:
        """Return the settings for librdkafka, secrets resolved; those that a person may change come first."""
        found: dict[str, object] = {
            "client.id": "millrace",
            "linger.ms": 5,
            "compression.type": "lz4",
            "partitioner": "murmur2_random",  # as Kafka's own clients have it: the same user, the same partition
            "queue.buffering.max.kbytes": 128 * 1024,
            "topic.metadata.refresh.interval.ms": 30_000,
            **self.config,
            "bootstrap.servers": self.brokers,
        }
        for name in _SECRETS & found.keys():
            try:
                found[name] = SecretReference.parse(str(found[name])).resolve().reveal().decode()
            except SecretError as error:
                raise CannotOpenSinkError(f"config: {name}: {error}") from error
        return found
