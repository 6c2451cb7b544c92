"""The process of one lane: `python -m millrace.delivery.lane_process JOB`, started by `millrace deliver`."""

import asyncio
import dataclasses
import fcntl
import gc
import logging
import os
import pickle
import signal
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

from millrace.delivery.archive_feed import ArchiveFeed
from millrace.delivery.books import Ledgers
from millrace.delivery.feed import CannotReadError, Feed
from millrace.delivery.lane import Lane
from millrace.delivery.ledger import Ledger
from millrace.delivery.make import NoSinkError, make_sink
from millrace.delivery.settings import LaneSettings
from millrace.delivery.undelivered import Undelivered
from millrace.sinks.sink import CannotOpenSinkError
from millrace.sinks.storage import StorageError, locate

BUSY = 3
"""The exit code where another process has the lane."""


@dataclasses.dataclass(frozen=True)
class LaneJob:
    """What the process has to do; pickled, without secrets.

    Attributes:
        settings: the lane's.
        archive, undelivered: URIs of the tables.
        state: the folder of the ledgers.
        from_start: a new lane begins at the archive's first row, not behind its last.
        drain_s: after SIGTERM, go on for so long at most, until everything is settled.
        config: of the job: what a lane without order does to events.
        topic: the job's raw topic: beside it is the subscription of a lane without order.
        subscription_prefix: before the lane's name.
    """

    settings: LaneSettings
    archive: str
    undelivered: str
    state: Path
    from_start: bool = False
    drain_s: float = 0.0
    config: str = ""
    topic: str = ""
    subscription_prefix: str = "millrace-"

    @property
    def ledger(self) -> Path:
        """The file of the lane's ledger."""
        return self.state / f"{self.settings.name}.sqlite"


def main(arguments: Sequence[str]) -> int:
    """Run a lane until SIGTERM; return 0, 2 where it can never work as configured, 3 where another process has it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    gc.set_threshold(100_000, 50, 1_000)  # a part's events, none of them garbage, were looked through again and again
    job: LaneJob = pickle.loads(Path(arguments[0]).read_bytes())  # noqa: S301  written by the process that started us
    job.state.mkdir(parents=True, exist_ok=True)
    with job.ledger.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{job.settings.name}: another process delivers for it, with the same --state.", file=sys.stderr)
            return BUSY
        try:
            _run_to_the_end(job)
        except (CannotOpenSinkError, CannotReadError, NoSinkError, StorageError) as error:
            print(f"{job.settings.name}: {error}", file=sys.stderr)
            return 2
        except sqlite3.DatabaseError as error:
            print(f"{job.settings.name}: {job.ledger} cannot be used: {error}", file=sys.stderr)
            return 2
        except Exception:
            logging.getLogger(__name__).exception("%s cannot go on", job.settings.name)
            return 1
    return 0


def _feed(job: LaneJob, ledger: Ledger) -> Feed:
    if job.settings.is_ordered:
        return ArchiveFeed(locate(job.archive), ledger, job.settings, from_start=job.from_start)
    from millrace.delivery.live import live_feed  # noqa: PLC0415  with gRPC and all enrichments: half of the memory

    return live_feed(job.settings, ledger, config=job.config, topic=job.topic, prefix=job.subscription_prefix)


def _run_to_the_end(job: LaneJob) -> None:
    """As asyncio.run, but without waiting for threads: a sink's may hang in a call that nothing ends."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(_run(job))


async def _run(job: LaneJob) -> None:
    ledger, memory = Ledger(job.ledger), Ledger(job.ledger)
    feed = _feed(job, ledger)
    lane = Lane(job.settings, feed, make_sink(job.settings.sink), Ledgers(ledger, memory, Undelivered(job.undelivered)))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lane.stop, job.drain_s)
    try:
        await lane.run()
    finally:
        memory.close()
        ledger.close()


if __name__ == "__main__":
    _code = main(sys.argv[1:])
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_code)  # all is written down; the threads of a sink may never end
