"""`./run_local.sh`: the whole of Millrace on this machine, with sample traffic, from nothing to a summary.

It starts the embedded broker (or uses the one at PUBSUB_EMULATOR_HOST), the main job on Prism and the collector, and
sends the collector the traffic of a sample shop. Ctrl-C ends the traffic, then the collector, lets the job archive what
is under way, and prints what the tables hold. The exit code is 0 only if every event that the collector answered for is
accounted for.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from millrace.collector.sources import FILE, SourcesError
from millrace.config.fanout import FanoutError
from millrace.config.job import ConfigError, load_job
from millrace.local import children
from millrace.local.accounts import accounts, closing
from millrace.local.collector import Front, collector
from millrace.local.delivery import delivered, delivery
from millrace.local.journal import Journal
from millrace.local.pace import Paced
from millrace.local.parts import CannotRunError, Part, Parts
from millrace.local.prism import PrismNotFoundError, find_prism
from millrace.local.pubsub import BROKER, SUBSCRIPTION, pubsub
from millrace.local.sample import check_sdks, sample_traffic
from millrace.local.send import SendError
from millrace.local.sources import make_sources
from millrace.local.summary import connect, describe

_DRAIN_S = 120.0
_PLACED = {"--archive", "--duplicates", "--dead_letters", "--dropped", "--identities", "--subscription"}
_DESCRIPTION = (__doc__ or "").partition("\n\n")[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until Ctrl-C or for the given time.

    Returns:
        0: every event accounted for; 1: not, or a part failed; 2: it could not start, one line says why.
    """
    parser = _parser()
    options, for_the_job = parser.parse_known_args(arguments)
    if placed := [each for each in for_the_job if each.partition("=")[0] in _PLACED]:
        parser.error(f"{placed[0]}: a local run keeps its tables and its Pub/Sub in --data")
    parts, ending = Parts(), _Ending()
    before = {number: signal.signal(number, ending.tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _check_for_the_job(for_the_job)
        if not options.no_demo:
            check_sdks()
        keys = make_sources(options.data)
        load_job(str(options.data / FILE))  # a mistake is told before anything runs
        find_prism(options.prism_location, _say)  # minutes, the first time: before anything else runs
        with pubsub(options.data, parts, _say), contextlib.ExitStack() as last:
            with contextlib.ExitStack() as starting:
                last.enter_context(delivery(options.data, parts, _say))  # ended last: it empties the archive
                front = starting.enter_context(collector(options.data, options.port, parts, _say))
                job = last.enter_context(_job(options, for_the_job, parts, ending))
                collecting = starting.pop_all()  # started before the job, which takes longer, and ended before it
            with collecting:
                _say(front.ways_in(keys))
                with _traffic(options, front, parts) as traffic:
                    _wait(options.for_seconds, parts, ending, traffic)
    except (ConfigError, FanoutError) as error:
        print(error, file=sys.stderr)
        return 2
    except (CannotRunError, PrismNotFoundError, SendError, SourcesError, ValueError) as error:
        print(f"millrace local: {error}", file=sys.stderr)
        return 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if job.process.returncode == 2:
        return 2
    return _summary(options.data, parts)


class _Ending:
    """The first Ctrl-C ends the traffic and drains the job; the second is the job's own second: it ends at once."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.job: subprocess.Popen[str] | None = None

    def tell(self, *_: object) -> None:
        """Handle a signal."""
        if self.over.is_set() and self.job is not None:
            self.job.terminate()
        self.over.set()


def _check_for_the_job(arguments: Sequence[str]) -> None:
    if not arguments:
        return
    from millrace.pipelines.options import problem_with_arguments  # noqa: PLC0415  Beam: two seconds, seldom needed

    if problem := problem_with_arguments(arguments):
        raise CannotRunError(problem)


@contextlib.contextmanager
def _job(options: argparse.Namespace, for_the_job: Sequence[str], parts: Parts, ending: _Ending) -> Iterator[Part]:
    """Run the main job; at the end it archives what is under way."""
    names = ("archive", "duplicates", "dead_letters", "dropped", "identities")
    tables = [f"--{name}={options.data / name}" for name in names]
    arguments = [f"--subscription={SUBSCRIPTION}", *tables, f"--config={options.data / FILE}"]
    arguments += ["--progress_s=1", "--drain_until_empty", *for_the_job]
    if options.prism_location:
        arguments.append(f"--prism_location={options.prism_location}")
    ending.job = children.start("millrace.pipelines.events", arguments, os.environ)
    early = -signal.SIGTERM  # it was told to end while it started: it has read nothing
    with parts.running(Part("job", ending.job), _DRAIN_S, ends_well=(0, early), needs=BROKER) as job:
        yield job


@contextlib.contextmanager
def _traffic(options: argparse.Namespace, front: Front, parts: Parts) -> Iterator[Paced | None]:
    if options.no_demo:
        _say("No sample traffic.")
        yield None
        return
    with sample_traffic(front.url, options.data, options.rate, parts=parts, say=_say) as traffic:
        yield traffic


def _wait(for_seconds: float | None, parts: Parts, ending: _Ending, traffic: Paced | None) -> None:
    """Wait for whatever ends the run: a signal, the time, or a part that is gone."""
    until = None if for_seconds is None else time.monotonic() + for_seconds
    while not ending.over.wait(0.1) and (until is None or time.monotonic() < until):
        if traffic is not None and traffic.wait(0):
            return
        if fallen := parts.fallen():
            _say(f"{fallen} The run ends.")
            return


def _summary(data: Path, parts: Parts) -> int:
    """Print what the tables hold and whether the accounts close; return the exit code."""
    journal = data / "journal.csv"
    with Journal(journal), connect(data) as connection:  # an empty journal, where nothing was ever sent
        print("\n" + describe(connection))
        found = accounts(connection, journal)
        print("\n" + closing(found))
    if sinks := delivered(data):
        print(sinks)
    for fault in parts.faults:
        print(f"  {fault}")
    if not found.closes:
        print("  What is missing is still with Pub/Sub or in the collector's spool. Run again, and it is archived.")
    return 0 if found.closes and not parts.faults else 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"must be events a second above 0, got {text!r}; for no traffic use --no-demo")
    return rate


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"must be a port from 0 to 65535, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./run_local.sh",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Any option of the main job may follow (--order_wait_s ...): python -m pipelines.events --help",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--rate", type=_rate, default=200.0, metavar="N", help="sample events a second (%(default)g)")
    add("--no-demo", action="store_true", help="send no sample traffic: send events of your own")
    add("--port", type=_port, default=8080, metavar="N", help="the collector's; 0: any that is free (%(default)s)")
    add("--for", type=float, dest="for_seconds", metavar="SECONDS", help="end after so many seconds (at Ctrl-C)")
    add("--data", type=Path, default=Path("data"), metavar="DIR", help="where everything is kept (%(default)s/)")
    add("--prism_location", metavar="FILE", help="Beam's Prism binary (found, or built once)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
