"""How fast the embedded Pub/Sub is, with Google's emulator beside it where that is installed.

One process publishes while another pulls (unary Pull of 1,000) and acknowledges, both with raw gRPC calls; servers and
clients share the machine. A case ends when every message was pulled and acknowledged; each is counted by its id.

    python -m benchmarks.broker [--seconds 5] [--only millrace]
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import platform
import queue
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from millrace.broker import protocol as pb
from millrace.local.doctor import find_google_emulator
from tests.support.pubsub import PubSub, Server, broker_process, google_emulator


@dataclasses.dataclass(frozen=True)
class Case:
    """One load: messages of size bytes, per_request in a Publish, in_flight requests at a time."""

    name: str
    size: int
    per_request: int
    in_flight: int
    rate: int  # messages/s to aim at for the length of the run; decides how many are sent

    def requests(self, seconds: float) -> int:
        """How many Publish calls make the run about so long at the aimed rate."""
        return max(1, int(self.rate * seconds) // self.per_request)


CASES = (
    Case("700 B, 1,000 a request", 700, 1_000, 4, 40_000),
    Case("700 B, 100 a request", 700, 100, 8, 30_000),
    Case("700 B, one a request", 700, 1, 64, 2_000),
    Case("70 KB, 100 a request", 70_000, 100, 2, 1_500),
    Case("70 KB, 10 a request", 70_000, 10, 4, 1_500),
)


def publish(address: str, topic: str, case: Case, requests: int, ready: Any) -> None:
    """Publish the load as fast as the server takes it."""
    with PubSub(address) as pubsub:
        call = pubsub.channel.unary_unary("/google.pubsub.v1.Publisher/Publish")
        messages = [pb.PubsubMessage(data=os.urandom(case.size)) for _ in range(case.per_request)]
        body = pb.PublishRequest(topic=topic, messages=messages).SerializeToString()
        flying: deque[Any] = deque()
        ready.wait()
        for _ in range(requests):
            if len(flying) >= case.in_flight:
                flying.popleft().result()
            flying.append(call.future(body))
        for one in flying:
            one.result()


def pull(address: str, subscription: str, expected: int, ready: Any, done: Any) -> None:
    """Pull and acknowledge until every message came; tell how many seconds it took, and how many came twice."""
    with PubSub(address) as pubsub:
        call = pubsub.channel.unary_unary("/google.pubsub.v1.Subscriber/Pull")
        asked = pb.PullRequest(subscription=subscription, max_messages=1_000).SerializeToString()
        acknowledge = pubsub.channel.unary_unary("/google.pubsub.v1.Subscriber/Acknowledge")
        seen: set[str] = set()
        copies = 0
        acks: deque[Any] = deque()
        ready.wait()
        started = time.monotonic()
        while len(seen) < expected:
            try:
                received = pb.PullResponse.FromString(call(asked, timeout=60)).received_messages
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
                continue
            if not received:
                continue
            before = len(seen)
            seen.update(one.message.message_id for one in received)
            copies += before + len(received) - len(seen)
            ack_ids = [one.ack_id for one in received]
            body = pb.AcknowledgeRequest(subscription=subscription, ack_ids=ack_ids).SerializeToString()
            acks.append(acknowledge.future(body))
            if len(acks) > 4:
                acks.popleft().result()
        for one in acks:
            one.result()
        done.put((time.monotonic() - started, copies))


def cpu_seconds(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """The most memory that a process has had, MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure(server: Server, case: Case, seconds: float) -> str:
    """Run one case and return its row of the table."""
    requests = case.requests(seconds)
    total = requests * case.per_request
    with PubSub(server.address) as pubsub:
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)
        context = multiprocessing.get_context("spawn")
        ready, done = context.Barrier(2), context.Queue()
        sides = [
            context.Process(target=pull, args=(server.address, subscription, total, ready, done), daemon=True),
            context.Process(target=publish, args=(server.address, topic, case, requests, ready), daemon=True),
        ]
        before = cpu_seconds(server.pid)
        for side in sides:
            side.start()
        limit_s = seconds * 10 + 30
        try:
            took, copies = done.get(timeout=limit_s)
        except queue.Empty:
            return f"| {case.name:22} | {server.kind:8} | did not deliver {total:,} messages within {limit_s:.0f} s |"
        finally:
            for side in sides:
                side.terminate()
                side.join()
        used = cpu_seconds(server.pid) - before
        pubsub.call("Publisher/DeleteTopic", pb.DeleteTopicRequest(topic=topic))
        pubsub.call("Subscriber/DeleteSubscription", pb.DeleteSubscriptionRequest(subscription=subscription))
    rate = total / took
    return (
        f"| {case.name:22} | {server.kind:8} | {rate:10,.0f} | {rate * case.size / 1e6:6.1f} | {used / took:9.2f} |"
        f" {resident_mb(server.pid):8,.0f} | {copies:6} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and the machine it is from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="length of a case at its aimed rate (default %(default)s)"
    )
    parser.add_argument("--only", choices=("millrace", "google"), help="one server instead of both")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    options = parser.parse_args(arguments)
    kinds = [kind for kind in ("millrace", "google") if options.only in (None, kind)]
    if "google" in kinds and find_google_emulator() is None:
        print("Google's emulator is not installed here: ours alone.")
        kinds.remove("google")
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}, grpcio {grpc.__version__}")
    print("| load                   | server   | messages/s |   MB/s | CPU cores | peak MiB | copies |")
    print("| ---                    | ---      |       ---: |   ---: |      ---: |     ---: |   ---: |")
    for case in (case for case in CASES if options.case in case.name):
        for kind in kinds:
            with contextlib.ExitStack() as stack:
                data = stack.enter_context(tempfile.TemporaryDirectory())
                server = stack.enter_context(broker_process(data) if kind == "millrace" else google_emulator())
                print(measure(server, case, options.seconds), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
