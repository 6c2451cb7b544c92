"""kill -9 of the job, of Prism and of the broker, at random moments under load: nothing lost, nothing doubled."""

import contextlib
import os
import random
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.local.accounts import accounts
from millrace.local.journal import Journal, records_of
from millrace.local.send import Request
from millrace.local.shop import Shop
from millrace.local.summary import connect
from millrace.local.traffic import ShopRequests, Traffic
from tests.support.job import Job
from tests.support.pubsub import PubSub, Server, broker_process, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = 20
RATE = 300
SEED = 20


class Stand:
    """Broker and job on one data folder; whatever is killed is started again."""

    def __init__(self, data: Path, port: int) -> None:
        self.data = data
        self._port = port
        self._stack = contextlib.ExitStack()
        self.server: Server = self.start_broker()
        self.job: Job | None = None

    def start_broker(self) -> Server:
        self.server = self._stack.enter_context(broker_process(self.data / "broker", port=self._port))
        return self.server

    def start_job(self, subscription: str) -> None:
        self.job = Job(self.data, self.server.address, subscription, "--compact_every_s=5", "--drain_until_empty")
        self.job.start()

    def close(self) -> None:
        if self.job is not None and self.job.ended() is None:
            prism = self.job.prism_pid()
            self.job.kill()
            if prism is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(prism, signal.SIGKILL)
        self._stack.close()


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = Stand(tmp_path, port)
    yield found
    found.close()


def test_after_20_kills_every_published_event_is_recorded_exactly_once(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(SEED)  # noqa: S311  how fast the machine is makes other moments of it every time
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", stand.server.address)
    with PubSub(stand.server.address, "killed-test") as pubsub:
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic, ack_deadline_seconds=10)
    stand.start_job(subscription)
    journal_path = stand.data / "journal.csv"
    with Journal(journal_path) as journal:

        def enter(request: Request, _answer: bytes) -> None:
            journal.answered(record for sent in request.tag for record in records_of(sent))

        traffic = Traffic(ShopRequests(Shop(SEED), topic), topic, RATE, deadline_s=5, on_acknowledged=enter)
        with traffic:
            killed: Counter[str] = Counter()
            while killed.total() < KILLS:
                target = ("job", "prism", "broker")[killed.total() % 3]
                # A random moment: so many more events published, which the load decides.
                goal = traffic.counts().events + chance.randint(1, 6 * RATE)
                wait_until(lambda goal=goal: traffic.counts().events >= goal, 90, "traffic flows")  # type: ignore[misc]
                kill(stand, target, subscription)
                killed[target] += 1
    assert killed == {"job": 7, "prism": 7, "broker": 6}
    assert stand.job is not None
    if stand.job.ended() is not None:
        stand.start_job(subscription)

    def closes() -> bool:
        with connect(stand.data) as connection:
            return accounts(connection, journal_path).closes

    wait_until(closes, 180, f"the accounting closes; the job printed:\n{stand.job.log()[-3_000:]}")
    assert stand.job.drain() == 0, stand.job.log()[-3_000:]
    with connect(stand.data) as connection:
        found = accounts(connection, journal_path)
        assert found.closes, found
        twice = "SELECT source_id, message_id FROM archive GROUP BY ALL HAVING count(*) > 1"
        assert connection.execute(twice).fetchall() == []
        backwards = """
            SELECT user_key FROM (SELECT user_key, occurred_at, is_late,
                                         lag(occurred_at) OVER (PARTITION BY user_key ORDER BY order_index) AS before
                                  FROM archive WHERE NOT is_late) WHERE before > occurred_at
        """
        assert connection.execute(backwards).fetchall() == []
    assert found.answered > KILLS * RATE / 4


def kill(stand: Stand, target: str, subscription: str) -> None:
    """Kill one of the three for real, and start again what has gone with it."""
    job = stand.job
    assert job is not None
    if target == "broker":
        stand.server.kill()
        stand.start_broker()
        return
    if target == "prism":
        prism = wait_until(lambda: job.ended() is not None or job.prism_pid(), 90, "Prism runs")
        if job.ended() is None:
            os.kill(prism, signal.SIGKILL)
            wait_until(lambda: job.ended() is not None, 90, "the job notices that Prism is gone")
            assert job.ended() in {1, 2}, job.log()[-2_000:]
    else:
        job.kill()
    stand.start_job(subscription)
