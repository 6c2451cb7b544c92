"""Delivery with the real spool and a real broker, which is killed, stalled, away; and a disk that fails and comes back.

The law, every time: what `deliver` returned for is in Pub/Sub in the end, though it may be there more than once.
"""

import asyncio
import contextlib
import functools
import itertools
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from millrace.broker import Broker
from millrace.collector.breaker import BreakerState
from millrace.collector.deliver import Deliverer
from millrace.collector.delivery import DeliverySettings, How, Left
from millrace.collector.message import Message
from millrace.collector.publish import TopicPublisher
from millrace.collector.spool import Spool
from millrace.collector.spool_disk import Disk
from millrace.collector.unfit import UnfitFolder
from tests.support.delivering import end_of, message
from tests.support.pubsub import PubSub, Server, broker_process

CAPACITY_BYTES = 50_000_000
SETTINGS = DeliverySettings(deadline_s=0.3, spool_wait_s=60.0)


class Sender:
    """Delivers messages with names of their own until told to stop, and knows how each ended."""

    def __init__(self, deliverer: Deliverer) -> None:
        self.deliverer = deliverer
        self.ends: dict[str, str] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._running = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Send no more; what was sent may still be under way."""
        self._running.cancel()
        await asyncio.wait([self._running])

    async def ended(self) -> None:
        """Wait until nothing is under way."""
        await asyncio.gather(*self._sending)

    def put(self) -> None:
        """Send one."""
        name = f"m{len(self.ends)}"
        self.ends[name] = "under way"
        task = asyncio.create_task(self._send(name))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _run(self) -> None:
        for number in itertools.count():  # a few hundred a second, one to five at a time
            for _ in range(number % 5 + 1):
                self.put()
            await asyncio.sleep(0.01)

    async def _send(self, name: str) -> None:
        (end,) = await asyncio.gather(self.deliverer.deliver([message(name, body_bytes=300)]), return_exceptions=True)
        self.ends[name] = end_of(end)

    def delivered(self) -> set[str]:
        return {name for name, end in self.ends.items() if end in ("published", "spooled")}


@contextlib.asynccontextmanager
async def sending(topic: str, folder: Path, disk: Disk | None = None) -> AsyncIterator[Sender]:
    """Send to a topic, with a spool in a folder, as long as the block runs; the caller drains."""
    spool = Spool(folder, CAPACITY_BYTES, disk=disk)
    unfit = UnfitFolder(folder / "unfit")
    deliverer = Deliverer(TopicPublisher(topic), spool, SETTINGS, set_aside=unfit.keep)
    deliverer.start()
    sender = Sender(deliverer)
    try:
        yield sender
    finally:
        await sender.stop()
        await sender.ended()
        await asyncio.to_thread(spool.close)


async def until(condition: Callable[[], bool], what: str, timeout_s: float = 90.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"still not so after {timeout_s} s: {what}"
        await asyncio.sleep(0.01)


def _has_spooled(sender: Sender, messages: int) -> bool:
    return sender.deliverer.counts.spooled >= messages


def in_topic(pubsub: PubSub, subscription: str) -> Counter[str]:
    return Counter(one.message.attributes["request_id"] for one in pubsub.drain(subscription))


def check(sender: Sender, stored: Counter[str]) -> None:
    assert sender.delivered() - stored.keys() == set(), "was answered 200, and is lost"
    assert stored.keys() <= sender.ends.keys()
    assert "under way" not in sender.ends.values()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_broker_that_is_killed_and_comes_back_again_and_again(seed, tmp_path, monkeypatch) -> None:
    chance = random.Random(seed)  # noqa: S311  repeatable

    async def main(topic: str, server: Server, stack: contextlib.ExitStack) -> Sender:
        port = int(server.address.rpartition(":")[2])
        async with sending(topic, tmp_path / "spool") as sender:
            for _ in range(3):
                await asyncio.sleep(chance.uniform(0.1, 0.6))
                server.kill()
                await asyncio.sleep(chance.uniform(0.0, 1.0))
                again = await asyncio.to_thread(stack.enter_context, broker_process(tmp_path / "broker", port=port))
                server = again
                await until(lambda: sender.deliverer.breaker.closed, "the breaker closes")
            spooled = sender.deliverer.counts.spooled
            assert spooled > 0
            await sender.stop()
            assert await sender.deliverer.drain(90.0) == Left(0, 0)
            return sender

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(broker_process(tmp_path / "broker"))
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        with PubSub(server.address) as pubsub:
            topic = pubsub.create_topic()
            subscription = pubsub.create_subscription(topic)
        sender = asyncio.run(main(topic, server, stack))
        with PubSub(server.address, pubsub.project) as pubsub:
            check(sender, in_topic(pubsub, subscription))
        assert set(sender.ends.values()) == {"published", "spooled"}, "nobody was turned away"


def run_with_broker(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[Broker, Sender], Awaitable[None]],
    disk: Disk | None = None,
) -> tuple[Sender, Counter[str]]:
    """Send through trouble, drain, and return who sent what and what is in the topic."""

    async def main(broker: Broker, topic: str) -> Sender:
        async with sending(topic, tmp_path / "spool", disk) as sender:
            await until(lambda: sender.deliverer.counts.published > 10, "messages are published")
            await trouble(broker, sender)
            await sender.stop()
            assert await sender.deliverer.drain(90.0) == Left(0, 0)
            return sender

    with Broker() as broker, PubSub(broker.address) as pubsub:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.address)
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)
        sender = asyncio.run(main(broker, topic))
        stored = in_topic(pubsub, subscription)
    check(sender, stored)
    return sender, stored


def test_a_broker_that_stalls(tmp_path, monkeypatch) -> None:
    async def trouble(broker: Broker, sender: Sender) -> None:
        for _ in range(2):
            broker.chaos.stall = True
            enough = sender.deliverer.counts.spooled + 100
            await until(functools.partial(_has_spooled, sender, enough), "messages are spooled")
            broker.chaos.stall = False
            await until(lambda: sender.deliverer.breaker.closed, "the breaker closes")

    sender, _ = run_with_broker(tmp_path, monkeypatch, trouble)
    assert set(sender.ends.values()) == {"published", "spooled"}


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_broker_that_fails_some_requests_and_stores_half_of_them_all_the_same(share, tmp_path, monkeypatch) -> None:
    async def trouble(broker: Broker, sender: Sender) -> None:
        broker.chaos.fail_publish = share
        await until(lambda: sender.deliverer.totals().failures["passing"] > 6, "requests fail")
        broker.chaos.fail_publish = 0.0
        await until(lambda: sender.deliverer.breaker.closed, "the breaker closes")

    sender, stored = run_with_broker(tmp_path, monkeypatch, trouble)
    assert set(sender.ends.values()) <= {"published", "spooled"}
    assert stored.total() > len(stored), "copies are in the nature of it"


def test_a_broker_that_is_slower_than_the_deadline(tmp_path, monkeypatch) -> None:
    async def trouble(broker: Broker, sender: Sender) -> None:
        broker.chaos.delay_publish_ms = 600
        await until(lambda: sender.deliverer.counts.spooled > 200, "messages are spooled")
        await until(lambda: sender.deliverer.replay.messages > 50, "and replayed, though live traffic is not published")
        broker.chaos.delay_publish_ms = 0
        await until(lambda: sender.deliverer.breaker.closed, "the breaker closes")

    sender, _ = run_with_broker(tmp_path, monkeypatch, trouble)
    assert set(sender.ends.values()) == {"published", "spooled"}


def test_a_topic_that_is_deleted_and_made_again(tmp_path, monkeypatch) -> None:
    async def trouble(broker: Broker, sender: Sender) -> None:
        topic = sender.deliverer.link._publisher.topic  # type: ignore[attr-defined]
        project = topic.split("/")[1]
        with PubSub(broker.address, project) as pubsub:
            await asyncio.to_thread(pubsub.delete_topic, topic)
            await until(lambda: sender.deliverer.counts.spooled > 50, "messages are spooled")
            assert "NOT_FOUND" in sender.deliverer.state().why
            await asyncio.to_thread(pubsub.create_topic, topic.rpartition("/")[2])
            await asyncio.to_thread(pubsub.create_subscription, topic, "again")
        await until(lambda: sender.deliverer.breaker.closed, "the breaker closes")

    async def main(broker: Broker, topic: str) -> Sender:
        async with sending(topic, tmp_path / "spool") as sender:
            await until(lambda: sender.deliverer.counts.published > 10, "messages are published")
            await trouble(broker, sender)
            await sender.stop()
            assert await sender.deliverer.drain(90.0) == Left(0, 0)
            return sender

    with Broker() as broker, PubSub(broker.address) as pubsub:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.address)
        topic = pubsub.create_topic()
        before = pubsub.create_subscription(topic)
        sender = asyncio.run(main(broker, topic))
        check(sender, in_topic(pubsub, before) + in_topic(pubsub, pubsub.subscription_name("again")))


class FailingDisk(Disk):
    """A disk whose fsync fails, or does not return, while it is told so."""

    def __init__(self) -> None:
        self.failing = False
        self.works = threading.Event()
        self.works.set()

    def sync(self, descriptor: int) -> None:
        assert self.works.wait(60)
        if self.failing:
            raise OSError(28, "No space left on device")
        super().sync(descriptor)


def test_a_broker_away_and_a_disk_that_fails_and_both_come_back(tmp_path, monkeypatch) -> None:
    disk = FailingDisk()

    async def trouble(broker: Broker, sender: Sender) -> None:
        disk.failing = True
        broker.chaos.stall = True
        await until(lambda: "spool_failed" in sender.ends.values(), "somebody is turned away")
        disk.failing = False
        turned_away = sum(end == "spool_failed" for end in sender.ends.values())
        await until(lambda: sender.deliverer.counts.spooled > 50, "messages are spooled")
        assert sum(end == "spool_failed" for end in sender.ends.values()) < turned_away + 50
        broker.chaos.stall = False
        await until(lambda: sender.deliverer.breaker.closed, "the breaker closes")

    sender, _ = run_with_broker(tmp_path, monkeypatch, trouble, disk)
    assert set(sender.ends.values()) == {"published", "spooled", "spool_failed"}


def test_a_drain_with_the_broker_away_leaves_all_in_the_spool_and_the_next_process_sends_it(
    tmp_path, monkeypatch
) -> None:
    async def first(broker: Broker, topic: str) -> Sender:
        async with sending(topic, tmp_path / "spool") as sender:
            await until(lambda: sender.deliverer.counts.published > 10, "messages are published")
            await sender.stop()
            broker.chaos.stall = True
            for _ in range(100):
                sender.put()
            left = await sender.deliverer.drain(2.0)
            assert left.messages == sender.deliverer.counts.spooled - sender.deliverer.replay.messages
            assert left.messages > 0
            return sender

    async def second(topic: str) -> None:
        async with sending(topic, tmp_path / "spool") as sender:
            await sender.stop()
            await until(lambda: sender.deliverer.replay.messages > 0, "the spool is replayed")
            assert await sender.deliverer.drain(90.0) == Left(0, 0)

    with Broker() as broker, PubSub(broker.address) as pubsub:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.address)
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)
        sender = asyncio.run(first(broker, topic))
        broker.chaos.stall = False
        asyncio.run(second(topic))
        stored = in_topic(pubsub, subscription)
        assert sender.delivered() - stored.keys() == set()


def test_a_broker_that_is_not_there_from_the_start(tmp_path, monkeypatch) -> None:
    with broker_process(tmp_path / "broker") as server:
        with PubSub(server.address) as pubsub:
            topic = pubsub.create_topic()
            subscription = pubsub.create_subscription(topic)
        server.kill()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
    port = int(server.address.rpartition(":")[2])

    async def main(stack: contextlib.ExitStack) -> Sender:
        async with sending(topic, tmp_path / "spool") as sender:
            await until(lambda: sender.deliverer.counts.spooled > 100, "messages are spooled")
            assert sender.deliverer.state().breaker is not BreakerState.CLOSED
            await asyncio.to_thread(stack.enter_context, broker_process(tmp_path / "broker", port=port))
            await until(lambda: sender.deliverer.breaker.closed, "the breaker closes")
            await sender.stop()
            assert await sender.deliverer.drain(90.0) == Left(0, 0)
            return sender

    with contextlib.ExitStack() as stack:
        sender = asyncio.run(main(stack))
        with PubSub(server.address, pubsub.project) as pubsub:
            check(sender, in_topic(pubsub, subscription))
    assert set(sender.ends.values()) <= {"published", "spooled"}


def test_a_message_that_either_server_will_not_take_is_set_aside_and_all_others_arrive(
    pubsub_server: Server, tmp_path
) -> None:
    async def main(topic: str) -> Sender:
        async with sending(topic, tmp_path / "spool") as sender:
            await until(lambda: sender.deliverer.counts.published > 10, "messages are published")
            empty = await sender.deliverer.deliver([Message(b"", {})])
            assert empty.how is How.SPOOLED
            await until(lambda: sender.deliverer.replay.set_aside == 1, "it is set aside")
            await sender.stop()
            assert await sender.deliverer.drain(90.0) == Left(0, 0)
            return sender

    with PubSub(pubsub_server.address) as pubsub:
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)
        sender = asyncio.run(main(topic))
        check(sender, in_topic(pubsub, subscription))
    (file,) = (tmp_path / "spool" / "unfit").iterdir()
    assert json.loads(file.read_bytes())["why"].startswith("INVALID_ARGUMENT")


@pytest.mark.slow
def test_a_collector_that_is_killed_at_random_moments_of_a_flapping_broker(tmp_path, monkeypatch) -> None:
    chance = random.Random(4)  # noqa: S311  repeatable
    delivered: set[str] = set()

    async def replay(topic: str) -> None:
        async with sending(topic, tmp_path / "spool") as sender:
            await sender.stop()
            assert await sender.deliverer.drain(90.0) == Left(0, 0)

    with Broker() as broker, PubSub(broker.address) as pubsub:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.address)
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)
        for life in range(4):
            arguments = [topic, str(tmp_path / "spool"), f"life{life}"]
            command = [sys.executable, "-m", "tests.collector.delivery_child", *arguments]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
                assert child.stdout is not None
                end = chance.randint(300, 900)
                for lines, line in enumerate(child.stdout):
                    delivered.add(line.rstrip("\n"))
                    broker.chaos.stall = lines % 500 > 200  # changes while messages are under way
                    if lines == end:
                        child.kill()
                        delivered.update(rest.rstrip("\n") for rest in child.stdout if rest.endswith("\n"))
                        break
        broker.chaos.stall = False
        asyncio.run(replay(topic))
        stored = in_topic(pubsub, subscription)
        assert len(delivered) > 4 * 300
        assert delivered - stored.keys() == set(), "was answered 200, and is lost"
