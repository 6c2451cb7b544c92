"""Own Prism, Beam's Go runner: start it, know when it is ready, stop it, and leave none behind.

A Prism that Beam starts by itself outlives a job that is killed, and keeps its state in memory for nobody. So it is
started here: on a free port, on a leash (local/leash.py) that ends it with its owner, kill -9 included; and should
one be left nevertheless (the leash killed too), the next start finds it by its note and ends it.

    with Prism(find_prism(None, print), log=data / "prism.log") as prism:
        pipeline = beam.Pipeline(options=PipelineOptions([*prism.pipeline_arguments, "--streaming"]))

Prism listens on every interface and has no switch for it: on a shared machine, mind the firewall.
"""

import contextlib
import os
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import grpc

from millrace.local.leash import leashed
from millrace.local.orphans import end_orphans, note_down
from millrace.local.prism_binary import PrismNotFoundError, cache_dir, find_prism

__all__ = ["Prism", "PrismNotFoundError", "PrismStartError", "find_prism"]

_PORT_TRIES = 5
_CALL_S = 0.25
_GET_JOBS = "/org.apache.beam.model.job_management.v1.JobService/GetJobs"
_leashes: set[int] = set()


class PrismStartError(Exception):
    """Prism ended, or was not ready in time; the message holds the last lines of its log."""


class Prism:
    """A Prism process, from start to stop; use it as a context manager.

    Args:
        binary: Prism's executable, see find_prism.
        log: file that Prism's output is appended to; its folder is made.
        log_level: debug, info, warn or error.
        ready_s: how long Prism may take until it answers, in seconds.
        grace_s: how long it may take to end by itself when told to, in seconds; then it is killed.
        notes: folder of the notes about running Prisms, by which orphans are found; default: in Millrace's cache.
    """

    def __init__(
        self,
        binary: Path,
        log: Path,
        *,
        log_level: str = "warn",
        ready_s: float = 20.0,
        grace_s: float = 5.0,
        notes: Path | None = None,
    ) -> None:
        self._binary = binary.absolute()
        self._log = log.absolute()
        self._log_level = log_level
        self._ready_s = ready_s
        self._grace_s = grace_s
        self._notes = notes or cache_dir() / "running"
        self._process: subprocess.Popen[bytes] | None = None
        self._note: Path | None = None
        self._port = 0
        self._log_start = 0

    def start(self) -> None:
        """End orphans, start Prism and return when it answers.

        Raises:
            PrismStartError: it ended or did not answer within ready_s.
        """
        if self._process is not None:
            raise RuntimeError("this Prism has been started already")
        end_orphans(self._notes, self._grace_s)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._become_ready()
        except BaseException:
            self._end()
            raise
        self._note = note_down(self.pid, self._notes)

    @property
    def endpoint(self) -> str:
        """HOST:PORT of Prism's job service."""
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Prism's process id."""
        return self._started().pid

    @property
    def exit_code(self) -> int | None:
        """None while Prism runs, else how it ended (-9: killed by signal 9)."""
        return self._started().poll()

    @property
    def pipeline_arguments(self) -> list[str]:
        """The options that make a Beam pipeline run here, with its workers in the calling process."""
        return ["--runner=PortableRunner", f"--job_endpoint={self.endpoint}", "--environment_type=LOOPBACK"]

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines that this Prism wrote to its log."""
        with contextlib.suppress(FileNotFoundError), self._log.open("rb") as log:
            log.seek(self._log_start)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        return ""

    def stop(self) -> None:
        """End Prism: SIGTERM, and SIGKILL after the grace. Does nothing the second time."""
        self._end()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _become_ready(self) -> None:
        deadline = time.monotonic() + self._ready_s
        for attempt in range(1, _PORT_TRIES + 1):
            self._launch()
            if self._answers(deadline):
                return
            # Between finding a free port and Prism's use of it, another process may have taken it.
            if "address already in use" not in self.log_tail(50) or attempt == _PORT_TRIES:
                raise PrismStartError(self._why_not())
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("this Prism is not running: call start()")
        return self._process

    def _launch(self) -> None:
        self._port = _free_port()
        program = [str(self._binary), f"--job_port={self._port}", "--serve_http=false"]
        options = [f"--log_level={self._log_level}", "--log_kind=text"]
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(  # noqa: S603 (our own command)
                leashed([*program, *options]),
                stdin=subprocess.PIPE,  # the leash: its end in our hand closes with us
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the job, which drains with Prism alive
            )
        _leashes.add(_leash(self._process).fileno())

    def _answers(self, deadline: float) -> bool:
        """Wait until Prism's job service answers a call; give up when it ends, or at the deadline.

        A plain call, since grpc's channel_ready_future leaves a thread that fails when the channel is closed.
        """
        options = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 100)]
        with grpc.insecure_channel(self.endpoint, options) as channel:
            any_jobs = channel.unary_unary(_GET_JOBS)  # no serializers: an empty request is no bytes
            while time.monotonic() < deadline and self.exit_code is None:
                try:
                    any_jobs(b"", timeout=_CALL_S, wait_for_ready=True)
                except grpc.RpcError as error:
                    if error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE):
                        continue
                # Whoever answers on a port that was taken from us is not this Prism, which has ended then.
                return self.exit_code is None
        return False

    def _why_not(self) -> str:
        ended = self.exit_code
        what = f"did not answer within {self._ready_s:g} s" if ended is None else f"ended with {ended}"
        tail = self.log_tail() or "(it wrote nothing)"
        return f"Prism ({self._binary}) {what}. The end of its log, {self._log}:\n{tail}"

    def _end(self) -> None:
        if (process := self._process) is None:
            return
        process.terminate()
        try:
            process.wait(self._grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        leash = _leash(process)
        _leashes.discard(leash.fileno())
        leash.close()
        self._process = None
        if self._note is not None:
            self._note.unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))  # every interface, as Prism does
        return int(probe.getsockname()[1])


def _leash(process: subprocess.Popen[bytes]) -> IO[bytes]:
    if process.stdin is None:
        raise RuntimeError("Prism was started without its leash")
    return process.stdin


def _let_go_of_leashes() -> None:
    for leash in _leashes:
        os.close(leash)
    _leashes.clear()


# A forked child (multiprocessing) would hold the leashes too, and Prism would live as long as the last of us.
os.register_at_fork(after_in_child=_let_go_of_leashes)
