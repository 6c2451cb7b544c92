"""The sink `pubsub` against our broker and Google's emulator, and against answers that neither of them gives."""

import asyncio
import contextlib
import dataclasses
import io
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import fastavro
import grpc
import grpc.aio
import pytest

from millrace.broker import protocol as pb
from millrace.sinks.pubsub import PubSub as PubSubSink
from millrace.sinks.sink import DELIVERED, Fault, Outcome, Rejected, Retry, SinkDownError
from tests.support.feeding import (
    Feeder,
    Made,
    NoMemory,
    delivery_of,
    feed,
    first_order,
    made_events,
    whole_order,
)
from tests.support.pubsub import PubSub, Server, broker_process


def place(one) -> tuple[str, int]:
    user, _, number = one.message.attributes["message_id"].rpartition("-")
    return user, int(number)


async def deliver_once(sink: PubSubSink, *deliveries) -> list[Sequence[Outcome]]:
    await sink.open(NoMemory())
    try:
        return [await sink.deliver(each) for each in deliveries]
    finally:
        await sink.close()


def test_events_are_messages_with_their_columns_and_their_id(pubsub_server: Server):
    with PubSub(pubsub_server.address) as pubsub:
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)
        sink = PubSubSink(topic, attributes=["event", "order_index"])
        events = [Made("anna", 0, "a"), Made("bert", 1, "b")]
        assert asyncio.run(deliver_once(sink, delivery_of(events))) == [[DELIVERED, DELIVERED]]
        got = sorted(pubsub.pull_until(subscription, 2), key=place)
    assert [(json.loads(one.message.data), dict(one.message.attributes), one.message.ordering_key) for one in got] == [
        (
            {
                "message_id": "anna-0",
                "user_key": "anna",
                "occurred_at": "2026-03-01T12:00:00.000000Z",
                "order_index": 0,
                "properties": {"number": 0, "text": "a"},
            },
            {"message_id": "anna-0", "order_index": "0"},
            "",
        ),
        (
            {
                "message_id": "bert-1",
                "user_key": "bert",
                "event": "Order Completed",
                "occurred_at": "2026-03-01T12:00:01.000000Z",
                "order_index": 1,
                "properties": {"number": 1, "text": "b"},
            },
            {"message_id": "bert-1", "event": "Order Completed", "order_index": "1"},
            "",
        ),
    ]


@pytest.mark.parametrize("short", [True, False])
def test_a_route_has_a_topic_of_its_own(pubsub_server: Server, short: bool):
    with PubSub(pubsub_server.address) as pubsub:
        own, other = pubsub.create_topic("own-topic"), pubsub.create_topic("other-topic")
        subscriptions = [pubsub.create_subscription(topic) for topic in (own, other)]
        target = "other-topic" if short else other
        sent = delivery_of([Made("anna", 0)]), delivery_of([Made("anna", 1)], target=target)
        asyncio.run(deliver_once(PubSubSink(own), *sent))
        assert [[place(one) for one in pubsub.drain(each)] for each in subscriptions] == [[("anna", 0)], [("anna", 1)]]


@pytest.mark.parametrize(("ordering_keys", "keys"), [(0, {"user-0", "user-1", "user-2", "user-3"}), (2, {"0", "1"})])
def test_with_ordering_a_subscriber_gets_each_user_in_order(pubsub_server: Server, ordering_keys: int, keys: set[str]):
    events = made_events(users=4, each=30)
    with PubSub(pubsub_server.address) as pubsub:
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic, enable_message_ordering=True)
        sink = PubSubSink(topic, ordering=True, ordering_keys=ordering_keys)
        asyncio.run(feed(sink, events, max_events=25))
        got = pubsub.drain(subscription)
    assert {one.message.ordering_key for one in got} == keys
    assert first_order([place(one) for one in got]) == whole_order(events)
    assert len(got) == len(events)


def test_avro_messages_are_read_by_the_schema_that_their_fingerprint_names(pubsub_server: Server, tmp_path: Path):
    with PubSub(pubsub_server.address) as pubsub:
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)
        sink = PubSubSink(topic, format="avro", schemas=str(tmp_path / "schemas"))
        sent = delivery_of([Made("anna", 3, "x")])
        assert asyncio.run(deliver_once(sink, sent)) == [[DELIVERED]]
        (got,) = pubsub.pull_until(subscription, 1)
    fingerprint = got.message.attributes["schema"]
    assert got.message.data[:10] == b"\xc3\x01" + bytes.fromhex(fingerprint)
    schema = json.loads((tmp_path / "schemas" / f"{fingerprint}.avsc").read_bytes())
    assert fastavro.schemaless_reader(io.BytesIO(got.message.data[10:]), schema, None) == sent.rows.to_pylist()[0]


def test_what_pubsub_would_not_take_is_refused_and_the_rest_goes(pubsub_server: Server):
    events = [Made("anna", 0), Made("anna", 1, "x" * 9_000_000), Made("anna", 2), Made("b" * 1_025, 3)]
    with PubSub(pubsub_server.address) as pubsub:
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)
        sink = PubSubSink(topic, attributes=["user_key"])
        (outcomes,) = asyncio.run(deliver_once(sink, delivery_of(events)))
        assert [place(one) for one in pubsub.pull_until(subscription, 2)] == [("anna", 0), ("anna", 2)]
    too_large, too_long = outcomes[1], outcomes[3]
    assert outcomes[0] is outcomes[2] is DELIVERED
    assert isinstance(too_large, Rejected)
    assert too_large.fault is Fault.REFUSED
    assert "Pub/Sub takes 9,000,000" in too_large.detail
    assert too_long == Rejected(
        Fault.REFUSED, "message_id has more than 1,024 bytes, which Pub/Sub does not take for an attribute or key"
    )


def test_a_delivery_over_the_size_of_a_request_goes_in_several(pubsub_server: Server):
    events = [Made("anna", number, "x" * 4_000_000) for number in range(3)]
    with PubSub(pubsub_server.address) as pubsub:
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)
        assert asyncio.run(deliver_once(PubSubSink(topic), delivery_of(events))) == [[DELIVERED] * 3]
        assert sorted(place(one) for one in pubsub.pull_until(subscription, 3)) == [
            ("anna", 0), ("anna", 1), ("anna", 2),
        ]  # fmt: skip


def test_a_topic_that_is_gone_holds_everything_up_until_it_is_back(pubsub_server: Server):
    with PubSub(pubsub_server.address) as pubsub:
        topic = pubsub.create_topic("comes-and-goes")
        events = made_events(users=3, each=20)

        async def work() -> list[str]:
            sink = PubSubSink(topic)
            await sink.open(NoMemory())
            await sink.deliver(delivery_of(events[:10]))
            pubsub.delete_topic(topic)
            with pytest.raises(SinkDownError) as raised:
                await sink.deliver(delivery_of(events[10:], first=10))
            pubsub.create_topic("comes-and-goes")
            subscription = pubsub.create_subscription(topic)
            await sink.deliver(delivery_of(events[10:], first=10))
            await sink.close()
            return [raised.value.detail, *(one.message.attributes["message_id"] for one in pubsub.drain(subscription))]

        detail, *got = asyncio.run(work())
    assert detail == f"the topic {topic} does not exist: create it, or correct its name (NOT_FOUND)"
    assert sorted(got) == sorted(event.id for event in events[10:])


@pytest.mark.parametrize("ordering", [False, True])
def test_a_broker_that_is_killed_and_comes_back_gets_every_event_and_each_users_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ordering: bool
):
    """Killed twice in the middle of a run, on the same port and the same file."""
    events = made_events(users=40, each=50)
    with contextlib.ExitStack() as stack, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        server = stack.enter_context(broker_process(tmp_path, port=port))
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        pubsub = stack.enter_context(PubSub(server.address))
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic, enable_message_ordering=ordering)
        sink = PubSubSink(topic, ordering=ordering, patience_s=5)
        restarts: list[threading.Thread] = []

        def trouble(settled: int) -> None:
            nonlocal server
            if settled > 500 * (1 + len(restarts)) and len(restarts) < 2:
                server.kill()

                def start() -> None:
                    nonlocal server
                    server = stack.enter_context(broker_process(tmp_path, port=port))

                restarts.append(threading.Thread(target=start))
                restarts[-1].start()

        fed = asyncio.run(feed(sink, events, max_events=50, max_in_flight=4, on_settled=trouble))
        for each in restarts:
            each.join()
        got = pubsub.drain(subscription)
    assert len(restarts) == 2
    assert fed.downs != []
    assert fed.rejected == {}
    assert first_order(sorted_by_publish(got)) == whole_order(events)


def sorted_by_publish(got) -> list[tuple[str, int]]:
    """Messages as they were published: our broker's ids rise; a subscription without ordering may mix them."""
    return [place(one) for one in sorted(got, key=lambda one: int(one.message.message_id))]


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


def test_a_cancelled_delivery_can_be_sent_again(pubsub_server: Server):
    events = made_events(users=5, each=40)
    with PubSub(pubsub_server.address) as pubsub:
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)

        async def work() -> int:
            sink = PubSubSink(topic)
            await sink.open(NoMemory())
            feeder = Feeder(sink, events, max_events=20, max_in_flight=2, deadline_s=0.0005)
            running = asyncio.create_task(feeder.run())
            while feeder.fed.cancelled < 20:
                await asyncio.sleep(0)
            feeder.deadline_s = 30
            fed = await running
            await sink.close()
            return fed.cancelled

        assert asyncio.run(work()) >= 20
        got = pubsub.drain(subscription)
    assert {place(one) for one in got} == {(event.user, event.number) for event in events}


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
