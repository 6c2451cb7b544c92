"""A BigQuery for tests: bqemulator as a process that can be stopped, killed and started again on its data."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery

PROJECT = "shop-test"
DATASET = "events"
_START_S = 90.0


@dataclasses.dataclass
class RunningBigQuery:
    """A bqemulator; its streams are in its memory, its tables on the disk."""

    folder: Path
    rest_port: int
    grpc_port: int
    _process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def rest_endpoint(self) -> str:
        return f"http://127.0.0.1:{self.rest_port}"

    @property
    def settings(self) -> dict[str, Any]:
        """What the sink's `with` needs to find it."""
        return {"endpoint": self.endpoint, "rest_endpoint": self.rest_endpoint}

    def table(self, name: str) -> str:
        return f"{PROJECT}.{DATASET}.{name}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "tests.support.bigquery_server", "start", "--project", PROJECT,
                   "--rest-port", str(self.rest_port), "--grpc-port", str(self.grpc_port),
                   "--data-dir", str(self.folder / "data"), "--log-level", "warning"]  # fmt: skip
        environment = {**os.environ, "BQEMU_ENABLE_FORMAT_EXTENSIONS": "0", "PYTHONWARNINGS": "ignore"}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, cwd=Path(__file__).parents[2]
            )
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"bqemulator did not start: {(self.folder / 'log').read_text()[-2_000:]}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.rest_endpoint}/healthz", timeout=1):  # noqa: S310
                socket.create_connection(("127.0.0.1", self.grpc_port), 1).close()
                return True
        except (OSError, urllib.error.URLError):
            return False

    def stop(self) -> None:
        """End it as it wants to be ended."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill -9."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @contextlib.contextmanager
    def client(self) -> Iterator[bigquery.Client]:
        client = bigquery.Client(
            project=PROJECT,
            credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
            client_options=ClientOptions(api_endpoint=self.rest_endpoint),
        )
        try:
            yield client
        finally:
            client.close()

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with self.client() as client:
            return [tuple(row.values()) for row in client.query(sql, job_retry=None).result()]

    def ids(self, name: str) -> list[str]:
        """Return the message_ids of a table, sorted: a copy is there twice."""
        table = self.table(name)
        return [row[0] for row in self.query(f"SELECT message_id FROM `{table}` ORDER BY message_id")]  # noqa: S608


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def running_bigquery(folder: Path) -> Iterator[RunningBigQuery]:
    """Run a BigQuery with the dataset `events` of the project `shop-test`, in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    server = RunningBigQuery(folder, free_port(), free_port())
    server.start()
    try:
        with server.client() as client:
            client.create_dataset(f"{PROJECT}.{DATASET}")
        yield server
    finally:
        server.stop()
