"""The Beam pipeline that one would write first: one event an element, on Beam's own local streaming runner.

ReadFromPubSub, json.loads, windows, GroupByKey per user, sort, Parquet with pyarrow. Made as fair as can be: the runner
is up before the first event is published; late data is let through by a trigger (with Beam's default, most of a backlog
is dropped); messages trickle on, since it closes no window while none comes. There is no deduplication, and no promise:
this runner acknowledges a message before it is processed.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import grpc
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.transforms import trigger, window
from google.pubsub_v1 import types

from benchmarks.peers.report import SCHEMA, Report, peak_rss_mb
from millrace.local.publish import Publisher
from millrace.local.send import Request
from millrace.local.templates import PreparedRequests

WINDOW_S = 5
_LATENESS_S = 86_400
_QUIET_S = 30.0  # no new row for so long: no more will come
_MESSAGES = 100  # a publish request


def row(message: bytes) -> tuple[str, dict[str, Any]]:
    """Return an event's user and its row."""
    event = json.loads(message)
    user_id = event.get("userId") or None
    user_key = user_id or event["anonymousId"]
    texts = {name: json.dumps(event[name]) if name in event else None for name in ("context", "properties", "traits")}
    return user_key, {
        "user_key": user_key,
        "occurred_at": datetime.fromisoformat(event.get("originalTimestamp") or event["timestamp"]),
        "message_id": event["messageId"],
        "type": event["type"],
        "event": event.get("event") or event.get("name"),
        "user_id": user_id,
        "anonymous_id": event["anonymousId"],
        **texts,
    }


def in_order(user: tuple[str, Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return one user's rows of a window in order."""
    return sorted(user[1], key=lambda row: (row["occurred_at"], row["message_id"]))


class _WriteFn(beam.DoFn):
    """Writes a file a bundle."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def start_bundle(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def process(self, rows: list[dict[str, Any]]) -> Iterator[None]:
        self._rows += rows
        yield from ()

    def finish_bundle(self) -> None:
        if self._rows:
            path = Path(self._folder, f"{uuid.uuid4()}.parquet")
            pq.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA), path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)


def build(pipeline: beam.Pipeline, subscription: str, folder: Path) -> None:
    """Add the whole job to a pipeline."""
    _ = (
        pipeline
        | "Read" >> beam.io.ReadFromPubSub(subscription=subscription)
        | "Parse" >> beam.Map(row)
        | "Window"
        >> beam.WindowInto(
            window.FixedWindows(WINDOW_S),
            trigger=trigger.AfterWatermark(late=trigger.AfterCount(1)),
            accumulation_mode=trigger.AccumulationMode.DISCARDING,
            allowed_lateness=_LATENESS_S,
        )
        | "PerUser" >> beam.GroupByKey()
        | "Order" >> beam.Map(in_order)
        | "Write" >> beam.ParDo(_WriteFn(str(folder)))
    )


def run(folder: Path, events: int, rate: float, seconds: float) -> Report:
    """Do the job once, against the broker of PUBSUB_EMULATOR_HOST; at most `seconds`, or until no row comes.

    Afterwards the runner still runs: its threads end with the process only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    topic, subscription = _subscribe(os.environ["PUBSUB_EMULATOR_HOST"])
    pipeline = beam.Pipeline(BundleBasedDirectRunner(), PipelineOptions(["--streaming"]))
    build(pipeline, subscription, folder)
    running = pipeline.run()
    publisher = Publisher(topic)
    written = _Written(folder, _Trickle(topic, publisher))
    try:
        written.follow(lambda: written.trickled > 0, seconds)  # now it runs
        began_s = time.monotonic()
        _publish(publisher, PreparedRequests(topic, 1, _MESSAGES), events, rate)
        ended_s = written.follow(lambda: written.rows >= events, seconds - (time.monotonic() - began_s))
    finally:
        publisher.close()
    assert running.state == "RUNNING", running.state
    system = f"Beam {beam.__version__}, one event an element"
    return Report(system, events, round(ended_s - began_s, 3), written.rows, peak_rss_mb())


class _Trickle:
    """Two messages a second: this runner's clock stands still while its pull waits for a message."""

    PREFIX = "trickle-"

    def __init__(self, topic: str, publisher: Publisher) -> None:
        self._topic = topic
        self._publisher = publisher
        self._sent = 0
        self._next_s = 0.0

    def run(self) -> None:
        """Send the next one, if it is time."""
        if time.monotonic() < self._next_s:
            return
        self._sent += 1
        self._next_s = time.monotonic() + 0.5
        message_id, at = f"{self.PREFIX}{self._sent}", datetime.now(UTC).isoformat()
        event = {"type": "track", "event": "T", "messageId": message_id, "anonymousId": message_id, "timestamp": at}
        request = types.PublishRequest(topic=self._topic, messages=[{"data": json.dumps(event).encode()}])
        self._publisher.submit(Request(types.PublishRequest.serialize(request), 1, 1))


class _Written:
    """The rows in a folder's finished files; each file is read once."""

    def __init__(self, folder: Path, trickle: _Trickle) -> None:
        self.rows = 0
        self.trickled = 0
        self._folder = folder
        self._trickle = trickle
        self._seen: set[Path] = set()

    def follow(self, complete: Callable[[], bool], seconds: float) -> float:
        """Wait; return when (monotonic) the last new row was seen, at the latest after `seconds`, or a long quiet."""
        began_s = newest_s = time.monotonic()
        while not complete() and (now_s := time.monotonic()) < min(newest_s + _QUIET_S, began_s + seconds):
            before = self.rows
            for path in set(self._folder.glob("*.parquet")) - self._seen:
                self._seen.add(path)
                ids = pq.read_table(path, columns=["message_id"])["message_id"].to_pylist()
                trickled = sum(1 for message_id in ids if message_id.startswith(_Trickle.PREFIX))
                self.trickled += trickled
                self.rows += len(ids) - trickled
            if self.rows > before:
                newest_s = now_s
            self._trickle.run()
            time.sleep(0.1)
        return newest_s


def _publish(publisher: Publisher, requests: PreparedRequests, events: int, rate: float) -> None:
    began_s = time.monotonic()
    for number in range(events // requests.events):
        time.sleep(max(0.0, began_s + number * requests.events / rate - time.monotonic()))
        request = requests.take(time.time())
        while not publisher.submit(request):
            pass


def _subscribe(address: str) -> tuple[str, str]:
    """Make a topic with a subscription, and return their names."""
    project = f"projects/peer-{uuid.uuid4().hex[:8]}"
    topic, subscription = f"{project}/topics/events", f"{project}/subscriptions/events"
    with grpc.insecure_channel(address) as channel:
        for service, request in (
            ("Publisher/CreateTopic", types.Topic(name=topic)),
            ("Subscriber/CreateSubscription", types.Subscription(name=subscription, topic=topic)),
        ):
            kind = type(request)
            call = channel.unary_unary(f"/google.pubsub.v1.{service}", kind.serialize, kind.deserialize)
            call(request, timeout=30, wait_for_ready=True)
    return topic, subscription


def main() -> int:
    """Run from the command line; 2 where no broker is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.naive_beam", description=__doc__)
    parser.add_argument("--events", type=int, default=20_000, help="published, by the 100 (%(default)s)")
    parser.add_argument("--rate", type=float, default=20_000, help="events a second published (%(default)s)")
    parser.add_argument("--seconds", type=float, default=120, help="at most (%(default)s)")
    options = parser.parse_args()
    if "PUBSUB_EMULATOR_HOST" not in os.environ:
        print("naive_beam: set PUBSUB_EMULATOR_HOST to a broker, host:port", file=sys.stderr)
        return 2
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    # The runner, which is not waited for, may still be writing.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        report = run(Path(scratch), options.events, options.rate, options.seconds)
    report.print()
    sys.stdout.flush()
    os._exit(0)  # the runner's threads do not end, not even when they are told to


if __name__ == "__main__":
    sys.exit(main())
