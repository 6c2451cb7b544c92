"""The local run's collector: when it is ready, what of its log is shown, and why it did not start."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from millrace.local import collector as local_collector
from millrace.local.collector import Front, collector
from millrace.local.parts import CannotRunError, Part, Parts

READY = '{"event": "ready", "level": "info", "host": "127.0.0.1", "port": 8181, "admin_port": 8282, "workers": 1}'


@pytest.fixture
def speaking(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A process in place of the collector: writes these lines to its standard error, then lives on or ends."""
    program: list[str] = []

    def start(module: str, arguments: list[str], _environment: Any, errors: int) -> "subprocess.Popen[str]":
        assert module == "millrace.collector.run"
        assert "--topic=projects/millrace-local/topics/events" in arguments
        command = [sys.executable, "-c", "\n".join(program)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors, text=True)

    monkeypatch.setattr("millrace.local.children.start", start)
    return program


def says(*lines: str) -> list[str]:
    return ["import sys", *(f"print({line!r}, file=sys.stderr, flush=True)" for line in lines)]


LIVES = ["import signal", "signal.sigwait([signal.SIGTERM])"]
BLOCKS = ["import signal", "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])"]


def test_it_is_ready_when_it_says_so_and_only_what_matters_is_shown(speaking: list[str], tmp_path: Path) -> None:
    lines = [
        '{"event": "starting", "level": "info"}',
        READY,
        '{"event": "the breaker is open", "level": "warning", "why": "x"}',
        '{"event": "ended", "level": "info"}',
        "Python's own words",
    ]
    speaking += [*BLOCKS, *says(*lines[:2]), *LIVES, *says(*lines[2:])]
    said: list[str] = []
    parts = Parts()
    with collector(tmp_path, 0, parts, said.append) as front:
        assert (front.url, front.admin_url) == ("http://localhost:8181", "http://localhost:8282")
        assert parts.fallen() is None
    assert said == [f"collector: the breaker is open (more in {tmp_path / 'collector.log'})", "Python's own words"]
    assert (tmp_path / "collector.log").read_text().splitlines() == lines
    assert parts.faults == []


def test_one_that_does_not_start_says_why(speaking: list[str], tmp_path: Path) -> None:
    speaking += [*says("millrace collector: cannot listen on 127.0.0.1:80: Permission denied"), "sys.exit(2)"]
    said: list[str] = []
    with pytest.raises(CannotRunError) as caught, collector(tmp_path, 80, Parts(), said.append):
        raise AssertionError("it is not ready")
    assert str(caught.value) == (
        "the collector did not start on port 80 (--port): cannot listen on 127.0.0.1:80: Permission denied"
    )
    assert said == []


def test_one_that_fails_as_it_starts_says_all(speaking: list[str], tmp_path: Path) -> None:
    speaking += [*says("Traceback", "  File", "KeyError: 'x'"), "sys.exit(1)"]
    said: list[str] = []
    with pytest.raises(CannotRunError, match=r"KeyError: 'x'$"), collector(tmp_path, 0, Parts(), said.append):
        raise AssertionError("it is not ready")
    assert said == ["Traceback", "  File"]


def test_one_that_says_nothing_is_not_waited_for_for_ever(
    speaking: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_collector, "_READY_S", 0.1)
    speaking += [*LIVES]
    with pytest.raises(CannotRunError, match="it says nothing"), collector(tmp_path, 0, Parts(), lambda _: None):
        raise AssertionError("it is not ready")


@pytest.mark.parametrize(
    ("code", "faults"), [(0, []), (3, []), (1, ["The collector has ended (exit code 1) when it was told to end."])]
)
def test_events_left_in_the_spool_are_for_the_accounts_to_tell(
    speaking: list[str], tmp_path: Path, code: int, faults: list[str]
) -> None:
    speaking += [*BLOCKS, *says(READY), *LIVES, f"sys.exit({code})"]
    parts = Parts()
    with collector(tmp_path, 0, parts, lambda _: None):
        pass
    assert parts.faults == faults


def test_the_ways_in_have_the_key_that_may_stand_there() -> None:
    part = Part("collector", subprocess.Popen([sys.executable, "-c", ""], text=True))
    part.process.wait()
    said = Front("http://localhost:1", "http://localhost:2", part).ways_in(
        {"shop-web": "mrb_web", "shop-app": "mrm_app", "shop-server": "mrs_server"}
    )
    assert said.splitlines() == [
        "Collector: http://localhost:1, metrics at http://localhost:2/metrics. To send it an event:",
        "  export WRITE_KEY=mrs_server",
        '  curl http://localhost:1/v1/track -u "$WRITE_KEY:" -H "Content-Type: application/json" \\',
        """       -d '{"userId": "ann", "event": "Hello"}'""",
        "Sample shop, to click through: http://localhost:1/demo?key=mrb_web",
    ]
