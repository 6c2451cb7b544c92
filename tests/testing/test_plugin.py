"""The pytest plugin, in a pytest of its own."""

import os
import subprocess
import sys
from pathlib import Path

TEST = """
import datetime as dt
import pytest

@pytest.mark.parametrize("value", ["a b/c"])
def test_it(golden, value):
    golden([{"at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "value": VALUE, "bytes": b"x"}])
    golden([], "empty")
"""
FILE = """[
  {
    "at": "2026-01-01T00:00:00+00:00",
    "bytes": "eA==",
    "value": 1
  }
]
"""


def run(folder: Path, value: str, *options: str) -> tuple[int, str]:
    (folder / "test_it.py").write_text(TEST.replace("VALUE", value))
    command = [sys.executable, "-m", "pytest", "-p", "millrace.testing.plugin", "-q", *options]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_a_golden_file_is_written_once_asked_for_compared_and_its_difference_shown(tmp_path: Path):
    code, out = run(tmp_path, "1")
    assert code == 1
    assert "test_it-a-b-c.json: look at what the test finds, then run it with --update-golden" in out
    assert not (tmp_path / "golden").exists()
    assert run(tmp_path, "1", "--update-golden")[0] == 0
    assert sorted(path.name for path in (tmp_path / "golden").iterdir()) == [
        "test_it-a-b-c.empty.json",
        "test_it-a-b-c.json",
    ]
    assert (tmp_path / "golden" / "test_it-a-b-c.json").read_text() == FILE
    assert run(tmp_path, "1")[0] == 0
    code, out = run(tmp_path, "2")
    assert code == 1
    assert '-    "value": 1' in out
    assert '+    "value": 2' in out
    code, out = run(tmp_path, "object()")
    assert (code, "a golden file cannot hold object" in out) == (1, True)
