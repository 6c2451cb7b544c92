"""Children: the processes of a local run, each on a leash: none outlives it, however it ends."""

import subprocess
import sys
import time
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
    return await_end(process, time.monotonic() + grace_s)


def await_end(process: subprocess.Popen[str], until_s: float) -> int:
    """Wait for a child that was asked to end; insist at a time of `time.monotonic`; return its exit code."""
    try:
        return process.wait(max(0.0, until_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
    finally:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
