"""StreamingPull, by raw calls and by Google's own client: the same on ours and on Google's emulator."""

import queue
import threading
from collections.abc import Iterator
from typing import Any, Self

import grpc
import pytest
from google.cloud import pubsub_v1

from millrace.broker import protocol as pb
from tests.support.pubsub import PubSub, Server, bodies, wait_until


class Stream:
    """One StreamingPull; what comes is collected in `received`, its end in `error`."""

    def __init__(self, pubsub: PubSub, subscription: str, **first: Any) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.received: list[Any] = []
        self.error: grpc.RpcError | None = None
        first.setdefault("stream_ack_deadline_seconds", 60)
        self.send(subscription=subscription, **first)
        call = pubsub.channel.stream_stream(
            "/google.pubsub.v1.Subscriber/StreamingPull",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.StreamingPullResponse.FromString,
        )
        self._responses = call(self._outgoing())
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def send(self, **fields: Any) -> None:
        self._requests.put(pb.StreamingPullRequest(**fields))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.put(None)
        self._responses.cancel()
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()

    def _outgoing(self) -> Iterator[Any]:
        while (request := self._requests.get()) is not None:
            yield request

    def _collect(self) -> None:
        try:
            for response in self._responses:
                self.received += response.received_messages
        except grpc.RpcError as error:
            self.error = error

    def wait_for(self, count: int) -> list[Any]:
        wait_until(lambda: len(self.received) >= count, what=f"{count} messages on the stream")
        return list(self.received)


def subscribed(pubsub: PubSub, **fields: Any) -> tuple[str, str]:
    topic = pubsub.create_topic()
    return topic, pubsub.create_subscription(topic, **fields)


def test_a_stream_brings_what_is_there_and_what_comes(pubsub: PubSub) -> None:
    topic, subscription = subscribed(pubsub)
    pubsub.publish(topic, b"1", b"2")
    with Stream(pubsub, subscription) as stream:
        stream.wait_for(2)
        pubsub.publish(topic, b"3")
        assert bodies(stream.wait_for(3)) == [b"1", b"2", b"3"]


def test_an_ack_on_the_stream_counts(pubsub: PubSub) -> None:
    topic, subscription = subscribed(pubsub)
    pubsub.publish(topic, b"1", b"2")
    with Stream(pubsub, subscription) as stream:
        first, second = stream.wait_for(2)
        stream.send(ack_ids=[first.ack_id])
        stream.send(modify_deadline_ack_ids=[first.ack_id, second.ack_id], modify_deadline_seconds=[0, 0])
        assert bodies(stream.wait_for(3)) == [b"1", b"2", b"2"]
        stream.send(ack_ids=[stream.received[2].ack_id])
        pubsub.publish(topic, b"3")
        assert bodies(stream.wait_for(4)) == [b"1", b"2", b"2", b"3"]


def test_flow_control_bounds_what_is_out(own: PubSub) -> None:
    topic, subscription = subscribed(own)
    with Stream(own, subscription, max_outstanding_messages=3) as stream:
        own.publish(topic, *(b"%d" % number for number in range(8)))
        assert len(stream.wait_for(3)) == 3
        with Stream(own, subscription) as other:  # what the first has no room for goes to others
            assert len(other.wait_for(5)) == 5
        assert len(stream.received) == 3
        own.publish(topic, b"8", b"9")
        stream.send(ack_ids=[stream.received[0].ack_id, stream.received[1].ack_id])
        assert bodies(stream.wait_for(5))[3:] == [b"8", b"9"]


def test_flow_control_bounds_the_bytes_that_are_out(own: PubSub) -> None:
    topic, subscription = subscribed(own)
    with Stream(own, subscription, max_outstanding_bytes=2_500) as stream:
        own.publish(topic, *[b"x" * 1_000] * 6)
        stream.wait_for(2)
        assert len(own.pull(subscription)) == 4
        stream.send(ack_ids=[one.ack_id for one in stream.received])
        own.publish(topic, *[b"y" * 9_000] * 2)  # larger than all of it: one at a time
        stream.wait_for(3)
        assert len(own.pull(subscription)) == 1


def test_flow_control_lets_nothing_newer_overtake_what_comes_again(own: PubSub) -> None:
    topic, subscription = subscribed(own)
    own.publish(topic, b"1" * 1_000, b"2" * 1_000)
    own.modify(subscription, 0, *own.pull(subscription))
    own.publish(topic, b"3")
    with Stream(own, subscription, max_outstanding_bytes=1_500) as stream:
        (first,) = stream.wait_for(1)
        stream.send(ack_ids=[first.ack_id])
        assert [body[:1] for body in bodies(stream.wait_for(3))] == [b"1", b"2", b"3"]


def test_a_stream_has_its_own_ack_deadline(own: PubSub) -> None:
    topic, subscription = subscribed(own, ack_deadline_seconds=600)
    own.publish(topic, b"x")
    with Stream(own, subscription, stream_ack_deadline_seconds=1) as stream:
        first, second = stream.wait_for(2)[:2]
        assert first.message == second.message
        assert first.ack_id != second.ack_id


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ({"subscription": "projects/p/subscriptions/none"}, grpc.StatusCode.NOT_FOUND),
        ({"subscription": "none"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"stream_ack_deadline_seconds": 601}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"modify_deadline_ack_ids": ["x"]}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_a_bad_first_request_ends_the_stream(own: PubSub, first: dict[str, Any], code: Any) -> None:
    _, subscription = subscribed(own)
    asked = {"subscription": subscription, **first}
    with Stream(own, **asked) as stream:
        wait_until(lambda: stream.error is not None)
        assert stream.error is not None
        assert stream.error.code() == code


def test_a_stream_ends_when_its_subscription_is_deleted(pubsub: PubSub) -> None:
    _, subscription = subscribed(pubsub)
    with Stream(pubsub, subscription) as stream:
        pubsub.delete_subscription(subscription)
        wait_until(lambda: stream.error is not None)
        assert stream.error is not None
        assert stream.error.code() == grpc.StatusCode.NOT_FOUND


def test_googles_own_client_publishes_and_subscribes(pubsub_server: Server) -> None:
    publisher = pubsub_v1.PublisherClient(pubsub_v1.types.BatchSettings(max_messages=100))
    subscriber = pubsub_v1.SubscriberClient()
    with PubSub(pubsub_server.address) as pubsub, subscriber:
        topic, subscription = subscribed(pubsub)
        got: list[bytes] = []

        def keep(message: Any) -> None:
            got.append(message.data)
            message.ack()

        flow = pubsub_v1.types.FlowControl(max_messages=50)
        future = subscriber.subscribe(subscription, keep, flow_control=flow)
        sent = [b"%d" % number for number in range(500)]
        for published in [publisher.publish(topic, data) for data in sent]:
            assert published.result(timeout=90)
        wait_until(lambda: len(got) >= len(sent))
        future.cancel()
        future.result(timeout=90)
        publisher.stop()
        publisher.transport.close()
        assert sorted(got) == sorted(sent)
        assert pubsub.pull(subscription, at_once=True) == []
