"""A PostgreSQL server for tests and benchmarks: Debian's, in a folder of its own, on a free port of 127.0.0.1.

with running_postgres(tmp_path) as server:
    connection = await asyncpg.connect(server.dsn)
"""

import contextlib
import functools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.node import UnavailableError
from tests.support.pubsub import wait_until

_START_S = 90.0
_SETTINGS = ("max_connections=30", "shared_buffers=32MB", "logging_collector=off")


@functools.cache
def postgres_programs() -> Path:
    """Return the folder of initdb and postgres.

    Raises:
        UnavailableError: PostgreSQL is not installed.
    """
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    found = shutil.which("initdb")
    folders += [] if found is None else [Path(found).resolve().parent]
    for folder in reversed(folders):
        if (folder / "initdb").exists():
            return folder
    raise UnavailableError("PostgreSQL is not installed (Debian: apt-get install postgresql)")


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PostgresServer:
    """A server that can be stopped, killed and started again; its data stays.

    Attributes:
        folder: holds data, its data directory, and log.
    """

    def __init__(self, folder: Path, settings: Sequence[str] = ()) -> None:
        self.folder = folder
        self.port = free_port()
        self.dsn = f"postgresql://millrace@127.0.0.1:{self.port}/postgres"
        self._settings = (*_SETTINGS, *settings)
        self._process: subprocess.Popen[bytes] | None = None
        self._as = _other_user()
        command = ["initdb", "--auth=trust", "--no-sync", "--username=millrace", "--encoding=UTF8", "--locale=C"]
        self._run([*command, "-D", str(folder / "data")])
        access = folder / "data" / "pg_hba.conf"
        access.write_text("host all app all scram-sha-256\n" + access.read_text())

    @property
    def pid(self) -> int:
        """The process that all others of the server come from."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        options = [f"port={self.port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}"]
        flags = [part for each in (*options, *self._settings) for part in ("-c", each)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(postgres_programs() / "postgres"), "-D", str(self.folder / "data"), *flags],
                stdout=log,
                stderr=log,
                user=self._as,
                group=None if self._as is None else pwd.getpwnam(self._as).pw_gid,
                extra_groups=None if self._as is None else [],
                cwd=self.folder,
            )
        wait_until(self._is_ready, _START_S, "PostgreSQL is ready")

    def stop(self) -> None:
        """End it at once but in order, as a restart does (`fast`): open transactions are rolled back."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it and all its processes as kill -9 does; the next start recovers from the log."""
        if self._process is None:
            return
        children = [
            int(each)
            for tasks in Path(f"/proc/{self.pid}/task").glob("*/children")
            for each in tasks.read_text().split()
        ]
        self._end(signal.SIGKILL)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        wait_until(lambda: not any(map(_is_alive, children)), what="its processes are gone")

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=_START_S)
            self._process = None

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()[-2_000:]
        command = [str(postgres_programs() / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0

    def _run(self, command: Sequence[str]) -> None:
        done = subprocess.run(
            [str(postgres_programs() / command[0]), *command[1:]],
            user=self._as,
            group=None if self._as is None else pwd.getpwnam(self._as).pw_gid,
            extra_groups=None if self._as is None else [],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2_000:]


@contextlib.contextmanager
def running_postgres(folder: Path, settings: Sequence[str] = ()) -> Iterator[PostgresServer]:
    """Run a server: user millrace needs no password, a user app does; ended whatever happened.

    Args:
        folder: where its data goes. Not so for root: then PostgreSQL runs as another user, to whom pytest closes its
            folders, and has a temporary one that is removed in the end.
        settings: `name=value`, as in postgresql.conf.

    Raises:
        UnavailableError: PostgreSQL is not installed.
    """
    with contextlib.ExitStack() as stack:
        user = _other_user()
        if user is None:
            folder = folder / "postgres"
            folder.mkdir(parents=True)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="millrace-postgres-")))
            shutil.chown(folder, user)
        server = PostgresServer(folder, settings)
        stack.callback(server.kill)
        server.start()
        yield server


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"  # nobody may collect it
    except OSError:
        return False


def _other_user() -> str | None:
    """Return as whom it runs: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    return next(name for name in ("postgres", "nobody") if name in {each.pw_name for each in pwd.getpwall()})
