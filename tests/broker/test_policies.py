"""Ordering keys, dead letters, back-off, filters, seek: the same on ours and on Google's emulator."""

import time
from typing import Any

import pytest

from millrace.broker import protocol as pb
from tests.support.pubsub import PubSub, bodies, wait_until


def keyed(key: str, *data: bytes) -> list[Any]:
    return [pb.PubsubMessage(data=one, ordering_key=key) for one in data]


def ordered(pubsub: PubSub, **fields: Any) -> tuple[str, str]:
    topic = pubsub.create_topic()
    return topic, pubsub.create_subscription(topic, enable_message_ordering=True, **fields)


def test_a_keys_messages_come_in_order_and_the_keys_do_not_wait_for_each_other(pubsub: PubSub) -> None:
    topic, subscription = ordered(pubsub)
    pubsub.publish(topic, *keyed("a", b"a1", b"a2"), *keyed("b", b"b1"), *keyed("a", b"a3"), *keyed("b", b"b2"))
    got: list[bytes] = []
    while len(got) < 5:
        received = pubsub.pull(subscription)
        got += bodies(received)
        pubsub.ack(subscription, *received)
    assert [one for one in got if one.startswith(b"a")] == [b"a1", b"a2", b"a3"]
    assert [one for one in got if one.startswith(b"b")] == [b"b1", b"b2"]


def test_a_message_waits_until_the_one_before_it_is_acknowledged(pubsub: PubSub) -> None:
    topic, subscription = ordered(pubsub)
    pubsub.publish(topic, *keyed("a", b"a1"))
    [first] = pubsub.pull_until(subscription, 1)
    pubsub.publish(topic, *keyed("a", b"a2"), *keyed("b", b"b1"))
    assert bodies(pubsub.pull_until(subscription, 1)) == [b"b1"]
    assert pubsub.pull(subscription, at_once=True) == []
    pubsub.ack(subscription, first)
    assert bodies(pubsub.pull_until(subscription, 1)) == [b"a2"]


def test_a_message_that_comes_again_brings_the_later_ones_of_its_key(pubsub: PubSub) -> None:
    topic, subscription = ordered(pubsub)
    pubsub.publish(topic, *keyed("a", b"a1", b"a2", b"a3"), *keyed("b", b"b1"))
    got: list[Any] = []
    while not {b"a1", b"b1"} <= set(bodies(got)):
        got += pubsub.pull(subscription)
    # Google's emulator waits for all of a key; ours needs only the first, see the next test.
    pubsub.modify(subscription, 0, *(one for one in got if one.message.ordering_key == "a"))
    again: list[bytes] = []
    while b"a3" not in again:
        received = pubsub.pull(subscription)
        again += bodies(received)
        pubsub.ack(subscription, *received)
    assert [one for one in again if one != b"b1"] == [b"a1", b"a2", b"a3"]


def test_an_ack_behind_a_message_that_comes_again_does_not_count(own: PubSub) -> None:
    topic, subscription = ordered(own)
    own.publish(topic, *keyed("a", b"a1", b"a2", b"a3"))
    first, second, third = own.pull(subscription)
    own.ack(subscription, second)
    own.modify(subscription, 0, first)
    again = own.pull(subscription)
    assert bodies(again) == [b"a1", b"a2", b"a3"]
    own.ack(subscription, third)  # its lease ended with that of the first
    own.ack(subscription, *again)
    assert own.pull(subscription, at_once=True) == []


def test_messages_without_a_key_do_not_wait(pubsub: PubSub) -> None:
    topic, subscription = ordered(pubsub)
    pubsub.publish(topic, b"1")
    pubsub.pull_until(subscription, 1)
    pubsub.publish(topic, b"2")
    assert bodies(pubsub.pull_until(subscription, 1)) == [b"2"]


def test_a_subscription_without_order_ignores_keys(pubsub: PubSub) -> None:
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic)
    pubsub.publish(topic, *keyed("a", b"a1"))
    pubsub.pull_until(subscription, 1)
    pubsub.publish(topic, *keyed("a", b"a2"))
    assert bodies(pubsub.pull_until(subscription, 1)) == [b"a2"]


def test_a_message_goes_to_the_dead_letters_after_its_last_attempt(pubsub: PubSub) -> None:
    dead_topic, topic = pubsub.create_topic(), pubsub.create_topic()
    dead = pubsub.create_subscription(dead_topic)
    policy = pb.DeadLetterPolicy(dead_letter_topic=dead_topic, max_delivery_attempts=5)
    subscription = pubsub.create_subscription(topic, "alive", dead_letter_policy=policy)
    pubsub.publish(topic, pb.PubsubMessage(data=b"x", attributes={"a": "b"}))
    attempts = []
    for _ in range(5):
        [received] = pubsub.pull_until(subscription, 1)
        attempts.append(received.delivery_attempt)
        pubsub.modify(subscription, 0, received)
    assert attempts == [1, 2, 3, 4, 5]
    assert pubsub.pull(subscription, at_once=True) == []
    [letter] = pubsub.pull_until(dead, 1)
    assert letter.message.data == b"x"
    attributes = dict(letter.message.attributes)
    assert attributes["a"] == "b"
    assert attributes["CloudPubSubDeadLetterSourceDeliveryCount"] == "5"
    assert attributes["CloudPubSubDeadLetterSourceSubscription"] == "alive"
    assert attributes["CloudPubSubDeadLetterSourceSubscriptionProject"] == pubsub.project


def test_a_keys_next_message_follows_when_the_one_before_it_is_a_dead_letter(own: PubSub) -> None:
    dead_topic, topic = own.create_topic(), own.create_topic()
    dead = own.create_subscription(dead_topic)
    policy = pb.DeadLetterPolicy(dead_letter_topic=dead_topic, max_delivery_attempts=5)
    subscription = own.create_subscription(topic, enable_message_ordering=True, dead_letter_policy=policy)
    own.publish(topic, *keyed("a", b"bad", b"good"))
    for _ in range(5):
        bad = own.pull(subscription)[0]
        own.modify(subscription, 0, bad)
    assert bodies(own.pull_until(dead, 1)) == [b"bad"]
    assert bodies(own.pull(subscription)) == [b"good"]


def test_dead_letters_without_a_topic_stay_where_they_are(own: PubSub) -> None:
    dead_topic, topic = own.create_topic(), own.create_topic()
    policy = pb.DeadLetterPolicy(dead_letter_topic=dead_topic, max_delivery_attempts=5)
    subscription = own.create_subscription(topic, dead_letter_policy=policy)
    own.delete_topic(dead_topic)
    own.publish(topic, b"x")
    for attempt in range(1, 8):
        [received] = own.pull(subscription)
        assert received.delivery_attempt == attempt
        own.modify(subscription, 0, received)


# Google's emulator knows neither back-off nor filters.


def test_a_message_comes_again_after_its_backoff(own: PubSub) -> None:
    policy = pb.RetryPolicy(minimum_backoff=pb.duration(2), maximum_backoff=pb.duration(600))
    topic = own.create_topic()
    subscription = own.create_subscription(topic, retry_policy=policy)
    own.publish(topic, b"x")
    received = own.pull(subscription)
    started = time.monotonic()
    own.modify(subscription, 0, *received)
    assert own.pull(subscription, at_once=True) == []
    assert bodies(own.pull_until(subscription, 1)) == [b"x"]
    assert time.monotonic() - started >= 2


MESSAGES = {
    "none": {},
    "order": {"event": "order"},
    "ordered": {"event": "ordered", "test": "1"},
    "view": {"event": "view", "eu": ""},
}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("attributes:event", {"order", "ordered", "view"}),
        ("attributes:eu", {"view"}),
        ('attributes.event = "order"', {"order"}),
        ('attributes.event != "order"', {"none", "ordered", "view"}),
        ('hasPrefix(attributes.event, "order")', {"order", "ordered"}),
        ('hasPrefix(attributes.event, "order") AND NOT attributes:test', {"order"}),
        ('attributes.event = "view" OR attributes:test', {"view", "ordered"}),
        ("NOT attributes:event", {"none"}),
        ("-attributes:event", {"none"}),
        ('attributes:eu OR (attributes:test AND attributes.event="ordered")', {"view", "ordered"}),
    ],
)
def test_a_filter_lets_through_what_matches(own: PubSub, source: str, expected: set[str]) -> None:
    topic = own.create_topic()
    subscription = own.create_subscription(topic, filter=source)
    messages = [pb.PubsubMessage(data=name.encode(), attributes=given) for name, given in MESSAGES.items()]
    own.publish(topic, *messages)
    received = own.pull_until(subscription, len(expected))
    own.ack(subscription, *received)
    assert {one.message.data.decode() for one in received} == expected
    assert own.pull(subscription, at_once=True) == []


def now() -> Any:
    return pb.timestamp(time.time_ns() // 1_000)


def past_this_millisecond() -> None:
    start = time.time_ns() // 1_000_000
    wait_until(lambda: time.time_ns() // 1_000_000 > start + 1)


def test_a_seek_to_a_time_brings_back_what_was_published_since(pubsub: PubSub) -> None:
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic, retain_acked_messages=True)
    pubsub.publish(topic, b"1")
    past_this_millisecond()
    between = now()
    past_this_millisecond()  # Google's emulator stamps in milliseconds, cut off: within this one would be before it
    pubsub.publish(topic, b"2", b"3")
    pubsub.ack(subscription, *pubsub.pull_until(subscription, 3))
    pubsub.seek(subscription, time=between)
    assert sorted(bodies(pubsub.pull_until(subscription, 2))) == [b"2", b"3"]
    assert pubsub.pull(subscription, at_once=True) == []


def test_a_seek_to_now_acknowledges_everything(pubsub: PubSub) -> None:
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic)
    pubsub.publish(topic, b"1", b"2")
    received = pubsub.pull(subscription, 1)
    past_this_millisecond()
    pubsub.seek(subscription, time=now())
    pubsub.modify(subscription, 0, *received)
    assert pubsub.pull(subscription, at_once=True) == []
    pubsub.publish(topic, b"3")
    assert bodies(pubsub.pull_until(subscription, 1)) == [b"3"]


def test_without_retention_a_seek_brings_back_nothing_that_was_acknowledged(own: PubSub) -> None:
    topic = own.create_topic()
    subscription, slow = own.create_subscription(topic), own.create_subscription(topic)
    start = now()
    own.publish(topic, b"1", b"2")
    own.ack(subscription, own.pull(subscription)[0])
    own.seek(subscription, time=start)
    assert own.pull(subscription, at_once=True) == []  # 2 is still with its client
    assert bodies(own.pull(slow)) == [b"1", b"2"]


def test_a_seek_to_a_snapshot_brings_back_what_was_unacknowledged_then(pubsub: PubSub) -> None:
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic)
    pubsub.publish(topic, b"1", b"2", b"3")
    received = pubsub.pull_until(subscription, 3)
    pubsub.ack(subscription, received[1])
    snapshot = pubsub.create_snapshot(subscription)
    pubsub.publish(topic, b"4")
    pubsub.ack(subscription, received[0], received[2], *pubsub.pull_until(subscription, 1))
    assert pubsub.pull(subscription, at_once=True) == []
    pubsub.seek(subscription, snapshot=snapshot)
    assert sorted(bodies(pubsub.pull_until(subscription, 3))) == [b"1", b"3", b"4"]


def test_a_topic_that_keeps_its_messages_can_be_read_by_a_later_subscription(own: PubSub) -> None:
    topic = own.create_topic(message_retention_duration=pb.duration(600))
    start = now()
    own.publish(topic, b"1")
    subscription = own.create_subscription(topic)
    assert own.pull(subscription, at_once=True) == []
    own.seek(subscription, time=start)
    assert bodies(own.pull(subscription)) == [b"1"]
