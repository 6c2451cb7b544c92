"""A stand for measuring: Pub/Sub, the main job and a publisher as processes, their memory sampled, rows counted."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq
from google.cloud import pubsub_v1

from millrace.local.doctor import find_google_emulator
from millrace.sinks.delta import open_table
from millrace.sinks.tables import ARCHIVE

TOPIC = "projects/millrace-bench/topics/events"
SUBSCRIPTION = "projects/millrace-bench/subscriptions/events-archive"


class Measured(NamedTuple):
    """One run."""

    events: int
    rows: int
    seconds: float
    published_per_s: float
    memory_mb: list[float]
    """Resident memory of broker, Prism and job together, every half second."""
    latency_s: pa.Array
    """Of every row: from its publication until its commit was in the log."""
    read_per_s: float
    """Events that the job read and decoded a second while traffic came, from the job's own count."""

    @property
    def peak_mb(self) -> float:
        """The most memory at any time."""
        return max(self.memory_mb)


class Stand:
    """Starts Pub/Sub and the job; `run` sends traffic through them once. A context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        google: bool = False,
        wait_s: float = 10,
        window_s: float = 5,
        compact_every_s: float = 0,
        job_options: Sequence[str] = (),
    ) -> None:
        self.wait_s = wait_s
        self.window_s = window_s
        self.server = "Google's emulator" if google else "embedded broker"
        self._folder = folder
        self._google = google
        self._compact_every_s = compact_every_s
        self._job_options = job_options
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def run(self, rate: float, seconds: float, per_message: int, *, pace: bool = False) -> Measured:
        """Publish for some seconds, drain the job, and count what it wrote.

        Args:
            rate: events/s published.
            seconds: how long.
            per_message: events in a message.
            pace: leave the job the order wait to finish by itself, so that the last events' latency is an honest one.
        """
        memory: list[float] = []
        over = threading.Event()
        sampler = threading.Thread(target=self._sample, args=(memory, over))
        sampler.start()
        began_s = time.time()
        try:
            published = self._publish(rate, seconds, per_message)
            read_per_s = self._read_so_far() / published["seconds"]
            if pace:
                time.sleep(self.wait_s + self.window_s + 2)
            job = self._processes[-1]
            job.send_signal(signal.SIGTERM)
            if job.wait(300 + 2 * seconds):
                raise RuntimeError(f"the job failed: {(self._folder / 'job.log').read_text()[-2_000:]}")
        finally:
            over.set()
            sampler.join()
        rows, last_s, latency = self._written()
        publish_rate = published["events"] / published["seconds"]
        return Measured(published["events"], rows, last_s - began_s, publish_rate, memory, latency, read_per_s)

    def _publish(self, rate: float, seconds: float, per_message: int) -> dict[str, Any]:
        messages = 20 if per_message > 1 else 500
        traffic = subprocess.run(
            [sys.executable, "-m", "millrace.local.traffic", "--topic", TOPIC, "--rate", str(rate), "--seconds",
             str(seconds), "--events_per_message", str(per_message), "--messages", str(messages), "--in_flight", "2"],
            capture_output=True, text=True, check=True, timeout=seconds + 120,
        )  # fmt: skip
        published: dict[str, Any] = json.loads(traffic.stdout.strip().splitlines()[-1])
        return published

    def _read_so_far(self) -> int:
        lines = (self._folder / "job.log").read_text().splitlines()
        return int(next(line for line in reversed(lines) if line.startswith("in ")).split()[1].replace(",", ""))

    def _start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if self._google:
            jar = find_google_emulator()
            java = shutil.which("java")
            if jar is None or java is None:
                raise SystemExit("Google's Pub/Sub emulator is not installed; leave --google out.")
            self._launch([java, "-jar", str(jar), "--host=127.0.0.1", f"--port={port}"], "broker.log")
        else:
            data = str(self._folder / "broker")
            self._launch(
                [sys.executable, "-m", "millrace.broker.server", "--port", str(port), "--data", data], "broker.log"
            )
        os.environ["PUBSUB_EMULATOR_HOST"] = f"127.0.0.1:{port}"
        publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
        publisher.create_topic(request={"name": TOPIC}, timeout=60)
        subscriber.create_subscription(
            request={"name": SUBSCRIPTION, "topic": TOPIC, "ack_deadline_seconds": 60}, timeout=60
        )
        publisher.stop()
        publisher.transport.close()
        subscriber.close()
        options = {
            "subscription": SUBSCRIPTION,
            **{
                name: self._folder / name for name in ("archive", "duplicates", "dead_letters", "dropped", "identities")
            },
            "order_wait_s": self.wait_s,
            "order_window_s": self.window_s,
            "compact_every_s": self._compact_every_s,
            "progress_s": 1,
        }
        arguments = [*(f"--{name}={value}" for name, value in options.items()), "--drain_until_empty"]
        arguments += self._job_options
        self._launch([sys.executable, "-m", "millrace.pipelines.events", *arguments], "job.log")
        self._wait_until_running()

    def _wait_until_running(self) -> None:
        log = self._folder / "job.log"
        deadline = time.monotonic() + 120
        while log.read_text().count("\nin 0 ") < 3:  # progress lines: it reads, and there is nothing yet
            if self._processes[-1].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the job did not start:\n{log.read_text()[-2_000:]}")
            time.sleep(0.1)

    def _launch(self, command: list[str], log: str) -> None:
        with (self._folder / log).open("wb") as output:
            self._processes.append(subprocess.Popen(command, stdout=output, stderr=output))

    def _end(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _sample(self, memory: list[float], over: threading.Event) -> None:
        while not over.wait(0.5):
            pids = [process.pid for process in self._processes]
            memory.append(sum(_resident_mb(pid) for pid in _with_children(pids)))

    def _written(self) -> tuple[int, float, pa.Array]:
        """Return the rows of the archive, when the last commit was made, and each row's latency."""
        table = open_table(str(self._folder / "archive"), ARCHIVE)
        rows = table.delta.to_pyarrow_dataset().count_rows()
        last_s = 0.0
        latency: list[pa.Array] = []
        for entry in sorted((self._folder / "archive" / "_delta_log").glob("*.json")):
            actions = [json.loads(line) for line in entry.read_text().splitlines()]
            added = [action["add"] for action in actions if "add" in action and action["add"]["dataChange"]]
            if not added:
                continue
            committed_s = entry.stat().st_mtime
            last_s = max(last_s, committed_s)
            for add in added:
                path = self._folder / "archive" / add["path"]
                if path.exists():
                    published = pq.read_table(path, columns=["published_at"]).column(0).cast(pa.int64()).to_numpy()
                    latency.append(pa.array(committed_s - published / 1e6))
        return rows, last_s, pa.concat_arrays(latency)


def _with_children(pids: list[int]) -> list[int]:
    found = list(pids)
    for pid in found:
        for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found += map(int, tasks.read_text().split())
            except OSError:
                continue
    return found


def _resident_mb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
