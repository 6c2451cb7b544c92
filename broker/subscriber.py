"""google.pubsub.v1.Subscriber: subscriptions, snapshots, and the way out."""

import time
from typing import Any

from millrace.broker import protocol as pb
from millrace.broker.catalog import MAX_ACK_DEADLINE_S, new_subscription, updated_subscription
from millrace.broker.errors import invalid, not_found, precondition, unsupported
from millrace.broker.hub import Hub
from millrace.broker.names import project_prefix, snapshot_name, subscription_name, topic_name
from millrace.broker.resources import Subscription
from millrace.broker.service import Call, page
from millrace.broker.streaming import serve
from millrace.broker.wire import received

MAX_WAIT_S = 30.0
SNAPSHOT_S = 7 * 86_400


class Subscriber:
    """The calls of the service; each takes and returns serialized messages."""

    service = "google.pubsub.v1.Subscriber"

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def _attached(self, name: str) -> Subscription:
        subscription = self._hub.subscription(subscription_name(name))
        if subscription.config.detached:
            raise precondition(f"Subscription {name} is detached from its topic.")
        return subscription

    async def pull(self, request: bytes, call: Call) -> bytes:
        """Answer with what there is, or with the first that comes while the client waits."""
        asked = pb.PullRequest.FromString(request)
        subscription = self._attached(asked.subscription)
        if asked.max_messages <= 0:
            raise invalid(f"max_messages must be positive, got {asked.max_messages}")
        chaos = self._hub.chaos
        await chaos.pause(chaos.delay_pull_ms)
        left_s = call.time_remaining()
        # An empty answer must be there before the client's own deadline; Google's emulator leaves a second, too.
        wait_s = MAX_WAIT_S if left_s is None else min(MAX_WAIT_S, max(left_s - 1, left_s / 2))
        until = time.monotonic() + (0 if asked.return_immediately else wait_s)
        while True:
            now = time.monotonic()
            lease, messages = subscription.queue.take(
                asked.max_messages, 1 << 40, now, subscription.config.ack_deadline_seconds
            )
            if messages or now >= until:
                subscription.wake()  # what is left is for the next that waits
                return received(lease, messages)
            await subscription.wait(until - now)
            if subscription.deleted:
                raise not_found("Subscription was deleted.")
            await chaos.pause(0)

    async def streaming_pull(self, _: Any, call: Call) -> None:
        """Deliver until the client goes; see streaming.py."""
        first = await call.read()
        if not isinstance(first, bytes):
            raise invalid("A stream starts with a request that names its subscription.")
        asked = pb.StreamingPullRequest.FromString(first)
        subscription = self._attached(asked.subscription)
        await serve(self._hub, subscription, asked, call)

    async def acknowledge(self, request: bytes, _: Call) -> bytes:
        """Be done with messages; that of a lease that is over is ignored."""
        asked = pb.AcknowledgeRequest.FromString(request)
        subscription = self._hub.subscription(subscription_name(asked.subscription))
        if not asked.ack_ids:
            raise invalid("No ack ids specified.")
        await self._hub.chaos.pause(0)
        subscription.queue.ack(asked.ack_ids)
        subscription.wake()  # a key may be free again
        return pb.NOTHING

    async def modify_ack_deadline(self, request: bytes, _: Call) -> bytes:
        """Let leases end later, earlier, or at once (0)."""
        asked = pb.ModifyAckDeadlineRequest.FromString(request)
        subscription = self._hub.subscription(subscription_name(asked.subscription))
        check_deadline(asked.ack_deadline_seconds)
        if not asked.ack_ids:
            raise invalid("No ack ids specified.")
        await self._hub.chaos.pause(0)
        subscription.queue.modify(asked.ack_ids, asked.ack_deadline_seconds, time.monotonic())
        subscription.wake()
        return pb.NOTHING

    async def create_subscription(self, request: bytes, _: Call) -> bytes:
        """Create a subscription; it gets what is published from now on."""
        config = new_subscription(pb.Subscription.FromString(request))
        if config.name in self._hub.subscriptions:
            return _shown(await self._hub.create_subscription(config))  # says that it exists, whatever else is wrong
        self._check_dead_letter_topic(config)
        return _shown(await self._hub.create_subscription(config))

    async def get_subscription(self, request: bytes, _: Call) -> bytes:
        """Show a subscription."""
        name = pb.GetSubscriptionRequest.FromString(request).subscription
        return _shown(self._hub.subscription(subscription_name(name)))

    async def update_subscription(self, request: bytes, _: Call) -> bytes:
        """Change the fields of a subscription that the mask names."""
        asked = pb.UpdateSubscriptionRequest.FromString(request)
        subscription = self._hub.subscription(subscription_name(asked.subscription.name))
        paths = list(asked.update_mask.paths)
        config = updated_subscription(subscription.config, asked.subscription, paths)
        if any(path.startswith("dead_letter_policy") for path in paths):
            self._check_dead_letter_topic(config)
        await self._hub.update_subscription(subscription, config)
        return _shown(subscription)

    async def delete_subscription(self, request: bytes, _: Call) -> bytes:
        """Delete a subscription with its backlog."""
        name = pb.DeleteSubscriptionRequest.FromString(request).subscription
        await self._hub.delete_subscription(subscription_name(name))
        return pb.NOTHING

    async def list_subscriptions(self, request: bytes, _: Call) -> bytes:
        """List a project's subscriptions, by name."""
        asked = pb.ListSubscriptionsRequest.FromString(request)
        names, token = page(self._hub.subscriptions, project_prefix(asked.project), asked)
        shown = [self._hub.subscriptions[name].shown() for name in names]
        return bytes(pb.ListSubscriptionsResponse(subscriptions=shown, next_page_token=token).SerializeToString())

    async def modify_push_config(self, request: bytes, _: Call) -> bytes:  # noqa: ARG002
        """Refuse: there is no push here."""
        raise unsupported("push subscriptions; pull instead")

    async def seek(self, request: bytes, _: Call) -> bytes:
        """Go back, or forth, to a time or a snapshot."""
        asked = pb.SeekRequest.FromString(request)
        subscription = self._attached(asked.subscription)
        target = asked.WhichOneof("target")
        if target is None:
            raise invalid("No target was specified in the SeekRequest: it must be a time or a snapshot.")
        if target == "time":
            await self._hub.seek_time(subscription, pb.time_us(asked.time))
        else:
            await self._hub.seek_snapshot(subscription, self._hub.snapshot(snapshot_name(asked.snapshot)))
        return bytes(pb.SeekResponse().SerializeToString())

    async def create_snapshot(self, request: bytes, _: Call) -> bytes:
        """Keep what a subscription has acknowledged under a name, for 7 days."""
        asked = pb.CreateSnapshotRequest.FromString(request)
        subscription = self._attached(asked.subscription)
        if subscription.topic is None or subscription.topic.deleted:
            raise precondition("The subscription's topic was deleted.")
        expires_us = (time.time_ns() // 1_000_000_000 + SNAPSHOT_S) * 1_000_000
        name = snapshot_name(asked.name)
        config = pb.Snapshot(
            name=name, topic=subscription.topic.name, expire_time=pb.timestamp(expires_us), labels=asked.labels
        )
        snapshot = await self._hub.create_snapshot(config, subscription)
        return bytes(snapshot.config.SerializeToString())

    async def get_snapshot(self, request: bytes, _: Call) -> bytes:
        """Show a snapshot."""
        name = pb.GetSnapshotRequest.FromString(request).snapshot
        return bytes(self._hub.snapshot(snapshot_name(name)).config.SerializeToString())

    async def delete_snapshot(self, request: bytes, _: Call) -> bytes:
        """Delete a snapshot."""
        await self._hub.delete_snapshot(snapshot_name(pb.DeleteSnapshotRequest.FromString(request).snapshot))
        return pb.NOTHING

    async def list_snapshots(self, request: bytes, _: Call) -> bytes:
        """List a project's snapshots, by name."""
        asked = pb.ListSnapshotsRequest.FromString(request)
        names, token = page(self._hub.snapshots, project_prefix(asked.project), asked)
        shown = [self._hub.snapshots[name].config for name in names]
        return bytes(pb.ListSnapshotsResponse(snapshots=shown, next_page_token=token).SerializeToString())

    def _check_dead_letter_topic(self, config: Any) -> None:
        if config.HasField("dead_letter_policy"):
            name = config.dead_letter_policy.dead_letter_topic
            if not name:
                raise not_found("Dead letter topic not found: the policy names none.")
            self._hub.topic(topic_name(name))


def check_deadline(deadline_s: int) -> None:
    """Raise Refused (INVALID_ARGUMENT) for an ack deadline that cannot be asked for; 0 ends a lease."""
    if not 0 <= deadline_s <= MAX_ACK_DEADLINE_S:
        raise invalid(f"ack_deadline_seconds out of bounds: {deadline_s} is not within 0 .. {MAX_ACK_DEADLINE_S}")


def _shown(subscription: Subscription) -> bytes:
    return bytes(subscription.shown().SerializeToString())
