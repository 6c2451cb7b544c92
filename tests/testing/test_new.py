"""`millrace new`: what it writes works at once, and can be named in a configuration."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from millrace import cli
from millrace.config.job import read_job
from millrace.testing.new import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_transform_passes_its_test_and_fits_into_the_configuration(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    name = f"fresh_{kind}"
    assert cli.main(["new", "transform", name, "--kind", kind]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Wrote {name}.py and test_{name}.py. Try it: python -m pytest test_{name}.py\n")
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", f"test_{name}.py"]
    environment = os.environ | {"PYTEST_ADDOPTS": "-p no:bqemulator"}  # a plugin that wants Docker
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    section = out[out.index("transforms:") :].partition("\n\n")[0]
    monkeypatch.syspath_prepend(tmp_path)
    (step,) = read_job(section, "millrace.yaml").transforms
    assert step.name == name


@pytest.mark.parametrize("name", ["Fresh", "a-b", "1a", "class", "json", ""])
def test_a_name_that_is_none_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "transform", name]) == 2
    assert capsys.readouterr().err.startswith("millrace new: ")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_mine.py").write_text("mine")
    assert cli.main(["new", "transform", "mine"]) == 2
    assert capsys.readouterr().err == "millrace new: test_mine.py exists already: move it, or take another name.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["test_mine.py"]
