"""Bytewax: JSON lines in, per user order and no duplicates within event-time windows, Parquet out. One worker.

Two workers in one process are slower: they share Python's lock. The decoder is Millrace's (msgspec, typed), and rows
are written in large files: what is measured is the keyed, windowed part. Two clocks:

replay   only events close windows: a user's window waits for the user's next event, or for the end of the file. The
         quickest way, and complete; but a quiet user's events would never come out of an endless stream
live     as for an endless stream: the wall clock closes windows too. Event time runs at 10,000/s from now on, and what
         the flow is too slow for is late, and dropped
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any

import bytewax.operators as op
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from bytewax.connectors.files import FileSource
from bytewax.dataflow import Dataflow
from bytewax.operators import windowing
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main

from benchmarks import events_file
from benchmarks.peers.report import SCHEMA, Report, peak_rss_mb, rows_in

WINDOW = timedelta(seconds=10)
WAIT = timedelta(seconds=10)
_START = datetime(2026, 1, 1, tzinfo=UTC)
_ROWS_A_FILE = 50_000
_NOTHING = msgspec.Raw()


class Event(msgspec.Struct, rename="camel", gc=False):
    """What the job needs of an event; the rest stays text."""

    message_id: str
    type: str
    anonymous_id: str
    user_id: str = ""
    event: str | None = None
    name: str | None = None
    original_timestamp: datetime | None = None
    timestamp: datetime | None = None
    context: msgspec.Raw = _NOTHING
    properties: msgspec.Raw = _NOTHING
    traits: msgspec.Raw = _NOTHING

    @property
    def user_key(self) -> str:
        """Whose sequence it belongs to."""
        return self.user_id or self.anonymous_id

    @property
    def occurred_at(self) -> datetime:
        """The client's clock, which is right in this file."""
        at = self.original_timestamp or self.timestamp
        if at is None:
            raise ValueError(f"{self.message_id} has no time")
        return at


_by_time = attrgetter("occurred_at", "message_id")


def ordered(window: tuple[str, tuple[int, list[Event]]]) -> Iterable[Event]:
    """Return a user's window in order, one event of each message id."""
    events = window[1][1]
    return sorted({event.message_id: event for event in reversed(events)}.values(), key=_by_time)


def flow(source: Path, folder: Path, *, wall_clock: bool) -> Dataflow:
    """Build the dataflow; without the wall clock only the events' own time closes windows."""
    built = Dataflow("peer")
    lines = op.input("read", built, FileSource(source, batch_size=1_000))
    events = op.map("decode", lines, msgspec.json.Decoder(Event).decode)
    keyed = op.key_on("user", events, attrgetter("user_key"))
    clock = windowing.EventClock(attrgetter("occurred_at"), WAIT)
    if not wall_clock:
        clock.now_getter, clock.to_system_utc = lambda: _START, lambda _: None
    windower = windowing.TumblingWindower(length=WINDOW, align_to=_START)
    windows = windowing.collect_window("window", keyed, clock, windower)
    op.output("write", op.flat_map("order", windows.down, ordered), _Files(folder))
    return built


class _Files(DynamicSink[Event]):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def build(self, _step_id: str, worker_index: int, _worker_count: int) -> "_File":
        return _File(self._folder, worker_index)


class _File(StatelessSinkPartition[Event]):
    def __init__(self, folder: Path, worker: int) -> None:
        self._folder = folder
        self._names = (f"{worker}-{number}.parquet" for number in itertools.count())
        self._events: list[Event] = []

    def write_batch(self, items: list[Event]) -> None:
        self._events += items
        if len(self._events) >= _ROWS_A_FILE:
            self._flush()

    def close(self) -> None:
        if self._events:
            self._flush()

    def _flush(self) -> None:
        events, self._events = self._events, []
        columns: list[list[Any]] = [
            [event.user_key for event in events],
            [event.occurred_at for event in events],
            [event.message_id for event in events],
            [event.type for event in events],
            [event.event or event.name for event in events],
            [event.user_id or None for event in events],
            [event.anonymous_id for event in events],
            *(
                [bytes(getattr(event, name)) or None for event in events]
                for name in ("context", "properties", "traits")
            ),
        ]
        arrays = [pa.array(column).cast(field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        pq.write_table(pa.table(arrays, schema=SCHEMA), self._folder / next(self._names), compression="zstd")


def run(source: Path, folder: Path, events: int, *, wall_clock: bool = False) -> Report:
    """Do the job once, in this process."""
    folder.mkdir(parents=True, exist_ok=True)
    built = flow(source, folder, wall_clock=wall_clock)
    began_s = time.perf_counter()
    run_main(built)  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - began_s
    system = f"Bytewax {version('bytewax')}, {'live' if wall_clock else 'replay'}"
    return Report(system, events, round(seconds, 3), rows_in(folder), peak_rss_mb())


def main() -> int:
    """Run from the command line, on a file of its own where none is given."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.bytewax_flow",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--events", type=int, default=300_000, help="lines in the file (%(default)s)")
    parser.add_argument("--source", type=Path, help="JSON lines, written before (makes its own)")
    parser.add_argument("--live", action="store_true", help="the wall clock closes windows (only events do)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source = options.source or Path(scratch, "events.ndjson")
        if options.source is None:
            start_ms = int(time.time() * 1_000) if options.live else events_file.START_MS
            events_file.write(source, options.events, start_ms=start_ms)
        run(source, Path(scratch, "out"), options.events, wall_clock=options.live).print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
