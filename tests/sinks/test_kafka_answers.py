"""The sink `kafka` against what brokers may answer: librdkafka's mock cluster."""

import asyncio
import contextlib
from collections.abc import Sequence

import pytest
from confluent_kafka import KafkaError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millrace.sinks import kafka_producer
from millrace.sinks.kafka import Kafka
from millrace.sinks.sink import DELIVERED, CannotOpenSinkError, Delivery, Fault, Outcome, Rejected, SinkDownError
from tests.support.feeding import Feeder, Made, NoMemory, delivery_of, feed, first_order, made_events, whole_order
from tests.support.kafka import records
from tests.support.kafka_mock import MockKafka

PASSING = [
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError._TRANSPORT,
]
FOR_GOOD = [
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.INVALID_RECORD,
    KafkaError.RECORD_LIST_TOO_LARGE,
]
# One request at a time: a mock takes the second of two although it has refused the first, which no broker does.
QUICK = {
    "max.in.flight": 1,
    "linger.ms": 0,
    "retry.backoff.ms": 1,
    "retry.backoff.max.ms": 5,
    "reconnect.backoff.ms": 5,
    "reconnect.backoff.max.ms": 20,
}


def read(mock: MockKafka, topic: str = "events") -> list[tuple[str, int]]:
    """(user, number) of each record, by partition as they stand there."""
    ids = [one.headers["message_id"].decode() for one in records({"bootstrap.servers": mock.address}, topic)]
    return [(user, int(number)) for user, _, number in (each.rpartition("-") for each in ids)]


async def deliver_once(sink: Kafka, *deliveries) -> list[Sequence[Outcome]]:
    await sink.open(NoMemory())
    try:
        return [await sink.deliver(each) for each in deliveries]
    finally:
        await sink.close()


async def until_delivered(sink: Kafka, delivery: Delivery) -> Sequence[Outcome]:
    """Deliver as long as it takes: a producer needs up to half a second for its first record."""
    while True:
        with contextlib.suppress(SinkDownError):
            return await sink.deliver(delivery)


@given(answers=st.lists(st.sampled_from([0, 0, 0, *PASSING]), max_size=25))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_errors_that_pass_cost_no_event_and_no_order(answers: list[int]):
    events = made_events(users=10, each=20)
    with MockKafka() as mock:
        mock.create_topic("events")
        mock.answer_produce(answers)
        fed = asyncio.run(feed(Kafka(mock.address, "events", config=QUICK | {"batch.num.messages": 7}), events))
        assert fed.rejected == {}
        assert fed.downs == []
        assert first_order(read(mock)) == whole_order(events)


@given(answers=st.lists(st.sampled_from([0, 0, 0, *PASSING, *FOR_GOOD]), max_size=25))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_errors_for_good_cost_at_most_the_event(answers: list[int]):
    """A mock refuses by turn, not by content: an event that is tried alone may be the next to be refused.

    Nor does it look at sequence numbers, by which a broker refuses what comes behind a refused request: what librdkafka
    has sent on before it heard of that is taken. So the order is tested on a real Kafka (test_kafka.py).
    """
    events = made_events(users=10, each=20)
    with MockKafka() as mock:
        mock.create_topic("events")
        mock.answer_produce(answers)
        sink = Kafka(mock.address, "events", config=QUICK | {"batch.num.messages": 7})
        fed = asyncio.run(feed(sink, events, max_events=30, max_in_flight=3))
        assert len(fed.rejected) <= sum(answer in FOR_GOOD for answer in answers)
        assert fed.downs == []
        arrived = {user: sorted(numbers) for user, numbers in first_order(read(mock)).items()}
        assert arrived == whole_order([each for each in events if each.id not in fed.rejected])


@pytest.mark.parametrize("answer", FOR_GOOD)
def test_what_came_with_a_refused_record_is_tried_alone_and_delivered(answer: int):
    events = made_events(users=4, each=10)
    with MockKafka() as mock:
        mock.create_topic("events", partitions=1)
        mock.answer_produce([answer])
        outcomes = asyncio.run(deliver_once(Kafka(mock.address, "events"), delivery_of(events)))
        assert outcomes == [[DELIVERED] * 40]
        assert read(mock) == [(event.user, event.number) for event in events]


def test_a_record_that_is_refused_alone_is_rejected_and_its_users_rest_goes():
    events = made_events(users=1, each=3)
    too_large = KafkaError.MSG_SIZE_TOO_LARGE
    with MockKafka() as mock:
        mock.create_topic("events", partitions=1)
        mock.answer_produce([too_large, 0, too_large, 0])
        (outcomes,) = asyncio.run(deliver_once(Kafka(mock.address, "events"), delivery_of(events)))
        assert read(mock) == [("user-0", 0), ("user-0", 2)]
    why = "Kafka refuses it for events: Broker: Message size too large"
    assert outcomes == [DELIVERED, Rejected(Fault.REJECTED, why), DELIVERED]


def test_a_topic_that_may_not_be_written_holds_everything_up():
    with MockKafka() as mock:
        mock.create_topic("events")
        mock.answer_produce([KafkaError.TOPIC_AUTHORIZATION_FAILED])
        with pytest.raises(SinkDownError, match=r"^may not write to the topic events: give this user the right to$"):
            asyncio.run(deliver_once(Kafka(mock.address, "events"), delivery_of(made_events(1, 3))))


def test_brokers_that_go_away_and_come_back_get_each_event_once():
    """Away for longer than the sink has patience: what the producer holds is joined, not written again."""
    events = made_events(users=20, each=40)
    with MockKafka(brokers=3) as mock:
        mock.create_topic("events")
        sink = Kafka(mock.address, "events", config=QUICK, patience_s=0.3)

        async def work() -> tuple[Feeder, int]:
            loop = asyncio.get_running_loop()
            downs: list[int] = []

            def trouble(settled: int) -> None:
                if settled >= 200 and not downs:
                    downs.append(settled)
                    mock.set_down()
                    loop.call_later(1.0, mock.set_up)

            await sink.open(NoMemory())
            feeder = Feeder(sink, events, max_events=20, on_settled=trouble)
            await feeder.run()
            await sink.close()
            return feeder, downs[0]

        feeder, _ = asyncio.run(work())
        assert feeder.fed.downs != []
        assert feeder.fed.rejected == {}
        assert first_order(read(mock)) == whole_order(events)
        assert len(read(mock)) == len(events)


def test_a_cancelled_delivery_is_joined_when_it_comes_again():
    events = made_events(users=10, each=60)
    with MockKafka() as mock:
        mock.create_topic("events")

        async def work() -> int:
            sink = Kafka(mock.address, "events", config={"linger.ms": 50})
            await sink.open(NoMemory())
            feeder = Feeder(sink, events, max_events=20, max_in_flight=4, deadline_s=0.004)
            running = asyncio.create_task(feeder.run())
            while feeder.fed.cancelled < 50 and not running.done():
                await asyncio.sleep(0.001)
            feeder.deadline_s = 30
            await running
            await sink.close()
            return feeder.fed.cancelled

        assert asyncio.run(work()) > 0
        assert sorted(read(mock)) == sorted((event.user, event.number) for event in events)
        assert first_order(read(mock)) == whole_order(events)


def test_what_an_ended_producer_may_still_hold_is_not_overtaken():
    """Its connection is gone with records under way; then another delivery's record ends it."""
    events = made_events(users=2, each=5)
    with MockKafka() as mock:
        mock.create_topic("events", partitions=1)
        sink = Kafka(mock.address, "events", config=QUICK, patience_s=0.3)

        async def work() -> Sequence[Outcome]:
            await sink.open(NoMemory())
            await until_delivered(sink, delivery_of([Made("anna", 0)], first=100))
            mock.set_down()
            with pytest.raises(SinkDownError):
                await sink.deliver(delivery_of(events[:6]))
            held_by = sink._connection.producer
            assert held_by is not None
            held_by.end()
            mock.set_up()
            return await until_delivered(sink, delivery_of(events))

        assert asyncio.run(work()) == [DELIVERED] * 10
        assert first_order(read(mock)) == {"anna": [0]} | whole_order(events)


def test_what_waits_too_long_for_its_broker_goes_to_a_new_producer(monkeypatch: pytest.MonkeyPatch):
    """By then the broker may have forgotten the old one."""
    events = made_events(users=2, each=5)
    with MockKafka() as mock:
        mock.create_topic("events", partitions=1)
        sink = Kafka(mock.address, "events", config=QUICK, patience_s=0.3)

        async def work() -> Sequence[Outcome]:
            await sink.open(NoMemory())
            await until_delivered(sink, delivery_of([Made("anna", 0)], first=100))
            old = sink._connection.producer
            assert old is not None
            mock.set_down()
            monkeypatch.setattr(kafka_producer, "_FORGET_S", 0.1)
            while not old.is_ended:
                with pytest.raises(SinkDownError):
                    await sink.deliver(delivery_of(events))
            monkeypatch.undo()
            mock.set_up()
            return await until_delivered(sink, delivery_of(events))

        assert asyncio.run(work()) == [DELIVERED] * 10
        assert first_order(read(mock)) == {"anna": [0]} | whole_order(events)


def test_a_full_producer_holds_the_delivery_back():
    events = made_events(users=10, each=50)
    with MockKafka() as mock:
        mock.create_topic("events")
        sink = Kafka(mock.address, "events", config={"queue.buffering.max.messages": 10, "linger.ms": 0})
        fed = asyncio.run(feed(sink, events))
        assert fed.downs == []
        assert first_order(read(mock)) == whole_order(events)


def test_an_event_above_the_producers_own_limit_is_refused_and_the_rest_goes():
    events = [Made("anna", 0), Made("anna", 1, "x" * 3_000), Made("anna", 2)]
    with MockKafka() as mock:
        mock.create_topic("events")
        sink = Kafka(mock.address, "events", config={"message.max.bytes": 2_000})
        (outcomes,) = asyncio.run(deliver_once(sink, delivery_of(events)))
        assert read(mock) == [("anna", 0), ("anna", 2)]
    assert outcomes == [
        DELIVERED, Rejected(Fault.REFUSED, "its 3,163 bytes are above message.max.bytes"), DELIVERED,
    ]  # fmt: skip


def test_no_broker_is_down_and_not_for_good():
    sink = Kafka("127.0.0.1:9", "events", patience_s=0.2)
    with pytest.raises(SinkDownError, match=r"^Kafka at 127.0.0.1:9 does not answer: "):
        asyncio.run(deliver_once(sink))


def test_a_setting_that_librdkafka_does_not_have_can_never_work():
    sink = Kafka("127.0.0.1:9", "events", config={"no.such": 1})
    with pytest.raises(CannotOpenSinkError, match=r'librdkafka does not take the settings: .*"no.such"'):
        asyncio.run(deliver_once(sink))


def test_a_secret_that_is_not_there_can_never_work(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("KAFKA_SECRET_OF_TEST", raising=False)
    sink = Kafka("127.0.0.1:9", "events", config={"sasl.password": "env:KAFKA_SECRET_OF_TEST"})
    with pytest.raises(CannotOpenSinkError, match=r"^config: sasl.password: .*KAFKA_SECRET_OF_TEST"):
        asyncio.run(deliver_once(sink))


@pytest.mark.parametrize(
    ("given_settings", "says"),
    [
        ({"brokers": " "}, "brokers has to name one broker at least"),
        ({"topic": "no topic"}, "a topic has 1 to 249 letters"),
        ({"format": "avro"}, "format avro needs schemas"),
        ({"patience_s": 0}, "patience_s must be positive"),
        ({"config": {"acks": 1}}, "config: acks is set by the sink"),
        ({"config": {"message.timeout.ms": 5}}, "config: message.timeout.ms is set by the sink"),
        ({"config": {"error_cb": "x"}}, "config: error_cb is set by the sink"),
        ({"config": {"sasl.password": "hunter2"}}, "config: sasl.password has to say where the secret is, never"),
    ],
)
def test_wrong_settings_are_said_in_one_sentence(given_settings, says: str):
    with pytest.raises(ValueError, match=says) as raised:
        Kafka(**{"brokers": "127.0.0.1:9092", "topic": "events"} | given_settings)
    assert "hunter2" not in str(raised.value)
