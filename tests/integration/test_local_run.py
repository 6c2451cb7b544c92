"""The local run, whole: it ends in order; whatever of it is killed, it says so, and the next run makes it good."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.pubsub import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MODULES = {
    "SDKs' process": "millrace.local.sdks",
    "collector": "millrace.collector.run",
    "broker": "millrace.broker.server",
    "job": "millrace.pipelines.events",
}


class Run:
    """`millrace local` on a free port, with a short order wait."""

    def __init__(self, data: Path, *options: str) -> None:
        data.mkdir(exist_ok=True)
        self._log = data / "run.log"
        environment = {name: value for name, value in os.environ.items() if name != "PUBSUB_EMULATOR_HOST"}
        command = [sys.executable, "-m", "millrace.cli", "local", f"--data={data}", "--port=0"]
        command += ["--order_wait_s=2", "--order_window_s=1", *options]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, pattern: str) -> "re.Match[str]":
        def found() -> "re.Match[str] | None":
            assert self.process.poll() is None, self.said()[-3_000:]
            return re.search(pattern, self.said())

        match: re.Match[str] = wait_until(found, 120, f"it says {pattern}")
        return match

    def part(self, name: str) -> int:
        """Return the process id of a part."""
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                if MODULES[name] in Path(f"/proc/{child}/cmdline").read_text():
                    return int(child)
        raise AssertionError(f"there is no {name}")

    def ended(self) -> int:
        return self.process.wait(240)

    def collected(self) -> int:
        found = re.search(r"The accounting closes: collected ([\d,]+) = ", self.said())
        assert found is not None, self.said()[-3_000:]
        return int(found[1].replace(",", ""))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts runs on one data folder; none outlives the test."""
    started: list[Run] = []

    def start_one(*options: str) -> Run:
        started.append(Run(tmp_path, *options))
        return started[-1]

    yield start_one
    for run in started:
        run.process.kill()  # its parts are on a leash
        run.process.wait()


def test_ctrl_c_ends_traffic_collector_and_job_in_this_order(start: Callable[..., Run]) -> None:
    run = start("--rate=300")
    url = run.wait_for(r"Sample shop, to click through: (\S+)")[1]
    metrics = run.wait_for(r"metrics at (\S+/metrics)")[1]
    for page, shown in ((url, b"<html"), (metrics, b"millrace_collector_")):
        with urllib.request.urlopen(page, timeout=60) as answer:  # noqa: S310  our own
            assert shown in answer.read().lower()
    run.wait_for(r"archived [1-9]")
    run.process.send_signal(signal.SIGINT)
    assert run.ended() == 0, run.said()[-3_000:]
    order = ["The SDKs have ended: ", "The sample traffic has ended: ", "Draining: ", "The accounting closes: "]
    places = [run.said().find(text) for text in order]
    assert places == sorted(places), run.said()
    assert places[0] > 0, run.said()
    assert run.collected() > 100


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the parts by /proc")
def test_whatever_is_killed_is_said_and_the_next_run_archives_what_it_left(start: Callable[..., Run]) -> None:
    for name in MODULES:
        run = start("--rate=300")
        run.wait_for(r"(?m)^in [1-9]")
        os.kill(run.part(name), signal.SIGKILL)
        assert run.ended() == 1, run.said()[-3_000:]
        assert f"The {name} was killed (SIGKILL). The run ends." in run.said()
    last = start("--no-demo")
    last.wait_for(r"archived [1-9]")
    last.process.send_signal(signal.SIGINT)
    assert last.ended() == 0, last.said()[-3_000:]
    assert last.collected() > 300
