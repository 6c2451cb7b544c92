"""Lanes without order: how long from publish to delivered, beside the main job and without it.

    python -m benchmarks.live                       10,000 events/s, 20 and 1 a message, each with and without the job
    python -m benchmarks.live --rate 5000 --seconds 60 --per_message 20

Publisher, Pub/Sub, job and lane share these cores. The lane's sink has the event at once, so what is measured is
Millrace: pulled, decoded, enriched (--config), routed, handed over. CPU is the lane's own, of its process.
"""

import argparse
import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.stand import TOPIC, Stand
from benchmarks.throughput import machine
from millrace.broker import Broker
from millrace.delivery.lane_process import LaneJob
from millrace.delivery.ledger import Ledger
from millrace.delivery.settings import LaneSettings, SinkSettings
from millrace.transforms.route import Route
from tests.support.pubsub import PubSub, wait_until


class Row(NamedTuple):
    """One line of the table."""

    name: str
    published: int
    delivered: int
    p50_ms: float
    p99_ms: float
    worst_ms: float
    cpu_us: float
    """Of the lane, an event."""
    memory_mb: float
    record_bytes: float
    """Of the record of settled envelopes, a message."""


class LaneProcess:
    """A lane's process, its sink a Clocked one."""

    def __init__(self, folder: Path, topic: str, config: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.ages = folder / "ages"
        self.ages.touch()
        sink = SinkSettings("clocked", "benchmarks.clocked:Clocked", {"file": str(self.ages)})
        lane = LaneSettings(sink, (Route("clocked", "clocked", is_ordered=False),), is_ordered=False)
        unused = str(folder / "unused")
        self.job = LaneJob(lane, unused, unused, folder, config=config, topic=topic)
        path = folder / "lane.job"
        path.write_bytes(pickle.dumps(self.job))
        with (folder / "lane.log").open("wb") as log:
            command = [sys.executable, "-m", "millrace.delivery.lane_process", str(path)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

        self.cpu_before_s = 0.0

    def delivered(self) -> int:
        """Return how many events were handed over."""
        return self.ages.stat().st_size // 8

    def usage(self) -> tuple[float, float]:
        """Return its processor seconds and its resident memory, MB."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
        return (int(stat[11]) + int(stat[12])) / tick, int(stat[21]) * page / 2**20

    def record_bytes(self) -> float:
        """Return the bytes of the record of settled envelopes, for each of them."""
        ledger = Ledger(self.job.ledger, read_only=True)
        (size,) = ledger.file.execute("SELECT sum(length(envelopes)) FROM settled_envelopes").fetchone()
        ledger.close()
        return float(size or 0)

    def end(self) -> None:
        """End it, and wait."""
        self.process.terminate()
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def lane_process(folder: Path, topic: str, config: str, address: str) -> Iterator[LaneProcess]:
    """Run a lane; it reads when this begins."""
    lane = LaneProcess(folder, topic, config)
    try:
        with PubSub(address, topic.split("/")[1]) as pubsub:
            name = pubsub.subscription_name("millrace-clocked.unordered")
            wait_until(lambda: name in pubsub.list_topic_subscriptions(topic).subscriptions, 60, "the lane reads")
        lane.cpu_before_s, _ = lane.usage()
        yield lane
    finally:
        lane.end()


def _alone(folder: Path, options: argparse.Namespace, per_message: int) -> Row:
    with Broker(data=str(folder / "broker")) as broker:
        os.environ["PUBSUB_EMULATOR_HOST"] = broker.address
        with PubSub(broker.address, TOPIC.split("/")[1]) as pubsub:
            pubsub.create_topic(TOPIC.rpartition("/")[2])
        with lane_process(folder / "lane", TOPIC, options.config, broker.address) as lane:
            traffic = subprocess.run(
                [sys.executable, "-m", "millrace.local.traffic", "--topic", TOPIC, "--rate", str(options.rate),
                 "--seconds", str(options.seconds), "--events_per_message", str(per_message),
                 "--messages", "20", "--in_flight", "2"],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            published = json.loads(traffic.stdout.strip().splitlines()[-1])["events"]
            return _row(f"{per_message} a message", lane, published, per_message)


def _beside(folder: Path, options: argparse.Namespace, per_message: int) -> Row:
    with (
        Stand(folder / "stand", google=options.google) as stand,
        lane_process(folder / "lane", TOPIC, options.config, os.environ["PUBSUB_EMULATOR_HOST"]) as lane,
    ):
        published = stand.run(options.rate, options.seconds, per_message).events
        return _row(f"{per_message} a message, beside the job", lane, published, per_message)


def _row(name: str, lane: LaneProcess, published: int, per_message: int) -> Row:
    wait_until(lambda: lane.delivered() >= published or lane.process.poll() is not None, 60, "all is delivered")
    time.sleep(0.5)  # the last save
    cpu_s, memory_mb = lane.usage()
    cpu_us = (cpu_s - lane.cpu_before_s) / published * 1e6
    ages = np.fromfile(lane.ages, np.int64)
    p50, p99, worst = np.quantile(ages[len(ages) // 10 :] / 1_000, [0.5, 0.99, 1.0])  # the first tenth warms up
    record = lane.record_bytes() / (published / per_message)
    return Row(name, published, lane.delivered(), p50, p99, worst, cpu_us, memory_mb, record)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text."""
    lines = [("events", "published", "delivered", "p50", "p99", "worst", "lane's CPU", "lane's memory", "record")]
    lines += [
        (
            row.name, f"{row.published:,}", f"{row.delivered:,}", f"{row.p50_ms:,.0f} ms", f"{row.p99_ms:,.0f} ms",
            f"{row.worst_ms:,.0f} ms", f"{row.cpu_us:.0f} us an event", f"{row.memory_mb:,.0f} MB",
            f"{row.record_bytes:.1f} bytes a message",
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table; 1 where something published was not delivered."""
    options = _parser().parse_args(arguments)
    measures = {"alone": [_alone], "beside": [_beside]}.get(options.only, [_alone, _beside])
    rows = []
    with tempfile.TemporaryDirectory(prefix="millrace-live-") as folder:
        for number, per_message in enumerate(options.per_message):
            for measure in measures:
                print(f"{per_message} events a message, {measure.__name__[1:]} ...", file=sys.stderr, flush=True)
                rows.append(measure(Path(folder) / f"{number}{measure.__name__}", options, per_message))
    print(machine())
    print(table(rows))
    return 1 if any(row.delivered < row.published for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.live", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rate", type=float, default=10_000.0, help="events/s published (%(default)g)")
    add("--seconds", type=float, default=30.0, help="how long, each (%(default)g)")
    add("--per_message", type=int, nargs="+", default=[20, 1], help="events a message (20 and 1)")
    add("--config", default="", help="of the job, for the lane (no stage but decode and deduplication)")
    add("--only", choices=("alone", "beside"), help="without the job, or beside it (both)")
    add("--google", action="store_true", help="beside the job: Google's emulator instead of the embedded broker")
    return parser


if __name__ == "__main__":
    sys.exit(main())
