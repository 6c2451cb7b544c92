"""A crowd at the door of a real collector: memory has a bound, and who is slow or gone holds nobody up."""

import asyncio
import collections
import contextlib
import json
import resource
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.asking import basic
from tests.support.pubsub import PubSub, broker_process, wait_until
from tests.support.serving import KEY, Serving, serving

CROWD = 1_000
BODY_BYTES = 200_000
HELD_BYTES = 64 << 20

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _may_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < CROWD * 2:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, CROWD * 2), hard))


def request(body: bytes) -> bytes:
    """Return a request as it goes over the wire."""
    lines = [b"POST /v1/batch HTTP/1.1", b"Host: a", b"Authorization: " + basic(KEY), b"Content-Type: application/json"]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body)]) + b"\r\n\r\n" + body


def batch(name: str, text_bytes: int) -> bytes:
    """Return a body of one event."""
    event = {"type": "track", "event": "Hello", "userId": "u", "messageId": name, "properties": {"a": "x" * text_bytes}}
    return json.dumps({"batch": [event]}).encode()


def peak_mb(running: Serving) -> float:
    """Return the most that its one worker ever had in memory, in MiB."""
    (worker,) = running.worker_pids()
    lines = Path(f"/proc/{worker}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


class Crowd:
    """A thousand clients at once, each with a request that is large."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.statuses: collections.Counter[int] = collections.Counter()
        self.promised: set[str] = set()

    async def come(self, rounds: int) -> None:
        """Send, all at the same time."""
        async with asyncio.TaskGroup() as group:
            for number in range(CROWD):
                group.create_task(self._one(number, rounds))

    async def _one(self, number: int, rounds: int) -> None:
        for turn in range(rounds):
            name = f"{number}-{turn}"
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):  # no answer is no promise
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                with contextlib.closing(writer):
                    writer.write(request(batch(name, BODY_BYTES)))
                    status = int((await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1])
                    self.statuses[status] += 1
                    if status == 200:
                        self.promised.add(name)


@pytest.mark.parametrize("chaos", ["delay_publish_ms=400", "stall=true"])
def test_memory_is_bounded_with_a_thousand_connections_before_a_broker_that_is_slow(chaos, tmp_path):
    data = tmp_path / "broker"
    with broker_process(data, "--chaos", chaos) as server, PubSub(server.address) as pubsub:
        topic = pubsub.create_topic("events")
        subscription = pubsub.create_subscription(topic, "archive")
        flags = ("--workers", "1", "--max_held_bytes", str(HELD_BYTES), "--drain_s", "5")
        with serving(tmp_path, server.address, topic, *flags) as running:
            before_mb = peak_mb(running)
            crowd = Crowd(running.port)
            asyncio.run(crowd.come(3))
            grown_mb = peak_mb(running) - before_mb
            print(f"{chaos}: {before_mb:.0f} MiB and {grown_mb:.0f} more, {dict(crowd.statuses)}")
            # 600 MB were sent, 200 MB at a time. Groups are copied on their way to Pub/Sub and to the disk.
            assert grown_mb < 6 * HELD_BYTES / (1 << 20)
            assert set(crowd.statuses) <= {200, 503}
            assert crowd.statuses[200] > 100
            server.kill()  # it is as it should be from now on
            with broker_process(data, port=int(server.address.rpartition(":")[2])):
                wait_until(lambda: running.metric("millrace_collector_spool_messages") == 0)
                assert running.end() == 0
                with PubSub(server.address, pubsub.project) as again:
                    found = {
                        json.loads(each.message.data)["batch"][0]["messageId"] for each in again.drain(subscription)
                    }
    assert crowd.promised - found == set()


HALF_A_HEAD = request(b"{}")[:40]
HALF_A_BODY = request(batch("slow", 1_000))[:-500]


def reset(client: socket.socket) -> None:
    """Go away as a process that is killed does: the other side is told by a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@contextlib.contextmanager
def nuisances(port: int) -> Iterator[list[socket.socket]]:
    """Open 600 connections that are no use: silent, half a head, half a body, that and closed to one side, unread."""
    opened: list[socket.socket] = []
    try:
        for number in range(600):
            client = socket.create_connection(("127.0.0.1", port), 60)
            opened.append(client)
            match number % 5:
                case 1:
                    client.sendall(HALF_A_HEAD)
                case 2:
                    client.sendall(HALF_A_BODY)
                case 3:
                    client.sendall(HALF_A_BODY)
                    client.shutdown(socket.SHUT_RD)
                case 4:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                    client.sendall(request(batch(f"unread-{number}", 10)) * 3)
        yield opened
    finally:
        for client in opened:
            reset(client)


def test_slow_silent_and_half_open_clients_hold_nobody_up_and_are_let_go(tmp_path):
    with broker_process() as server, PubSub(server.address) as pubsub:
        topic = pubsub.create_topic("events")
        flags = ("--workers", "1", "--head_s", "12", "--body_s", "12", "--idle_s", "12")
        with serving(tmp_path, server.address, topic, *flags) as running, nuisances(running.port) as slow:
            took_s = []
            for _ in range(30):  # while all of them are there
                for client in slow[1::5]:  # a slow loris: a byte now and then
                    client.send(b"a")
                started_s = time.monotonic()
                with socket.create_connection(("127.0.0.1", running.port), 60) as client:
                    client.sendall(request(batch("good", 1_000)))
                    assert client.recv(1_000).startswith(b"HTTP/1.1 200 ")
                took_s.append(time.monotonic() - started_s)
            print(f"{len(took_s)} good requests, the slowest in {max(took_s) * 1_000:.0f} ms")
            assert max(took_s) < 6  # and not 12 s, when those are let go
            assert running.metric("millrace_collector_connections") > 400
            wait_until(lambda: running.metric("millrace_collector_connections") == 0, 90, "all are let go")
            assert running.metric("millrace_collector_held_bytes") == 0
            assert running.metric("millrace_collector_http_refused_total") >= 240
            assert running.metric("millrace_collector_failures_total") == 0
            assert running.end() == 0
