"""`millrace collector` as a process, for what needs its workers, its signals and its real sockets."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from millrace.collector.keys import Kind, stored
from tests.support.pubsub import wait_until

KEY = "mrs_" + "k" * 36
START_S = 90.0


def write_sources(folder: Path, more: str = "") -> Path:
    """Write a file with one server source, `shop`, whose key is KEY."""
    key = stored(KEY)
    path = folder / "millrace.yaml"
    path.write_text(
        f'sources:\n  shop:\n    kind: {Kind.SERVER.value}\n    keys: [{{begins: "{key.begins}", '
        f'sha256: "{key.sha256.hex()}"}}]\n{more}'
    )
    return path


@dataclasses.dataclass
class Serving:
    """A collector that runs."""

    process: "subprocess.Popen[str]"
    lines: list[dict[str, Any]]
    """What it logged so far."""
    port: int = 0
    admin_port: int = 0

    def __post_init__(self) -> None:
        self.reading = threading.Thread(target=self._read, daemon=True)
        self.reading.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.lines.append({"event": line.rstrip()})

    def logged(self, event: str) -> dict[str, Any] | None:
        """Return the first line of this event, None where there is none yet."""
        return next((line for line in self.lines if line["event"].startswith(event)), None)

    def worker_pids(self) -> list[int]:
        """Return the processes of its workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return sorted(int(child) for child in children)

    def admin(self, path: str) -> tuple[int, str]:
        """GET a path of the admin port."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric over its samples with these labels, once no worker is silent."""
        page = wait_until(self._page_of_all, what="every worker says how it is")
        return _sum(page, name, labels)

    def _page_of_all(self) -> str | None:
        page = self.admin("/metrics")[1]
        return page if _sum(page, "millrace_collector_workers", {}) == len(self.worker_pids()) else None

    def end(self, grace_s: float = 120.0) -> int:
        """Ask it to end, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(grace_s)
        finally:
            self.reading.join(60)


def _sum(page: str, name: str, labels: Mapping[str, str]) -> float:
    total = 0.0
    for line in page.splitlines():
        named = line.startswith((name + "{", name + " "))
        if named and all(f'{key}="{value}"' in line for key, value in labels.items()):
            total += float(line.rpartition(" ")[2])
    return total


@contextlib.contextmanager
def serving(
    folder: Path, broker: str, topic: str, *flags: str, sources: Path | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Serving]:  # fmt: skip
    """Run a collector on free ports, with its spool in the folder; killed at the end if it still runs."""
    path = sources or write_sources(folder)
    command = [
        sys.executable, "-m", "millrace.collector.run", "--topic", topic, "--sources", str(path), "--port", "0",
        "--admin_port", "0", "--spool", str(folder / "spool"), "--log", "json", *flags,
    ]  # fmt: skip
    environment = {**os.environ, "PUBSUB_EMULATOR_HOST": broker, **environment}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        running = Serving(process, [])
        try:
            deadline = time.monotonic() + START_S
            while (ready := running.logged("ready")) is None:
                assert process.poll() is None, f"the collector did not start: {running.lines}"
                assert time.monotonic() < deadline, f"the collector is not ready: {running.lines}"
                time.sleep(0.01)
            running.port, running.admin_port = ready["port"], ready["admin_port"]
            yield running
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
