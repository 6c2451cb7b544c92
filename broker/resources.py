"""Topics and subscriptions as they live in the broker's memory; their messages live in the store."""

import asyncio
import json
import time
from collections import deque
from typing import Any

from millrace.broker.catalog import seconds
from millrace.broker.chaos import Chaos
from millrace.broker.delivery import Queue
from millrace.broker.filters import parse_filter
from millrace.broker.names import DELETED_TOPIC
from millrace.broker.protocol import Snapshot as SnapshotMessage
from millrace.broker.protocol import Subscription as SubscriptionMessage
from millrace.broker.protocol import Topic as TopicMessage
from millrace.broker.store import TOPIC_SPAN, SnapshotRow, Store, SubscriptionRow, TopicRow


class Topic:
    """One topic: where its messages end, and who reads them."""

    def __init__(self, row: TopicRow) -> None:
        self.row = row.id
        self.name = row.name
        self.config: Any = TopicMessage.FromString(row.config)
        self.first = row.id * TOPIC_SPAN
        self.next_id = row.next_id  # what the next message gets
        self.end = row.next_id  # below it all is on disk and may be delivered
        self.deleted = row.deleted
        self.trimmed = self.first  # below it the store holds nothing more
        self.last_us = 0
        self.subscriptions: dict[str, Subscription] = {}
        self.snapshots: dict[str, Snapshot] = {}

    def retention_s(self) -> float:
        """For how long messages stay after all have acknowledged them; 0: not at all."""
        return seconds(self.config.message_retention_duration)

    def keeps(self) -> bool:
        """Whether anybody may ask for a message published now."""
        return bool(self.subscriptions) or self.retention_s() > 0

    def publish_time_us(self) -> int:
        """The time of a publish now: never before that of the message before it."""
        self.last_us = max(self.last_us, time.time_ns() // 1_000)
        return self.last_us

    def published(self, end: int) -> None:
        """Let the subscriptions see what is on disk."""
        self.end = max(self.end, end)
        for subscription in self.subscriptions.values():
            subscription.queue.end = self.end
            subscription.wake()


class Subscription:
    """One subscription: its definition, its queue, and the clients that wait at it."""

    def __init__(self, row: SubscriptionRow, topic: Topic | None, store: Store, chaos: Chaos) -> None:
        self.row = row.id
        self.name = row.name
        self.topic = topic
        self.born = row.born
        self.deleted = False
        self.queue = Queue(store, chaos, row.floor, row.acked)
        self.define(SubscriptionMessage.FromString(row.config))
        self._waiters: deque[asyncio.Future[None]] = deque()
        if topic is not None and not self.config.detached:
            self.queue.end = max(row.floor, topic.end)
            topic.subscriptions[self.name] = self

    def define(self, config: Any) -> None:
        """Take a new definition; it holds from the next delivery on."""
        self.config = config
        queue = self.queue
        queue.ordered = config.enable_message_ordering
        queue.wants = parse_filter(config.filter) if config.filter else None
        queue.max_attempts = config.dead_letter_policy.max_delivery_attempts
        retry = config.retry_policy
        queue.backoff_s = (seconds(retry.minimum_backoff), seconds(retry.maximum_backoff))

    def retention_s(self) -> float:
        """For how long a message is kept for this subscription."""
        return seconds(self.config.message_retention_duration)

    def shown(self) -> Any:
        """The definition as clients see it."""
        shown = SubscriptionMessage()
        shown.CopyFrom(self.config)
        shown.state = SubscriptionMessage.State.ACTIVE
        if self.topic is None or self.topic.deleted:
            shown.topic = DELETED_TOPIC
        elif self.topic.retention_s():
            shown.topic_message_retention_duration.CopyFrom(self.topic.config.message_retention_duration)
        return shown

    async def wait(self, timeout_s: float) -> None:
        """Return when there may be something to take, or after timeout_s; the first that waits is served first."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await asyncio.wait_for(waiter, timeout_s)
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.wake()  # its turn goes to the next
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def wake(self) -> None:
        """Let one waiting client look, where there is something to take."""
        if not self.queue.has_more():
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def wake_all(self) -> None:
        """Let all waiting clients look: the subscription is gone, or the broker stops."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)


class Snapshot:
    """What a subscription had acknowledged at a moment."""

    def __init__(self, row: SnapshotRow, topic: Topic) -> None:
        self.name = row.name
        self.topic = topic
        self.config: Any = SnapshotMessage.FromString(row.config)
        self.floor = row.floor
        self.acked = [(first, last) for first, last in json.loads(row.acked)]
        topic.snapshots[self.name] = self

    def expired(self, now_s: float) -> bool:
        """Whether its time is over."""
        return bool(self.config.expire_time.seconds <= now_s)
