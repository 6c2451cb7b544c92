"""`./run_local.sh`: the whole of Millrace on this machine, with sample traffic, from nothing to a summary.

It starts the embedded broker (or uses the one at PUBSUB_EMULATOR_HOST), creates topic and subscription, starts the main
job on Prism, and sends the traffic of a sample shop. Ctrl-C ends the traffic, lets the job archive what is under way,
and prints what the tables hold. The exit code is 0 only if every published event is accounted for.
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

from google.api_core import exceptions
from google.cloud import pubsub_v1

from millrace.local import children
from millrace.local.accounts import accounts, closing
from millrace.local.journal import Journal, records_of
from millrace.local.prism import PrismNotFoundError, find_prism
from millrace.local.send import Request, SendError
from millrace.local.shop import Shop
from millrace.local.summary import connect, describe
from millrace.local.traffic import ShopRequests, Traffic

TOPIC = "projects/millrace-local/topics/events"
SUBSCRIPTION = "projects/millrace-local/subscriptions/events-archive"

_ACK_DEADLINE_S = 30
_READY_S = 20.0
_DRAIN_S = 120.0
_PLACED = {"--archive", "--duplicates", "--dead_letters", "--subscription"}
_DESCRIPTION = (__doc__ or "").partition("\n\n")[2]


class CannotRunError(Exception):
    """The run cannot start or go on; the message is one line that says what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until Ctrl-C or for the given time.

    Returns:
        0: every event accounted for; 1: not, or a part failed; 2: it could not start, one line says why.
    """
    parser = _parser()
    options, for_the_job = parser.parse_known_args(arguments)
    if placed := [each for each in for_the_job if each.partition("=")[0] in _PLACED]:
        parser.error(f"{placed[0]}: a local run keeps its tables and its Pub/Sub in --data")
    ending = _Ending()
    before = {number: signal.signal(number, ending.tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _check_for_the_job(for_the_job)
        find_prism(options.prism_location, _say)  # minutes, the first time: before anything else runs
        with contextlib.ExitStack() as stack:
            environment = stack.enter_context(_broker(options.data))
            _create_topic_and_subscription()
            job_ended = _run_job(options, for_the_job, environment, ending)
    except (CannotRunError, PrismNotFoundError, SendError) as error:
        print(f"millrace local: {error}", file=sys.stderr)
        return 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if job_ended == 2:
        return 2
    connection = connect(options.data)
    print("\n" + describe(connection))
    found = accounts(connection, options.data / "journal.csv")
    print("\n" + closing(found))
    if job_ended:
        print("  The job did not end well: what is missing is still with Pub/Sub. Run again, and it is archived.")
    return 0 if job_ended == 0 and found.closes else 1


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
def _broker(data: Path) -> Iterator[dict[str, str]]:
    """Start the embedded broker, unless the environment names one; yield the environment that names it."""
    given = os.environ.get("PUBSUB_EMULATOR_HOST")
    if given:
        _say(f"Using the Pub/Sub at {given} (PUBSUB_EMULATOR_HOST).")
        yield dict(os.environ)
        return
    arguments = ["--port", "0", "--data", str(data / "broker")]
    process = children.start("millrace.broker.server", arguments, os.environ, subprocess.PIPE)
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        if "PUBSUB_EMULATOR_HOST=" not in ready:
            raise CannotRunError("the broker did not start; its own message is above")
        host = ready.rpartition("=")[2].strip()
        _say(ready.strip())
        os.environ["PUBSUB_EMULATOR_HOST"] = host
        yield {**os.environ, "PUBSUB_EMULATOR_HOST": host}
    finally:
        os.environ.pop("PUBSUB_EMULATOR_HOST", None)
        children.end(process, 10.0)


def _create_topic_and_subscription() -> None:
    publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
    try:
        with contextlib.suppress(exceptions.AlreadyExists):
            publisher.create_topic(request={"name": TOPIC}, timeout=_READY_S, retry=None)
        with contextlib.suppress(exceptions.AlreadyExists):
            wanted = {"name": SUBSCRIPTION, "topic": TOPIC, "ack_deadline_seconds": _ACK_DEADLINE_S}
            subscriber.create_subscription(request=wanted, timeout=_READY_S, retry=None)
    except (exceptions.GoogleAPICallError, exceptions.RetryError) as error:
        where = os.environ.get("PUBSUB_EMULATOR_HOST")
        reason = str(error).partition(";")[0]
        raise CannotRunError(f"cannot create {TOPIC} at {where}: is Pub/Sub running there? ({reason})") from error
    finally:
        publisher.stop()
        publisher.transport.close()
        subscriber.close()


def _run_job(
    options: argparse.Namespace, for_the_job: Sequence[str], environment: dict[str, str], ending: _Ending
) -> int:
    """Run job and traffic until it is over; return the job's exit code."""
    tables = [f"--{name}={options.data / name}" for name in ("archive", "duplicates", "dead_letters")]
    arguments = [f"--subscription={SUBSCRIPTION}", *tables, "--progress_s=1", "--drain_until_empty", *for_the_job]
    if options.prism_location:
        arguments.append(f"--prism_location={options.prism_location}")
    job = ending.job = children.start("millrace.pipelines.events", arguments, environment)
    try:
        with Journal(options.data / "journal.csv") as journal, _traffic(options, journal) as traffic:
            until = None if options.for_seconds is None else time.monotonic() + options.for_seconds
            while not ending.over.wait(0.1) and job.poll() is None and (until is None or time.monotonic() < until):
                pass
            if traffic is not None:
                traffic.stop()
                _say(f"The sample traffic has ended: {traffic.counts().events:,} events published.")
    finally:
        code = children.end(job, _DRAIN_S)
    return code


@contextlib.contextmanager
def _traffic(options: argparse.Namespace, journal: Journal) -> Iterator[Traffic | None]:
    if options.no_demo:
        _say(f"No sample traffic: publish to {TOPIC}, with PUBSUB_EMULATOR_HOST={os.environ['PUBSUB_EMULATOR_HOST']}.")
        yield None
        return
    shop = Shop(seed=time.time_ns())

    def enter(request: Request, _answer: bytes) -> None:
        journal.answered(record for sent in request.tag for record in records_of(sent))

    with Traffic(ShopRequests(shop, TOPIC), TOPIC, options.rate, on_acknowledged=enter) as traffic:
        yield traffic


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
    add("--no-demo", action="store_true", help="send no sample traffic: publish events of your own")
    add("--for", type=float, dest="for_seconds", metavar="SECONDS", help="end after so many seconds (at Ctrl-C)")
    add("--data", type=Path, default=Path("data"), metavar="DIR", help="where everything is kept (%(default)s/)")
    add("--prism_location", metavar="FILE", help="Beam's Prism binary (found, or built once)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
