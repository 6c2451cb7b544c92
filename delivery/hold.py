"""Hold: one `millrace deliver` for each lane of a --state; a second one learns at once that there is one, and which."""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path


class HeldError(Exception):
    """Another one has a lane; one sentence that says which one, and what to do."""


@contextlib.contextmanager
def holding(state: Path, names: Sequence[str]) -> Iterator[None]:
    """Hold lanes while the caller goes on: by locks, which end with this process however it ends.

    A lane's own lock (lane_process.py) would not do: between two starts of its process nobody has it.

    Raises:
        HeldError: another process holds some of them; then none is held.
        OSError: the files cannot be made or locked.
    """
    with contextlib.ExitStack() as files:
        taken: dict[str, str] = {}  # by lane, the process that has it; empty: it has not said so yet
        for name in names:
            file = files.enter_context((state / f"{name}.pid").open("a+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                taken[name] = file.read().strip()
                continue
            with contextlib.suppress(OSError):  # a full disk: it is the lock that counts
                file.truncate(0)
                os.write(file.fileno(), b"%d\n" % os.getpid())
        if taken:
            pids = ", ".join(sorted({f"process {pid}" for pid in taken.values() if pid}))
            raise HeldError(
                f"another one{f' ({pids})' if pids else ''} delivers for {', '.join(taken)} with --state {state}: "
                "end it first, nothing is lost by that"
            )
        yield
