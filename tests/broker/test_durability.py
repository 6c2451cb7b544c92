"""kill -9 under load: what was acknowledged to a publisher is delivered afterwards, what was not is not required."""

import functools
import random
import sqlite3
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

from millrace.broker import protocol as pb
from tests.support.pubsub import PubSub, bodies, broker_process, wait_until


class Load:
    """Publishers and one puller that go on over restarts of the broker, and keep account."""

    def __init__(self) -> None:
        self.accepted: set[bytes] = set()  # answered by the broker: must be delivered
        self.tried: set[bytes] = set()
        self.received: set[bytes] = set()
        self.address = ""
        self._chance = random.Random(20261123)  # noqa: S311
        self._stop = threading.Event()
        self._publishers: list[threading.Thread] = []
        self._puller: threading.Thread | None = None
        self._publishing = True

    def start(self, topic: str, subscription: str) -> None:
        for number in range(3):
            self._publishers.append(threading.Thread(target=self._publish, args=(topic, number), daemon=True))
        self._puller = threading.Thread(target=self._pull, args=(subscription,), daemon=True)
        for thread in (*self._publishers, self._puller):
            thread.start()

    def has_accepted(self, count: int) -> bool:
        return len(self.accepted) >= count

    def finish(self) -> None:
        """Publish no more, and pull until all that was accepted came."""
        self._publishing = False
        for thread in self._publishers:
            thread.join(timeout=60)
            assert not thread.is_alive()
        wait_until(lambda: self.accepted <= self.received, 90, "all that was accepted is delivered")
        self._stop.set()
        assert self._puller is not None
        self._puller.join(timeout=60)
        assert not self._puller.is_alive()

    def _publish(self, topic: str, number: int) -> None:
        sent = 0
        while self._publishing:
            batch = [f"{number}-{sent + place}".encode() for place in range(self._chance.randint(1, 50))]
            sent += len(batch)
            self.tried.update(batch)
            with PubSub(self.address) as pubsub:
                try:
                    while self._publishing:
                        pubsub.publish(topic, *batch, timeout_s=5)
                        self.accepted.update(batch)
                        batch = [f"{number}-{sent + place}".encode() for place in range(self._chance.randint(1, 50))]
                        sent += len(batch)
                        self.tried.update(batch)
                except grpc.RpcError:
                    continue

    def _pull(self, subscription: str) -> None:
        while not self._stop.is_set():
            with PubSub(self.address) as pubsub:
                try:
                    while not self._stop.is_set():
                        received = pubsub.pull(subscription, self._chance.randint(1, 300), timeout_s=2)
                        if received:
                            pubsub.ack(subscription, *received)
                            self.received.update(bodies(received))
                except grpc.RpcError:
                    continue


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_acknowledged_to_a_publisher(tmp_path: Path) -> None:
    chance = random.Random(7)  # noqa: S311
    load = Load()
    with broker_process(tmp_path) as first, PubSub(first.address, "durable") as pubsub:
        load.address = first.address
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic, ack_deadline_seconds=10)
        load.start(topic, subscription)
        wait_until(lambda: len(load.received) > 200)
        first.kill()
    for _ in range(7):
        with broker_process(tmp_path) as server:
            load.address = server.address
            goal = len(load.accepted) + chance.randint(1, 1_500)
            wait_until(functools.partial(load.has_accepted, goal))
            server.kill()
    with broker_process(tmp_path) as server:
        load.address = server.address
        load.finish()
        assert load.accepted <= load.received <= load.tried
        assert len(load.accepted) > 500


def test_definitions_and_the_backlog_survive_a_kill(tmp_path: Path) -> None:
    policy = pb.RetryPolicy(minimum_backoff=pb.duration(1), maximum_backoff=pb.duration(2))
    with broker_process(tmp_path) as server, PubSub(server.address, "kept") as pubsub:
        topic = pubsub.create_topic(labels={"a": "b"})
        gone = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic, filter="attributes:x", retry_policy=policy)
        orphan = pubsub.create_subscription(gone)
        pubsub.publish(gone, b"of the deleted topic")
        pubsub.delete_topic(gone)
        sent = pb.PubsubMessage(data=b"1", attributes={"x": ""}, ordering_key="k")
        pubsub.publish(topic, sent, b"does not pass the filter")
        before = (pubsub.get_topic(topic), pubsub.get_subscription(subscription), pubsub.get_subscription(orphan))
        server.kill()
    with broker_process(tmp_path) as server, PubSub(server.address, "kept") as pubsub:
        after = (pubsub.get_topic(topic), pubsub.get_subscription(subscription), pubsub.get_subscription(orphan))
        assert after == before
        assert bodies(pubsub.pull(subscription)) == [b"1"]
        assert bodies(pubsub.pull(orphan)) == [b"of the deleted topic"]


def test_acks_survive_a_stop(tmp_path: Path) -> None:
    with broker_process(tmp_path) as server, PubSub(server.address, "kept") as pubsub:
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)
        pubsub.publish(topic, *(b"%d" % number for number in range(100)))
        received = pubsub.pull(subscription)
        pubsub.ack(subscription, *received[:10], *received[20:50:3], *received[60:99])
        server.process.terminate()
        assert server.process.wait() == 0
    left = [*range(10, 20), *(number for number in range(20, 60) if number >= 50 or number % 3 != 2), 99]
    with broker_process(tmp_path) as server, PubSub(server.address, "kept") as pubsub:
        assert bodies(pubsub.pull(subscription)) == [b"%d" % number for number in left]


def test_ack_ids_of_an_earlier_run_are_ignored(tmp_path: Path) -> None:
    with broker_process(tmp_path) as server, PubSub(server.address, "kept") as pubsub:
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)
        pubsub.publish(topic, b"x")
        old: list[Any] = pubsub.pull(subscription)
        server.kill()
    with broker_process(tmp_path) as server, PubSub(server.address, "kept") as pubsub:
        pubsub.pull(subscription)
        pubsub.ack(subscription, *old)
        pubsub.modify(subscription, 0, *old)
        assert pubsub.pull(subscription, at_once=True) == []  # the new lease stands


def test_a_backlog_is_on_disk_and_not_in_memory(tmp_path: Path) -> None:
    with broker_process(tmp_path, "--cache_mb", "1") as server, PubSub(server.address) as pubsub:
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)
        request = [pb.PubsubMessage(data=bytes(700)) for _ in range(1_000)]
        for _ in range(10):  # what connections and the like take
            pubsub.publish(topic, *request)
        before = resident_bytes(server.pid)
        for _ in range(190):
            pubsub.publish(topic, *request)
        assert resident_bytes(server.pid) - before < 60e6  # of 133 MB
        assert len(pubsub.pull(subscription)) == 1_000


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def test_the_file_does_not_grow_when_everything_is_acknowledged(tmp_path: Path) -> None:
    with broker_process(tmp_path) as server, PubSub(server.address) as pubsub:
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)

        def round_trip() -> None:
            pubsub.publish(topic, *[bytes(5_000)] * 400)
            pubsub.ack(subscription, *pubsub.pull_until(subscription, 400))

        def size() -> int:
            return (tmp_path / "broker.sqlite3").stat().st_size

        for _ in range(10):
            round_trip()
        for _ in range(3):  # the sweep runs every second: give it rounds to reuse what it freed
            wait_until(lambda: _swept(tmp_path))
            before = size()
            for _ in range(5):
                round_trip()
        assert size() <= before + 5 * 400 * 5_000


def _swept(folder: Path) -> bool:
    connection = sqlite3.connect(f"file:{folder / 'broker.sqlite3'}?mode=ro", uri=True)
    try:
        return bool(connection.execute("SELECT count(*) FROM batches").fetchone()[0] == 0)
    finally:
        connection.close()
