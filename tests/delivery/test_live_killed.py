"""A lane without order, while it, all of `millrace deliver`, and the broker are killed: each event at least once."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from millrace.delivery.ledger import Ledger
from millrace.delivery.settled import settled_envelopes
from tests.support.live import body, recorded
from tests.support.pubsub import PubSub, Server, broker_process, wait_until

pytestmark = pytest.mark.slow

CONFIG = """
sinks:
  book: {{use: "tests.support.live:Recorded", with: {{file: {file}, seconds: 0.1}}, max_events: 50, max_in_flight: 2}}
routes:
  - {{to: book, order: none, columns: [message_id, event]}}
"""


class Delivering:
    """`millrace deliver`, and its one lane."""

    def __init__(self, root: Path, topic: str, address: str) -> None:
        self.book = root / "book"
        self.ledger = root / "state" / "book.unordered.sqlite"
        self._log = root / "log"
        (root / "millrace.yaml").write_text(CONFIG.format(file=self.book))
        self._command = [sys.executable, "-m", "millrace.cli", "deliver", f"--config={root / 'millrace.yaml'}",
                         f"--archive={root / 'archive'}", f"--state={root / 'state'}", f"--topic={topic}",
                         "--subscription_prefix=own-", "--quiet"]  # fmt: skip
        self._environment = {**os.environ, "PUBSUB_EMULATOR_HOST": address}

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environment)

    def lane_pid(self) -> int | None:
        """The lane's process id, as it says itself."""
        if not self.ledger.exists():
            return None
        ledger = Ledger(self.ledger, read_only=True)
        with contextlib.closing(ledger):
            status = ledger.status()
        return None if status is None else status[1].pid

    def kill_lane(self) -> None:
        os.kill(wait_until(self.lane_pid, 90, "the lane says who it is"), signal.SIGKILL)

    def taken(self) -> Counter[str]:
        return Counter(row["message_id"] for row in recorded(self.book))

    def wait_for(self, names: set[str]) -> None:
        def all_there() -> bool:
            assert self.process.poll() is None, self.said()
            return names <= self.taken().keys()

        wait_until(all_there, 90, f"all of {len(names)} events")

    def said(self) -> str:
        return self._log.read_text()[-3_000:]


@contextlib.contextmanager
def delivering(root: Path, topic: str, address: str) -> Iterator[Delivering]:
    found = Delivering(root, topic, address)
    found.start()
    try:
        yield found
    finally:
        found.process.send_signal(signal.SIGTERM)
        try:
            found.process.wait(90)
        finally:
            found.process.kill()


def publish(pubsub: PubSub, topic: str, first: int, count: int) -> set[str]:
    """Publish so many events, ten a message; what was not answered is sent again."""
    names = [f"m{number}" for number in range(first, first + count)]
    messages = [body(*names[at : at + 10]) for at in range(0, count, 10)]

    def sent() -> bool:
        try:
            pubsub.publish(topic, *messages, timeout_s=5)
        except grpc.RpcError as error:
            if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                raise
            return False
        return True

    wait_until(sent, 90, "an answer to a publish")
    return set(names)


def totals_of(path: Path) -> dict[str, int]:
    ledger = Ledger(path, read_only=True)
    try:
        return ledger.totals()
    finally:
        ledger.close()


def test_each_event_is_delivered_while_lane_broker_and_all_are_killed(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with contextlib.ExitStack() as servers:

        def broker() -> Server:
            return servers.enter_context(broker_process(tmp_path / "broker", port=port))

        server = broker()
        pubsub = servers.enter_context(PubSub(server.address, "killed"))
        topic = pubsub.create_topic("events")
        own = pubsub.create_subscription(topic, "own-book.unordered", ack_deadline_seconds=10)
        with delivering(tmp_path, topic, server.address) as lanes:
            names = publish(pubsub, topic, 0, 2_000)
            wait_until(lambda: len(lanes.taken()) > 200, 90, "the lane works")
            lanes.kill_lane()
            names |= publish(pubsub, topic, 2_000, 1_000)
            wait_until(lambda: len(lanes.taken()) > 2_200, 90, "the lane works again")
            server.kill()
            server = broker()
            names |= publish(pubsub, topic, 3_000, 1_000)
            lanes.wait_for(names)
            lanes.process.kill()  # the lane is on its leash, and ends too
            lanes.process.wait()
            names |= publish(pubsub, topic, 4_000, 500)
            lanes.start()
            lanes.wait_for(names)
            wait_until(lambda: totals_of(lanes.ledger).get("delivered", 0) >= len(names), 90, "it is all written down")
        taken = lanes.taken()
        assert taken.keys() == names
        again = sum(taken.values()) - len(names)
        print(f"{again} of {len(names)} events came more than once")
        assert again <= 2_000  # what was in hand when a process was killed, not all there is
        totals = totals_of(lanes.ledger)
        ledger = Ledger(lanes.ledger, read_only=True)
        settled = settled_envelopes(ledger)
        ledger.close()
        assert totals["routed"] == totals["delivered"] >= len(names)
        assert settled is not None
        assert int(settled.envelopes.events.sum()) >= len(names)
        assert pubsub.drain(own) == [], lanes.said()
