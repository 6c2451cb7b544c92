"""The collector under wrk, with the embedded broker behind it; and the collector that one would write first, beside it.

    python -m benchmarks.collector [--seconds 10] [--only "one event"]

Load, collector and broker share the machine. After each run all messages are pulled from the broker: there must be one
for every 200, and no more than were still under way when the load ended. Needs wrk; FastAPI and uvicorn for the peer.
"""

import argparse
import base64
import contextlib
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import grpc

from benchmarks.broker import cpu_seconds, resident_mb
from millrace.broker import protocol as pb
from millrace.local.templates import PreparedRequests
from tests.support.pubsub import PubSub, broker_process, wait_until
from tests.support.serving import KEY, serving

_BODIES = 50  # different ones, sent in turn


class Case(NamedTuple):
    """One load."""

    name: str
    events: int
    connections: int
    chaos: str = ""
    wanted: str = ""


CASES = (
    Case("20 events a request", 20, 32, wanted=">= 2,000/s, p99 < 50 ms"),
    Case("one event a request", 1, 128, wanted=">= 7,000/s"),
    Case("20 events, slow broker", 20, 1_000, "delay_publish_ms=400", "memory bounded"),
    Case("20 events, broker stalls", 20, 1_000, "stall=true", "memory bounded; spooled"),
)


class Front(NamedTuple):
    """A collector that runs: where, and its processes."""

    port: int
    pids: Sequence[int]
    end: Callable[[], int]
    """Ends it, and returns how many messages it left in its spool."""


Start = Callable[[Path, str, str, int], contextlib.AbstractContextManager[Front]]


class Measured(NamedTuple):
    """What wrk and the broker said."""

    rate: float
    p50_ms: float
    p99_ms: float
    good: int
    bad: int
    errors: str
    durable: int
    """Messages in broker and spool after the collector had ended."""
    cores: dict[str, float]
    peak_mb: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where the broker does not hold what was answered with 200."""
    options = _parser().parse_args(arguments)
    if shutil.which("wrk") is None:
        print("benchmarks.collector: wrk is not installed (apt-get install wrk)", file=sys.stderr)
        return 2
    cores = (
        f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}, grpcio {grpc.__version__}"
    )
    print(
        f"{cores}; {options.workers} workers, {options.seconds:g} s each; cores: those that wrk, collector, broker used"
    )
    print("| load | collector | requests/s | events/s | p50 ms | p99 ms | not 2xx | durable | cores | MiB |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- | ---: |")
    lost = False
    for case in (case for case in CASES if options.only in case.name):
        for name, front in (("Millrace", _millrace), ("FastAPI", _fastapi)):
            if name == "FastAPI" and case.chaos:
                continue
            with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
                measured = _measure(case, front, Path(folder), options.seconds, options.workers)
            # Twice the connections: so many requests were under way when the warm-up's and the load's time was over.
            most = measured.good + measured.bad + 2 * case.connections
            accounted = measured.good <= measured.durable and (bool(case.chaos) or measured.durable <= most)
            lost = lost or not accounted
            print(_row(case, name, measured, "all" if accounted else "NOT ALL"), flush=True)
            if measured.errors:
                print(f"  {measured.errors}")
    return 1 if lost else 0


def _row(case: Case, name: str, measured: Measured, durable: str) -> str:
    cores = ", ".join(f"{value:.2f}" for value in measured.cores.values())
    wanted = f" ({case.wanted})" if name == "Millrace" else ""
    return (
        f"| {case.name}, {case.connections} connections{wanted} | {name} | {measured.rate:,.0f} |"
        f" {measured.rate * case.events:,.0f} | {measured.p50_ms:.1f} | {measured.p99_ms:.1f} | {measured.bad} |"
        f" {durable}, {measured.durable:,} | {cores} | {measured.peak_mb:,.0f} |"
    )


def _measure(case: Case, front: Start, folder: Path, seconds: float, workers: int) -> Measured:
    flags = ("--chaos", case.chaos) if case.chaos else ()
    with broker_process(folder / "broker", *flags) as broker, PubSub(broker.address) as pubsub:
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)
        lua = script(folder, case.events)
        with front(folder, broker.address, topic, workers) as running:
            warm, _ = load(running.port, lua, 1, case.connections)
            processes = {"it": running.pids, "broker": [broker.pid]}
            before = {name: sum(map(cpu_seconds, pids)) for name, pids in processes.items()}
            said, load_s = load(running.port, lua, seconds, case.connections)
            used = {name: sum(map(cpu_seconds, pids)) - before[name] for name, pids in processes.items()}
            peak_mb = sum(map(resident_mb, running.pids))
            spooled = running.end()
        broker.kill()  # one that stalls gives nothing; its data are on disk
    port = int(broker.address.rpartition(":")[2])
    with broker_process(folder / "broker", port=port), PubSub(broker.address, pubsub.project) as again:
        durable = _count(again, subscription) + spooled
    cores = {name: cpu_s / seconds for name, cpu_s in {"load": load_s, **used}.items()}
    errors = re.search(r"Socket errors: .*", said)
    return Measured(
        number(r"Requests/sec:\s+([\d.]+)", said), milliseconds("50%", said), milliseconds("99%", said),
        _good(said) + _good(warm), _bad(said) + _bad(warm), errors[0] if errors else "", durable, cores, peak_mb,
    )  # fmt: skip


@contextlib.contextmanager
def _millrace(folder: Path, address: str, topic: str, workers: int) -> Iterator[Front]:
    with serving(folder, address, topic, "--workers", str(workers)) as running:

        def end() -> int:
            running.end(120)
            left = running.logged("ended; events are left")
            return int(left["messages"]) if left else 0

        yield Front(running.port, [running.process.pid, *running.worker_pids()], end)


@contextlib.contextmanager
def _fastapi(_folder: Path, address: str, topic: str, workers: int) -> Iterator[Front]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "benchmarks.peers.fastapi_collector:app", "--port", str(port)]
    command += ["--workers", str(workers), "--log-level", "error", "--no-access-log"]
    environment = {**os.environ, "PUBSUB_EMULATOR_HOST": address, "TOPIC": topic}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:

        def listens() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
            return False

        def end() -> int:
            process.terminate()
            process.wait(60)
            return 0

        try:
            wait_until(listens, 60, "the peer listens")
            time.sleep(2)  # for its second worker, of which nobody tells
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            yield Front(port, [process.pid, *map(int, children)], end)
        finally:
            process.kill()


def script(folder: Path, events: int) -> Path:
    """Write what wrk sends: bodies of a shop's events, in turn."""
    requests = PreparedRequests("projects/none/topics/none", events, _BODIES).take(time.time())
    bodies = [message.data.decode() for message in pb.PublishRequest.FromString(requests.payload).messages]
    if events == 1:
        bodies = [f'{{"batch":[{body}]}}' for body in bodies]  # the events name their types; one path for all
    (folder / "bodies.txt").write_text("\n".join(bodies))
    path = folder / "load.lua"
    path.write_text(_LUA.format(bodies=folder / "bodies.txt", key=base64.b64encode(f"{KEY}:".encode()).decode()))
    return path


_LUA = """
local requests, turn = {{}}, 0
function init(args)
  local headers = {{["Content-Type"] = "application/json", ["Authorization"] = "Basic {key}"}}
  for body in io.lines("{bodies}") do
    requests[#requests + 1] = wrk.format("POST", "/v1/batch", headers, body)
  end
end
function request()
  turn = turn % #requests + 1
  return requests[turn]
end
"""


def load(port: int, script: Path, seconds: float, connections: int) -> tuple[str, float]:
    """Run wrk; return what it said and the seconds of CPU it used."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s", "--latency"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run(
        [*command, "-s", str(script), f"http://127.0.0.1:{port}"],
        capture_output=True, text=True, check=True, timeout=seconds + 60,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ran.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _count(pubsub: PubSub, subscription: str) -> int:
    """Pull and acknowledge all there is; return how many messages, each counted once."""
    seen: set[str] = set()
    empty = 0
    while empty < 3:
        asked = pb.PullRequest(subscription=subscription, max_messages=500, return_immediately=True)
        received = pubsub.call("Subscriber/Pull", asked, pb.PullResponse).received_messages
        empty = 0 if received else empty + 1
        if received:
            seen.update(each.message.message_id for each in received)
            ack_ids = [each.ack_id for each in received]
            pubsub.call("Subscriber/Acknowledge", pb.AcknowledgeRequest(subscription=subscription, ack_ids=ack_ids))
        else:
            time.sleep(0.2)
    return len(seen)


def _good(said: str) -> int:
    return int(number(r"(\d+) requests in", said)) - _bad(said)


def _bad(said: str) -> int:
    return int(number(r"Non-2xx or 3xx responses: (\d+)", said))


def number(pattern: str, said: str) -> float:
    """Return the number that wrk said, 0.0 where it did not."""
    found = re.search(pattern, said)
    return float(found[1]) if found else 0.0


def milliseconds(percentile: str, said: str) -> float:
    """Return a percentile of the latency that wrk said, 0.0 where it did not."""
    found = re.search(rf"{percentile}\s+([\d.]+)(us|ms|s)\b", said)
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1_000.0}[found[2]] if found else 0.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="of each collector (%(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only loads whose name has this in it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
