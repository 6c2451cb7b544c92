"""The collector of a local run: its log goes to a file, and what matters of it to the screen."""

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from millrace.collector.sources import FILE
from millrace.local import children
from millrace.local.parts import CannotRunError, Part, Parts
from millrace.local.pubsub import TOPIC
from millrace.local.sources import SERVER, WEB

_READY_S = 30.0
_DRAIN_S = 10.0
_GRACE_S = 25.0
_PREFIX = "millrace collector: "
_SPOOLED = 3
"""Its exit code where the spool still holds events: it has said so, and the accounts will."""


class Front(NamedTuple):
    """A collector that answers."""

    url: str
    admin_url: str
    part: Part

    def ways_in(self, keys: dict[str, str]) -> str:
        """Say how to send it something."""
        return f"""\
Collector: {self.url}, metrics at {self.admin_url}/metrics. To send it an event:
  export WRITE_KEY={keys[SERVER]}
  curl {self.url}/v1/track -u "$WRITE_KEY:" -H "Content-Type: application/json" \\
       -d '{{"userId": "ann", "event": "Hello"}}'
Sample shop, to click through: {self.url}/demo?key={keys[WEB]}"""


class _Line(msgspec.Struct):
    """A line of its log."""

    event: str
    level: str = ""
    port: int = 0
    admin_port: int = 0


_read_line = msgspec.json.Decoder(_Line).decode


@contextlib.contextmanager
def collector(data: Path, port: int, parts: Parts, say: Callable[[str], None]) -> Iterator[Front]:
    """Have a collector that publishes to the local topic; it is drained at the end.

    Args:
        data: where its sources are, and where its spool and its log go.
        port: where it listens on this machine; 0 for any.
        parts: that it becomes one of.
        say: for its warnings.

    Raises:
        CannotRunError: it did not start.
    """
    arguments = [
        f"--topic={TOPIC}", f"--sources={data / FILE}", f"--spool={data / 'spool'}", f"--port={port}", "--admin_port=0",
        f"--accepted={data / 'accepted'}",
        "--workers=1", "--demo", f"--drain_s={_DRAIN_S:g}", "--log=json",
    ]  # fmt: skip
    process = children.start("millrace.collector.run", arguments, os.environ, errors=subprocess.PIPE)
    with contextlib.ExitStack() as stack:
        path = data / "collector.log"
        log = stack.enter_context(path.open("a", encoding="utf-8"))
        assert process.stderr is not None
        listening = _Log(process.stderr, log, say)
        stack.callback(listening.join)  # after the end of the process: its last words are the most important
        part = stack.enter_context(parts.running(Part("collector", process), _GRACE_S, ends_well=(0, _SPOOLED)))
        ready = listening.wait_ready()
        if ready is None:
            *words, why = listening.words or ["it says nothing"]
            for line in words:
                say(line)
            raise CannotRunError(f"the collector did not start on port {port} (--port): {why.removeprefix(_PREFIX)}")
        yield Front(f"http://localhost:{ready.port}", f"http://localhost:{ready.admin_port}", part)


class _Log:
    """Reads a log to its end in a thread: into a file, and warnings to the screen."""

    def __init__(self, stream: IO[str], file: IO[str], say: Callable[[str], None]) -> None:
        self.words: list[str] = []
        """What it said before it was ready, and not by its logger."""
        self._stream = stream
        self._file = file
        self._say = say
        self._ready: _Line | None = None
        self._settled = threading.Event()  # it is ready, or it has ended
        self._thread = threading.Thread(target=self._run, name="collector-log", daemon=True)
        self._thread.start()

    def wait_ready(self) -> _Line | None:
        """Return the line that says where it listens; None where it ended, or says nothing for too long."""
        self._settled.wait(_READY_S)
        return self._ready

    def join(self) -> None:
        """Wait until all has been read."""
        self._thread.join()

    def _run(self) -> None:
        with self._stream:
            self._read()
        self._settled.set()

    def _read(self) -> None:
        for text in self._stream:
            self._file.write(text)
            self._file.flush()
            try:
                line = _read_line(text)
            except msgspec.DecodeError:  # not from its logger: Python's own last words
                if self._ready is None:
                    self.words.append(text.rstrip())
                else:
                    self._say(text.rstrip())
                continue
            if line.event == "ready":
                self._ready = line
                self._settled.set()
            elif line.level in ("warning", "error", "critical"):
                self._say(f"collector: {line.event} (more in {self._file.name})")
