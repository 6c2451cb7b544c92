"""The broker itself, without gRPC: all topics, subscriptions and snapshots, and the work that time brings.

Runs on one event loop. A change is written first and takes effect in memory when it is on disk; changes of definitions
happen one at a time.
"""

import asyncio
import contextlib
import json
import logging
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from millrace.broker.chaos import Chaos
from millrace.broker.committer import Committer
from millrace.broker.dead_letters import forward
from millrace.broker.errors import Refused, exists, invalid, not_found, precondition
from millrace.broker.ordering import Pending
from millrace.broker.resources import Snapshot, Subscription, Topic
from millrace.broker.store import TOPIC_SPAN, SnapshotRow, Store, SubscriptionRow, TopicRow, Write
from millrace.broker.upkeep import retain, trim
from millrace.broker.wire import encode_batch

log = logging.getLogger(__name__)

TICK_S = 0.02  # how late a redelivery may be
SAVE_S = 0.2  # how old an ack may be that a kill -9 makes the broker forget
UPKEEP_S = 1.0


class Hub:
    """All state of a broker. Start it on the loop that its calls run on."""

    def __init__(self, store: Store, chaos: Chaos) -> None:
        self.store = store
        self.chaos = chaos
        self.topics: dict[str, Topic] = {}
        self.gone: dict[int, Topic] = {}  # deleted topics that still have messages for somebody, by row
        self.subscriptions: dict[str, Subscription] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self._changing = asyncio.Lock()
        self._rows = {"topics": 0, "subscriptions": 0}
        self._committer = Committer(store)
        self._load()
        self._clock = asyncio.get_running_loop().create_task(self._run())

    def _load(self) -> None:
        topics = {row.id: Topic(row) for row in self.store.topics()}
        self.topics = {topic.name: topic for topic in topics.values() if not topic.deleted}
        self.gone = {row: topic for row, topic in topics.items() if topic.deleted}
        for found in self.store.subscriptions():
            self._attach(found, topics.get(found.topic) if found.topic is not None else None)
        for snapshot in self.store.snapshots():
            self.snapshots[snapshot.name] = Snapshot(snapshot, topics[snapshot.topic])

    def _attach(self, row: SubscriptionRow, topic: Topic | None) -> Subscription:
        subscription = Subscription(row, topic, self.store, self.chaos)
        self.subscriptions[row.name] = subscription
        subscription.queue.give_up = lambda pending: self._give_up(subscription, pending)
        return subscription

    async def close(self) -> None:
        """Save what is acknowledged and stop; clients that wait get nothing."""
        self._clock.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._clock
        for subscription in self.subscriptions.values():
            subscription.wake_all()
        self._save()
        with contextlib.suppress(Exception):  # logged where it happened; there is nobody left to tell
            await self._committer.commit()
        await self._committer.close()
        self.store.close()

    # Look up

    def topic(self, name: str) -> Topic:
        """Return the topic, or raise Refused (NOT_FOUND)."""
        try:
            return self.topics[name]
        except KeyError:
            raise not_found(f"Topic not found (resource={name.rpartition('/')[2]}).") from None

    def subscription(self, name: str) -> Subscription:
        """Return the subscription, or raise Refused (NOT_FOUND)."""
        try:
            return self.subscriptions[name]
        except KeyError:
            raise not_found(f"Subscription does not exist (resource={name.rpartition('/')[2]}).") from None

    def snapshot(self, name: str) -> Snapshot:
        """Return the snapshot, or raise Refused (NOT_FOUND)."""
        found = self.snapshots.get(name)
        if found is None or found.expired(time.time()):
            raise not_found(f"Snapshot does not exist (resource={name.rpartition('/')[2]}).")
        return found

    # Publish

    async def publish(self, topic: Topic, messages: Sequence[Any]) -> range:
        """Store messages, return their ids once they are on disk; Refused (UNAVAILABLE) where the disk fails."""
        first, count = topic.next_id, len(messages)
        topic.next_id = end = first + count
        keep_id: Write = ("UPDATE topics SET next_id = ? WHERE id = ?", (end, topic.row))
        if not topic.keeps():  # nobody can ever read them, as in Pub/Sub
            await self._committer.write(keep_id, done=lambda: topic.published(end))
            return range(first, end)
        batch = encode_batch(messages, first, topic.publish_time_us())

        def done() -> None:
            self.store.remember(batch)
            topic.published(end)

        row = (batch.first, batch.count, batch.published_us, batch.stored)
        await self._committer.write(("INSERT INTO batches VALUES (?, ?, ?, ?)", row), keep_id, done=done)
        return range(first, end)

    # Change definitions

    async def create_topic(self, config: Any) -> Topic:
        """Create a topic from a checked definition."""
        async with self._changing:
            if config.name in self.topics:
                raise exists(f"Topic already exists (resource={config.name.rpartition('/')[2]}).")
            row_id = self._new_row("topics")
            row = TopicRow(row_id, config.name, config.SerializeToString(), row_id * TOPIC_SPAN + 1, deleted=False)
            await self._committer.write(("INSERT INTO topics VALUES (?, ?, ?, ?, 0)", row[:4]))
            self.topics[row.name] = topic = Topic(row)
            return topic

    async def update_topic(self, topic: Topic, config: Any) -> None:
        """Give a topic a new, checked definition."""
        async with self._changing:
            update = "UPDATE topics SET config = ? WHERE id = ?"
            await self._committer.write((update, (config.SerializeToString(), topic.row)))
            topic.config = config

    async def delete_topic(self, name: str) -> None:
        """Delete a topic; its subscriptions keep their backlog."""
        async with self._changing:
            topic = self.topic(name)
            await self._committer.write(("UPDATE topics SET deleted = 1 WHERE id = ?", (topic.row,)))
            del self.topics[name]
            topic.deleted = True
            self.gone[topic.row] = topic

    async def create_subscription(self, config: Any) -> Subscription:
        """Create a subscription from a checked definition: it gets what is published from now on."""
        async with self._changing:
            if config.name in self.subscriptions:
                raise exists(f"Subscription already exists (resource={config.name.rpartition('/')[2]}).")
            topic = self.topic(config.topic)
            row_id = self._new_row("subscriptions")
            born = topic.next_id
            row = SubscriptionRow(row_id, config.name, topic.row, config.SerializeToString(), born, born, [])
            await self._committer.write(("INSERT INTO subscriptions VALUES (?, ?, ?, ?, ?, ?)", row[:6]))
            # What was published meanwhile may have been dropped, since nobody was there to keep it for.
            return self._attach(row._replace(floor=topic.next_id), topic)

    async def update_subscription(self, subscription: Subscription, config: Any) -> None:
        """Give a subscription a new, checked definition."""
        async with self._changing:
            update = "UPDATE subscriptions SET config = ? WHERE id = ?"
            await self._committer.write((update, (config.SerializeToString(), subscription.row)))
            subscription.define(config)

    async def delete_subscription(self, name: str) -> None:
        """Delete a subscription with its backlog."""
        async with self._changing:
            subscription = self.subscription(name)
            await self._committer.write(
                ("DELETE FROM subscriptions WHERE id = ?", (subscription.row,)),
                ("DELETE FROM acked WHERE subscription = ?", (subscription.row,)),
            )
            del self.subscriptions[name]
            subscription.deleted = True
            if subscription.topic is not None:
                del subscription.topic.subscriptions[name]
            subscription.wake_all()

    async def detach_subscription(self, name: str) -> None:
        """Take a subscription off its topic: its backlog is dropped and it gets nothing more."""
        async with self._changing:
            subscription = self.subscription(name)
            if subscription.config.detached:
                return
            config = type(subscription.config)()
            config.CopyFrom(subscription.config)
            config.detached = True
            await self._committer.write(
                ("UPDATE subscriptions SET config = ? WHERE id = ?", (config.SerializeToString(), subscription.row)),
                ("DELETE FROM acked WHERE subscription = ?", (subscription.row,)),
            )
            subscription.define(config)
            if subscription.topic is not None:
                del subscription.topic.subscriptions[name]
            subscription.queue.end = subscription.queue.cursor
            subscription.queue.reset(subscription.queue.cursor)
            subscription.wake_all()

    # Seek

    async def seek_time(self, subscription: Subscription, time_us: int) -> None:
        """Acknowledge all published before a time; bring back what was published from it on and is still kept."""
        async with self._changing:
            topic, queue = subscription.topic, subscription.queue
            if topic is None:
                return
            boundary = self.store.first_at(time_us, topic.first, topic.end)
            if topic.retention_s() == 0:
                boundary = max(boundary, subscription.born)
            if subscription.config.retain_acked_messages or topic.retention_s() > 0:
                await self._reset(subscription, boundary, [])
            else:
                queue.forget_before(boundary)

    async def seek_snapshot(self, subscription: Subscription, snapshot: Snapshot) -> None:
        """Bring a subscription to the state that a snapshot holds."""
        async with self._changing:
            if snapshot.topic is not subscription.topic:
                raise invalid("The snapshot is of another topic than the subscription's.")
            await self._reset(subscription, snapshot.floor, snapshot.acked)

    async def _reset(self, subscription: Subscription, floor: int, acked: list[tuple[int, int]]) -> None:
        subscription.queue.reset(floor, acked)
        await self._committer.write(
            ("DELETE FROM acked WHERE subscription = ?", (subscription.row,)),
            ("UPDATE subscriptions SET floor = ? WHERE id = ?", (floor, subscription.row)),
            *(("INSERT INTO acked VALUES (?, ?, ?)", (subscription.row, first, last)) for first, last in acked),
        )
        subscription.wake()

    async def create_snapshot(self, config: Any, subscription: Subscription) -> Snapshot:
        """Keep what a subscription has acknowledged so far under a name."""
        async with self._changing:
            if config.name in self.snapshots:
                raise exists(f"Snapshot already exists (resource={config.name.rpartition('/')[2]}).")
            topic = subscription.topic
            if topic is None or subscription.config.detached:
                raise precondition("A detached subscription has no messages to make a snapshot of.")
            queue = subscription.queue
            acked = json.dumps(queue.acked_ranges())
            row = SnapshotRow(config.name, topic.row, config.SerializeToString(), queue.floor(), acked)
            snapshot = Snapshot(row, topic)  # before the write: from here on nothing that it needs is trimmed
            await self._committer.write(("INSERT INTO snapshots VALUES (?, ?, ?, ?, ?)", row))
            self.snapshots[config.name] = snapshot
            return snapshot

    async def delete_snapshot(self, name: str) -> None:
        """Delete a snapshot."""
        async with self._changing:
            snapshot = self.snapshot(name)
            await self._committer.write(("DELETE FROM snapshots WHERE name = ?", (name,)))
            del self.snapshots[name]
            snapshot.topic.snapshots.pop(name, None)

    def _new_row(self, table: str) -> int:
        if not self._rows[table]:
            self._rows[table] = self.store.last_row(table)
        self._rows[table] += 1
        return self._rows[table]

    # What time brings

    async def _run(self) -> None:
        save_at = upkeep_at = 0.0
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            for subscription in list(self.subscriptions.values()):
                subscription.queue.tick(now)
                subscription.wake()
            if now >= save_at:
                save_at = now + SAVE_S
                self._save()
            if now >= upkeep_at:
                upkeep_at = now + UPKEEP_S
                try:
                    retain(self)
                    if trim(self, self._committer):
                        upkeep_at = now  # there is more to delete: go on at the next tick
                except sqlite3.Error:
                    log.exception("the broker's store could not be tidied up")  # redeliveries go on all the same
                with contextlib.suppress(Refused):  # one piece after the other, so that publishers get in between
                    await asyncio.shield(self._committer.commit())

    def _save(self) -> None:
        for subscription in self.subscriptions.values():
            writes = subscription.queue.unsaved(subscription.row)
            for statement, parameters in writes:
                self._committer.add(statement, parameters)
            if writes:
                self._committer.commit()

    def _give_up(self, subscription: Subscription, pending: Pending) -> None:
        task = asyncio.get_running_loop().create_task(forward(self, subscription, pending))
        task.add_done_callback(lambda done: done.cancelled() or done.result())
