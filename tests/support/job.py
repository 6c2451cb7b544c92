"""The main job as a process, for tests: start it, stop it, kill it or its Prism, read its tables."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from millrace.sinks.delta import open_table
from millrace.sinks.tables import SPECS as TABLES
from tests.support.pubsub import wait_until

SPECS = {spec.name.replace(" ", "_"): spec for spec in TABLES}


class Job:
    """`python -m millrace.pipelines.events` on one node, its tables in `root` or `data`, with a short order wait."""

    def __init__(self, data: Path, address: str, subscription: str, *options: str, root: str = "") -> None:
        self.data = data
        self._root = root or str(data)
        self._log = data / "job.log"
        data.mkdir(parents=True, exist_ok=True)
        tables = [f"--{name}={self._root}/{name}" for name in SPECS]
        defaults = ["--order_wait_s=2", "--order_window_s=1", "--progress_s=1"]
        self._command = [sys.executable, "-m", "millrace.pipelines.events", f"--subscription={subscription}"]
        self._command += [*tables, *defaults, *options]
        self._environment = {**os.environ, "PUBSUB_EMULATOR_HOST": address}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, without waiting for anything."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def ended(self) -> int | None:
        """The exit code, None while it runs."""
        assert self.process is not None
        return self.process.poll()

    def prism_pid(self) -> int | None:
        """The process id of its Prism, None where there is none (yet)."""
        for child in _children(self.pid):
            with contextlib.suppress(OSError):
                is_prism = "prism" in Path(f"/proc/{child}/exe").readlink().name
                # Not the one that is only asked for its version, before the real one starts.
                if is_prism and b"--job_port=" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return child
        return None

    def drain(self, timeout_s: float = 150.0) -> int:
        """Ask it to end and wait; return the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """End it as kill -9 does, and wait until it is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")

    def rows(self, name: str) -> pa.Table:
        """What one of its tables holds now."""
        return read_table(f"{self._root}/{name}", name)

    def wait_for(self, archived: int = 0, dead_letters: int = 0, timeout_s: float = 150.0) -> None:
        """Wait until its tables hold at least so many rows."""

        def enough() -> bool:
            assert self.ended() is None, f"the job ended with {self.ended()}:\n{self.log()[-3_000:]}"
            counts = self.rows("archive").num_rows, self.rows("dead_letters").num_rows
            return bool(counts[0] >= archived and counts[1] >= dead_letters)

        wait_until(enough, timeout_s, f"{archived} rows in {self.data}; the job printed:\n{self.log()[-2_000:]}")


def read_table(uri: str, name: str) -> pa.Table:
    """Return all rows of a table; none where it does not exist yet."""
    table = open_table(uri, SPECS[name])
    return table.delta.to_pyarrow_table().select(SPECS[name].schema.names)


@contextlib.contextmanager
def running_job(data: Path, address: str, subscription: str, *options: str, root: str = "") -> Iterator[Job]:
    """Run the job; killed at the end, with its Prism, whatever happened in between."""
    job = Job(data, address, subscription, *options, root=root)
    job.start()
    try:
        yield job
    finally:
        prism = job.prism_pid() if job.ended() is None else None
        job.kill()
        if prism is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(prism, signal.SIGKILL)


def _children(pid: int) -> Sequence[int]:
    children: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return children
