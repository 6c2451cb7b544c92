"""Topics and subscriptions as definitions: show, update, list in pages, detach."""

from collections.abc import Callable
from typing import Any

from millrace.broker import protocol as pb
from tests.support.pubsub import PubSub, bodies


def test_a_subscription_is_shown_with_its_defaults(pubsub: PubSub) -> None:
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic, ack_deadline_seconds=0)
    shown = pubsub.get_subscription(subscription)
    assert (shown.name, shown.topic, shown.ack_deadline_seconds) == (subscription, topic, 10)
    assert shown.message_retention_duration == pb.duration(7 * 86_400)
    assert not shown.retain_acked_messages
    assert not shown.enable_message_ordering


def test_policies_are_shown_with_their_defaults(pubsub: PubSub) -> None:
    topic = pubsub.create_topic()
    dead = pb.DeadLetterPolicy(dead_letter_topic=topic)
    shown = pubsub.get_subscription(
        pubsub.create_subscription(topic, dead_letter_policy=dead, retry_policy=pb.RetryPolicy())
    )
    assert shown.dead_letter_policy.max_delivery_attempts == 5
    assert shown.retry_policy == pb.RetryPolicy(minimum_backoff=pb.duration(10), maximum_backoff=pb.duration(600))


def test_an_update_changes_what_its_mask_names_and_nothing_else(pubsub: PubSub) -> None:
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic, ack_deadline_seconds=20, retain_acked_messages=True)
    asked = {"ack_deadline_seconds": 30, "retain_acked_messages": False}
    updated = pubsub.update_subscription(subscription, "ack_deadline_seconds", **asked)
    assert (updated.ack_deadline_seconds, updated.retain_acked_messages, updated.topic) == (30, True, topic)
    assert pubsub.get_subscription(subscription) == updated


def test_an_update_takes_a_policy_away(own: PubSub) -> None:
    topic = own.create_topic()
    dead = pb.DeadLetterPolicy(dead_letter_topic=topic, max_delivery_attempts=9)
    subscription = own.create_subscription(topic, dead_letter_policy=dead)
    path = "dead_letter_policy.max_delivery_attempts"
    policy = pb.DeadLetterPolicy(max_delivery_attempts=6)
    updated = own.update_subscription(subscription, path, dead_letter_policy=policy)
    assert updated.dead_letter_policy == pb.DeadLetterPolicy(dead_letter_topic=topic, max_delivery_attempts=6)
    assert not own.update_subscription(subscription, "dead_letter_policy").HasField("dead_letter_policy")


def test_labels_can_be_updated(own: PubSub) -> None:
    topic = own.create_topic(labels={"a": "1"})
    asked = pb.UpdateTopicRequest(topic=pb.Topic(name=topic, labels={"b": "2"}))
    asked.update_mask.paths.append("labels")
    assert dict(own.call("Publisher/UpdateTopic", asked, pb.Topic).labels) == {"b": "2"}
    assert dict(own.get_topic(topic).labels) == {"b": "2"}


def pages(get: Callable[..., Any], field: str) -> list[list[str]]:
    """The names on all pages of two."""
    found, token = [], ""
    while True:
        page = get(page_size=2, page_token=token)
        found.append([getattr(one, "name", one) for one in getattr(page, field)])
        token = page.next_page_token
        if not token:
            return found


def test_lists_come_in_pages_by_name(pubsub: PubSub) -> None:
    topics = [pubsub.create_topic(f"topic-{letter}") for letter in "ecadb"]
    subscriptions = [pubsub.create_subscription(topics[0], f"sub-{letter}") for letter in "dbca"]
    pubsub.create_subscription(topics[1], "sub-e")
    topics.sort()
    subscriptions.sort()
    everything = [*subscriptions, pubsub.subscription_name("sub-e")]
    assert pages(pubsub.list_topics, "topics") == [topics[:2], topics[2:4], topics[4:]]
    assert pages(pubsub.list_subscriptions, "subscriptions") == [everything[:2], everything[2:4], everything[4:]]
    of_topic = pages(
        lambda **page: pubsub.list_topic_subscriptions(pubsub.topic_name("topic-e"), **page), "subscriptions"
    )
    assert of_topic == [subscriptions[:2], subscriptions[2:]]


def test_a_list_of_another_project_is_empty(pubsub: PubSub) -> None:
    pubsub.create_topic()
    asked = pb.ListTopicsRequest(project="projects/another")
    assert list(pubsub.call("Publisher/ListTopics", asked, pb.ListTopicsResponse).topics) == []


def test_a_detached_subscription_drops_its_backlog_and_the_topic_forgets_it(own: PubSub) -> None:
    topic = own.create_topic()
    subscription, other = own.create_subscription(topic), own.create_subscription(topic)
    own.publish(topic, b"1")
    own.detach(subscription)
    own.publish(topic, b"2")
    assert list(own.list_topic_subscriptions(topic).subscriptions) == [other]
    assert bodies(own.pull(other)) == [b"1", b"2"]


def test_snapshots_are_listed_and_deleted(own: PubSub) -> None:
    topic = own.create_topic()
    subscription = own.create_subscription(topic)
    names = sorted(own.create_snapshot(subscription) for _ in range(3))

    def listed(**page: Any) -> Any:
        asked = pb.ListSnapshotsRequest(project=f"projects/{own.project}", **page)
        return own.call("Subscriber/ListSnapshots", asked, pb.ListSnapshotsResponse)

    assert pages(listed, "snapshots") == [names[:2], names[2:]]
    asked = pb.ListTopicSnapshotsRequest(topic=topic)
    assert list(own.call("Publisher/ListTopicSnapshots", asked, pb.ListTopicSnapshotsResponse).snapshots) == names
    own.call("Subscriber/DeleteSnapshot", pb.DeleteSnapshotRequest(snapshot=names[0]))
    assert pages(listed, "snapshots") == [names[1:]]
