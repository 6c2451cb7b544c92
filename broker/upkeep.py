"""What time does to messages: retention ends, and the store gives up what nobody can ask for any more."""

import time
from typing import TYPE_CHECKING

from millrace.broker.store import TOPIC_SPAN

if TYPE_CHECKING:
    from millrace.broker.committer import Committer
    from millrace.broker.hub import Hub
    from millrace.broker.resources import Topic

TRIM_BYTES = 8 << 20  # deleted in one transaction: publishers wait behind it


def retain(hub: "Hub") -> None:
    """Take what is older than its retention out of the subscriptions."""
    now_us = time.time_ns() // 1_000
    for subscription in hub.subscriptions.values():
        topic, queue = subscription.topic, subscription.queue
        if topic is None or queue.floor() >= topic.end:
            continue
        kept_s = max(subscription.retention_s(), topic.retention_s())
        queue.forget_before(hub.store.first_at(now_us - int(kept_s * 1e6), topic.trimmed, topic.end))


def trim(hub: "Hub", committer: "Committer") -> bool:
    """Delete some of what nobody needs; return whether there is more of it."""
    now_s = time.time()
    for name, snapshot in list(hub.snapshots.items()):
        if snapshot.expired(now_s):
            del hub.snapshots[name]
            snapshot.topic.snapshots.pop(name, None)
            committer.add("DELETE FROM snapshots WHERE name = ?", (name,))
    more = False
    for topic in (*hub.topics.values(), *list(hub.gone.values())):
        needed = _needed_from(hub, topic, now_s)
        if needed > topic.trimmed:
            end = hub.store.piece_end(topic.trimmed, needed, TRIM_BYTES)
            if end is None:  # the whole rest goes, but for a batch that reaches over the border
                topic.trimmed = end = needed
            else:
                topic.trimmed = end
                more = True
            committer.add("DELETE FROM batches WHERE id >= ? AND id < ? AND id + count <= ?", (topic.first, end, end))
        if topic.deleted and not topic.subscriptions and not topic.snapshots and not more:
            del hub.gone[topic.row]
            committer.add("DELETE FROM batches WHERE id >= ? AND id < ?", (topic.first, topic.first + TOPIC_SPAN))
            committer.add("DELETE FROM topics WHERE id = ?", (topic.row,))
    return more


def _needed_from(hub: "Hub", topic: "Topic", now_s: float) -> int:
    """The first id of the topic that a subscription, a snapshot or a retention still holds."""
    needed = topic.end
    if topic.retention_s() > 0 and not topic.deleted:
        needed = hub.store.first_at(int((now_s - topic.retention_s()) * 1e6), topic.trimmed, topic.end)
    for snapshot in topic.snapshots.values():
        needed = min(needed, snapshot.floor)
    for subscription in topic.subscriptions.values():
        queue = subscription.queue
        needed = min(needed, queue.floor())
        if subscription.config.retain_acked_messages:
            kept_from_us = int((now_s - subscription.retention_s()) * 1e6)
            needed = min(needed, hub.store.first_at(kept_from_us, topic.trimmed, topic.end))
    return needed
