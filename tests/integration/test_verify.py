"""`millrace verify` on what real servers leave, some of them killed: it closes, or says which rows were taken out."""

import base64
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.job import Job, read_table
from tests.support.pubsub import PubSub, broker_process, wait_until
from tests.support.serving import KEY, serving
from tests.support.verifying import Verdict, verdict

pytestmark = pytest.mark.slow

HEADERS = {
    "Authorization": "Basic " + base64.b64encode(f"{KEY}:".encode()).decode(),
    "Content-Type": "application/json",
}


class Client:
    """An SDK that sends batches of four events, one of them a copy and one that is none; it gives up what fails."""

    def __init__(self, port: int) -> None:
        self.promised = 0
        self._port = port
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> "Client":  # noqa: PYI034  nothing derives from it
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _send(self) -> None:
        count = 0
        while not self._over.wait(0.01):
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
            with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
                while not self._over.wait(0.01):
                    count += 1
                    event = {"type": "track", "event": "Hello", "userId": f"u{count % 7}", "messageId": f"m{count}"}
                    other = {**event, "messageId": f"n{count}"}
                    body = json.dumps({"batch": [event, other, event, {"type": "track", "event": 1}]})
                    connection.request("POST", "/v1/batch", body, HEADERS)
                    with connection.getresponse() as answer:
                        answer.read()
                        self.promised += 4 * (answer.status == 200)


def test_what_was_accepted_is_accounted_for_whoever_is_killed(tmp_path: Path) -> None:
    with broker_process(tmp_path / "broker") as server, contextlib.ExitStack() as stack:
        pubsub = PubSub(server.address)
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic, ack_deadline_seconds=10)
        flags = ("--workers=1", f"--accepted={tmp_path / 'accepted'}", "--lenient")
        collector = stack.enter_context(serving(tmp_path, server.address, topic, *flags))
        job = Job(tmp_path, server.address, subscription, "--drain_until_empty")
        job.start()
        stack.callback(_kill, job)
        delivering = stack.enter_context(_delivering(tmp_path))
        with Client(collector.port) as client:
            job.wait_for(archived=100)
            (worker,) = collector.worker_pids()
            before = client.promised
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda: client.promised > before + 400, 90, "the collector's next worker")
            _kill(job)
            before = client.promised
            wait_until(lambda: client.promised > before + 400, 90, "what comes while there is no job")
            standing = verdict(tmp_path)
            job.start()
            job.wait_for(archived=before // 2)
            delivering.kill()
            delivering.wait()
        assert collector.end() == 0
        assert job.drain() == 0
        with _delivering(tmp_path) as delivering:
            wait_until(lambda: _is_delivered(tmp_path), 90, "the lane to deliver what is archived")
            delivering.terminate()
            assert delivering.wait(120) == 0

    in_flight = sum(account["in_flight"] for account in standing.said["sources"])
    assert (standing.code, standing.ids) == (0, [])
    assert in_flight >= 400

    closing = verdict(tmp_path, "--settled-after=0s")
    sums = _sums(closing)
    assert (closing.code, closing.ids) == (0, [])
    doors = sums["archive"] + sums["duplicates"] + sums["dead_letters"]
    assert sums["accepted"] == doors
    assert sums["in_flight"] == 0
    routed = closing.said["sinks"][0]
    assert (routed["routed"], routed["delivered"], routed["unread"]) == (sums["archive_rows"],) * 2 + (0,)
    # The worker that was killed took the notes of its last second with it; its events are there all the same.
    assert sums["accepted"] + sums["others"] >= client.promised
    assert sums["others"] < 4 * 400

    archived = sorted((tmp_path / "archive").rglob("*.parquet"), key=lambda path: path.stat().st_mtime)
    file = archived[-3]  # of the time after the killed worker
    whole, rows = file.read_bytes(), pq.read_table(file)
    file.unlink()
    gone = verdict(tmp_path, "--settled-after=0s", f"--ids={tmp_path / 'ids.csv'}")
    places = _places(rows)
    assert gone.code == 1
    lines = [line.split(",")[:2] for line in (tmp_path / "ids.csv").read_text().splitlines()[1:]]
    assert [id_ for kind, id_ in lines if kind == "file gone"] == [str(file.relative_to(tmp_path / "archive"))]
    assert {id_ for kind, id_ in lines if kind == "missing"} <= set(places)
    assert gone.said["findings"]["missing"] == _sums(gone)["missing"] > 0

    file.write_bytes(whole)
    pq.write_table(rows.slice(1), file)
    one_less = verdict(tmp_path, "--settled-after=0s")
    lane_finds = [what for kind, what in one_less.ids if kind == "totals"]
    assert (one_less.code, one_less.ids[0]) == (1, ("missing", places[0]))
    assert [f"has {len(rows) - 1} rows, {len(rows)} marks" in what for what in lane_finds] == [True]


@contextlib.contextmanager
def _delivering(data: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `millrace deliver` with one sink that gets everything; killed at the end, with its lane."""
    with (data / "millrace.yaml").open("r+") as file:
        if "routes:" not in file.read():
            file.write("sinks:\n  copy: {use: console}\nroutes:\n  - {to: copy}\n")
    arguments = [f"--config={data / 'millrace.yaml'}", f"--archive={data / 'archive'}", f"--state={data / 'delivery'}"]
    command = [sys.executable, "-m", "millrace.delivery.run", *arguments, "--from_start", "--drain_s=30", "--quiet"]
    with (
        (data / "deliver.log").open("ab") as log,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def _is_delivered(data: Path) -> bool:
    account = verdict(data, "--fast").said["sinks"][0]
    archived = read_table(str(data / "archive"), "archive").num_rows
    return bool(account["delivered"] == archived)


def _kill(job: Job) -> None:
    if job.ended() is None:
        prism = job.prism_pid()
        job.kill()
        if prism is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(prism, signal.SIGKILL)


def _sums(found: Verdict) -> dict[str, int]:
    names = ("accepted", "archive", "duplicates", "dead_letters", "in_flight", "missing")
    sums = {name: sum(account[name] for account in found.said["sources"]) for name in names}
    sums["archive_rows"] = sum(account["others"]["archive"] for account in found.said["sources"]) + sums["archive"]
    return {**sums, "others": sum(sum(account["others"].values()) for account in found.said["sources"])}


def _places(rows: "pq.Table") -> list[str]:
    pairs = zip(rows.column("envelope_id").to_pylist(), rows.column("envelope_index").to_pylist(), strict=True)
    return [f"{id_}/{index}" for id_, index in pairs]
