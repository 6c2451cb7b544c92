"""The sink `pubsub` against answers that neither our broker nor Google's emulator gives, and its settings."""

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import pytest

from millrace.broker import protocol as pb
from millrace.sinks.pubsub import PubSub as PubSubSink
from millrace.sinks.sink import DELIVERED, Fault, Outcome, Rejected, Retry, SinkDownError
from tests.support.feeding import (
    Made,
    NoMemory,
    delivery_of,
    made_events,
)


async def deliver_once(sink: PubSubSink, *deliveries) -> list[Sequence[Outcome]]:
    await sink.open(NoMemory())
    try:
        return [await sink.deliver(each) for each in deliveries]
    finally:
        await sink.close()


def test_a_pubsub_that_never_answers_is_down_and_blames_no_event(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"127.0.0.1:{silent.getsockname()[1]}")
        sink = PubSubSink("projects/p/topics/silent", patience_s=0.2)
        with pytest.raises(SinkDownError, match=r"^Pub/Sub has not answered within 0.2 s$"):
            asyncio.run(deliver_once(sink, delivery_of([Made("anna", 0)])))


Judge = Callable[[Sequence[str]], grpc.StatusCode | None]


class Scripted:
    """A Publish that answers as a judge of the ids in the request says; keeps what it took, in order."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.took: list[str] = []
        self.requests = 0

    @contextlib.asynccontextmanager
    async def running(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        method = grpc.unary_unary_rpc_method_handler(self._publish)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("google.pubsub.v1.Publisher", {"Publish": method}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"127.0.0.1:{port}")
        try:
            yield
        finally:
            await server.stop(None)

    async def _publish(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        ids = [one.attributes["message_id"] for one in pb.PublishRequest.FromString(body).messages]
        self.requests += 1
        code = self.judge(ids)
        if code is not None:
            await context.abort(code, "as the test says")
        self.took += ids
        return b""

    def deliver(self, sink: PubSubSink, monkeypatch: pytest.MonkeyPatch, *deliveries) -> list[Sequence[Outcome]]:
        async def work() -> list[Sequence[Outcome]]:
            async with self.running(monkeypatch):
                return await deliver_once(sink, *deliveries)

        return asyncio.run(work())


SINK = PubSubSink("projects/p/topics/scripted")


@pytest.mark.parametrize(
    "unfit", [{"user-1-0"}, {"user-0-0", "user-1-3"}, {f"user-{u}-{n}" for u in (0, 1) for n in range(9)}]
)
def test_one_message_that_is_called_invalid_is_rejected_and_no_other(monkeypatch: pytest.MonkeyPatch, unfit: set[str]):
    events = made_events(users=2, each=9)
    server = Scripted(lambda ids: grpc.StatusCode.INVALID_ARGUMENT if unfit & set(ids) else None)
    (outcomes,) = server.deliver(SINK, monkeypatch, delivery_of(events))
    assert {event.id for event, outcome in zip(events, outcomes, strict=True) if isinstance(outcome, Rejected)} == unfit
    assert {outcome.fault for outcome in outcomes if isinstance(outcome, Rejected)} == {Fault.REJECTED}
    assert server.took == [event.id for event in events if event.id not in unfit]


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Retry(Fault.THROTTLED, "Pub/Sub answered RESOURCE_EXHAUSTED")),
        (grpc.StatusCode.INTERNAL, Retry(Fault.FAILED, "Pub/Sub answered INTERNAL")),
        (grpc.StatusCode.ABORTED, Retry(Fault.FAILED, "Pub/Sub answered ABORTED")),
    ],
)
def test_a_refusal_that_may_pass_is_tried_again(monkeypatch: pytest.MonkeyPatch, code, outcome: Retry):
    server = Scripted(lambda _: code)
    assert server.deliver(SINK, monkeypatch, delivery_of(made_events(1, 3))) == [[outcome] * 3]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Pub/Sub cannot be reached: UNAVAILABLE: as the test says"),
        (grpc.StatusCode.NOT_FOUND, "the topic projects/p/topics/scripted does not exist"),
        (grpc.StatusCode.PERMISSION_DENIED, "may not publish to projects/p/topics/scripted: give this account roles/"),
        (grpc.StatusCode.UNAUTHENTICATED, "Pub/Sub does not know this account"),
    ],
)
def test_a_refusal_of_everything_blames_no_event(monkeypatch: pytest.MonkeyPatch, code, says: str):
    server = Scripted(lambda _: code)
    with pytest.raises(SinkDownError) as raised:
        server.deliver(SINK, monkeypatch, delivery_of(made_events(1, 3)))
    assert raised.value.detail.startswith(says)


def test_after_a_part_of_a_delivery_failed_no_later_part_overtakes_it(monkeypatch: pytest.MonkeyPatch):
    """Three requests by size; the second is throttled."""
    events = [Made("anna", number, "x" * 5_000_000) for number in range(3)]
    server = Scripted(lambda ids: grpc.StatusCode.RESOURCE_EXHAUSTED if "anna-1" in ids else None)
    (outcomes,) = server.deliver(SINK, monkeypatch, delivery_of(events))
    throttled = Retry(Fault.THROTTLED, "Pub/Sub answered RESOURCE_EXHAUSTED")
    assert outcomes == [DELIVERED, throttled, throttled]
    assert server.took == ["anna-0"]


def test_what_was_published_of_a_delivery_that_failed_is_not_sent_again(monkeypatch: pytest.MonkeyPatch):
    events = [Made("anna", 0), Made("bert", 0), Made("cleo", 0)]
    server = Scripted(lambda ids: grpc.StatusCode.UNAVAILABLE if "bert-0" in ids and server.requests < 4 else None)

    async def work() -> Sequence[Outcome]:
        sink = dataclasses.replace(SINK, ordering=True)
        async with server.running(monkeypatch):
            await sink.open(NoMemory())
            with pytest.raises(SinkDownError):
                await sink.deliver(delivery_of(events))
            await sink.open(NoMemory())
            try:
                return await sink.deliver(delivery_of(events))
            finally:
                await sink.close()

    assert asyncio.run(work()) == [DELIVERED] * 3
    assert sorted(server.took) == ["anna-0", "bert-0", "cleo-0"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"topic": "orders"}, "a topic is projects/PROJECT/topics/TOPIC, got 'orders'"),
        ({"format": "xml"}, "format is json or avro, got 'xml'"),
        ({"format": "avro"}, "format avro needs schemas"),
        ({"schemas": "/tmp/x"}, "schemas is for format avro only"),  # noqa: S108
        ({"ordering_keys": 4}, "ordering_keys is a number of keys, and goes with ordering: true"),
        ({"attributes": ["googclient_x"]}, "'googclient_x' cannot be an attribute's name"),
        ({"attributes": ["retry"]}, "'retry' cannot be an attribute's name"),
        ({"attributes": ["message_id"]}, "'message_id' cannot be an attribute's name"),
        ({"patience_s": 0}, "patience_s must be positive"),
    ],
)
def test_wrong_settings_are_said_in_one_sentence(settings: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        PubSubSink(**{"topic": "projects/p/topics/orders"} | settings)


@pytest.mark.parametrize(
    ("settings", "target", "says"),
    [
        ({"attributes": ["plan"]}, "", "route test gives no column 'plan', which is to be an attribute: add it"),
        ({}, "no/such", "route test: its target 'no/such' is no topic: correct it"),
    ],
)
def test_a_route_that_does_not_fit_the_sink_burns_no_event(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], target: str, says: str
):
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:9")
    sink = dataclasses.replace(SINK, **settings)
    with pytest.raises(SinkDownError, match=says):
        asyncio.run(deliver_once(sink, delivery_of([Made("anna", 0)], target=target)))
