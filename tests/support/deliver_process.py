"""`millrace deliver` as a process with its lanes, which may be killed together or lane by lane."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from millrace.delivery.ledger import Ledger
from millrace.delivery.records import Status


class Delivering:
    """One in `root`: millrace.yaml, archive, state and log are there."""

    def __init__(self, root: Path, lanes: Sequence[str], *more: str) -> None:
        self._command = [sys.executable, "-m", "tests.support.quick_delivery", "--config", str(root / "millrace.yaml")]
        self._command += ["--archive", str(root / "archive"), "--state", str(root / "state"), "--from_start", *more]
        self._log = (root / "log").open("ab")
        self._lanes = lanes
        self.state = root / "state"
        self.process: subprocess.Popen[bytes] | None = None
        self._started_us = 0

    def start(self) -> None:
        self._started_us = time.time_ns() // 1_000
        self.process = subprocess.Popen(self._command, stderr=self._log, start_new_session=True)

    def kill(self) -> None:
        """End all of it at once; the lanes are on a leash."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def kill_lane(self, name: str) -> None:
        """End one lane, which is started again."""
        said = self.said_by(name)
        if said is not None and said[1].state != "stopped":
            with contextlib.suppress(ProcessLookupError):
                os.kill(said[1].pid, signal.SIGKILL)

    def said_by(self, name: str) -> tuple[int, Status] | None:
        """Return what a lane said of itself last, and when."""
        path = self.state / f"{name}.sqlite"
        if not path.exists():
            return None
        with contextlib.closing(Ledger(path, read_only=True)) as ledger:
            return ledger.status() if ledger.is_made() else None

    def state_of(self, name: str) -> str:
        """Return the state of a lane, as it said since the start."""
        said = self.said_by(name)
        return said[1].state if said is not None and said[0] > self._started_us else ""

    def runs(self) -> bool:
        """Whether all lanes have said so since the start."""
        return all(self.state_of(name) for name in self._lanes)

    def wait(self, until: Callable[[], object], seconds: float = 120) -> None:
        assert self.process is not None
        end = time.monotonic() + seconds
        while not until():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.02)  # it polls: nothing here can be waited for

    def said(self) -> str:
        """What it has written to standard error."""
        return Path(self._log.name).read_text()[-4_000:]

    def terminate(self) -> None:
        assert self.process is not None
        self.process.terminate()

    def ends(self, within_s: float) -> int:
        """Wait until it has ended, and return the exit code."""
        assert self.process is not None
        return self.process.wait(within_s)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self._log.close()


@contextlib.contextmanager
def delivering(root: Path, lanes: Sequence[str], *more: str) -> Iterator[Delivering]:
    """Give one that is not started yet; at the end nothing of it is left."""
    found = Delivering(root, lanes, *more)
    try:
        yield found
    finally:
        found.close()
