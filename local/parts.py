"""Parts: the processes of a local run, and what is said of one that is gone."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

from millrace.local import children

_HOPELESS_S = 2.0


class CannotRunError(Exception):
    """The run cannot start or go on; the message is one line that says what to do."""


class Part(NamedTuple):
    """One of them."""

    name: str
    process: "subprocess.Popen[str]"

    def ended(self) -> str | None:
        """Say how it ended, by itself or by somebody else; None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        return f"The {self.name} {how_it_ended(code)}."


def how_it_ended(code: int) -> str:
    """Say what an exit code means.

    >>> how_it_ended(-9), how_it_ended(1)
    ('was killed (SIGKILL)', 'has ended (exit code 1)')
    """
    if code >= 0:
        return f"has ended (exit code {code})"
    try:
        return f"was killed ({signal.Signals(-code).name})"
    except ValueError:
        return f"was killed (signal {-code})"


class Parts:
    """All of them, in the order of their start; they are ended in the other order, each before the next."""

    def __init__(self) -> None:
        self._running: list[Part] = []
        self._gone: dict[str, str] = {}  # by name, what is said of it
        self.faults: list[str] = []
        """What is said of those that did not end well."""

    @contextlib.contextmanager
    def running(self, part: Part, grace_s: float, ends_well: tuple[int, ...] = (0,), needs: str = "") -> Iterator[Part]:
        """Watch a part while the caller goes on; end it then.

        Args:
            part: just started.
            grace_s: for ending after SIGTERM, before it is killed.
            ends_well: exit codes that are no fault.
            needs: another part, without which it cannot end by itself; when that is gone it gets no grace.
        """
        self._running.append(part)
        try:
            yield part
        finally:
            self.fallen()
            hopeless = needs in self._gone
            code = children.end(part.process, _HOPELESS_S if hopeless else grace_s)
            self._running.remove(part)
            if part.name not in self._gone and code not in ends_well and not hopeless:
                self.faults.append(f"The {part.name} {how_it_ended(code)} when it was told to end.")

    def fallen(self) -> str | None:
        """Say which part is gone, the first to be found, and how; None while all run."""
        for part in self._running:
            said = part.ended()
            if said is not None and part.name not in self._gone:
                self._gone[part.name] = said
                self.faults.append(said)
        return next(iter(self._gone.values()), None)
