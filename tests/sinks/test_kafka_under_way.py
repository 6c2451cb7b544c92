"""What the sink `kafka` hands over at once, and what waits until a partition knows the producer."""

import asyncio
import time
from collections import defaultdict
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from millrace.sinks.kafka_producer import Record, Sent, Taken
from millrace.sinks.kafka_under_way import Batch, UnderWay
from millrace.sinks.sink import DELIVERED, Fault, Rejected


class Report:
    """A message as librdkafka reports it."""

    def __init__(self, partition: int) -> None:
        self._partition = partition

    def partition(self) -> int:
        return self._partition


class HandedOver:
    """In a producer's place: keeps what it is handed, until the test reports it."""

    def __init__(self) -> None:
        self.taken: defaultdict[str, Taken] = defaultdict(Taken)
        self.has_reported = False
        self._held: list[tuple[str, Sent]] = []

    async def produce(self, record: Record, sent: Sent) -> None:
        if record.value == b"too large":
            raise KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
        self._held.append((record.value.decode(), sent))

    async def report(self, refused: str = "") -> list[str]:
        """Report what it holds, as taken by the partition in its user's name, or as refused; return what that was."""
        for _ in range(5):  # the delivery goes as far as it can
            await asyncio.sleep(0)
        held, self._held = self._held, []
        for value, sent in held:
            if value == refused:
                sent.report(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), Report(int(value[1])))
            else:
                sent.report(None, Report(int(value[1])))
        return [value for value, _ in held]


def batch_of(*values: str, first: int = 0, partitions: int = 2) -> Batch:
    """A value is its user (u0: of partition 0), a dash, a number; or `too large`, of user u0."""
    records = [Record("t", (v if v[0] == "u" else "u0").encode()[:2], v.encode(), []) for v in values]
    return Batch("t", partitions, records, range(first, first + len(records)))


async def sent_by(
    batch: Batch, producer: Any, under_way: UnderWay, refused: str = ""
) -> tuple[list[list[str]], dict[int, KafkaError]]:
    """Send all rows of a batch; return what was under way together, and what failed."""
    sending = asyncio.create_task(under_way.send(producer, batch, batch.left()))
    together: list[list[str]] = []
    while not sending.done():
        together.append(await producer.report(refused))
        for _ in range(5):
            await asyncio.sleep(0)
    return together, sending.result()


def test_a_user_has_one_record_under_way_until_its_partition_took_one_and_then_all():
    async def work() -> list[list[list[str]]]:
        producer, under_way = HandedOver(), UnderWay()
        batches = [
            batch_of("u0-1", "u0-2", "u0-3"),
            batch_of("u0-4", "u1-1", "u0-5", "u1-2", "u1-3", first=10),
            batch_of("u0-6", "u1-4", "u0-7", "u1-5", first=20),
        ]
        return [(await sent_by(batch, producer, under_way))[0] for batch in batches]

    assert asyncio.run(work()) == [
        [["u0-1"], ["u0-2", "u0-3"]],  # nothing is known of partition 1
        [["u0-4", "u1-1"], ["u0-5", "u1-2", "u1-3"]],
        [["u0-6", "u1-4", "u0-7", "u1-5"]],
    ]


def test_nothing_of_a_user_follows_a_first_record_that_is_refused():
    async def work() -> tuple[list[list[str]], list[int], list[int]]:
        batch = batch_of("u0-1", "u0-2", "u1-1", "u1-2")
        together, failed = await sent_by(batch, HandedOver(), UnderWay(), refused="u0-1")
        return together, list(failed), batch.left()

    assert asyncio.run(work()) == ([["u0-1", "u1-1"]], [0], [0, 1, 3])


def test_a_record_that_is_not_even_handed_over_tells_nothing_of_its_partition():
    async def work() -> tuple[list[list[str]], Any]:
        batch = batch_of("too large", "u0-1", "u0-2", "u0-3")
        together, failed = await sent_by(batch, HandedOver(), UnderWay())
        assert failed == {}
        return together, batch.outcomes

    refused = Rejected(Fault.REFUSED, "its 9 bytes are above message.max.bytes")
    assert asyncio.run(work()) == (
        [["u0-1"], ["u0-2", "u0-3"]],
        {0: refused, 1: DELIVERED, 2: DELIVERED, 3: DELIVERED},
    )


def test_a_delivery_that_is_cancelled_between_first_records_and_the_rest_is_joined():
    async def work() -> list[list[str]]:
        producer: Any = HandedOver()
        under_way, batch = UnderWay(), batch_of("u0-1", "u0-2", "u0-3")
        sending = asyncio.create_task(under_way.send(producer, batch, batch.left()))
        first = await producer.report()
        await asyncio.sleep(0)
        sending.cancel()
        await asyncio.wait([sending])
        return [first, *(await sent_by(batch, producer, under_way))[0]]

    assert asyncio.run(work()) == [["u0-1"], ["u0-2", "u0-3"]]


def test_a_partition_is_known_for_ten_to_twenty_minutes_after_it_took_a_record(monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    taken = Taken()
    taken.lately |= {0, 1}
    known = [taken.is_by_all(2)]
    for now, partition in [(599, None), (600, 0), (1_199, None), (1_200, 0), (1_200, 1), (2_400, None)]:  # noqa: B007
        if partition is not None:
            taken.is_by_all(2)
            taken.lately.add(partition)
        known.append(taken.is_by_all(2))
    assert known == [True, True, True, True, False, True, False]


def test_a_topic_with_more_partitions_than_were_counted_is_not_known():
    taken = Taken()
    taken.lately |= {0, 1, 3}
    assert [taken.is_by_all(2), taken.is_by_all(3)] == [False, False]
    taken.lately.add(2)
    assert taken.is_by_all(2)
    assert not Taken().is_by_all(0)
