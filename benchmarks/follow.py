"""What a queue for each sink costs: following the archive's log, beside a second copy in a topic of its own.

Commits of 50,000 rows (tests/support/rows.py) are read, routed and made events by the feed of a lane, for routes that
send every column, a few columns, and a part of the events. Beside it the same rows as JSON are published to a topic of
the embedded broker, 500 a message, and pulled by a subscription: what a second copy would cost before any sink. Then
the time from a commit to its first delivery, by a lane in this process and a sink that takes everything at once.
Microseconds are of CPU: of this process, or of the broker's.

    python -m benchmarks.follow [--commits 6]
"""

import argparse
import asyncio
import contextlib
import datetime as dt
import functools
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from millrace.broker import protocol as pb
from millrace.config.fanout import read_fanout
from millrace.delivery import clock
from millrace.delivery.archive_feed import ArchiveFeed
from millrace.delivery.books import Ledgers
from millrace.delivery.lane import Lane
from millrace.delivery.ledger import Ledger
from millrace.delivery.pending import Pending
from millrace.delivery.records import ROW_MASK, Mark
from millrace.delivery.settings import LaneSettings
from millrace.delivery.undelivered import Undelivered
from millrace.sinks.delta import Table, open_table
from millrace.sinks.json_rows import json_rows
from millrace.sinks.sink import DELIVERED, Delivery, Outcome, Sink
from millrace.sinks.tables import ARCHIVE
from tests.support.pubsub import PubSub, broker_process
from tests.support.rows import START, archive_rows

ROWS = 50_000
PER_MESSAGE = 500
ROUTES = {
    "every column": "{to: out}",
    "4 columns": "{to: out, columns: [message_id, user_key, event, properties]}",
    "1 event in 6, 3 columns": '{to: out, when: event == "Order Completed", columns: [message_id, user_key, event]}',
    "none": '{to: out, when: event == "Nothing"}',
}


def settings(route: str) -> LaneSettings:
    """Return the settings of a lane with one route."""
    text = f"sinks:\n  out: {{use: console, max_waiting: 1000000}}\nroutes:\n  - {route}\n"
    return read_fanout(text, "").lanes[0]


@contextlib.contextmanager
def feed_of(table: Table, folder: Path, route: str) -> Iterator[tuple[ArchiveFeed, Ledger]]:
    """A feed from the archive's first row."""
    with contextlib.closing(Ledger(folder / "out.sqlite")) as ledger:
        feed = ArchiveFeed(table.location, ledger, settings(route), from_start=True)
        feed.open()
        yield feed, ledger


def part(feed: ArchiveFeed) -> list[Pending]:
    """Return all events of the next part, which come some thousand at a time."""
    found: list[Pending] = []
    while events := feed.read():
        found += events
        if events[-1].position & ROW_MASK == ROWS - 1:
            break
    return found


def follow(table: Table, folder: Path, route: str, commits: int) -> tuple[float, float]:
    """Return the CPU microseconds a row of the archive for reading and routing, and for settling and saving."""
    reading = writing = 0.0
    with feed_of(table, folder, route) as (feed, _):
        for _ in range(commits):
            began = time.process_time()
            events = part(feed)
            reading += time.process_time() - began
            began = time.process_time()
            feed.settle(events, Mark.DELIVERED)
            feed.save((), (), clock.now_us())
            writing += time.process_time() - began
    rows = commits * ROWS / 1e6
    return reading / rows, writing / rows


def second_copy(table: Table, folder: Path, commits: int) -> dict[str, float]:
    """Return what a topic of clean events would cost: CPU microseconds an event, and bytes."""
    with feed_of(table, folder, "{to: out}") as (feed, _):
        batches = list(
            {id(each.payload.rows): each.payload.rows for _ in range(commits) for each in part(feed)}.values()
        )
    with broker_process(folder / "broker") as server, PubSub(server.address) as pubsub:
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)
        start_broker, began = cpu_s(server.pid), time.process_time()
        size = 0
        for batch in batches:
            for at in range(0, batch.num_rows, PER_MESSAGE * 10):
                lines = json_rows(batch.slice(at, PER_MESSAGE * 10))
                parts = [b"\n".join(lines[n : n + PER_MESSAGE]) for n in range(0, len(lines), PER_MESSAGE)]
                size += sum(map(len, parts))
                pubsub.publish(topic, *parts)
        publish = time.process_time() - began
        began = time.process_time()
        pulled = 0
        while pulled < commits * ROWS // PER_MESSAGE:
            asked = pb.PullRequest(subscription=subscription, max_messages=50)
            got = pubsub.call("Subscriber/Pull", asked, pb.PullResponse).received_messages
            pulled += len(got)
            acknowledged = pb.AcknowledgeRequest(subscription=subscription, ack_ids=[each.ack_id for each in got])
            pubsub.call("Subscriber/Acknowledge", acknowledged)
        pull = time.process_time() - began
        events = commits * ROWS / 1e6
        return {
            "JSON and publish": publish / events,
            "pull, not decoded": pull / events,
            "the broker": (cpu_s(server.pid) - start_broker) / events,
            "bytes": size / events / 1e6,
        }


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process so far, by Linux's /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Taking(Sink):
    """Takes everything at once, and notes when."""

    def __init__(self) -> None:
        self.first_at: dict[str, float] = {}

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        now = time.monotonic()
        for message_id in delivery.message_ids:
            self.first_at[message_id] = now
        return [DELIVERED] * len(delivery)

    def has(self, message_ids: Sequence[str]) -> bool:
        """Say whether all of some events are here."""
        return all(each in self.first_at for each in message_ids)


async def latency(folder: Path, commits: int, rows: int) -> tuple[list[float], list[float]]:
    """Return the seconds from each commit to its first delivery, and to its last."""
    table = open_table(str(folder / "archive"), ARCHIVE)
    path = folder / "out.sqlite"
    ledger, memory, sink = Ledger(path), Ledger(path), Taking()
    lane_of = settings("{to: out}")
    feed = ArchiveFeed(table.location, ledger, lane_of, from_start=True)
    lane = Lane(lane_of, feed, sink, Ledgers(ledger, memory, Undelivered(str(folder / "undelivered"))))
    task = asyncio.create_task(lane.run())
    first, last = [], []
    for number in range(commits):
        window = archive_rows(rows, start=START + dt.timedelta(seconds=5 * number), seed=number)
        ids = window.column("message_id").to_pylist()
        files = table.write(window, f"w{number}")
        await asyncio.to_thread(table.commit, files, app_id="job", version=number + 1)
        began = time.monotonic()
        await until(functools.partial(sink.has, ids))
        times = [sink.first_at[each] - began for each in ids]
        first.append(max(0.0, min(times)))
        last.append(max(times))
    lane.stop()
    await task
    ledger.close()
    memory.close()
    return first, last


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    while not condition():
        await asyncio.sleep(0.01)


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commits", type=int, default=6, help="of 50,000 rows each (%(default)s)")
    commits = parser.parse_args().commits
    logging.disable()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        table = open_table(str(root / "archive"), ARCHIVE)
        for number in range(commits):
            rows = archive_rows(ROWS, start=START + dt.timedelta(seconds=5 * number), seed=number)
            table.commit(table.write(rows, f"w{number}"), app_id="job", version=number + 1)
        print(f"{'the log, us a row':28} {'read, route':>12} {'settle, save':>13}")
        for at, (title, route) in enumerate(ROUTES.items()):
            reading, writing = follow(table, root / f"state{at}", route, commits)
            print(f"{title:28} {reading:12.2f} {writing:13.2f}")
        print("\na topic, us an event")
        for title, value in second_copy(table, root / "copy", commits).items():
            print(f"{title:28} {value:12.2f}")
        print("\ncommit to delivery, s              first     last")
        for rows in (500, 5_000, ROWS):
            folder = root / f"latency{rows}"
            first, last = asyncio.run(latency(folder, 20 if rows < ROWS else 4, rows))
            print(f"{rows:6,} rows, median {statistics.median(first):21.3f} {statistics.median(last):8.3f}")


if __name__ == "__main__":
    main()
