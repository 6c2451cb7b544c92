"""google.pubsub.v1.Publisher: topics, and the way in."""

from collections.abc import Sequence
from typing import Any

from millrace.broker import protocol as pb
from millrace.broker.catalog import new_topic, updated_topic
from millrace.broker.chaos import unavailable
from millrace.broker.errors import invalid
from millrace.broker.hub import Hub
from millrace.broker.names import project_prefix, subscription_name, topic_name
from millrace.broker.service import Call, page

MAX_REQUEST_BYTES = 10 * 1024 * 1024
MAX_MESSAGES = 1_000
MAX_ATTRIBUTES = 100
MAX_ATTRIBUTE_KEY_BYTES = 256
MAX_ATTRIBUTE_VALUE_BYTES = 1_024
MAX_ORDERING_KEY_BYTES = 1_024


class Publisher:
    """The calls of the service; each takes and returns serialized messages."""

    service = "google.pubsub.v1.Publisher"

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def publish(self, request: bytes, _: Call) -> bytes:
        """Answer when the messages are on disk."""
        chaos = self._hub.chaos
        await chaos.pause(chaos.delay_publish_ms)
        if len(request) > MAX_REQUEST_BYTES:
            raise invalid(f"Request payload size exceeds the limit: {MAX_REQUEST_BYTES} bytes.")
        asked = pb.PublishRequest.FromString(request)
        topic = self._hub.topic(topic_name(asked.topic))
        check_messages(asked.messages)
        fails = chaos.happens(chaos.fail_publish)
        if fails and chaos.loses_before_storing():
            raise unavailable()
        ids = await self._hub.publish(topic, asked.messages)
        if fails:
            raise unavailable()
        answer: bytes = pb.PublishResponse(message_ids=map(str, ids)).SerializeToString()
        return answer

    async def create_topic(self, request: bytes, _: Call) -> bytes:
        """Create a topic."""
        return _shown(await self._hub.create_topic(new_topic(pb.Topic.FromString(request))))

    async def get_topic(self, request: bytes, _: Call) -> bytes:
        """Show a topic."""
        return _shown(self._hub.topic(topic_name(pb.GetTopicRequest.FromString(request).topic)))

    async def update_topic(self, request: bytes, _: Call) -> bytes:
        """Change the fields of a topic that the mask names."""
        asked = pb.UpdateTopicRequest.FromString(request)
        topic = self._hub.topic(topic_name(asked.topic.name))
        await self._hub.update_topic(topic, updated_topic(topic.config, asked.topic, list(asked.update_mask.paths)))
        return _shown(topic)

    async def delete_topic(self, request: bytes, _: Call) -> bytes:
        """Delete a topic; its subscriptions keep their backlog under `_deleted-topic_`."""
        await self._hub.delete_topic(topic_name(pb.DeleteTopicRequest.FromString(request).topic))
        return pb.NOTHING

    async def list_topics(self, request: bytes, _: Call) -> bytes:
        """List a project's topics, by name."""
        asked = pb.ListTopicsRequest.FromString(request)
        names, token = page(self._hub.topics, project_prefix(asked.project), asked)
        topics = [self._hub.topics[name].config for name in names]
        answer: bytes = pb.ListTopicsResponse(topics=topics, next_page_token=token).SerializeToString()
        return answer

    async def list_topic_subscriptions(self, request: bytes, _: Call) -> bytes:
        """List the names of a topic's subscriptions."""
        asked = pb.ListTopicSubscriptionsRequest.FromString(request)
        names, token = page(self._hub.topic(topic_name(asked.topic)).subscriptions, "projects/", asked)
        answer: bytes = pb.ListTopicSubscriptionsResponse(
            subscriptions=names, next_page_token=token
        ).SerializeToString()
        return answer

    async def list_topic_snapshots(self, request: bytes, _: Call) -> bytes:
        """List the names of a topic's snapshots."""
        asked = pb.ListTopicSnapshotsRequest.FromString(request)
        names, token = page(self._hub.topic(topic_name(asked.topic)).snapshots, "projects/", asked)
        answer: bytes = pb.ListTopicSnapshotsResponse(snapshots=names, next_page_token=token).SerializeToString()
        return answer

    async def detach_subscription(self, request: bytes, _: Call) -> bytes:
        """Take a subscription off its topic, with its backlog."""
        name = subscription_name(pb.DetachSubscriptionRequest.FromString(request).subscription)
        await self._hub.detach_subscription(name)
        return bytes(pb.DetachSubscriptionResponse().SerializeToString())


def check_messages(messages: Sequence[Any]) -> None:
    """Raise Refused (INVALID_ARGUMENT) for the first thing that Pub/Sub would not take."""
    if not messages:
        raise invalid("No messages to publish")
    if len(messages) > MAX_MESSAGES:
        raise invalid(f"Too many messages to publish: {len(messages)}, the limit is {MAX_MESSAGES}")
    for message in messages:
        if message.attributes:
            _check_attributes(message.attributes)
        elif not message.data:
            raise invalid("Some messages are empty: a message needs data or attributes")
        if message.ordering_key and len(message.ordering_key.encode()) > MAX_ORDERING_KEY_BYTES:
            raise invalid(f"An ordering key is longer than {MAX_ORDERING_KEY_BYTES} bytes")


def _check_attributes(attributes: Any) -> None:
    if len(attributes) > MAX_ATTRIBUTES:
        raise invalid(f"A message has {len(attributes)} attributes, the limit is {MAX_ATTRIBUTES}")
    for key, value in attributes.items():
        if not key or key.startswith("goog"):
            raise invalid(f"Attribute key {key!r} is empty or starts with goog")
        if len(key.encode()) > MAX_ATTRIBUTE_KEY_BYTES:
            raise invalid(f"An attribute key is longer than {MAX_ATTRIBUTE_KEY_BYTES} bytes")
        if len(value.encode()) > MAX_ATTRIBUTE_VALUE_BYTES:
            raise invalid(f"The value of attribute {key!r} is longer than {MAX_ATTRIBUTE_VALUE_BYTES} bytes")


def _shown(topic: Any) -> bytes:
    shown = pb.Topic()
    shown.CopyFrom(topic.config)
    shown.state = pb.Topic.State.ACTIVE
    return bytes(shown.SerializeToString())
