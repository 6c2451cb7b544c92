"""Publishing over gRPC, to our broker and to Google's emulator: what arrives, and what each failure is taken for."""

import asyncio
import socket
import time

import grpc.aio
import pytest

from millrace.broker import Broker
from millrace.collector.message import Message
from millrace.collector.publish import Failure, PublishFailed, TopicPublisher, encode
from tests.support.pubsub import PubSub, Server, broker_process

ONE = [encode(Message(b"body", {"request_id": "1"}))]


async def failure_of(publisher: TopicPublisher, parts: list[bytes], timeout_s: float = 10.0) -> PublishFailed:
    with pytest.raises(PublishFailed) as raised:
        await publisher.publish(parts, timeout_s)
    return raised.value


def test_messages_arrive_as_they_are(pubsub_server: Server) -> None:
    messages = [
        Message(b"", {"request_id": "nothing but attributes"}),
        Message(b"no attributes", {}),
        Message(bytes(range(256)), {"user_agent": "Ünï © 漢字 🎉", "empty": ""}),
        Message(b"x" * 1_000_000, {"content-encoding": "gzip"}),
    ]

    async def main(topic: str) -> None:
        publisher = TopicPublisher(topic)
        await publisher.publish([encode(message) for message in messages], 10.0)
        await publisher.close()

    with PubSub(pubsub_server.address) as pubsub:
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)
        asyncio.run(main(topic))
        received = [one.message for one in pubsub.pull_until(subscription, len(messages))]
        assert [Message(one.data, dict(one.attributes)) for one in received] == messages


def test_what_no_retry_can_mend_is_told_apart(pubsub_server: Server) -> None:
    async def main(pubsub: PubSub, topic: str) -> None:
        here, nowhere = TopicPublisher(topic), TopicPublisher(pubsub.topic_name("nowhere"))
        missing = await failure_of(nowhere, ONE)
        assert (missing.failure, str(missing)[:9]) == (Failure.REFUSED, "NOT_FOUND")
        empty = await failure_of(here, [*ONE, encode(Message(b"", {}))])
        assert empty.failure is Failure.UNFIT
        await here.publish(ONE, 10.0)
        await here.close()
        await nowhere.close()

    with PubSub(pubsub_server.address) as pubsub:
        asyncio.run(main(pubsub, pubsub.create_topic()))


def test_failures_that_may_pass(monkeypatch) -> None:
    async def main(broker: Broker, topic: str) -> None:
        publisher = TopicPublisher(topic)
        broker.chaos.fail_publish = 1.0
        assert (await failure_of(publisher, ONE)).failure is Failure.PASSING
        broker.chaos.fail_publish = 0.0
        broker.chaos.stall = True
        started_s = time.monotonic()
        silent = await failure_of(publisher, ONE, timeout_s=0.3)
        assert silent.failure is Failure.PASSING
        assert 0.25 < time.monotonic() - started_s < 60
        broker.chaos.stall = False
        await publisher.publish(ONE, 10.0)
        await publisher.close()
        assert (await failure_of(publisher, ONE)).failure is Failure.PASSING

    with Broker() as broker, PubSub(broker.address) as pubsub:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.address)
        asyncio.run(main(broker, pubsub.create_topic()))


def test_a_deadline_holds_though_the_clock_is_set_while_it_runs(monkeypatch) -> None:
    real = time.time

    async def main(broker: Broker, topic: str) -> None:
        publisher = TopicPublisher(topic)
        broker.chaos.stall = True
        for jump_s in (86_400.0, -86_400.0):
            monkeypatch.setattr(time, "time", lambda jump_s=jump_s: real() + jump_s)
            started_s = time.monotonic()
            assert (await failure_of(publisher, ONE, timeout_s=0.3)).failure is Failure.PASSING
            assert 0.25 < time.monotonic() - started_s < 60
        monkeypatch.setattr(time, "time", real)
        broker.chaos.stall = False
        await publisher.close()

    with Broker() as broker, PubSub(broker.address) as pubsub:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.address)
        asyncio.run(main(broker, pubsub.create_topic()))


def test_a_broker_that_refused_connections_is_met_within_seconds_of_its_start(monkeypatch, tmp_path) -> None:
    with broker_process(tmp_path) as server:
        port = int(server.address.rpartition(":")[2])
        with PubSub(server.address) as pubsub:
            topic = pubsub.create_topic()
        server.kill()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)

    async def main() -> None:
        publisher = TopicPublisher(topic)
        away = await failure_of(publisher, ONE)
        assert (away.failure, str(away)[:11]) == (Failure.PASSING, "UNAVAILABLE")
        with broker_process(tmp_path, port=port):
            started_s = time.monotonic()
            while True:
                try:
                    await publisher.publish(ONE, 1.0)
                    break
                except PublishFailed:
                    assert time.monotonic() - started_s < 10, "the channel waits too long before it connects again"
                    await asyncio.sleep(0.05)
        await publisher.close()

    asyncio.run(main())


def test_a_listener_that_never_answers_is_given_up(monkeypatch) -> None:
    async def main() -> None:
        publisher = TopicPublisher("projects/p/topics/events")
        assert (await failure_of(publisher, ONE, timeout_s=0.3)).failure is Failure.PASSING
        await publisher.close()

    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"127.0.0.1:{deaf.getsockname()[1]}")
        asyncio.run(main())


@pytest.mark.parametrize(
    "topic", ["", "events", "projects/p/topics/", "projects/p/subscriptions/s", "projects/p/topics/a b"]
)
def test_a_topic_that_is_none_is_refused_at_once(topic) -> None:
    with pytest.raises(ValueError, match="projects/PROJECT/topics/TOPIC"):
        TopicPublisher(topic)


def test_without_an_emulator_the_channel_goes_to_google_with_its_credentials(monkeypatch) -> None:
    from google.auth.credentials import AnonymousCredentials

    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.setattr("google.auth.default", lambda **_: (AnonymousCredentials(), "p"))  # type: ignore[no-untyped-call]

    async def main() -> None:
        publisher = TopicPublisher("projects/p/topics/events")
        assert isinstance(publisher._channel, grpc.aio.Channel)
        await publisher.close()

    asyncio.run(main())
