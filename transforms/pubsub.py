"""The few Pub/Sub calls that reading takes, on raw protobuf messages.

google-cloud-pubsub's own wrapper classes double the price of a message (measured: 15k against 27k to 39k messages/s),
so the calls go over its channel, and its credentials, without them.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
from google.pubsub_v1 import types

_SERVICE = "/google.pubsub.v1.Subscriber/"
_CALL_TIMEOUT_S = 15.0
_ACKS_PER_CALL = 2_500
"""A request may hold 512 KiB of ack ids, each up to some 190 bytes (Pub/Sub's quotas page)."""

EMULATOR_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A broker that was away for a minute must be met again within a second, not after a minute's back-off.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


def open_channel() -> grpc.Channel:
    """Return a channel to PUBSUB_EMULATOR_HOST where that is set, else to Google with the default credentials.

    Raises:
        google.auth.exceptions.DefaultCredentialsError: there are none.
    """
    emulator = os.environ.get("PUBSUB_EMULATOR_HOST")
    if emulator:
        return grpc.insecure_channel(emulator, options=EMULATOR_CHANNEL_OPTIONS)
    from google.cloud import pubsub_v1  # noqa: PLC0415  half a second to import, and not needed above

    return pubsub_v1.SubscriberClient().transport.grpc_channel


class SubscriptionClient:
    """Pull, Acknowledge, ModifyAckDeadline, GetSubscription, CreateSubscription: of one subscription. For many threads.

    Every call raises grpc.RpcError as it comes: the caller knows whether to wait.
    """

    def __init__(self, channel: grpc.Channel, subscription: str) -> None:
        self.subscription = subscription
        self._channel = channel
        self._pulls_lock = threading.Lock()
        self._pulls: set[Any] = set()
        self._metadata = (("x-goog-request-params", f"subscription={subscription}"),)
        self._pull = self._call("Pull", types.PullRequest, types.PullResponse)
        self._acknowledge = self._call("Acknowledge", types.AcknowledgeRequest, None)
        self._modify = self._call("ModifyAckDeadline", types.ModifyAckDeadlineRequest, None)
        self._get = self._call("GetSubscription", types.GetSubscriptionRequest, types.Subscription)
        self._create = self._call("CreateSubscription", types.Subscription, types.Subscription)

    def pull(self, max_messages: int, timeout_s: float) -> Sequence[Any]:
        """Wait up to timeout_s for messages; return raw `ReceivedMessage`s, none where there were none."""
        request = _raw(types.PullRequest)(subscription=self.subscription, max_messages=max_messages)
        call = self._pull.future(request, timeout=timeout_s, metadata=self._metadata)
        with self._pulls_lock:
            self._pulls.add(call)
        try:
            response = call.result()
        except grpc.FutureCancelledError:
            return ()
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                return ()
            raise
        finally:
            with self._pulls_lock:
                self._pulls.discard(call)
        received: Sequence[Any] = response.received_messages
        return received

    def cancel_pulls(self) -> None:
        """Let the pulls that wait return without messages: what one of them brought late would be leased to nobody."""
        with self._pulls_lock:
            pulls = list(self._pulls)
        for call in pulls:
            call.cancel()

    def acknowledge(self, ack_ids: Sequence[str]) -> None:
        """Acknowledge messages for good."""
        for part in _parts(ack_ids):
            request = _raw(types.AcknowledgeRequest)(subscription=self.subscription, ack_ids=part)
            self._acknowledge(request, timeout=_CALL_TIMEOUT_S, metadata=self._metadata)

    def extend(self, ack_ids: Sequence[str], seconds: int) -> None:
        """Lease messages for so many seconds from now; 0 hands them back."""
        for part in _parts(ack_ids):
            request = _raw(types.ModifyAckDeadlineRequest)(
                subscription=self.subscription, ack_ids=part, ack_deadline_seconds=seconds
            )
            self._modify(request, timeout=_CALL_TIMEOUT_S, metadata=self._metadata)

    def ack_deadline_s(self) -> int:
        """Return the subscription's ack deadline; the cheapest call that shows whether it exists."""
        seconds: int = self.get().ack_deadline_seconds
        return seconds

    def get(self) -> Any:
        """Return the subscription as Pub/Sub has it, a raw `Subscription`."""
        request = _raw(types.GetSubscriptionRequest)(subscription=self.subscription)
        return self._get(request, timeout=_CALL_TIMEOUT_S, metadata=self._metadata)

    def create(self, topic: str, *, ack_deadline_s: int, retention_s: int) -> Any:
        """Create the subscription, to be kept however long nobody reads it; return it as `get` does."""
        wanted = _raw(types.Subscription)(name=self.subscription, topic=topic, ack_deadline_seconds=ack_deadline_s)
        wanted.message_retention_duration.seconds = retention_s
        wanted.expiration_policy.SetInParent()  # empty: never; without one, after 31 days
        metadata = (("x-goog-request-params", f"name={self.subscription}"),)
        return self._create(wanted, timeout=_CALL_TIMEOUT_S, metadata=metadata)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _call(self, name: str, request: Any, response: Any) -> grpc.UnaryUnaryMultiCallable:
        call: grpc.UnaryUnaryMultiCallable = self._channel.unary_unary(
            _SERVICE + name,
            request_serializer=_raw(request).SerializeToString,
            response_deserializer=_raw(response).FromString if response else _ignore,
        )
        return call


def _raw(wrapper: Any) -> Any:
    return type(wrapper.pb(wrapper()))


def _ignore(body: bytes) -> bytes:
    return body  # gRPC takes None for a failure to read the answer


def _parts(ack_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ack_ids[start : start + _ACKS_PER_CALL] for start in range(0, len(ack_ids), _ACKS_PER_CALL))
