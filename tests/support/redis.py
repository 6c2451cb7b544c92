"""A Redis server for tests and benchmarks: Debian's redis-server, on a free port of 127.0.0.1.

with running_redis(tmp_path) as server:
    client = redis.Redis.from_url(server.url)
"""

import contextlib
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.node import UnavailableError
from tests.support.postgres import free_port
from tests.support.pubsub import wait_until

_START_S = 90.0


class RedisServer:
    """A server that can be stopped, killed and started again; what its append-only file holds stays."""

    def __init__(self, folder: Path, settings: Sequence[str] = ()) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it has read its data."""
        program = shutil.which("redis-server")
        if program is None:
            raise UnavailableError("Redis is not installed (Debian: apt-get install redis-server)")
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--daemonize", "no", *self._settings]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._is_ready, _START_S, "Redis is ready")

    def stop(self) -> None:
        """End it in order: what it was told is on the disk, where it keeps anything."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as kill -9 does."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=_START_S)
            self._process = None

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()[-2_000:]
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0) as client:
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        return False


@contextlib.contextmanager
def running_redis(
    folder: Path, settings: Sequence[str] = ("--appendonly", "yes", "--save", "")
) -> Iterator[RedisServer]:
    """Run a server that keeps what it is told in an append-only file; ended whatever happened.

    Args:
        folder: where its data goes.
        settings: flags of redis-server.

    Raises:
        UnavailableError: Redis is not installed.
    """
    server = RedisServer(folder / "redis", settings)
    try:
        server.start()
        yield server
    finally:
        server.kill()
