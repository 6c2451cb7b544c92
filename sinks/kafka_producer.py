"""A producer of librdkafka's on an event loop: records in order in, reports out.

Its own event loop polls it, without a thread: a report is a plain call, where a thread of its own would hand each over
and fight for the interpreter's lock. (confluent_kafka.aio, in 2.16, has no headers in its batches.)

Sequence numbers hold a producer to its order in a partition only from its first record there on: a broker that knows
nothing of a producer takes any request of it as the first, also where it has just refused the one before (KIP-360; from
Kafka 4.5 on not in a partition that never had a record). `Taken` tells where that is behind us.
"""

import asyncio
import logging
import time
from collections import defaultdict
from typing import Any, NamedTuple

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

_LOG = logging.getLogger(__name__)
_LIBRDKAFKA = logging.getLogger(f"{__name__}.librdkafka")
_LIBRDKAFKA.setLevel(logging.CRITICAL + 1)  # a line for each attempt to connect; SinkDownError says what matters
_BUSY_PAUSE_S = 0.002
_IDLE_PAUSE_S = 0.5
_FULL_PAUSE_S = 0.005
_CLOSE_S = 2.0
_FORGET_S = 600.0
"""What is known of brokers is good for so long, or twice that; they forget a producer that writes nothing for a day."""


class Record(NamedTuple):
    """What is written."""

    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, str | bytes | None]]


class Taken:
    """Which partitions of a topic have lately taken records of one producer."""

    def __init__(self) -> None:
        self.lately: set[int] = set()
        """Of reports to come: a partition that took a record."""
        self._before: set[int] = set()
        self._turn_at = time.monotonic() + _FORGET_S

    def is_by_all(self, partitions: int) -> bool:
        """Return whether each partition of the topic has, of so many, or more where more have been seen."""
        now = time.monotonic()
        if now >= self._turn_at:
            self._before = self.lately if now < self._turn_at + _FORGET_S else set()
            self.lately = set()
            self._turn_at = now + _FORGET_S
        known = self.lately | self._before
        return len(known) >= max(partitions, max(known, default=0) + 1)


class Sent:
    """A record that was handed over, to a producer."""

    __slots__ = ("_taken_by", "error", "is_known", "producer", "waiting")

    def __init__(self, producer: "Producer", taken_by: set[int]) -> None:
        """Make one for `produce`; the partition that takes the record is added to `taken_by`."""
        self.producer = producer
        self._taken_by = taken_by
        self.is_known = False
        self.error: KafkaError | None = None
        """None, once it is known: every replica that has to has it."""
        self.waiting: Waiting | None = None

    def report(self, error: KafkaError | None, message: Any) -> None:
        """Take librdkafka's report; once."""
        self.is_known = True
        self.error = error
        self.producer.has_reported = True
        if error is None:
            self._taken_by.add(message.partition())
        if self.waiting is not None:
            self.waiting.one_is_known()


class Waiting:
    """Waits for the reports of some records."""

    def __init__(self) -> None:
        self._left = 0
        self._done: asyncio.Future[None] | None = None

    def add(self, sent: Sent) -> None:
        """Wait for this one too."""
        if not sent.is_known:
            sent.waiting = self
            self._left += 1

    def one_is_known(self) -> None:
        """Count one report."""
        self._left -= 1
        if not self._left and self._done is not None and not self._done.done():
            self._done.set_result(None)

    async def all(self) -> None:
        """Return when all reports are there."""
        if self._left:
            self._done = asyncio.get_running_loop().create_future()
            await self._done


class Producer:
    """An idempotent producer. Records of one partition are written in the order of `produce`, each once.

    A gap-less one ends with the first record that a broker refuses for good: nothing after it is written, everything
    not written yet is reported as lost, and `is_ended` is true.
    """

    def __init__(self, settings: dict[str, object], *, is_gapless: bool) -> None:
        """Start it; it connects in the background. Raises KafkaException where a setting is none."""
        self._producer = confluent_kafka.Producer(
            {
                **settings,
                "enable.idempotence": True,  # and with it acks=all
                "enable.gapless.guarantee": is_gapless,
                "message.timeout.ms": 0,  # never: what expires leaves a hole, and the lane has its own deadline
                "logger": _LIBRDKAFKA,
            }
        )
        self.is_ended = False
        self.taken: defaultdict[str, Taken] = defaultdict(Taken)
        """By topic."""
        self.has_reported = False
        """A record, since this was last looked at."""
        self._is_closed = False
        self._work = asyncio.Event()
        self._polling = asyncio.create_task(self._poll())

    async def produce(self, record: Record, sent: Sent) -> None:
        """Hand over a record; wait while the producer's memory is full.

        Raises:
            KafkaException: it is not handed over.
        """
        while True:
            try:
                self._producer.produce(
                    record.topic, record.value, record.key, on_delivery=sent.report, headers=record.headers
                )
            except BufferError:
                await asyncio.sleep(_FULL_PAUSE_S)
            else:
                self._work.set()
                return

    def look_up(self, topic: str, timeout_s: float) -> int | KafkaError:
        """Ask a broker for a topic; return how many partitions it has, or what is wrong with it.

        Blocks. Raises KafkaException: no broker answers.
        """
        found = self._producer.list_topics(topic, timeout_s).topics[topic]
        wrong: KafkaError | None = found.error
        return len(found.partitions) if wrong is None else wrong

    def end(self) -> None:
        """Write nothing more: everything that is not written is reported as lost."""
        self.is_ended = True
        self._work.set()

    async def close(self) -> None:
        """Give what is buffered a moment to be written, then drop it."""
        end = asyncio.get_running_loop().time() + _CLOSE_S
        while len(self._producer) and not self.is_ended and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(_FULL_PAUSE_S)
        self._is_closed = True
        self._work.set()
        self._producer.purge(blocking=False)
        await self._polling
        await asyncio.to_thread(self._drop)

    def _drop(self) -> None:
        del self._producer  # stops librdkafka's threads, and waits for them

    async def _poll(self) -> None:
        """Take reports: every few milliseconds while any are due, until the producer is closed or ended and empty.

        What has waited too long for its broker is given back, for a new producer: the broker may come back without
        remembering this one.
        """
        heard_at = time.monotonic()
        while True:
            try:
                self._producer.poll(0)
                if self.has_reported or not len(self._producer):
                    self.has_reported = False
                    heard_at = time.monotonic()
                elif time.monotonic() > heard_at + _FORGET_S:
                    self.end()
            except KafkaException as error:
                if not self.is_ended:
                    _LOG.warning("the producer is replaced: %s", error.args[0].str())
                    self.end()
            if self.is_ended or self._is_closed:
                if not len(self._producer):
                    return
                self._producer.purge(blocking=False)  # what is in flight would never be reported else
            if len(self._producer):
                await asyncio.sleep(_BUSY_PAUSE_S)
            else:
                self._work.clear()
                try:
                    async with asyncio.timeout(_IDLE_PAUSE_S):
                        await self._work.wait()
                except TimeoutError:
                    pass
