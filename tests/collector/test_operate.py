"""Operating the collector: real processes and signals, what a person is told, and what is left at the end."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

import pytest

from tests.support.asking import basic
from tests.support.pubsub import PubSub, broker_process, wait_until
from tests.support.serving import KEY, serving, write_sources

pytestmark = pytest.mark.slow

HEADERS = {"Authorization": basic(KEY).decode(), "Content-Type": "application/json"}
PERSON = "ann.secret@shop.example"


def post(port: int, name: str, key: str = KEY, headers: dict[str, str] | None = None) -> int:
    """Send one event over a connection of its own; return the status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=90)
    body = json.dumps({"type": "track", "event": "Hello", "messageId": name, "userId": PERSON})
    sent = {**HEADERS, "Authorization": basic(key).decode(), **(headers or {})}
    with contextlib.closing(connection):
        connection.request("POST", "/v1/track", body, sent)
        return connection.getresponse().status


@pytest.fixture(scope="module")
def pubsub():
    with broker_process() as server, PubSub(server.address) as opened:
        yield opened


@pytest.fixture
def topic(pubsub):
    return pubsub.create_topic()


def test_workers_are_replaced_under_load_and_no_request_fails(pubsub, topic, tmp_path):
    subscription = pubsub.create_subscription(topic)
    with serving(tmp_path, pubsub.address, topic, "--workers", "2") as running:
        before = running.worker_pids()
        with Load(running.port, 16) as load:
            wait_until(lambda: load.good > 200)
            running.process.send_signal(signal.SIGUSR2)
            wait_until(lambda: sum(line["event"] == "a worker was replaced" for line in running.lines) == 2)
            reached = load.good
            wait_until(lambda: load.good > reached + 200)
        assert load.failures == []
        assert not set(before) & set(running.worker_pids())
        assert running.end() == 0
        names = [json.loads(each.message.data)["messageId"] for each in pubsub.drain(subscription)]
        assert set(names) >= load.answered
        assert running.logged("a worker died") is None


class Load:
    """Keeps sending over connections that stay open, as SDKs do; a connection that the server ends is opened anew."""

    def __init__(self, port: int, threads: int) -> None:
        self.answered: set[str] = set()
        self.failures: list[str] = []
        self._port = port
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(threads)]

    @property
    def good(self) -> int:
        return len(self.answered)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _send(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=90)
        count = 0
        while not self._over.is_set():
            count += 1
            name = f"{number}-{count}"
            body = json.dumps({"type": "track", "event": "Hello", "messageId": name, "userId": "u"})
            try:
                connection.request("POST", "/v1/track", body, HEADERS)
                answer = connection.getresponse()
                answer.read()
            except OSError as error:
                self.failures.append(repr(error))
                return
            if answer.status != 200:
                self.failures.append(str(answer.status))
                return
            self.answered.add(name)
        connection.close()


def test_sources_are_read_again_and_a_file_with_mistakes_changes_nothing(pubsub, topic, tmp_path):
    path = write_sources(tmp_path)
    good = path.read_text()
    with serving(tmp_path, pubsub.address, topic, "--workers", "2", sources=path) as running:
        path.write_text(good + "  other:\n    kind: nonsense\n")
        running.process.send_signal(signal.SIGHUP)
        told = wait_until(lambda: running.logged("the sources stay as they were"))
        assert f"{path}:6" in told["problem"]
        assert {post(running.port, f"m{number}") for number in range(4)} == {200}
        path.write_text(good.replace("shop:", "renamed:"))
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: sum(line["event"] == "the sources were read again" for line in running.lines) == 2)
        assert {post(running.port, f"n{number}") for number in range(4)} == {200}
        assert running.metric("millrace_collector_events_total", source="shop") == 4
        assert running.metric("millrace_collector_events_total", source="renamed") == 4
        assert running.metric("millrace_collector_reloads_total", outcome="done") == 2


def test_what_cannot_be_published_is_left_in_the_spool_told_and_published_by_the_next_run(tmp_path):
    data = tmp_path / "broker"
    with broker_process(data) as server, PubSub(server.address) as pubsub:
        topic = pubsub.create_topic("events")
        subscription = pubsub.create_subscription(topic, "archive")
        port = int(server.address.rpartition(":")[2])
        with serving(tmp_path, server.address, topic, "--workers", "2", "--drain_s", "4") as running:
            server.kill()
            assert [post(running.port, f"m{number}") for number in range(5)] == [200] * 5
            assert running.metric("millrace_collector_spool_messages") == 5
            assert running.end() == 3
            left = running.logged("ended; events are left")
            assert left is not None
            assert left["messages"] == 5
        with broker_process(data, port=port), PubSub(server.address, pubsub.project) as again:
            with serving(tmp_path, server.address, topic, "--workers", "1") as running:
                wait_until(lambda: running.metric("millrace_collector_spool_messages") == 0)
                assert running.end() == 0
            names = {json.loads(each.message.data)["messageId"] for each in again.drain(subscription)}
    assert names == {f"m{number}" for number in range(5)}


def test_a_worker_that_dies_is_replaced_and_what_it_had_spooled_is_taken_over(tmp_path):
    data = tmp_path / "broker"
    with broker_process(data) as server, PubSub(server.address) as pubsub:
        topic = pubsub.create_topic("events")
        subscription = pubsub.create_subscription(topic, "archive")
        port = int(server.address.rpartition(":")[2])
        with serving(tmp_path, server.address, topic, "--workers", "2") as running:
            server.kill()
            assert {post(running.port, f"m{number}") for number in range(6)} == {200}
            before = running.worker_pids()
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: len(running.worker_pids()) == 2 and not set(before) & set(running.worker_pids()))
            wait_until(lambda: running.admin("/health/ready")[0] == 200)
            assert running.metric("millrace_collector_worker_restarts_total") == 2
            with broker_process(data, port=port), PubSub(server.address, pubsub.project) as again:
                wait_until(lambda: running.metric("millrace_collector_spool_messages") == 0)
                assert running.end() == 0
                names = {json.loads(each.message.data)["messageId"] for each in again.drain(subscription)}
    assert names == {f"m{number}" for number in range(6)}


def test_a_worker_that_died_just_before_the_end_is_told_of_then_and_does_not_make_the_end_a_failure(tmp_path):
    data = tmp_path / "broker"
    with broker_process(data) as server, PubSub(server.address) as pubsub:
        topic = pubsub.create_topic("events")
        subscription = pubsub.create_subscription(topic, "archive")
        port = int(server.address.rpartition(":")[2])
        with serving(tmp_path, server.address, topic, "--workers", "2") as running:
            server.kill()
            assert {post(running.port, f"m{number}") for number in range(6)} == {200}
            with broker_process(data, port=port), PubSub(server.address, pubsub.project) as again:
                os.kill(running.worker_pids()[0], signal.SIGKILL)
                wait_until(lambda: running.logged("a worker died"))  # and it waits a moment before it starts another
                assert running.end() == 0
                names = {json.loads(each.message.data)["messageId"] for each in again.drain(subscription)}
    assert names == {f"m{number}" for number in range(6)}  # what the dead one had spooled, too


def test_an_end_in_the_middle_of_a_replacement_waits_for_all_workers(pubsub, topic, tmp_path):
    with serving(tmp_path, pubsub.address, topic, "--workers", "2") as running:
        workers = set(running.worker_pids())
        running.process.send_signal(signal.SIGUSR2)
        workers.update(wait_until(lambda: found if len(found := running.worker_pids()) == 3 else None))
        assert running.end() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_workers_end_by_themselves_when_the_main_process_is_killed(pubsub, topic, tmp_path):
    with serving(tmp_path, pubsub.address, topic, "--workers", "2") as running:
        workers = running.worker_pids()
        running.process.kill()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_metrics_are_those_of_all_workers_and_nothing_tells_who_sent_what(pubsub, topic, tmp_path):
    with serving(tmp_path, pubsub.address, topic, "--workers", "2", "--log_level", "DEBUG") as running:
        spoofed = {"X-Forwarded-For": "203.0.113.77", "User-Agent": "secret-agent/1"}
        assert {post(running.port, f"m{number}", headers=spoofed) for number in range(20)} == {200}
        assert post(running.port, "m", key="mrs_" + "x" * 36) == 401
        assert post(running.port, "m", headers={"Content-Type": "image/png"}) == 415
        page = running.admin("/metrics")[1]
        assert running.metric("millrace_collector_requests_total", code="200", route="/v1/track") == 20
        assert running.metric("millrace_collector_events_total", source="shop") == 20
        assert running.metric("millrace_collector_publish_seconds_count") >= 1
        assert running.metric("millrace_collector_workers") == 2
        both = (200, '{"ready":true,"workers":{"0":"ready","1":"ready"}}')
        wait_until(lambda: running.admin("/health/ready") == both)
        assert running.admin("/else")[0] == 404
        assert running.end() == 0
    everything = page + json.dumps(running.lines)
    for told in (PERSON, KEY, KEY[4:], "203.0.113.77", "secret-agent", "127.0.0.1:", "x" * 36, "Hello"):
        assert told not in everything
    assert all(line["level"] in ("debug", "info") for line in running.lines)


def run(*arguments: str, broker: str = "127.0.0.1:1") -> tuple[int, str]:
    """Run a collector that cannot start; return its exit code and what it said."""
    ran = subprocess.run(
        [sys.executable, "-m", "millrace.cli", "collector", "--port", "0", "--admin_port", "0", *arguments],
        capture_output=True, text=True, timeout=150, check=False, env={**os.environ, "PUBSUB_EMULATOR_HOST": broker},
    )  # fmt: skip
    return ran.returncode, ran.stderr


def test_wrong_input_is_told_in_one_line_and_ends_with_2(pubsub, tmp_path):
    sources = str(write_sources(tmp_path))
    good = {"--topic": "projects/shop-project/topics/events", "--sources": sources, "--spool": str(tmp_path / "spool")}

    def refused(**changed: str) -> str:
        flags = good | {f"--{name}": value for name, value in changed.items()}
        code, told = run(*(part for pair in flags.items() for part in pair), broker=pubsub.address)
        assert code == 2, told
        return told.splitlines()[-1]

    broken = tmp_path / "broken.yaml"
    broken.write_text("sources:\n  shop:\n    kind: nonsense\n")
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert refused(port=port) == f"millrace collector: cannot listen on 127.0.0.1:{port}: Address already in use"
    assert f"{broken}:3" in refused(sources=str(broken))
    assert "cannot be read" in refused(sources=str(tmp_path / "none.yaml"))
    assert "--spool" in refused(spool=str(tmp_path / "file" / "spool"))
    assert "there is no topic projects/shop-project/topics/events" in refused()
    assert "must be projects/PROJECT/topics/TOPIC" in refused(topic="events")
    assert "must be a whole number" in refused(workers="0")
    assert "at most" in refused(max_connections="1000000000") or "open files" in refused(max_connections="1000000000")


def test_it_starts_while_pubsub_is_away_and_spools(tmp_path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        away = f"127.0.0.1:{nobody.getsockname()[1]}"
        flags = ("--workers", "1", "--drain_s", "3")
        with serving(tmp_path, away, "projects/shop-project/topics/events", *flags) as running:
            assert running.logged("whether the topic is there cannot be told") is not None
            assert post(running.port, "m") == 200
            assert running.end() == 3


def test_a_collector_that_is_ending_is_not_ready_and_answers_what_is_under_way(pubsub, topic, tmp_path):
    with serving(tmp_path, pubsub.address, topic, "--workers", "1") as running:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=90)
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b'{"ready":true}')
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: running.logged("ending"))

        def told_otherwise() -> tuple[int, bytes, str | None] | None:  # the worker hears it a moment later
            connection.request("GET", "/health/ready")
            answer = connection.getresponse()
            told = (answer.status, answer.read(), answer.getheader("connection"))
            return None if answer.status == 200 else told

        assert wait_until(told_otherwise) == (503, b'{"ready":false,"why":"ending"}', "close")
        connection.close()
        assert running.process.wait(90) == 0
