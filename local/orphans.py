"""Notes about the processes that we started, by which a later start finds and ends those whose owner died.

A process id alone proves nothing, it may be anybody's by now: a process is the noted one when it also started at the
noted time and runs the noted command.
"""

import dataclasses
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Self

_POLL_S = 0.02


@dataclasses.dataclass(frozen=True)
class Identity:
    """Which process, beyond doubt: its id, when it started (in the system's own words) and its command line."""

    pid: int
    started: str
    command: str

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return who a process is, or None when there is no such process, or only its unburied remains."""
        if Path("/proc/self/stat").exists():
            try:
                # The second field is a name in brackets that may hold anything; after it come state, ..., start time.
                state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                return None
            return None if state in "ZX" else cls(pid, fields[18], command.strip())
        told = subprocess.run(  # noqa: S603 (macOS has no /proc)
            ["ps", "-ww", "-o", "stat=,lstart=,command=", "-p", str(pid)],  # noqa: S607 (ps is ps)
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        ).stdout.split(maxsplit=6)  # the time is five words
        return None if len(told) < 7 or told[0].startswith("Z") else cls(pid, " ".join(told[1:6]), told[6].strip())

    def runs(self) -> bool:
        """Tell whether this very process still runs."""
        return Identity.of(self.pid) == self

    def end(self, grace_s: float) -> None:
        """End the process, be it a child or not: SIGTERM, and SIGKILL after grace_s seconds."""
        for sign, limit_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
            if self.runs():
                os.kill(self.pid, sign)
            deadline = time.monotonic() + limit_s
            while self.runs() and time.monotonic() < deadline:
                time.sleep(_POLL_S)


def note_down(pid: int, folder: Path) -> Path:
    """Note that this process owns the process pid; return the note, which the owner removes once it has ended it."""
    child, owner = Identity.of(pid), Identity.of(os.getpid())
    note = folder / f"{pid}.json"
    if child is None or owner is None:
        return note  # it has ended: nothing to find later
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{pid}-{os.getpid()}"
    unfinished.write_text(json.dumps({"child": dataclasses.asdict(child), "owner": dataclasses.asdict(owner)}))
    unfinished.replace(note)
    return note


def end_orphans(folder: Path, grace_s: float = 5.0) -> list[int]:
    """End every process noted in the folder whose owner is gone, and return their ids."""
    ended = []
    for note in sorted(folder.glob("*.json")):
        try:
            told = json.loads(note.read_text())
            child, owner = Identity(**told["child"]), Identity(**told["owner"])
        except FileNotFoundError:  # another start was quicker
            continue
        if owner.runs() and child.runs():
            continue
        if child.runs():
            child.end(grace_s)
            ended.append(child.pid)
        note.unlink(missing_ok=True)
    return ended
