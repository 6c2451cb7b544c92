"""The sink `pubsub` against our broker and Google's emulator."""

import asyncio
import contextlib
import io
import json
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import fastavro
import pytest

from millrace.sinks.pubsub import PubSub as PubSubSink
from millrace.sinks.sink import DELIVERED, Fault, Outcome, Rejected, SinkDownError
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
            while feeder.fed.cancelled < 20 and not running.done():
                await asyncio.sleep(0)
            feeder.deadline_s = 30
            fed = await running
            await sink.close()
            return fed.cancelled

        assert asyncio.run(work()) > 0
        got = pubsub.drain(subscription)
    assert {place(one) for one in got} == {(event.user, event.number) for event in events}
