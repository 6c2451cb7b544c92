"""The subscription of a lane without order: its own, so that its backlog is nobody else's; created where missing."""

import os
import re
from typing import Any

import grpc

from millrace.delivery.feed import CannotReadError
from millrace.transforms.pubsub import SubscriptionClient

RETENTION_S = 7 * 86_400
"""How long a sink may be away: the most that Pub/Sub keeps messages for a subscription by default and without a fee."""

ACK_DEADLINE_S = 20
"""So long after a lane was killed, what it had in hand comes again. Leases are renewed at half of it."""

_TOPIC = re.compile(r"projects/(?P<project>[^/\s]+)/topics/[^/\s]+")
_SUBSCRIPTION = re.compile(r"projects/(?P<project>[^/\s]+)/subscriptions/(?P<name>[^/\s]+)")
_DELETED_TOPIC = "_deleted-topic_"
_AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


def subscription_of(topic: str, lane: str, prefix: str = "millrace-") -> str:
    """Return the name of a lane's subscription, beside the topic.

    Raises:
        CannotReadError: the topic's name is none.

    >>> subscription_of("projects/shop/topics/events", "crm.unordered")
    'projects/shop/subscriptions/millrace-crm.unordered'
    """
    match = _TOPIC.fullmatch(topic)
    if not topic:
        raise CannotReadError(
            "routes with `order: none` read the job's raw topic, each lane through a subscription of its own: give it "
            "as --topic=projects/PROJECT/topics/NAME"
        )
    if match is None:
        raise CannotReadError(f"{topic!r} is no topic: write projects/PROJECT/topics/NAME")
    return f"projects/{match['project']}/subscriptions/{prefix}{lane}"


def lease_s(client: SubscriptionClient, topic: str) -> int | None:
    """See that the subscription is there, creating it where it is not; return its ack deadline.

    Args:
        client: of the subscription.
        topic: the job's raw topic; empty: an existing subscription is taken as it is, a missing one is not created.

    Returns:
        Seconds; None where Pub/Sub does not answer now.

    Raises:
        CannotReadError: it is not there, or may not be read, or belongs to another topic.
    """
    try:
        found = _found_or_created(client, topic)
    except grpc.RpcError as error:
        if error.code() in _AWAY:
            return None
        raise CannotReadError(_refusal(client.subscription, topic, error)) from error
    if found.topic == _DELETED_TOPIC:
        raise CannotReadError(
            f"the topic of {client.subscription} was deleted, so nothing new comes: delete the subscription too, and "
            f"start again with --topic to have a new one"
        )
    if topic and found.topic != topic:
        raise CannotReadError(
            f"{client.subscription} belongs to {found.topic}, not to {topic}: give the lane another subscription, or "
            "correct --topic"
        )
    seconds: int = found.ack_deadline_seconds
    return seconds


def _found_or_created(client: SubscriptionClient, topic: str) -> Any:
    try:
        return client.get()
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND or not topic:
            raise
    try:
        return client.create(topic, ack_deadline_s=ACK_DEADLINE_S, retention_s=RETENTION_S)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.ALREADY_EXISTS:  # another process was quicker
            raise
        return client.get()


def _refusal(subscription: str, topic: str, error: grpc.RpcError) -> str:
    emulator = os.environ.get("PUBSUB_EMULATOR_HOST")
    where = f"the emulator at {emulator} (PUBSUB_EMULATOR_HOST)" if emulator else "Google Pub/Sub"
    code = error.code()
    if code is grpc.StatusCode.NOT_FOUND and topic:
        return f"{topic} does not exist at {where}: create it, or correct --topic"
    if code is grpc.StatusCode.NOT_FOUND:
        typed = command(subscription)
        return f"{subscription} does not exist at {where}: give --topic to have it created, or type `{typed}`"
    if code in {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}:
        return (
            f"{where} refuses access to {subscription}: give this account roles/pubsub.subscriber and "
            f"roles/pubsub.viewer, and roles/pubsub.editor where it is to be created; or type "
            f"`{command(subscription, topic)}` as somebody who may"
        )
    detail = str(error.details()).strip().partition("\n")[0][:200]
    return f"{where} cannot read {subscription}: {code.name}: {detail}"


def command(subscription: str, topic: str = "TOPIC") -> str:
    """Return what to type to have the subscription as a lane wants it."""
    match = _SUBSCRIPTION.fullmatch(subscription)
    project, name = (match["project"], match["name"]) if match else ("PROJECT", subscription)
    return (
        f"gcloud pubsub subscriptions create {name} --project={project} --topic={topic or 'TOPIC'} "
        f"--ack-deadline={ACK_DEADLINE_S} --message-retention-duration=7d --expiration-period=never"
    )
