"""What is refused, with which code: on ours and on Google's emulator."""

import re
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from millrace.broker import Broker
from millrace.broker import protocol as pb
from tests.support.pubsub import PubSub

Code = grpc.StatusCode
Do = Callable[[PubSub], Any]


def refusal(call: Callable[[], Any]) -> Any:
    """The code that a call is refused with; None where it is not."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return None


def subscribed(pubsub: PubSub, **fields: Any) -> str:
    return pubsub.create_subscription(pubsub.create_topic(), **fields)


def publish(*messages: Any) -> Do:
    return lambda pubsub: pubsub.publish(pubsub.create_topic(), *messages)


def subscribe(**fields: Any) -> Do:
    return lambda pubsub: subscribed(pubsub, **fields)


def seconds(number: int) -> Any:
    return pb.duration(number)


def dead_letters(attempts: int) -> Do:
    def create(pubsub: PubSub) -> str:
        policy = pb.DeadLetterPolicy(dead_letter_topic=pubsub.create_topic(), max_delivery_attempts=attempts)
        return subscribed(pubsub, dead_letter_policy=policy)

    return create


def retry(shortest: int, longest: int) -> Do:
    policy = pb.RetryPolicy(minimum_backoff=seconds(shortest), maximum_backoff=seconds(longest))
    return subscribe(retry_policy=policy)


def update(path: str, **fields: Any) -> Do:
    def call(pubsub: PubSub) -> Any:
        return pubsub.update_subscription(subscribed(pubsub), path, **fields)

    return call


CASES: dict[str, tuple[Do, Any]] = {
    "publish nothing": (publish(), Code.INVALID_ARGUMENT),
    "publish an empty message": (publish(pb.PubsubMessage()), Code.INVALID_ARGUMENT),
    "publish a key without data": (publish(pb.PubsubMessage(ordering_key="k")), Code.INVALID_ARGUMENT),
    "publish attributes without data": (publish(pb.PubsubMessage(attributes={"a": ""})), None),
    "publish 1,000 messages": (publish(*[b"x"] * 1_000), None),
    "publish 1,001 messages": (publish(*[b"x"] * 1_001), Code.INVALID_ARGUMENT),
    "publish 10 MB": (publish(b"x" * 10_000_000), None),
    "publish to a missing topic": (lambda p: p.publish(p.topic_name("none"), b"x"), Code.NOT_FOUND),
    "publish to a bad name": (lambda p: p.publish("events", b"x"), Code.INVALID_ARGUMENT),
    "create a topic twice": (lambda p: p.create_topic(p.create_topic().rpartition("/")[2]), Code.ALREADY_EXISTS),
    "delete a missing topic": (lambda p: p.delete_topic(p.topic_name("none")), Code.NOT_FOUND),
    "get a missing topic": (lambda p: p.get_topic(p.topic_name("none")), Code.NOT_FOUND),
    "topic kept 599 s": (lambda p: p.create_topic(message_retention_duration=seconds(599)), Code.INVALID_ARGUMENT),
    "topic kept 600 s": (lambda p: p.create_topic(message_retention_duration=seconds(600)), None),
    "topic kept 31 days": (lambda p: p.create_topic(message_retention_duration=seconds(2_678_400)), None),
    "topic kept longer": (
        lambda p: p.create_topic(message_retention_duration=seconds(2_678_401)),
        Code.INVALID_ARGUMENT,
    ),
    "subscribe to a missing topic": (lambda p: p.create_subscription(p.topic_name("none")), Code.NOT_FOUND),
    "subscribe to a bad name": (lambda p: p.create_subscription("events"), Code.INVALID_ARGUMENT),
    "ack deadline 600 s": (subscribe(ack_deadline_seconds=600), None),
    "ack deadline 601 s": (subscribe(ack_deadline_seconds=601), Code.INVALID_ARGUMENT),
    "ack deadline below 0": (subscribe(ack_deadline_seconds=-1), Code.INVALID_ARGUMENT),
    "subscription keeps 599 s": (subscribe(message_retention_duration=seconds(599)), Code.INVALID_ARGUMENT),
    "subscription keeps 600 s": (subscribe(message_retention_duration=seconds(600)), None),
    "4 delivery attempts": (dead_letters(4), Code.OUT_OF_RANGE),
    "5 delivery attempts": (dead_letters(5), None),
    "100 delivery attempts": (dead_letters(100), None),
    "101 delivery attempts": (dead_letters(101), Code.OUT_OF_RANGE),
    "dead letters to nowhere": (
        lambda p: subscribed(p, dead_letter_policy=pb.DeadLetterPolicy(dead_letter_topic=p.topic_name("none"))),
        Code.NOT_FOUND,
    ),
    "back-off 0 to 600 s": (retry(0, 600), None),
    "back-off from 601 s": (retry(601, 600), Code.INVALID_ARGUMENT),
    "back-off to 601 s": (retry(0, 601), Code.INVALID_ARGUMENT),
    "back-off below 0": (retry(-1, 5), Code.INVALID_ARGUMENT),
    "back-off that shrinks": (retry(10, 5), Code.INVALID_ARGUMENT),
    "pull nothing": (lambda p: p.pull(subscribed(p), 0, at_once=True), Code.INVALID_ARGUMENT),
    "pull from nowhere": (lambda p: p.pull(p.subscription_name("none")), Code.NOT_FOUND),
    "pull from a bad name": (lambda p: p.pull("none"), Code.INVALID_ARGUMENT),
    "ack nothing": (lambda p: p.ack(subscribed(p)), Code.INVALID_ARGUMENT),
    "ack what is no ack id": (lambda p: p.ack(subscribed(p), "x"), Code.INVALID_ARGUMENT),
    "ack at nowhere": (lambda p: p.ack(p.subscription_name("none"), "x"), Code.NOT_FOUND),
    "modify what is no ack id": (lambda p: p.modify(subscribed(p), 10, "x"), Code.INVALID_ARGUMENT),
    "modify nothing": (lambda p: p.modify(subscribed(p), 10), Code.INVALID_ARGUMENT),
    "modify to below 0": (lambda p: p.modify(subscribed(p), -1, "x"), Code.INVALID_ARGUMENT),
    "modify to 601 s": (lambda p: p.modify(subscribed(p), 601, "x"), Code.INVALID_ARGUMENT),
    "delete a missing subscription": (lambda p: p.delete_subscription(p.subscription_name("none")), Code.NOT_FOUND),
    "get a missing subscription": (lambda p: p.get_subscription(p.subscription_name("none")), Code.NOT_FOUND),
    "update no field": (update(""), Code.INVALID_ARGUMENT),
    "update an unknown field": (update("colour"), Code.INVALID_ARGUMENT),
    "update the topic": (update("topic"), Code.INVALID_ARGUMENT),
    "update the name": (update("name"), Code.INVALID_ARGUMENT),
    "update the filter": (update("filter", filter="attributes:x"), Code.INVALID_ARGUMENT),
    "update the order": (update("enable_message_ordering", enable_message_ordering=True), Code.INVALID_ARGUMENT),
    "update a missing one": (
        lambda p: p.update_subscription(p.subscription_name("none"), "ack_deadline_seconds", ack_deadline_seconds=20),
        Code.NOT_FOUND,
    ),
    "seek to nothing": (lambda p: p.seek(subscribed(p)), Code.INVALID_ARGUMENT),
    "seek nowhere": (lambda p: p.seek(p.subscription_name("none")), Code.NOT_FOUND),
    "an unknown call": (lambda p: p.call("Subscriber/Dream", pb.Empty()), Code.UNIMPLEMENTED),
}


@pytest.mark.parametrize("case", CASES)
def test_a_call_is_refused_with_googles_code(pubsub: PubSub, case: str) -> None:
    call, code = CASES[case]
    assert refusal(lambda: call(pubsub)) == code


@pytest.mark.parametrize(
    "name",
    [
        *("", "events", "topics/events", "projects/p/topics/", "projects/p/topics/ab", "projects/p/topics/1abc"),
        *("projects/p/topics/googly", "projects/p/topics/a b c", "projects/p/subscriptions/abc"),
        *("projects/p/topics/abc/d", "projects/p/topics/" + "a" * 256),
    ],
)
def test_a_bad_name_is_an_invalid_argument(pubsub: PubSub, name: str) -> None:
    assert refusal(lambda: pubsub.call("Publisher/CreateTopic", pb.Topic(name=name), pb.Topic)) == Code.INVALID_ARGUMENT


OWN_CASES: dict[str, tuple[Do, Any]] = {
    # the service's rules that the emulator does not apply
    "100 attributes": (publish(pb.PubsubMessage(attributes={f"a{i}": "" for i in range(100)})), None),
    "101 attributes": (publish(pb.PubsubMessage(attributes={f"a{i}": "" for i in range(101)})), Code.INVALID_ARGUMENT),
    "attribute key of 256 bytes": (publish(pb.PubsubMessage(attributes={"é" * 128: ""})), None),
    "attribute key of 257 bytes": (publish(pb.PubsubMessage(attributes={"é" * 128 + "e": ""})), Code.INVALID_ARGUMENT),
    "attribute key goog": (publish(pb.PubsubMessage(attributes={"google": ""})), Code.INVALID_ARGUMENT),
    "attribute without key": (publish(pb.PubsubMessage(attributes={"": "x"})), Code.INVALID_ARGUMENT),
    "attribute of 1,024 bytes": (publish(pb.PubsubMessage(attributes={"a": "x" * 1024})), None),
    "attribute of 1,025 bytes": (publish(pb.PubsubMessage(attributes={"a": "x" * 1025})), Code.INVALID_ARGUMENT),
    "ordering key of 1,025 bytes": (
        publish(pb.PubsubMessage(data=b"x", ordering_key="k" * 1025)),
        Code.INVALID_ARGUMENT,
    ),
    "publish 11 MB": (publish(b"x" * 11_000_000), Code.INVALID_ARGUMENT),
    "project without name": (
        lambda p: p.call("Publisher/CreateTopic", pb.Topic(name="projects//topics/abc")),
        Code.INVALID_ARGUMENT,
    ),
    "list below 0": (lambda p: p.list_topics(page_size=-1), Code.INVALID_ARGUMENT),
    "list with a bad token": (lambda p: p.list_topics(page_token="zz"), Code.INVALID_ARGUMENT),  # noqa: S106
    "list a bad project": (
        lambda p: p.call("Publisher/ListTopics", pb.ListTopicsRequest(project="p"), pb.ListTopicsResponse),
        Code.INVALID_ARGUMENT,
    ),
    "list a missing topic's subscriptions": (
        lambda p: p.list_topic_subscriptions(p.topic_name("none")),
        Code.NOT_FOUND,
    ),
    "detach a missing one": (lambda p: p.detach(p.subscription_name("none")), Code.NOT_FOUND),
    "pull below 0": (lambda p: p.pull(subscribed(p), -1, at_once=True), Code.INVALID_ARGUMENT),
    "subscription that ends in an hour": (
        subscribe(expiration_policy=pb.ExpirationPolicy(ttl=seconds(3600))),
        Code.INVALID_ARGUMENT,
    ),
    "a request that is none": (
        lambda p: p.channel.unary_unary("/google.pubsub.v1.Publisher/GetTopic")(b"\xff\xff", timeout=60),
        Code.INVALID_ARGUMENT,
    ),
    # what this broker does not have is refused, not ignored
    "exactly once": (subscribe(enable_exactly_once_delivery=True), Code.UNIMPLEMENTED),
    "push": (subscribe(push_config=pb.PushConfig(push_endpoint="https://example.org")), Code.UNIMPLEMENTED),
    "schemas": (lambda p: p.call("SchemaService/ListSchemas", pb.Empty()), Code.UNIMPLEMENTED),
}


@pytest.mark.parametrize("case", OWN_CASES)
def test_our_broker_applies_the_services_rules(own: PubSub, case: str) -> None:
    call, code = OWN_CASES[case]
    assert refusal(lambda: call(own)) == code


def test_an_unsupported_call_says_what_is_not_supported(own: PubSub) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        own.call("SchemaService/CreateSchema", pb.Empty())
    assert re.search(r"Millrace broker does not support .*SchemaService/CreateSchema", refused.value.details())


def test_a_detached_subscription_is_a_failed_precondition(own: PubSub) -> None:
    subscription = subscribed(own)
    own.detach(subscription)
    assert refusal(lambda: own.pull(subscription, at_once=True)) == Code.FAILED_PRECONDITION
    assert own.get_subscription(subscription).detached
    own.detach(subscription)  # once more changes nothing


def test_the_broker_refuses_publishes_that_its_disk_refuses(broker: Broker, own: PubSub) -> None:
    topic = own.create_topic()
    own.create_subscription(topic)
    assert own.publish(topic, b"fits") != []
    hub = broker._hub
    assert hub is not None
    hub.store._writer.execute("PRAGMA query_only = 1")
    assert refusal(lambda: own.publish(topic, b"does not")) == Code.UNAVAILABLE
    hub.store._writer.execute("PRAGMA query_only = 0")
    assert own.publish(topic, b"fits again") != []
