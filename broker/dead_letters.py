"""Dead-letter topics: a message that used up its delivery attempts goes there, and only then leaves its subscription.

Source: https://docs.cloud.google.com/pubsub/docs/handling-failures#track_the_delivery_attempts (attribute names)
"""

import datetime as dt
from typing import TYPE_CHECKING

from millrace.broker.errors import Refused
from millrace.broker.names import project_of
from millrace.broker.protocol import PubsubMessage

if TYPE_CHECKING:
    from millrace.broker.hub import Hub
    from millrace.broker.ordering import Pending
    from millrace.broker.resources import Subscription

PREFIX = "CloudPubSubDeadLetter"


async def forward(hub: "Hub", subscription: "Subscription", pending: "Pending") -> None:
    """Publish a copy to the dead-letter topic, then be done with the original; where that fails, deliver it again."""
    queue = subscription.queue
    topic = hub.topics.get(subscription.config.dead_letter_policy.dead_letter_topic)
    original = queue.message(pending)
    if topic is None or original is None:
        queue.retry(pending)
        return
    message = PubsubMessage.FromString(original)
    published = message.publish_time
    published_at = dt.datetime.fromtimestamp(published.seconds, dt.UTC) + dt.timedelta(
        microseconds=published.nanos // 1_000
    )
    attributes = message.attributes
    attributes[f"{PREFIX}SourceDeliveryCount"] = str(pending.attempt)
    attributes[f"{PREFIX}SourceSubscription"] = subscription.name.rpartition("/")[2]
    attributes[f"{PREFIX}SourceSubscriptionProject"] = project_of(subscription.name)
    attributes[f"{PREFIX}SourceTopicPublishTime"] = published_at.isoformat().replace("+00:00", "Z")
    try:
        await hub.publish(topic, [message])
    except Refused:
        queue.retry(pending)
    else:
        queue.forget(pending)
    subscription.wake()
