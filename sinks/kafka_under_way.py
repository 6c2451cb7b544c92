"""What was handed over to a producer of Kafka's, and is not known to its delivery yet: joined, never written again."""

import dataclasses
from collections.abc import Sequence

from confluent_kafka import KafkaError, KafkaException

from millrace.sinks.kafka_producer import Producer, Record, Sent, Waiting
from millrace.sinks.sink import DELIVERED, Fault, Outcome, Rejected


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """The records of a delivery, and what became of them.

    Attributes:
        topic: of all of them.
        partitions: how many that has.
        records: one a row.
        positions: each row's place in the lane's queue.
        outcomes: by row; those that are known.
    """

    topic: str
    partitions: int
    records: Sequence[Record]
    positions: Sequence[int]
    outcomes: dict[int, Outcome] = dataclasses.field(default_factory=dict)

    def left(self) -> list[int]:
        """Return the rows without an outcome."""
        return [row for row in range(len(self.records)) if row not in self.outcomes]


class UnderWay:
    """By position, what is handed over; for all deliveries of a sink."""

    def __init__(self) -> None:
        self._sent: dict[int, Sent] = {}

    def clear(self) -> None:
        """Forget it: its producers are closed."""
        self._sent.clear()

    async def send(self, producer: Producer, batch: Batch, rows: Sequence[int]) -> dict[int, KafkaError]:
        """Hand over rows that are not under way yet, wait for all; return those that failed, with how."""
        # What another producer still holds comes first: it may be lost there, and nothing of its user may get past it.
        held = [(row, sent) for row in rows if (sent := self._sent.get(batch.positions[row]))]
        failed = await self._settle([(row, sent) for row, sent in held if sent.producer is not producer], batch)
        left = [row for row in rows if row not in batch.outcomes]
        asked: list[tuple[int, Sent]] = []
        while left and not failed:
            now, left = _apart(producer, batch, left, {batch.records[row].key for row, _ in asked})
            failed = await self._hand_over(producer, batch, now, asked)
            if left and not failed:
                await _all_known(asked)
                if any(sent.error is not None for _, sent in asked):
                    break
        return failed | await self._settle(asked, batch)

    async def _hand_over(
        self, producer: Producer, batch: Batch, rows: Sequence[int], asked: list[tuple[int, Sent]]
    ) -> dict[int, KafkaError]:
        """Add each row to `asked`, handed over if it was not; return the one that librdkafka does not take."""
        taken_by = producer.taken[batch.topic].lately
        for row in rows:
            sent = self._sent.get(batch.positions[row])
            if sent is None:
                sent = Sent(producer, taken_by)
                try:
                    await producer.produce(batch.records[row], sent)
                except KafkaException as raised:
                    error = raised.args[0]
                    if error.code() != KafkaError.MSG_SIZE_TOO_LARGE:
                        return {row: error}  # and none after it, which might get past it
                    size = len(batch.records[row].value)
                    batch.outcomes[row] = Rejected(Fault.REFUSED, f"its {size:,} bytes are above message.max.bytes")
                    continue
                self._sent[batch.positions[row]] = sent
            asked.append((row, sent))
        return {}

    async def _settle(self, asked: Sequence[tuple[int, Sent]], batch: Batch) -> dict[int, KafkaError]:
        """Wait until it is known what became of records; return those that failed, with how."""
        await _all_known(asked)
        failed: dict[int, KafkaError] = {}
        for row, sent in asked:
            del self._sent[batch.positions[row]]
            if sent.error is None:
                batch.outcomes[row] = DELIVERED
            else:
                failed[row] = sent.error
        return failed


def _apart(producer: Producer, batch: Batch, rows: list[int], sure: set[bytes]) -> tuple[list[int], list[int]]:
    """Return the rows that may go now, and those that wait until the reports of these are there.

    A partition that may not know the producer takes what comes behind a record that it has refused. So until one of a
    user's records was taken there (`sure` has the keys of those users), one of them is under way at a time.
    """
    if producer.taken[batch.topic].is_by_all(batch.partitions):
        return rows, []
    now: list[int] = []
    later: list[int] = []
    seen: set[bytes] = set()
    for row in rows:
        key = batch.records[row].key
        (later if key in seen else now).append(row)
        if key not in sure:
            seen.add(key)
    return now, later


async def _all_known(asked: Sequence[tuple[int, Sent]]) -> None:
    """Return when it is known what became of all of them."""
    waiting = Waiting()
    for _, sent in asked:
        waiting.add(sent)
    await waiting.all()
