"""Fan-out: five sinks at once beside the main job, with real servers on this machine.

    python -m benchmarks.fanout                        10,000 events/s for 60 s, and the bare graph for comparison
    python -m benchmarks.fanout --rate 5000 --seconds 20 --only postgres redis
    python -m benchmarks.fanout --slow                 a webhook that answers in 500 ms, from a backlog in the archive

Publisher, Pub/Sub, job, lanes and servers share these cores. Ages are from Pub/Sub's publication to the moment at which
the sink says delivered.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.stand import TOPIC, Stand, _with_children
from benchmarks.throughput import machine
from tests.support.postgres import running_postgres
from tests.support.pubsub import PubSub
from tests.support.redis import running_redis
from tests.support.rows import START, archive_rows

_WAIT_S = 10.0
SINKS = ("postgres", "redis", "webhook", "pubsub", "files", "live")
COLUMNS = (
    "[message_id, type, event, user_id, anonymous_id, user_key, source_id, occurred_at, published_at, order_index, "
    "context_page_url, context_page_path, properties, traits]"
)


class Row(NamedTuple):
    """One line of the table."""

    name: str
    delivered: int
    per_s: float
    p50_s: float
    p99_s: float
    cpu_us: float
    memory_mb: float


class Lanes:
    """`millrace deliver` with sinks that note ages."""

    def __init__(self, folder: Path, archive: Path, sinks: dict[str, str], options: Sequence[str] = ()) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self.names = list(sinks)
        lines = ["sinks:"]
        for name, sink in sinks.items():
            lines.append(f"  {name}: {{use: 'benchmarks.aged:Aged', with: {{file: {folder / name}.ages, {sink}}}}}")
        lines.append("routes:")
        for name in sinks:
            order = ", order: none" if name == "live" else ""
            columns = COLUMNS.replace("order_index, ", "") if name == "live" else COLUMNS
            lines.append(f"  - {{to: {name}, columns: {columns}{order}}}")
        (folder / "millrace.yaml").write_text("\n".join(lines) + "\n")
        command = [sys.executable, "-m", "millrace.cli", "deliver", "--from_start", "--drain_s", "120"]
        command += ["--config", str(folder / "millrace.yaml"), "--archive", str(archive)]
        command += ["--state", str(folder / "state"), *options]
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self._usage: dict[str, tuple[float, float]] = {}
        self._over = threading.Event()
        self._sampler = threading.Thread(target=self._sample)
        self._sampler.start()

    def ages(self, name: str) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]]":
        """Return pairs: when an event arrived, and its age; microseconds."""
        path = self._folder / f"{name}.ages"
        return np.fromfile(path, np.int64).reshape(-1, 2) if path.exists() else np.zeros((0, 2), np.int64)

    def end(self) -> None:
        """Let it deliver everything, and end it."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(180)
        finally:
            self._over.set()
            self._sampler.join()
            self.process.kill()
            self.process.wait()

    def row(self, name: str) -> Row:
        """Return what became of a sink."""
        pairs = self.ages(name)
        count = len(pairs)
        if not count:
            return Row(name, 0, 0, 0, 0, 0, 0)
        seconds = (pairs[-1, 0] - pairs[0, 0]) / 1e6
        p50, p99 = np.quantile(pairs[:, 1], [0.5, 0.99]) / 1e6
        cpu_s, memory_mb = self._usage.get(name, (0.0, 0.0))
        return Row(name, count, count / max(seconds, 1e-9), float(p50), float(p99), cpu_s / count * 1e6, memory_mb)

    def _sample(self) -> None:
        tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
        while not self._over.wait(0.2):
            for pid in _with_children([self.process.pid]):
                with contextlib.suppress(OSError, IndexError):
                    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
                    if "lane_process" not in command or "leash" in command:
                        continue
                    name = Path(command.rstrip("\0").rpartition("\0")[2]).name.partition(".")[0]
                    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
                    most = max(self._usage.get(name, (0, 0))[1], int(stat[21]) * page / 2**20)
                    self._usage[name] = ((int(stat[11]) + int(stat[12])) / tick, most)


@contextlib.contextmanager
def receiver(pause_s: float) -> Iterator[int]:
    """Run a receiver of webhooks; give its port."""
    command = [sys.executable, "-m", "benchmarks.receiver", str(pause_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def _sinks(stack: contextlib.ExitStack, folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Start the servers; return each sink's `use` and `given`."""
    found = {}
    for name in names:
        if name == "postgres":
            server = stack.enter_context(running_postgres(folder))
            found[name] = f"use: postgres, given: {{dsn: '{server.dsn}', table: events}}"
        elif name == "redis":
            found[name] = f"use: redis, given: {{url: '{stack.enter_context(running_redis(folder)).url}'}}"
        elif name == "webhook":
            port = stack.enter_context(receiver(0))
            allowed = "allow_http: true, allow_private: true"
            found[name] = f"use: webhook, given: {{url: 'http://127.0.0.1:{port}/', {allowed}}}"
        elif name == "pubsub":
            topic = TOPIC + "-clean"
            with PubSub(os.environ["PUBSUB_EMULATOR_HOST"], TOPIC.split("/")[1]) as pubsub:
                pubsub.create_topic(topic.rpartition("/")[2])
            found[name] = f"use: pubsub, given: {{topic: {topic}}}"
        else:
            found[name] = f"use: files, given: {{folder: {folder / name}}}"
    return found


def _run(folder: Path, options: argparse.Namespace, names: Sequence[str]) -> tuple[float, float, list[Row]]:
    with contextlib.ExitStack() as stack:
        stand = stack.enter_context(
            Stand(folder / "stand", wait_s=_WAIT_S, window_s=options.window, job_options=options.job)
        )
        lanes = None
        if names:
            sinks = _sinks(stack, folder, names)
            lanes = Lanes(folder / "lanes", folder / "stand" / "archive", sinks, ["--topic", TOPIC])
            stack.callback(lanes.end)
            time.sleep(5)  # they start, and the subscription of the unordered one is made
        measured = stand.run(options.rate, options.seconds, options.per_message, pace=True)
        if lanes is None:
            p99 = float(np.quantile(measured.latency_s.to_numpy(), 0.99))
            return measured.published_per_s, p99, []
        lanes.end()
        if lanes.process.returncode:
            print(lanes.log.read_text()[-3_000:], file=sys.stderr)
        p99 = float(np.quantile(measured.latency_s.to_numpy(), 0.99))
        return measured.published_per_s, p99, [lanes.row(name) for name in names]


def _slow(folder: Path, options: argparse.Namespace) -> None:
    """A receiver that answers in 500 ms gets a backlog: one event a request, and batches."""
    from millrace.sinks.delta import open_table  # noqa: PLC0415
    from millrace.sinks.tables import ARCHIVE  # noqa: PLC0415

    table = open_table(str(folder / "archive"), ARCHIVE)
    for part in range(4):
        rows = archive_rows(25_000, start=START, users=20_000, seed=part)
        table.commit(table.write(rows, f"part{part}"), app_id="benchmark", version=part + 1)
    for single in (True, False):
        with receiver(0.5) as port:
            allowed = f"allow_http: true, allow_private: true, single: {str(single).lower()}"
            sink = {"webhook": f"use: webhook, given: {{url: 'http://127.0.0.1:{port}/', {allowed}}}"}
            lanes = Lanes(folder / f"lanes{single}", folder / "archive", sink)
            time.sleep(options.seconds)
            pairs = lanes.ages("webhook")
            lanes.process.kill()
            lanes.end()
            last = pairs[pairs[:, 0] > pairs[-1, 0] - 10_000_000]
            name = "one event a request" if single else "batches"
            print(f"{name:22} {len(pairs):>9,} {len(last) / 10:>12,.0f}/s", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=10_000, help="events/s published (%(default)g)")
    parser.add_argument("--seconds", type=float, default=60, help="how long (%(default)g)")
    parser.add_argument("--per_message", type=int, default=20, help="events a message (%(default)s)")
    parser.add_argument("--window", type=float, default=5, help="release window, seconds (%(default)g)")
    parser.add_argument("--only", nargs="+", choices=SINKS, default=SINKS, help="these sinks")
    parser.add_argument("--job", nargs="+", default=(), metavar="OPTION=VALUE", help="of the job, without its dashes")
    parser.add_argument("--slow", action="store_true", help="the slow webhook instead")
    parser.add_argument("--no_bare", action="store_true", help="without the run of the bare graph")
    options = parser.parse_args(arguments)
    options.job = [f"--{each}" for each in options.job]
    print(machine())
    with tempfile.TemporaryDirectory(prefix="millrace-fanout-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as somebody else
        if options.slow:
            print(f"{'webhook in 500 ms':22} {'delivered':>9} {'last 10 s':>14}")
            _slow(folder, options)
            return 0
        bare = None if options.no_bare else _run(folder / "bare", options, ())[:2]
        if bare is not None:
            print(
                f"bare graph: {bare[0]:,.0f} events/s published, p99 from publish to archive {bare[1]:.1f} s",
                flush=True,
            )
        rate, p99, rows = _run(folder / "fanout", options, options.only)
        print(f"with {len(rows)} sinks: {rate:,.0f} events/s published, p99 from publish to archive {p99:.1f} s")
        if bare is not None:
            print(f"ratio to the bare graph: events/s {rate / bare[0]:.2f}, p99 to the archive {p99 / bare[1]:.2f}")
        promised = _WAIT_S + options.window + 1
        print(f"goal: p99 of those in order {promised:g} s (order wait + window + 1 s), of live 1 s\n")
        print(f"{'sink':10} {'delivered':>10} {'events/s':>9} {'p50':>8} {'p99':>8} {'us/event':>9} {'memory':>8}")
        for row in rows:
            print(
                f"{row.name:10} {row.delivered:>10,} {row.per_s:>9,.0f} {row.p50_s:>6.2f} s {row.p99_s:>6.2f} s "
                f"{row.cpu_us:>9.1f} {row.memory_mb:>5.0f} MB"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
