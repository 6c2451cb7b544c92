"""What a topic or a subscription may look like: defaults, limits and update masks, by Google's rules.

Source: https://docs.cloud.google.com/pubsub/docs/reference/rpc/google.pubsub.v1, its quotas page, and the answers of
Google's emulator. One difference is on purpose: ack deadlines below 10 s are taken, as the emulator does, for tests.
"""

from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from millrace.broker.errors import Refused, invalid, unsupported
from millrace.broker.filters import parse_filter
from millrace.broker.names import subscription_name, topic_name
from millrace.broker.protocol import Subscription, Topic, duration

DAY_S = 86_400
DEFAULT_RETENTION_S = 7 * DAY_S
DEFAULT_ACK_DEADLINE_S = 10
MAX_ACK_DEADLINE_S = 600
MIN_ATTEMPTS, MAX_ATTEMPTS, DEFAULT_ATTEMPTS = 5, 100, 5
MIN_BACKOFF_S, MAX_BACKOFF_S = 10, 600
EXPIRATION_S = 31 * DAY_S

_TOPIC_MUTABLE = {"labels", "message_retention_duration", "message_storage_policy", "kms_key_name", "tags"}
_SUBSCRIPTION_MUTABLE = {
    *("ack_deadline_seconds", "retain_acked_messages", "message_retention_duration", "labels", "expiration_policy"),
    *("dead_letter_policy", "retry_policy", "push_config", "enable_exactly_once_delivery", "tags"),
}


def new_topic(asked: Any) -> Any:
    """Return a topic as it will be stored and shown, or raise Refused."""
    topic = Topic()
    topic.CopyFrom(asked)
    topic_name(topic.name)
    for field in ("schema_settings", "ingestion_data_source_settings"):
        if topic.HasField(field):
            raise unsupported(f"{field} of a topic")
    if topic.message_transforms:
        raise unsupported("message_transforms of a topic")
    if topic.HasField("message_retention_duration"):
        _within("message_retention_duration", topic.message_retention_duration, 600, 31 * DAY_S)
    topic.ClearField("state")
    topic.ClearField("satisfies_pzs")
    return topic


def new_subscription(asked: Any) -> Any:
    """Return a subscription as it will be stored and shown, or raise Refused. Its topics are not looked up here."""
    sub = Subscription()
    sub.CopyFrom(asked)
    subscription_name(sub.name)
    topic_name(sub.topic)
    _refuse_unsupported(sub)
    if sub.ack_deadline_seconds == 0:
        sub.ack_deadline_seconds = DEFAULT_ACK_DEADLINE_S
    if not 0 < sub.ack_deadline_seconds <= MAX_ACK_DEADLINE_S:
        raise invalid(f"ack_deadline_seconds out of bounds: {sub.ack_deadline_seconds} is not within 10 .. 600")
    if not sub.HasField("message_retention_duration"):
        sub.message_retention_duration.CopyFrom(duration(DEFAULT_RETENTION_S))
    _within("message_retention_duration", sub.message_retention_duration, 600, 31 * DAY_S)
    if not sub.HasField("expiration_policy"):
        sub.expiration_policy.ttl.CopyFrom(duration(EXPIRATION_S))
    elif sub.expiration_policy.HasField("ttl") and sub.expiration_policy.ttl.seconds < DAY_S:
        raise invalid("expiration_policy.ttl must be at least one day")
    sub.push_config.SetInParent()  # shown empty, as Google does for a pull subscription
    if sub.HasField("dead_letter_policy"):
        _dead_letter_policy(sub.dead_letter_policy)
    if sub.HasField("retry_policy"):
        _retry_policy(sub.retry_policy)
    parse_filter(sub.filter) if sub.filter else None
    for field in ("detached", "state", "topic_message_retention_duration"):
        sub.ClearField(field)
    return sub


def updated_topic(old: Any, asked: Any, paths: list[str]) -> Any:
    """Return the topic with the fields of the mask replaced, or raise Refused."""
    return new_topic(_merged(old, asked, paths, _TOPIC_MUTABLE, "Topic"))


def updated_subscription(old: Any, asked: Any, paths: list[str]) -> Any:
    """Return the subscription with the fields of the mask replaced, or raise Refused."""
    merged = _merged(old, asked, paths, _SUBSCRIPTION_MUTABLE, "Subscription")
    topic, merged.topic = merged.topic, asked_topic(old)
    checked = new_subscription(merged)
    checked.topic = topic
    checked.detached = old.detached
    return checked


def asked_topic(sub: Any) -> str:
    """A topic name that passes the checks, for a subscription whose own is gone (`_deleted-topic_`)."""
    return sub.topic if sub.topic.startswith("projects/") else "projects/none/topics/deleted"


def _merged(old: Any, asked: Any, paths: list[str], mutable: set[str], kind: str) -> Any:
    request = f"Update{kind}Request"
    if not paths:
        raise invalid(f"The update_mask in the {request} must be set, and must contain a non-empty paths list.")
    for path in paths:
        field = path.split(".", 1)[0]
        if field not in old.DESCRIPTOR.fields_by_name:
            raise invalid(f"Invalid update_mask provided in the {request}: {path} is not a known {kind} field.")
        if field not in mutable:
            raise invalid(
                f"Invalid update_mask provided in the {request}: the {path} field in the {kind} is not mutable."
            )
    merged = type(old)()
    merged.CopyFrom(old)
    mask = FieldMask(paths=paths)
    try:
        mask.MergeMessage(asked, merged, replace_message_field=True, replace_repeated_field=True)
    except ValueError as error:
        raise invalid(f"Invalid update_mask provided in the {request}: {error}") from error
    return merged


def _refuse_unsupported(sub: Any) -> None:
    if sub.push_config.push_endpoint:
        raise unsupported("push subscriptions; pull instead")
    for field in ("bigquery_config", "cloud_storage_config", "bigtable_config"):
        if sub.HasField(field):
            raise unsupported(f"{field} of a subscription")
    if sub.enable_exactly_once_delivery:
        raise unsupported("exactly-once delivery; it delivers at least once")
    if sub.message_transforms:
        raise unsupported("message_transforms of a subscription")


def _dead_letter_policy(policy: Any) -> None:
    if policy.max_delivery_attempts == 0:
        policy.max_delivery_attempts = DEFAULT_ATTEMPTS
    given = policy.max_delivery_attempts
    if not MIN_ATTEMPTS <= given <= MAX_ATTEMPTS:
        size, limit = (
            ("small", f"minimum value is {MIN_ATTEMPTS}")
            if given < MIN_ATTEMPTS
            else ("large", f"maximum value is {MAX_ATTEMPTS}")
        )
        raise Refused(
            grpc.StatusCode.OUT_OF_RANGE,
            f"The value for max_delivery_attempts is too {size}. You passed {given} in the request, but the {limit}.",
        )


def _retry_policy(policy: Any) -> None:
    if not policy.HasField("minimum_backoff"):
        policy.minimum_backoff.CopyFrom(duration(MIN_BACKOFF_S))
    if not policy.HasField("maximum_backoff"):
        policy.maximum_backoff.CopyFrom(duration(MAX_BACKOFF_S))
    _within("minimum_backoff", policy.minimum_backoff, 0, MAX_BACKOFF_S)
    _within("maximum_backoff", policy.maximum_backoff, 0, MAX_BACKOFF_S)
    if seconds(policy.maximum_backoff) < seconds(policy.minimum_backoff):
        raise invalid("The value for maximum_backoff is too small: it is below minimum_backoff.")


def seconds(span: Any) -> float:
    """Seconds of a protobuf Duration."""
    return float(span.seconds) + float(span.nanos) / 1e9


def _within(field: str, span: Any, least_s: int, most_s: int) -> None:
    if not least_s <= seconds(span) <= most_s:
        raise invalid(f"{field} out of bounds: {seconds(span):g} s is not within {least_s} .. {most_s} s")
