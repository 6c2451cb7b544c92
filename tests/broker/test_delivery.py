"""Deliver, acknowledge, deliver again: the same on ours and on Google's emulator."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from millrace.broker import protocol as pb
from tests.support.pubsub import PubSub, bodies, wait_until

SHORT_S = 2  # an ack deadline that a test can wait for


def numbered(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def test_a_message_arrives_as_it_was_published(pubsub: PubSub) -> None:
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic)
    sent = pb.PubsubMessage(data=bytes(range(256)), attributes={"a": "1", "ü": "é\n", "empty": ""}, ordering_key="key")
    before_us = time.time_ns() // 1_000
    [message_id] = pubsub.publish(topic, sent)
    [received] = pubsub.pull_until(subscription, 1)
    published_us = pb.time_us(received.message.publish_time)
    # Google's emulator counts in milliseconds
    assert before_us - 1_000 <= published_us <= time.time_ns() // 1_000
    expected = pb.PubsubMessage(message_id=message_id, publish_time=received.message.publish_time)
    expected.MergeFrom(sent)
    assert received.message == expected
    assert received.delivery_attempt == 0


def test_what_a_client_writes_into_the_servers_fields_is_replaced(own: PubSub) -> None:
    topic = own.create_topic()
    subscription = own.create_subscription(topic)
    forged = pb.PubsubMessage(data=b"x", message_id="7", publish_time=pb.timestamp(5))
    [message_id] = own.publish(topic, forged)
    [received] = own.pull(subscription)
    assert received.message.message_id == message_id != "7"
    assert received.message.publish_time.seconds > 1_000_000_000


@pytest.mark.parametrize("size", [0, 1, 111, 112, 127, 128, 16_250, 16_384, 2_100_000])
def test_bodies_of_every_length_encoding_survive(pubsub: PubSub, size: int) -> None:
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic)
    sent = [pb.PubsubMessage(data=bytes([byte]) * size, attributes={"n": str(byte)}) for byte in range(3)]
    pubsub.publish(topic, *sent)
    received = pubsub.pull_until(subscription, 3)
    assert [(one.message.data, dict(one.message.attributes)) for one in received] == [
        (one.data, dict(one.attributes)) for one in sent
    ]


def test_a_backlog_comes_in_publish_order(pubsub: PubSub) -> None:
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic)
    sent = numbered(2_500)
    for start in range(0, len(sent), 700):
        pubsub.publish(topic, *sent[start : start + 700])
    assert bodies(pubsub.pull_until(subscription, len(sent))) == sent


def test_ids_of_a_topic_are_unique(pubsub: PubSub) -> None:
    topic = pubsub.create_topic()
    ids = [*pubsub.publish(topic, *numbered(300)), *pubsub.publish(topic, *numbered(300))]
    assert len(set(ids)) == 600


def test_every_subscription_gets_every_message_from_its_creation_on(pubsub: PubSub) -> None:
    topic = pubsub.create_topic()
    early = pubsub.create_subscription(topic)
    pubsub.publish(topic, b"1")
    late = pubsub.create_subscription(topic)
    pubsub.publish(topic, b"2")
    assert bodies(pubsub.pull_until(early, 2)) == [b"1", b"2"]
    assert bodies(pubsub.pull_until(late, 1)) == [b"2"]


def test_max_messages_bounds_a_pull(pubsub: PubSub) -> None:
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic)
    pubsub.publish(topic, *numbered(10))
    assert bodies(pubsub.pull(subscription, 4)) == numbered(4)


def test_a_pull_waits_for_a_message(pubsub: PubSub) -> None:
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic)
    assert pubsub.pull(subscription, at_once=True) == []
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pubsub.pull, subscription)
        assert not waiting.done()
        pubsub.publish(topic, b"x")
        assert bodies(waiting.result(timeout=60)) == [b"x"]


def test_a_pull_that_gets_nothing_ends_before_its_deadline(pubsub: PubSub) -> None:
    subscription = pubsub.create_subscription(pubsub.create_topic())
    assert pubsub.pull(subscription, timeout_s=2) == []


def test_what_is_acknowledged_does_not_come_again(pubsub: PubSub) -> None:
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic, ack_deadline_seconds=SHORT_S)
    pubsub.publish(topic, *numbered(4))
    received = pubsub.pull_until(subscription, 4)
    pubsub.ack(subscription, received[1], received[3])
    again = pubsub.pull_until(subscription, 2)
    assert sorted(bodies(again)) == [b"0", b"2"]
    pubsub.ack(subscription, *again)
    assert pubsub.pull(subscription, timeout_s=SHORT_S + 2) == []


def test_an_ack_may_be_repeated(pubsub: PubSub) -> None:
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic)
    pubsub.publish(topic, b"x")
    received = pubsub.pull_until(subscription, 1)
    pubsub.ack(subscription, *received)
    pubsub.ack(subscription, *received)
    pubsub.modify(subscription, 0, *received)
    assert pubsub.pull(subscription, at_once=True) == []


def test_a_nack_brings_the_message_again_at_once_with_a_fresh_ack_id(pubsub: PubSub) -> None:
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic)
    pubsub.publish(topic, b"x")
    [first] = pubsub.pull_until(subscription, 1)
    pubsub.modify(subscription, 0, first)
    [second] = pubsub.pull_until(subscription, 1)
    assert second.message == first.message
    assert second.ack_id != first.ack_id


def test_a_lease_ends_with_its_ack_deadline(pubsub: PubSub) -> None:
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic, ack_deadline_seconds=SHORT_S)
    pubsub.publish(topic, b"x")
    started = time.monotonic()
    pubsub.pull_until(subscription, 1)
    assert pubsub.pull(subscription, at_once=True) == []
    assert bodies(pubsub.pull_until(subscription, 1)) == [b"x"]
    assert SHORT_S - 1 <= time.monotonic() - started <= SHORT_S + 60


def test_a_lease_can_be_extended(pubsub: PubSub) -> None:
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic, ack_deadline_seconds=SHORT_S)
    pubsub.publish(topic, b"kept", b"let go")
    kept, let_go = pubsub.pull_until(subscription, 2)
    pubsub.modify(subscription, 600, kept)
    again = pubsub.pull_until(subscription, 1)
    assert bodies(again) == [b"let go"]
    assert let_go.ack_id != again[0].ack_id
    assert pubsub.pull(subscription, at_once=True) == []
    pubsub.modify(subscription, 0, kept)
    assert bodies(pubsub.pull_until(subscription, 1)) == [b"kept"]


def test_an_ack_id_is_worth_nothing_at_another_subscription(own: PubSub) -> None:
    topic = own.create_topic()
    one, other = own.create_subscription(topic), own.create_subscription(topic)
    own.publish(topic, b"x")
    [received] = own.pull(one)
    [at_other] = own.pull(other)
    own.ack(other, received)
    own.modify(other, 0, at_other)
    assert bodies(own.pull(other)) == [b"x"]


def test_two_pullers_share_a_subscription(pubsub: PubSub) -> None:
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic)
    sent = numbered(400)
    got: list[bytes] = []
    lock = threading.Lock()

    def work() -> None:
        while len(got) < len(sent):
            received = pubsub.pull(subscription, 7, timeout_s=3)
            if received:
                pubsub.ack(subscription, *received)
            with lock:
                got.extend(bodies(received))

    with ThreadPoolExecutor(2) as threads:
        workers = [threads.submit(work) for _ in range(2)]
        for start in range(0, len(sent), 40):
            pubsub.publish(topic, *sent[start : start + 40])
        for worker in workers:
            worker.result(timeout=60)
    assert sorted(got) == sorted(sent)


def test_a_deleted_topics_backlog_stays_with_its_subscription(pubsub: PubSub) -> None:
    topic = pubsub.create_topic("events")
    subscription = pubsub.create_subscription(topic)
    pubsub.publish(topic, b"old")
    pubsub.delete_topic(topic)
    assert pubsub.get_subscription(subscription).topic == "_deleted-topic_"
    pubsub.create_topic("events")
    pubsub.publish(topic, b"of the new topic")
    assert bodies(pubsub.pull_until(subscription, 1)) == [b"old"]
    assert pubsub.pull(subscription, at_once=True) == []


def test_a_deleted_subscription_forgets_its_backlog(pubsub: PubSub) -> None:
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic, "again")
    pubsub.publish(topic, b"old")
    pubsub.delete_subscription(subscription)
    pubsub.create_subscription(topic, "again")
    pubsub.publish(topic, b"new")
    assert bodies(pubsub.pull_until(subscription, 1)) == [b"new"]


def test_a_waiting_pull_ends_when_its_subscription_is_deleted(own: PubSub) -> None:
    subscription = own.create_subscription(own.create_topic())
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(own.pull, subscription)
        wait_until(lambda: own.pull(subscription, at_once=True) == [])
        own.delete_subscription(subscription)
        assert waiting.exception(timeout=60) is not None


def test_a_response_stays_below_ten_megabytes(own: PubSub) -> None:
    topic = own.create_topic()
    subscription = own.create_subscription(topic)
    for _ in range(3):
        own.publish(topic, b"x" * 4_000_000)
    assert [len(own.pull(subscription)) for _ in range(2)] == [2, 1]
