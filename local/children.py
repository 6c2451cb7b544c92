"""Children: the processes of a local run, each on a leash: none outlives it, however it ends."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

from millrace.local.leash import leashed


def start(
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    output: IO[Any] | int | None = None,
    errors: IO[Any] | int | None = None,
) -> subprocess.Popen[str]:
    """Start `python -m module` in a session of its own, so that Ctrl-C reaches only us and we end things in order."""
    command = leashed([sys.executable, "-m", module, *arguments])
    return subprocess.Popen(  # noqa: S603  our own command
        command,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=errors,
        text=True,
        env=dict(environment),
        start_new_session=True,
    )


def end(process: subprocess.Popen[str], grace_s: float) -> int:
    """Ask a child to end, insist after the grace; return its exit code. Its standard error can still be read."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
    finally:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
