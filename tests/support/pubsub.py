"""Pub/Sub servers for tests: ours as a process, Google's emulator where it is installed; and raw calls to either.

with broker_process(tmp_path) as server:
    pubsub = PubSub(server.address)
    topic = pubsub.create_topic()
"""

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import grpc

from millrace.broker import protocol as pb
from millrace.local.doctor import find_google_emulator

START_S = 90.0
CALL_S = 60.0


@dataclasses.dataclass
class Server:
    """A server that runs: its kind ("millrace", "google"), host:port, and process."""

    kind: str
    address: str
    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """End it as kill -9 does, and wait until it is gone."""
        self.process.kill()
        self.process.wait()


def wait_until(condition: Callable[[], Any], timeout_s: float = 90.0, what: str = "") -> Any:
    """Return the first true result of condition, asked every 10 ms; AssertionError after timeout_s."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {timeout_s} s: {what or condition}")
        time.sleep(0.01)


@contextlib.contextmanager
def broker_process(data_dir: str | os.PathLike[str] = ":memory:", *flags: str, port: int = 0) -> Iterator[Server]:
    """Run `millrace broker` on a free port; killed at the end, whatever happened in between."""
    command = [sys.executable, "-m", "millrace.broker.server", "--port", str(port), "--data", str(data_dir), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            assert "PUBSUB_EMULATOR_HOST=" in ready, f"the broker did not start: {ready!r}, exit {process.poll()}"
            yield Server("millrace", ready.rpartition("=")[2].strip(), process)
        finally:
            process.kill()


@contextlib.contextmanager
def google_emulator() -> Iterator[Server]:
    """Run Google's emulator on a free port. Raises LookupError where it is not installed."""
    jar = find_google_emulator()
    if jar is None:
        raise LookupError("Google's Pub/Sub emulator is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["java", "-jar", str(jar), "--host=127.0.0.1", f"--port={port}"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet, text=True) as process:
        try:
            wait_until(lambda: process.poll() is not None or _listens(port), START_S, "the emulator listens")
            assert process.poll() is None, "Google's emulator ended at once"
            yield Server("google", f"127.0.0.1:{port}", process)
        finally:
            process.kill()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class PubSub:
    """Plain calls to a Pub/Sub server in a project of its own; every call raises grpc.RpcError where it is refused."""

    def __init__(self, address: str, project: str = "") -> None:
        self.address = address
        self.project = project or f"test-{uuid.uuid4().hex[:12]}"
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(address, options=[*unlimited, ("grpc.use_local_subchannel_pool", 1)])

    def close(self) -> None:
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, method: str, request: Any, response: Any = pb.Empty, timeout_s: float = CALL_S) -> Any:
        """Make one unary call: `call("Publisher/GetTopic", pb.GetTopicRequest(...), pb.Topic)`."""
        unary = self.channel.unary_unary(
            f"/google.pubsub.v1.{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        return unary(request, timeout=timeout_s)

    def topic_name(self, short: str) -> str:
        return f"projects/{self.project}/topics/{short}"

    def subscription_name(self, short: str) -> str:
        return f"projects/{self.project}/subscriptions/{short}"

    def create_topic(self, short: str = "", **fields: Any) -> str:
        """Create a topic and return its full name."""
        name = self.topic_name(short or f"topic-{uuid.uuid4().hex[:8]}")
        created: str = self.call("Publisher/CreateTopic", pb.Topic(name=name, **fields), pb.Topic).name
        return created

    def create_subscription(self, topic: str, short: str = "", **fields: Any) -> str:
        """Create a subscription and return its full name; the ack deadline is 600 s where none is given."""
        name = self.subscription_name(short or f"sub-{uuid.uuid4().hex[:8]}")
        fields.setdefault("ack_deadline_seconds", 600)
        asked = pb.Subscription(name=name, topic=topic, **fields)
        created: str = self.call("Subscriber/CreateSubscription", asked, pb.Subscription).name
        return created

    def get_topic(self, name: str) -> Any:
        return self.call("Publisher/GetTopic", pb.GetTopicRequest(topic=name), pb.Topic)

    def delete_topic(self, name: str) -> None:
        self.call("Publisher/DeleteTopic", pb.DeleteTopicRequest(topic=name))

    def list_topics(self, **fields: Any) -> Any:
        """Return one page (ListTopicsResponse) of the project's topics."""
        asked = pb.ListTopicsRequest(project=f"projects/{self.project}", **fields)
        return self.call("Publisher/ListTopics", asked, pb.ListTopicsResponse)

    def list_topic_subscriptions(self, topic: str, **fields: Any) -> Any:
        """Return one page (ListTopicSubscriptionsResponse) of a topic's subscriptions."""
        asked = pb.ListTopicSubscriptionsRequest(topic=topic, **fields)
        return self.call("Publisher/ListTopicSubscriptions", asked, pb.ListTopicSubscriptionsResponse)

    def get_subscription(self, name: str) -> Any:
        return self.call("Subscriber/GetSubscription", pb.GetSubscriptionRequest(subscription=name), pb.Subscription)

    def update_subscription(self, name: str, path: str, **fields: Any) -> Any:
        """Set one field (none where path is empty) and return the subscription."""
        asked = pb.UpdateSubscriptionRequest(subscription=pb.Subscription(name=name, **fields))
        asked.update_mask.paths.extend([path] if path else [])
        return self.call("Subscriber/UpdateSubscription", asked, pb.Subscription)

    def delete_subscription(self, name: str) -> None:
        self.call("Subscriber/DeleteSubscription", pb.DeleteSubscriptionRequest(subscription=name))

    def list_subscriptions(self, **fields: Any) -> Any:
        """Return one page (ListSubscriptionsResponse) of the project's subscriptions."""
        asked = pb.ListSubscriptionsRequest(project=f"projects/{self.project}", **fields)
        return self.call("Subscriber/ListSubscriptions", asked, pb.ListSubscriptionsResponse)

    def detach(self, subscription: str) -> None:
        asked = pb.DetachSubscriptionRequest(subscription=subscription)
        self.call("Publisher/DetachSubscription", asked, pb.DetachSubscriptionResponse)

    def seek(self, subscription: str, **target: Any) -> None:
        """Seek to `time=` (Timestamp) or `snapshot=` (name)."""
        self.call("Subscriber/Seek", pb.SeekRequest(subscription=subscription, **target), pb.SeekResponse)

    def create_snapshot(self, subscription: str) -> str:
        """Create a snapshot and return its full name."""
        name = f"projects/{self.project}/snapshots/snap-{uuid.uuid4().hex[:8]}"
        asked = pb.CreateSnapshotRequest(name=name, subscription=subscription)
        created: str = self.call("Subscriber/CreateSnapshot", asked, pb.Snapshot).name
        return created

    def publish(self, topic: str, *messages: Any, timeout_s: float = CALL_S) -> list[str]:
        """Publish messages (bytes, or PubsubMessage) in one request and return their ids."""
        wrapped = [pb.PubsubMessage(data=one) if isinstance(one, bytes) else one for one in messages]
        asked = pb.PublishRequest(topic=topic, messages=wrapped)
        return list(self.call("Publisher/Publish", asked, pb.PublishResponse, timeout_s).message_ids)

    def pull(
        self, subscription: str, limit: int = 1_000, *, at_once: bool = False, timeout_s: float = CALL_S
    ) -> list[Any]:
        """Return what one Pull brings (ReceivedMessage)."""
        asked = pb.PullRequest(subscription=subscription, max_messages=limit, return_immediately=at_once)
        return list(self.call("Subscriber/Pull", asked, pb.PullResponse, timeout_s).received_messages)

    def pull_until(self, subscription: str, count: int, timeout_s: float = 90.0) -> list[Any]:
        """Pull until count messages came; AssertionError where they do not within timeout_s."""
        got: list[Any] = []

        def enough() -> bool:
            got.extend(self.pull(subscription, count - len(got), at_once=True))
            return len(got) >= count

        wait_until(enough, timeout_s, f"{count} messages of {subscription}")
        return got

    def drain(self, subscription: str) -> list[Any]:
        """Pull and acknowledge until three pulls in a row bring nothing."""
        got: list[Any] = []
        empty = 0
        while empty < 3:
            page = self.pull(subscription, at_once=True)
            empty = 0 if page else empty + 1
            got += page
            if page:
                self.ack(subscription, *page)
        return got

    def ack(self, subscription: str, *received: Any) -> None:
        """Acknowledge messages (ReceivedMessage, or ack ids)."""
        asked = pb.AcknowledgeRequest(subscription=subscription, ack_ids=_ack_ids(received))
        self.call("Subscriber/Acknowledge", asked)

    def modify(self, subscription: str, deadline_s: int, *received: Any) -> None:
        """Move the ack deadline to deadline_s from now; 0 is a nack."""
        ack_ids = _ack_ids(received)
        asked = pb.ModifyAckDeadlineRequest(subscription=subscription, ack_ids=ack_ids, ack_deadline_seconds=deadline_s)
        self.call("Subscriber/ModifyAckDeadline", asked)


def _ack_ids(received: Sequence[Any]) -> list[str]:
    return [one if isinstance(one, str) else one.ack_id for one in received]


def bodies(received: Sequence[Any]) -> list[bytes]:
    """The data of received messages."""
    return [one.message.data for one in received]
