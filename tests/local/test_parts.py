"""Parts: they are ended in order, and what ended otherwise is said once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from millrace.local.parts import Part, Parts, how_it_ended


def until(condition: Callable[[], Any], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {timeout_s} s"
        time.sleep(0.01)


WAITS = """
import signal, sys, time
name, path, code = sys.argv[1:]
def end(*_):
    open(path, "a").write(name + "\\n")
    sys.exit(int(code))
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
while True:
    time.sleep(60)
"""


def part(name: str, path: Path, code: int = 0) -> Part:
    command = [sys.executable, "-c", WAITS, name, str(path), str(code)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return Part(name, process)


def test_they_end_one_after_the_other_the_last_one_first(tmp_path: Path) -> None:
    parts, ended = Parts(), tmp_path / "ended"
    with parts.running(part("one", ended), 90), parts.running(part("two", ended, 3), 90, ends_well=(0, 3)):
        assert parts.fallen() is None
    assert ended.read_text().split() == ["two", "one"]
    assert parts.faults == []


def test_one_that_is_killed_is_said_once_and_the_others_end_all_the_same(tmp_path: Path) -> None:
    parts, ended = Parts(), tmp_path / "ended"
    with parts.running(part("broker", ended), 90) as broker, parts.running(part("job", ended), 90):
        os.kill(broker.process.pid, signal.SIGKILL)
        until(parts.fallen)
        assert parts.fallen() == parts.fallen() == "The broker was killed (SIGKILL)."
    assert parts.faults == ["The broker was killed (SIGKILL)."]
    assert ended.read_text().split() == ["job"]


def test_one_that_needs_what_is_gone_gets_no_grace_and_no_blame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millrace.local.parts._HOPELESS_S", 0.1)
    parts = Parts()
    stuck = subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(); signal.pause()"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert stuck.stdout is not None
    stuck.stdout.readline()
    with (
        parts.running(part("broker", tmp_path / "ended"), 90) as broker,
        parts.running(Part("job", stuck), 60, needs="broker"),
    ):
        os.kill(broker.process.pid, signal.SIGKILL)
        until(parts.fallen)
    assert stuck.returncode == -signal.SIGKILL
    assert parts.faults == ["The broker was killed (SIGKILL)."]


def test_one_that_fails_while_it_ends_is_a_fault(tmp_path: Path) -> None:
    parts = Parts()
    with parts.running(part("job", tmp_path / "ended", 1), 90):
        pass
    assert parts.faults == ["The job has ended (exit code 1) when it was told to end."]


def test_all_end_where_the_caller_fails(tmp_path: Path) -> None:
    parts, ended = Parts(), tmp_path / "ended"
    with pytest.raises(KeyError), parts.running(part("one", ended), 90), parts.running(part("two", ended), 90):
        raise KeyError
    assert ended.read_text().split() == ["two", "one"]


@pytest.mark.parametrize(
    ("code", "said"),
    [(0, "has ended (exit code 0)"), (-15, "was killed (SIGTERM)"), (-63, "was killed (signal 63)")],
)
def test_an_exit_code_in_words(code: int, said: str) -> None:
    assert how_it_ended(code) == said
