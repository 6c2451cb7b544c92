"""Start a program that cannot outlive us: `python leash.py PROGRAM ARGUMENT...`, with standard input a pipe of ours.

The program keeps this process's id. A small child stays behind and reads the pipe: nobody ever writes, so what it
reads is the end, which the kernel brings however the owner died, kill -9 included. Then it kills the program. (Linux
could do it by PR_SET_PDEATHSIG, but that means the death of the starting *thread*, and macOS has no such thing.)

A script of its own, run without site-packages, so that it starts at once and needs nothing.
"""

import os
import signal
import sys
from collections.abc import Sequence


def leashed(program: Sequence[str]) -> list[str]:
    """Return the command that starts a program on this leash; give it a pipe as standard input, and hold on to it."""
    return [sys.executable, "-I", "-S", __file__, *program]


def main() -> None:
    """Leave the watcher behind and become the program."""
    program = os.getpid()  # taken here: in a child whose parent has died it would be init's
    if os.fork() == 0:
        _watch(program)
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606 (no shell is the point)


def _watch(program: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the owner's death is what ends it, or the program's end
    while os.read(0, 1):
        pass
    if os.getppid() == program:  # else it has ended, and the number may be anybody's
        os.kill(program, signal.SIGKILL)


if __name__ == "__main__":
    main()
