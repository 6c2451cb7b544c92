"""What the doctor says: what works, what does not, and what to do about it."""

import doctest
import importlib.metadata
import platform
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from apache_beam.runners.portability.prism_runner import PrismJobServer

from millrace import cli
from millrace.local import doctor
from millrace.local.doctor import Finding, State
from millrace.local.prism import find_prism
from millrace.local.prism_binary import BEAM_VERSION


@pytest.fixture(autouse=True)
def _bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(PrismJobServer, "BIN_CACHE", str(tmp_path / "beam"))
    for name in ("PRISM_LOCATION", "PUBSUB_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def prism() -> Path:
    return find_prism(None, print)


def test_the_examples_of_its_layout_are_true() -> None:
    assert doctest.testmod(doctor).failed == 0


def test_a_machine_that_has_everything_is_ready(
    prism: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "find_google_emulator", lambda: Path("/jar"))
    monkeypatch.setattr(doctor, "DISK_BYTES", 1)
    monkeypatch.setattr(doctor, "BEAM_VERSION", "2")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 << 30))
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ["pytest>=8", 'nonesuch; extra == "test"'])
    assert cli.main(["doctor", "--prism_location", str(prism), "--data", str(tmp_path / "not" / "yet")]) == 0
    lines = capsys.readouterr().out.splitlines()
    seconds = lines[2].rpartition(" after ")[2]
    assert lines == [
        f"ok      Python           {platform.python_version()}, {sys.executable}",
        "ok      packages         all 1 that are needed, Beam 2",
        f"ok      Prism            {prism}, answers after {seconds}",
        "ok      Pub/Sub          the embedded broker (PUBSUB_EMULATOR_HOST is not set)",
        f"ok      data             3.0 GiB free in {tmp_path}",
        "ok      ports            127.0.0.1 can be listened on and reached",
        "ok      Google emulator  /jar",
        "",
        "Ready: ./run_local.sh will start.",
    ]


def test_what_is_wrong_is_named_and_makes_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "DISK_BYTES", 1 << 62)
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "not a host")
    assert cli.main(["doctor", "--prism_location", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "Not ready: Prism, Pub/Sub, data."


def test_packages_that_are_missing_or_of_a_wrong_version_are_named() -> None:
    found = doctor.check_packages(["pytest<1", "nonesuch>=2", "pyarrow", "tzdata; sys_platform == 'nowhere'"])
    version = importlib.metadata.version("pytest")
    assert found == Finding(
        "packages",
        State.WRONG,
        f"pytest is {version}, needed is <1; nonesuch is missing",
        "remove .venv and run ./run_local.sh, which makes it anew",
    )


def test_a_prism_that_is_not_there_yet_is_no_mystery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert doctor.check_prism(None) == Finding(
        "Prism",
        State.WRONG,
        f"no Prism {BEAM_VERSION} yet",
        "nothing, if there is a network: ./run_local.sh downloads it, "
        "or builds it with Go from PyPI (about 90 s, once)",
    )


def test_a_prism_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    broken = tmp_path / "prism"
    broken.write_text("#!/bin/sh\n[ $1 = -h ] && echo -job_port && exit 0\necho out of luck\nexit 1\n")
    broken.chmod(0o755)
    found = doctor.check_prism(str(broken))
    assert (found.state, found.found) == (State.WRONG, f"{broken} does not start")
    assert found.advice.splitlines()[-1] == "out of luck"


def test_a_pubsub_that_is_named_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", there)
        assert doctor.check_pubsub() == Finding(
            "Pub/Sub", State.OK, f"something answers at PUBSUB_EMULATOR_HOST={there}"
        )
    found = doctor.check_pubsub()
    assert (found.state, found.advice) == (
        State.WRONG,
        "start that server, or unset PUBSUB_EMULATOR_HOST to use the embedded broker",
    )


def test_without_java_googles_emulator_is_absent_and_that_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert doctor.check_google_emulator()[:3] == ("Google emulator", State.ABSENT, "no Java")


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = doctor.check_data(tmp_path / "file")
    assert found == Finding(
        "data", State.WRONG, f"{tmp_path / 'file'} cannot be written to: Not a directory", "name another by --data"
    )
