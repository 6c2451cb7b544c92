"""One node: the graph on Prism, with reader, stages and committer in this process, from start to a clean end."""

import gc
import logging
import logging.handlers
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions, PrismRunnerOptions

from millrace.local.prism import Prism, PrismNotFoundError, PrismStartError, find_prism
from millrace.local.prism_binary import cache_dir
from millrace.pipelines.check import CannotStartError
from millrace.pipelines.options import EventOptions
from millrace.pipelines.progress import progress
from millrace.pipelines.runners import why_not_prism
from millrace.pipelines.upkeep import upkeep
from millrace.transforms.decode_process import close_pools
from millrace.transforms.read import close_subscribers, draining
from millrace.transforms.shelf import SHELF

_LOOK_S = 0.25
_AGAIN = "Nothing is lost: start it again."
_ENDED = {"DONE", "FAILED", "CANCELLED", "DRAINED", "UPDATED"}


def run(arguments: Sequence[str], options: EventOptions, build: Callable[[beam.Pipeline], None]) -> int:
    """Run the graph on a Prism of its own until it is told to stop; return the exit code.

    Raises:
        CannotStartError: no Prism could be had, or the graph is not one that it can run.
    """
    _log_to(cache_dir() / "beam.log")
    location = PipelineOptions(list(arguments)).view_as(PrismRunnerOptions).prism_location
    try:
        binary = find_prism(location, lambda line: print(line, file=sys.stderr, flush=True))
        with Prism(binary, cache_dir() / "prism.log") as prism:
            pipeline = beam.Pipeline(
                options=PipelineOptions([*_ours(arguments), *prism.pipeline_arguments], streaming=True)
            )
            build(pipeline)
            if reasons := why_not_prism(pipeline):
                raise CannotStartError(f"this graph cannot run on one node: {'; '.join(reasons)}.")
            SHELF.open()  # this process runs every stage
            _prepare_memory()
            code = _run(pipeline, prism, options)
    except (PrismNotFoundError, PrismStartError) as error:
        raise CannotStartError(str(error)) from error
    if code:
        _leave(code)
    return code


def _run(pipeline: beam.Pipeline, prism: Prism, options: EventOptions) -> int:
    names = ("archive", "duplicates", "dead_letters", "dropped", "identities")
    tables = [getattr(options, name) for name in names]
    with (
        _signals(options.drain_until_empty) as told,
        progress(options.progress_s),
        upkeep(options.compact_every_s, tables),
    ):
        try:
            code = _watch(_Submission(pipeline), prism, told)
            if code:
                _hush()
        finally:
            # What is committed is acknowledged; the rest goes back at once instead of when its leases lapse.
            close_subscribers(hand_back=True)
            close_pools()
        return code


class _Submission:
    """The job at Prism, watched by a thread of its own: Beam's calls wait for ever on a Prism that has gone."""

    def __init__(self, pipeline: beam.Pipeline) -> None:
        self._pipeline = pipeline
        self.state = "UNSPECIFIED"
        self.failure: Exception | None = None
        threading.Thread(target=self._run, name="millrace-job", daemon=True).start()

    def _run(self) -> None:
        try:
            result: Any = self._pipeline.run()
            while self.state not in _ENDED:
                self.state = result.state
                time.sleep(_LOOK_S)
        except Exception as error:  # noqa: BLE001  for the main thread, which knows whether Prism is to blame
            self.failure = error


def _watch(job: _Submission, prism: Prism, told: "_Told") -> int:
    while prism.exit_code is None:
        if told.twice.is_set():
            print("Ending now; what was not archived goes back to Pub/Sub.", file=sys.stderr, flush=True)
            return 130
        if job.state == "DONE" and told.once.is_set():
            return 0
        if job.state in _ENDED:
            logs = f"{cache_dir() / 'beam.log'} and prism.log beside it"
            print(f"millrace events: the job ended by itself ({job.state}); see {logs}. {_AGAIN}", file=sys.stderr)
            return 1
        if job.failure is not None:
            time.sleep(1)  # the call fails a moment before the process that caused it is gone
            if prism.exit_code is None:
                raise job.failure
        time.sleep(_LOOK_S)
    return _gone(prism)


def _gone(prism: Prism) -> int:
    tail = prism.log_tail()
    print(f"millrace events: Prism ended (exit code {prism.exit_code}). {_AGAIN}\n{tail}".rstrip(), file=sys.stderr)
    return 1


def _log_to(beams: Path) -> None:
    """Say what matters on stderr; keep Beam's own log, which is long, in a file."""
    layout = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=layout)
    beams.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.handlers.RotatingFileHandler(beams, maxBytes=10_000_000, backupCount=1, delay=True)
    handler.setFormatter(logging.Formatter(layout))
    logger = logging.getLogger("apache_beam")
    logger.addHandler(handler)
    logger.propagate = False


def _hush() -> None:
    """Say no more: once Prism goes, every thread of Beam's that talks to it complains at length."""
    logging.disable()
    threading.excepthook = lambda _: None


def _prepare_memory() -> None:
    """Let the garbage collector leave alone what is here for good, and columns be where least is left over.

    Of Arrow's allocators jemalloc needs the least here: a sixth less than mimalloc, its default (docs/decisions/0007).
    """
    if "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _leave(code: int) -> NoReturn:
    """End the process at once: Beam's threads, cut off in mid-call, can abort an orderly end (exit code -6)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Told:
    def __init__(self) -> None:
        self.once = threading.Event()
        self.twice = threading.Event()


@contextmanager
def _signals(drain_until_empty: bool) -> Iterator[_Told]:
    told = _Told()

    def tell(*_: Any) -> None:
        if told.once.is_set():
            told.twice.set()
            return
        told.once.set()
        print("Draining: no more is read, what was read is archived. Once more to end at once.", file=sys.stderr)
        draining().request(until_empty=drain_until_empty)

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ours(arguments: Sequence[str]) -> list[str]:
    """Leave out --runner: it said Prism, and Prism is reached as a portable runner."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == "--runner":
            skip = True
        elif not argument.startswith("--runner="):
            kept.append(argument)
    return kept
