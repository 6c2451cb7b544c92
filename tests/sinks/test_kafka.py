"""The sink `kafka` against a real Kafka, which is stopped, killed and started again."""

import asyncio
import io
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import fastavro
import pytest

from millrace.sinks.kafka import Kafka as KafkaSink
from millrace.sinks.sink import DELIVERED, Fault, Outcome, Rejected, SinkDownError
from tests.support.feeding import Feeder, Made, NoMemory, delivery_of, feed, first_order, made_events, whole_order
from tests.support.kafka import Kafka, Read, running_kafka

PASSWORD = "correct horse"  # noqa: S105  of a server that lives as long as its test


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    with running_kafka(tmp_path_factory.mktemp("kafka")) as running:
        yield running


def places(found: Sequence[Read]) -> list[tuple[str, int]]:
    split = [one.headers["message_id"].decode().rpartition("-") for one in found]
    return [(user, int(number)) for user, _, number in split]


async def deliver_once(sink: KafkaSink, *deliveries) -> list[Sequence[Outcome]]:
    await sink.open(NoMemory())
    try:
        return [await sink.deliver(each) for each in deliveries]
    finally:
        await sink.close()


def test_events_are_records_by_their_users_key_with_their_columns_and_their_id(kafka: Kafka):
    topic = kafka.create_topic("plain")
    sent = delivery_of([Made("anna", 1, "a"), Made("anna", 2, "b")])
    assert asyncio.run(deliver_once(KafkaSink(kafka.address, topic), sent)) == [[DELIVERED, DELIVERED]]
    found = kafka.records(topic)
    assert [(one.offset, one.key, one.headers, json.loads(one.value)) for one in found] == [
        (
            0,
            b"anna",
            {"message_id": b"anna-1"},
            {
                "message_id": "anna-1",
                "user_key": "anna",
                "event": "Order Completed",
                "occurred_at": "2026-03-01T12:00:01.000000Z",
                "order_index": 1,
                "properties": {"number": 1, "text": "a"},
            },
        ),
        (
            1,
            b"anna",
            {"message_id": b"anna-2"},
            {
                "message_id": "anna-2",
                "user_key": "anna",
                "occurred_at": "2026-03-01T12:00:02.000000Z",
                "order_index": 2,
                "properties": {"number": 2, "text": "b"},
            },
        ),
    ]


def test_avro_records_are_read_by_the_schema_that_their_header_names(kafka: Kafka, tmp_path: Path):
    topic = kafka.create_topic("avro")
    sink = KafkaSink(kafka.address, topic, format="avro", schemas=str(tmp_path))
    sent = delivery_of([Made("anna", 1)])
    asyncio.run(deliver_once(sink, sent))
    (found,) = kafka.records(topic)
    fingerprint = found.headers["schema"].decode()
    assert found.value[:10] == b"\xc3\x01" + bytes.fromhex(fingerprint)
    schema = json.loads((tmp_path / f"{fingerprint}.avsc").read_bytes())
    assert fastavro.schemaless_reader(io.BytesIO(found.value[10:]), schema, None) == sent.rows.to_pylist()[0]


def test_a_route_has_a_topic_of_its_own(kafka: Kafka):
    own, other = kafka.create_topic("own"), kafka.create_topic("other")
    sent = delivery_of([Made("anna", 0)]), delivery_of([Made("anna", 1)], first=1, target=other)
    asyncio.run(deliver_once(KafkaSink(kafka.address, own), *sent))
    assert [places(kafka.records(topic)) for topic in (own, other)] == [[("anna", 0)], [("anna", 1)]]


def test_each_user_is_in_one_partition_and_in_order_each_event_once(kafka: Kafka):
    topic = kafka.create_topic("order", partitions=5)
    events = made_events(users=50, each=60)
    asyncio.run(feed(KafkaSink(kafka.address, topic), events, max_events=70))
    found = kafka.records(topic)
    assert first_order(places(found)) == whole_order(events)
    assert len(found) == len(events)
    assert len({one.partition for one in found}) == 5
    assert len({(one.partition, one.key) for one in found}) == 50


def test_what_the_topic_finds_too_large_is_rejected_and_nothing_overtakes_it(kafka: Kafka):
    """Every request that holds one is refused whole, with others under way behind it."""
    topic = kafka.create_topic("small", partitions=2, max_message_bytes="3000")
    events = [
        Made(f"user-{user}", number, "x" * (6_000 if (user + number) % 97 == 0 else 20))
        for number in range(30)
        for user in range(20)
    ]
    too_large = {event.id for event in events if len(event.text) > 3_000}
    sink = KafkaSink(kafka.address, topic, config={"batch.num.messages": 5, "compression.type": "none", "linger.ms": 0})
    fed = asyncio.run(feed(sink, events, max_events=60, max_in_flight=4))
    assert fed.downs == []
    assert fed.rejected == dict.fromkeys(
        too_large, Rejected(Fault.REJECTED, "Kafka refuses it for small: Broker: Message size too large")
    )
    assert first_order(places(kafka.records(topic))) == whole_order(
        [each for each in events if each.id not in too_large]
    )


def test_nothing_overtakes_what_is_refused_in_the_very_first_request_of_a_producer(kafka: Kafka):
    """With requests under way behind it, which a broker takes that knows nothing of the producer yet."""
    topic = kafka.create_topic("first", partitions=1, max_message_bytes="3000")
    before = delivery_of([Made("before", 0)])  # from Kafka 4.5 on only a partition that had records lets them past
    asyncio.run(deliver_once(KafkaSink(kafka.address, topic), before))
    events = [Made("anna", number, "x" * (6_000 if number == 1 else 20)) for number in range(40)]
    sink = KafkaSink(
        kafka.address, topic, config={"batch.num.messages": 4, "compression.type": "none", "linger.ms": 100}
    )
    (outcomes,) = asyncio.run(deliver_once(sink, delivery_of(events)))
    assert [number for number, outcome in enumerate(outcomes) if outcome is not DELIVERED] == [1]
    assert first_order(places(kafka.records(topic))) == {"before": [0], "anna": [0, *range(2, 40)]}


def test_requests_larger_than_the_topic_takes_cost_no_event_that_fits(kafka: Kafka):
    topic = kafka.create_topic("narrow", partitions=1, max_message_bytes="3000")
    events = made_events(users=4, each=30, text="x" * 500)
    sink = KafkaSink(kafka.address, topic, config={"compression.type": "none"})
    assert asyncio.run(deliver_once(sink, delivery_of(events))) == [[DELIVERED] * 120]
    assert places(kafka.records(topic)) == [(event.user, event.number) for event in events]


def test_a_topic_that_is_not_there_holds_everything_up_until_it_is(kafka: Kafka):
    async def work() -> Sequence[Outcome]:
        sink = KafkaSink(kafka.address, "later")
        says = r"^the topic later does not exist: create it, or correct its name$"
        with pytest.raises(SinkDownError, match=says):
            await sink.open(NoMemory())
        await asyncio.to_thread(kafka.create_topic, "later")
        await sink.open(NoMemory())
        outcomes = await sink.deliver(delivery_of([Made("anna", 0)]))
        with pytest.raises(SinkDownError, match=says.replace("later", "target")):
            await sink.deliver(delivery_of([Made("anna", 1)], first=1, target="target"))
        with pytest.raises(SinkDownError, match=says.replace("later", "target")):
            await sink.open(NoMemory())
        await sink.close()
        return outcomes

    assert asyncio.run(work()) == [DELIVERED]


def test_a_topic_that_is_deleted_in_the_middle_burns_no_event(kafka: Kafka):
    topic = kafka.create_topic("comes-and-goes")
    events = made_events(users=10, each=20)
    config = {"topic.metadata.refresh.interval.ms": 100, "topic.metadata.propagation.max.ms": 200}
    sink = KafkaSink(kafka.address, topic, config=config, patience_s=3)

    async def work() -> Feeder:
        await sink.open(NoMemory())
        await sink.deliver(delivery_of(events[:50], first=100_000))
        await asyncio.to_thread(kafka.delete_topic, topic)
        feeder = Feeder(sink, events)
        running = asyncio.create_task(feeder.run())
        while not feeder.fed.downs:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(kafka.create_topic, topic)
        await running
        await sink.close()
        return feeder

    feeder = asyncio.run(work())
    assert feeder.fed.rejected == {}
    assert first_order(places(kafka.records(topic))) == whole_order(events)


@pytest.mark.slow
def test_a_kafka_that_is_stopped_and_killed_and_comes_back_gets_every_event_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Stopped, then killed, in the middle of a run; it asks for a password, which the sink has by reference."""
    monkeypatch.setenv("KAFKA_PASSWORD_OF_TEST", PASSWORD)
    monkeypatch.setenv("KAFKA_WRONG_PASSWORD", "staple")
    events = made_events(users=40, each=100)
    config = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "millrace"}
    with running_kafka(tmp_path / "kafka", PASSWORD) as kafka:
        topic = kafka.create_topic("restarts")
        stranger = KafkaSink(
            kafka.address, topic, config=config | {"sasl.password": "env:KAFKA_WRONG_PASSWORD"}, patience_s=1
        )
        with pytest.raises(SinkDownError, match="does not answer") as refused:
            asyncio.run(deliver_once(stranger))
        assert "staple" not in str(refused.value)
        sink = KafkaSink(
            kafka.address, topic, config=config | {"sasl.password": "env:KAFKA_PASSWORD_OF_TEST"}, patience_s=2
        )
        ways = [kafka.stop, kafka.kill]
        restarts: list[threading.Thread] = []

        def trouble(settled: int) -> None:
            if settled > 1_000 * (1 + len(restarts)) and ways and not any(each.is_alive() for each in restarts):
                end = ways.pop(0)

                def again() -> None:
                    end()
                    kafka.start()

                restarts.append(threading.Thread(target=again))
                restarts[-1].start()

        fed = asyncio.run(feed(sink, events, max_events=20, max_in_flight=3, on_settled=trouble))
        for each in restarts:
            each.join()
        found = kafka.records(topic)
    assert len(restarts) == 2
    assert fed.rejected == {}
    assert first_order(places(found)) == whole_order(events)
