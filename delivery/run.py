"""`millrace deliver`: events from the archive to the sinks of `millrace.yaml`, a process for each lane.

A lane is a sink with its routes of one kind of order. Each has a ledger in --state, in which its place in the queue and
what became of every event are kept: end it, kill it, start it again, and it goes on where it was. Ctrl-C or SIGTERM:
what is under way arrives, then the lanes end, and a line for each says what it delivered and what waits; a second one:
they end at once. Exit codes: 0 ended as told; 1 a lane failed until the end; 2 it could not start, and one line says
what to do: another one with the same --state, say.
"""

import argparse
import contextlib
import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from millrace.config.fanout import FanoutError, load_fanout
from millrace.delivery.farewell import farewell, totals_of
from millrace.delivery.hold import HeldError, holding
from millrace.delivery.lane_process import LaneJob
from millrace.delivery.metrics import serve
from millrace.local import children
from millrace.local.parts import how_it_ended
from millrace.sinks.storage import Location, StorageError, locate

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_STEADY_S = 30.0
"""A lane that lived so long had no fault from the start: it is started again without a long pause."""
_GRACE_S = 25.0
"""For writing down and closing, beside what a delivery under way may take."""
_HURRY_S = 10.0
"""For the same, told a second time."""
_MISCONFIGURED = 2
_ENDED_WELL = {0, -signal.SIGTERM, None}
"""-SIGTERM: it was told to end while it started, and had done nothing; None: it was not started yet."""


@dataclasses.dataclass
class _Lane:
    """A lane and its process."""

    job: LaneJob
    process: "subprocess.Popen[str] | None" = None
    started_s: float = 0.0
    start_at_s: float = 0.0
    pause_s: float = _FIRST_PAUSE_S
    code: int | None = None
    before: Mapping[str, int] = dataclasses.field(default_factory=dict)  # its totals, when the run began

    @property
    def name(self) -> str:
        return self.job.settings.name

    def start(self) -> None:
        self.started_s = time.monotonic()
        # Not one name for all: another `millrace deliver` with this --state has other jobs.
        path = self.job.state / f"{self.name}.{os.getpid()}.job"
        path.write_bytes(pickle.dumps(self.job))
        self.process = children.start("millrace.delivery.lane_process", [str(path)], os.environ)

    def look(self) -> None:
        """Start the process, or start it again after a pause."""
        now_s = time.monotonic()
        if self.process is None:
            if now_s < self.start_at_s:
                return
            try:
                self.start()
            except OSError as error:  # a full disk, no more processes
                self._is_gone(now_s, f"cannot be started ({error})")
            return
        self.code = self.process.poll()
        if self.code is None:
            return
        children.await_end(self.process, 0.0)
        self.process = None
        self._is_gone(now_s, how_it_ended(self.code))

    def _is_gone(self, now_s: float, how: str) -> None:
        lived_s = now_s - self.started_s
        self.pause_s = _FIRST_PAUSE_S if lived_s >= _STEADY_S else min(self.pause_s * 2, _LONGEST_PAUSE_S)
        if self.code == _MISCONFIGURED:
            self.pause_s = _LONGEST_PAUSE_S
        self.start_at_s = now_s + self.pause_s
        _say(f"{self.name} {how}; it starts again in {self.pause_s:.0f} s, where it was.")

    def clear(self) -> None:
        """Leave no job behind."""
        with contextlib.suppress(OSError):
            (self.job.state / f"{self.name}.{os.getpid()}.job").unlink(missing_ok=True)


def main(arguments: Sequence[str]) -> int:
    """Run the lanes until told to end; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        fanout = load_fanout(options.config)
        archive = locate(options.archive)
    except FanoutError as error:
        print(error, file=sys.stderr)
        return 2
    except StorageError as error:
        print(f"millrace deliver: {error}", file=sys.stderr)
        return 2
    lanes = [lane for lane in fanout.lanes if not options.only or lane.sink.name in options.only]
    if unknown := set(options.only or ()) - {sink.name for sink in fanout.sinks}:
        print(f"millrace deliver: --only {min(unknown)}: {options.config} has no such sink", file=sys.stderr)
        return 2
    if not lanes:
        print(f"millrace deliver: {options.config} has no routes to deliver by; see docs/sinks.md", file=sys.stderr)
        return 2
    unordered = [lane.name for lane in lanes if not lane.is_ordered]
    if unordered and not options.topic:
        print(
            f"millrace deliver: {unordered[0]} has routes with `order: none`, which take the job's raw topic: "
            f"give --topic, or leave that sink out (--only)",
            file=sys.stderr,
        )
        return 2
    undelivered = options.undelivered or f"{archive.uri.rstrip('/').rpartition('/')[0]}/undelivered"
    if archive.local is None and archive.uri.count("/") == 2 and not options.undelivered:
        print(f"millrace deliver: nothing can be beside {archive.uri}, a bucket; give --undelivered", file=sys.stderr)
        return 2
    try:
        locate(undelivered)
        options.state.mkdir(parents=True, exist_ok=True)
    except StorageError as error:
        print(f"millrace deliver: --undelivered: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"millrace deliver: --state {options.state} cannot be made: {error.strerror}", file=sys.stderr)
        return 2
    jobs = [
        LaneJob(
            lane,
            archive.uri,
            undelivered,
            options.state.absolute(),
            options.from_start,
            options.drain_s,
            options.config,
            options.topic,
            options.subscription_prefix,
        )
        for lane in lanes
    ]
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(holding(options.state, [job.settings.name for job in jobs]))
        except HeldError as error:
            print(f"millrace deliver: {error}", file=sys.stderr)
            return 2
        except OSError as error:
            print(f"millrace deliver: --state {options.state} cannot be used: {error.strerror}", file=sys.stderr)
            return 2
        return _serve(jobs, archive, options)


def _serve(jobs: Sequence[LaneJob], archive: Location, options: argparse.Namespace) -> int:
    try:
        names = [job.settings.name for job in jobs]
        pages = None if options.port is None else serve(options.state, options.port, options.host, names)
    except OSError as error:
        print(f"millrace deliver: --port {options.port} cannot be had: {error.strerror}", file=sys.stderr)
        return 2
    if not options.quiet and archive.local is not None and not (archive.local / "_delta_log").is_dir():
        _say(f"No archive is at {archive.uri} yet: the lanes wait for it. If it should be there, correct --archive.")
    try:
        return _run([_Lane(job) for job in jobs], options.drain_s, quiet=options.quiet)
    finally:
        if pages is not None:
            pages.shutdown()
            pages.server_close()


def _run(lanes: list[_Lane], drain_s: float, *, quiet: bool) -> int:
    over, hurry = threading.Event(), threading.Event()

    def end(*_: object) -> None:
        (hurry if over.is_set() else over).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    if not quiet:
        names = ", ".join(lane.name for lane in lanes)
        state = lanes[0].job.state
        _say(f"Delivering: {names}. Ctrl-C ends it; `millrace sinks --state {state}` shows how it goes.")
    for lane in lanes:
        lane.before = totals_of(lane.job.ledger)
    while not over.wait(0.1):
        for lane in lanes:
            lane.look()
    if not quiet:
        rest = "what is under way arrives"
        rest = f"for {drain_s:g} s at most it goes on until all is delivered" if drain_s else rest
        _say(f"Ending: {rest}. Ctrl-C once more ends it at once; what is under way then comes again.")
    running = {lane.name: lane.process for lane in lanes if lane.process is not None}
    _terminate(running.values())
    longest_s = max(lane.job.settings.sink.deadline_s for lane in lanes)
    until_s = time.monotonic() + drain_s + longest_s + _GRACE_S
    has_hurried = False
    while any(process.poll() is None for process in running.values()) and time.monotonic() < until_s:
        if hurry.wait(0.05) and not has_hurried:
            has_hurried = True
            _terminate(running.values())
            until_s = time.monotonic() + _HURRY_S
        elif has_hurried:
            time.sleep(0.05)
    for lane in lanes:
        if lane.name in running:
            lane.code = children.await_end(running[lane.name], 0.0)
        lane.clear()
        if not quiet:
            _say(farewell(lane.job.ledger, lane.before))
    return 0 if all(lane.code in _ENDED_WELL for lane in lanes) else 1


def _terminate(processes: Iterable["subprocess.Popen[str]"]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"must be seconds from 0 to 86400, got {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="millrace deliver", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", default="millrace.yaml", metavar="FILE", help="with the sections sinks and routes (%(default)s)")
    add("--archive", required=True, metavar="URI", help="the job's archive: a folder, file:// or gs://bucket/folder")
    add("--undelivered", metavar="URI", help="the table of what sinks did not take (beside the archive)")
    add("--state", type=Path, default=Path("delivery-state"), metavar="DIR", help="the lanes' ledgers (%(default)s/)")
    add("--only", nargs="+", metavar="SINK", help="these sinks; others may run elsewhere")
    add(
        "--topic",
        default="",
        metavar="TOPIC",
        help="projects/P/topics/T: the job's raw topic, for `order: none` routes",
    )
    add(
        "--subscription_prefix",
        default="millrace-",
        metavar="TEXT",
        help="their subscriptions, beside the topic, are called this and the lane's name (%(default)s)",
    )
    add("--from_start", action="store_true", help="a new lane begins at the archive's first row (behind its last)")
    add(
        "--drain_s",
        type=_seconds,
        default=0.0,
        metavar="S",
        help="when told to end, go on for so long at most until everything is delivered (%(default)g)",
    )
    add("--quiet", action="store_true", help="say nothing but what is wrong")
    add("--port", type=int, metavar="N", help="serve /metrics and /health there (nowhere)")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="where --port listens (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
