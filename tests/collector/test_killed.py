"""The law of the collector, whatever is killed: every event that was answered with 200 is in the archive in the end.

Five rigs, each with every fault once, in a random order: a collector of two workers, the embedded broker with its
messages on disk, clients that keep sending, a spool on a small disk of its own, a wall clock that is set. A seed can
run alone: `pytest -k "[3]"`.
"""

import contextlib
import datetime as dt
import http.client
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.asking import basic
from tests.support.job import Job
from tests.support.pubsub import PubSub, Server, broker_process, wait_until
from tests.support.serving import KEY, Serving, serving
from tests.support.wall_clock import WallClock

CLIENTS = 4
SMALL_DISK = "size=12m"
HEADERS = {"Authorization": basic(KEY).decode(), "Content-Type": "application/json", "Connection": "keep-alive"}

pytestmark = pytest.mark.slow


class Clients:
    """SDKs that give up what gets no 200: only what they were promised counts."""

    def __init__(self, seed: int) -> None:
        self.port = 0
        self.sent = 0
        self.promised: set[str] = set()
        self.statuses: set[int] = set()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(f"{seed}-{number}",)) for number in range(CLIENTS)]

    def __enter__(self) -> "Clients":  # noqa: PYI034  nothing derives from it
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def were_promised(self, events: int) -> bool:
        """Say whether so many events have got their 200."""
        return len(self.promised) >= events

    def _send(self, name: str) -> None:
        count = 0
        while not self._over.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
            self._over.wait(0.004)
            with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
                connection.connect()
                while not self._over.wait(0.004):
                    ids = [f"{name}-{count + number}" for number in range(3)]
                    count += 3
                    self._post(connection, ids)

    def _post(self, connection: http.client.HTTPConnection, ids: list[str]) -> None:
        events = [
            {"type": "track", "event": "Hello", "userId": "u", "messageId": each, "properties": {"text": each * 40}}
            for each in ids
        ]
        self.sent += len(ids)
        connection.request("POST", "/v1/batch", json.dumps({"batch": events}), HEADERS)
        answer = connection.getresponse()
        answer.read()
        self.statuses.add(answer.status)
        if answer.status == 200:
            self.promised.update(ids)


class Rig:
    """A broker, a collector and the main job, which a trial may hurt; all run again when it is over."""

    def __init__(self, folder: Path, clients: Clients, *, small_disk: bool) -> None:
        self.folder = folder
        self.clients = clients
        self.small_disk = small_disk
        self.wall_clock = WallClock(folder)
        self.left_alone: list[int] = []
        """Workers of a main process that was killed."""
        self._broker = contextlib.ExitStack()
        self._collector = contextlib.ExitStack()
        self.broker: Server = self._broker.enter_context(broker_process(folder / "broker"))
        self.address = self.broker.address
        with PubSub(self.address, "shop-project") as pubsub:
            self.topic = pubsub.create_topic("events")
            subscription = pubsub.create_subscription(self.topic, "archive", ack_deadline_seconds=10)
        self.job = Job(folder / "job", self.address, subscription, "--decode_processes=0")
        self.job.start()
        self.start_collector()

    def start_collector(self) -> None:
        """Start it on the same spool; clients learn where."""
        flags = ("--workers", "2", "--publish_deadline_s", "0.3", "--drain_s", "6")
        opening = serving(self.folder, self.address, self.topic, *flags, environment=self.wall_clock.environment)
        self.collector: Serving = self._collector.enter_context(opening)
        self.clients.port = self.collector.port

    def kill_job(self) -> None:
        """End it as kill -9 does, with its Prism."""
        prism = self.job.prism_pid() if self.job.ended() is None else None
        self.job.kill()
        if prism is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(prism, signal.SIGKILL)

    def archived(self) -> set[str]:
        """Return the message ids in the archive, which the job goes on to fill."""
        if self.job.ended() == 2:  # the broker was away when it was to start; whatever runs it starts it again
            self.job.start()
        assert self.job.ended() is None, self.job.log()[-2_000:]
        return set(self.job.rows("archive").column("message_id").to_pylist())

    def start_broker(self, *flags: str) -> None:
        """Start it on the same data, at the same address."""
        port = int(self.address.rpartition(":")[2])
        self.broker = self._broker.enter_context(broker_process(self.folder / "broker", *flags, port=port))

    def close(self) -> None:
        """End whatever runs."""
        self._collector.close()
        self.kill_job()
        self._broker.close()


def kill_a_worker(rig: Rig, chance: random.Random) -> None:
    workers = wait_until(rig.collector.worker_pids, what="there is a worker")  # those of a moment ago may be killed
    with contextlib.suppress(ProcessLookupError):  # it was just replaced
        os.kill(chance.choice(workers), signal.SIGKILL)


def kill_all_workers_while_the_broker_is_away(rig: Rig, chance: random.Random) -> None:
    rig.broker.kill()
    time.sleep(chance.uniform(0.3, 0.8))
    for pid in rig.collector.worker_pids():
        with contextlib.suppress(ProcessLookupError):  # it was just replaced
            os.kill(pid, signal.SIGKILL)
    rig.start_broker()


def kill_the_whole_collector(rig: Rig, _: random.Random) -> None:
    os.killpg(rig.collector.process.pid, signal.SIGKILL)
    rig.collector.process.wait()
    rig.start_collector()


def kill_the_main_process(rig: Rig, _: random.Random) -> None:
    rig.left_alone += rig.collector.worker_pids()
    rig.collector.process.kill()  # its workers end by themselves, while the next collector has begun
    rig.collector.process.wait()
    rig.start_collector()


def end_the_collector_while_the_broker_is_away(rig: Rig, _: random.Random) -> None:
    rig.broker.kill()
    assert rig.collector.end() in (0, 3)
    rig.start_broker()
    rig.start_collector()


def replace_the_workers(rig: Rig, _: random.Random) -> None:
    rig.collector.process.send_signal(signal.SIGUSR2)


def kill_the_broker(rig: Rig, chance: random.Random) -> None:
    rig.broker.kill()
    time.sleep(chance.uniform(0.1, 1.0))
    rig.start_broker()


def kill_the_job(rig: Rig, _: random.Random) -> None:
    rig.kill_job()
    rig.job.start()


def stall_the_broker(rig: Rig, chance: random.Random) -> None:
    os.kill(rig.broker.pid, signal.SIGSTOP)
    time.sleep(chance.uniform(0.4, 1.2))
    os.kill(rig.broker.pid, signal.SIGCONT)


def let_the_broker_fail(rig: Rig, chance: random.Random) -> None:
    rig.broker.kill()
    rig.start_broker("--chaos", f"fail_publish=0.7,delay_publish_ms=50,seed={chance.randrange(1_000)}")
    time.sleep(0.8)
    rig.broker.kill()
    rig.start_broker()


def fill_the_disk_while_the_broker_is_away(rig: Rig, chance: random.Random) -> None:
    if not rig.small_disk:
        return
    rig.broker.kill()
    ballast = rig.folder / "spool" / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 65_536)
    time.sleep(chance.uniform(0.3, 0.8))
    ballast.unlink()
    rig.start_broker()


def set_the_clock(rig: Rig, chance: random.Random) -> None:
    day_s = 86_400
    rig.wall_clock.set(chance.choice((1, -1)) * chance.randrange(1_000, 400 * day_s))
    time.sleep(chance.uniform(0.1, 0.5))
    rig.broker.kill()
    rig.wall_clock.set(chance.choice((1, -1)) * chance.randrange(1_000, 400 * day_s))
    time.sleep(chance.uniform(0.1, 0.5))
    rig.start_broker()
    if rig.wall_clock.is_there:
        wait_until(lambda: any(is_far_from_now(line) for line in rig.collector.lines), 90, "a line of another time")


def is_far_from_now(line: dict[str, Any]) -> bool:
    """Say whether the collector wrote this at another time than the true one, by its own clock."""
    if "timestamp" not in line:
        return False
    written = dt.datetime.fromisoformat(line["timestamp"])
    return abs((dt.datetime.now(dt.UTC) - written).total_seconds()) > 900


FAULTS = (
    kill_a_worker, kill_all_workers_while_the_broker_is_away, kill_the_whole_collector, kill_the_main_process,
    end_the_collector_while_the_broker_is_away, replace_the_workers, kill_the_broker, stall_the_broker,
    let_the_broker_fail, fill_the_disk_while_the_broker_is_away, set_the_clock, kill_the_job,
)  # fmt: skip


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[bool]:
    """Give the spool a small disk of its own where this machine lets us; say whether it has."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", SMALL_DISK, "tmpfs", str(folder)], capture_output=True, check=False
    )
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


@pytest.mark.parametrize("seed", range(5))
def test_what_got_200_is_in_the_archive_once_whatever_is_killed(seed, tmp_path):
    chance = random.Random(seed)  # noqa: S311  repeatable
    story = chance.sample(FAULTS, len(FAULTS))
    clients = Clients(seed)
    with disk(tmp_path / "spool") as small_disk, contextlib.ExitStack() as stack:
        rig = Rig(tmp_path, clients, small_disk=small_disk)
        print(f"seed {seed}: a small disk: {small_disk}, a wall clock that can be set: {rig.wall_clock.is_there}")
        stack.callback(rig.close)
        with clients:
            for fault in story:
                print(f"seed {seed}: {fault.__name__}, {len(clients.promised)} promised so far")
                goal = len(clients.promised) + 60
                fault(rig, chance)
                wait_until(partial(clients.were_promised, goal), 120, "it works again")
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in rig.left_alone), 90, "they have ended")
        wait_until(lambda: rig.collector.metric("millrace_collector_workers") == 2)
        wait_until(lambda: rig.collector.metric("millrace_collector_spool_messages") == 0, 90, "the spool is empty")
        assert rig.collector.end() == 0, rig.collector.lines[-5:]
        assert [line for line in rig.collector.lines if line["event"] == "a bug"] == []
        wait_until(lambda: clients.promised <= rig.archived(), 120, "what was promised is archived")
        assert rig.job.drain() == 0, rig.job.log()[-2_000:]
        found = rig.job.rows("archive").column("message_id").to_pylist()
        assert rig.job.rows("dead_letters").num_rows == 0
    sizes = f"{clients.sent} sent, {len(clients.promised)} promised, {len(found)} archived"
    print(f"seed {seed}: {sizes}, {clients.statuses}")
    assert len(set(found)) == len(found)
    assert clients.promised <= set(found)
    assert clients.statuses <= {200, 503}
