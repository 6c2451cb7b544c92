"""The README's commands, run as a newcomer would: what it shows is what happens."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from tests.support.pubsub import wait_until

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def block(language: str, after: str) -> str:
    """Return the first code block of a language after a heading."""
    part = README.partition(f"## {after}")[2]
    found = re.search(rf"```{language}\n(.*?)```", part, re.DOTALL)
    assert found is not None
    return found[1]


def started(data: Path, *options: str) -> "subprocess.Popen[bytes]":
    environment = {name: value for name, value in os.environ.items() if name != "PUBSUB_EMULATOR_HOST"}
    command = [block("bash", "See it work").strip(), "--data", str(data), "--port", "0", *options]
    with (data / "out").open("w") as out:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def test_the_one_command_ends_with_accounts_that_close(tmp_path):
    run = started(tmp_path, "--for", "12", "--rate", "300")
    assert run.wait(300) == 0, (tmp_path / "out").read_text()
    said = (tmp_path / "out").read_text()
    for shown in ("The sample traffic has ended", "One user's journey (", "The accounting closes: collected "):
        assert shown in said
        assert shown in README
    sums = re.search(r"collected ([\d,]+) = archived ([\d,]+) \+ duplicates ([\d,]+) \+ dead letters ([\d,]+)", said)
    assert sums is not None
    collected, archived, duplicates, dead = (int(number.replace(",", "")) for number in sums.groups())
    assert collected == archived + duplicates + dead > 500


def test_the_event_that_is_sent_becomes_the_row_that_is_shown(tmp_path):
    run = started(tmp_path, "--no-demo", "--order_wait_s=5", "--order_window_s=1")
    try:
        said = tmp_path / "out"
        ways_in = re.compile(r"Collector: (http://localhost:\d+),.*\n.*export WRITE_KEY=(\S+)")
        url, key = wait_until(lambda: ways_in.search(said.read_text()), 120, "the collector is ready").groups()
        shown_url = "http://localhost:8080/"
        assert shown_url in block("bash", "An event")
        snippet = ["bash", "-c", block("bash", "An event").replace(shown_url, f"{url}/")]
        environment = {**os.environ, "WRITE_KEY": key}
        told = subprocess.run(snippet, env=environment, check=True, timeout=120, capture_output=True, text=True)
        assert told.stdout == '{"success":true}'
        wait_until(lambda: "archived 1 " in said.read_text(), 120, "the event is archived")
        os.kill(run.pid, signal.SIGINT)
        assert run.wait(120) == 0, said.read_text()
    finally:
        run.kill()
        run.wait()
    query = block("sql", "An event").replace("data/archive", str(tmp_path / "archive"))
    row = [str(value) for value in duckdb.execute(query).fetchall()[0]]
    shown = re.split(r" {2,}", block("text", "An event").splitlines()[1].strip())
    assert [value.lower() if value in {"True", "False"} else value for value in row] == shown


def test_the_job_s_help_is_what_the_readme_says():
    command = "python -m pipelines.events --help"
    assert command in README
    done = subprocess.run(
        [sys.executable, *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert "--order_wait_s" in done.stdout
