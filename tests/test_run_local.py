"""run_local.sh: it makes its environment once, notices a half-made one, and is out of the way of the job."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A Python that writes down what it is asked, makes environments of itself, and is told by files how to behave.
PYTHON = """#!/bin/bash
case "$*" in
    "-c "*print*) cat "$HERE/version" ;;
    "-c "*) exit 0 ;;
    "-VV") echo "Python of the test" ;;
    "-m venv "*)
        echo "venv" >> "$HERE/calls"
        mkdir -p "$3/bin" && cp "$HERE/bin/python3.11" "$3/bin/python" && cp "$HERE/version" "$3/pyvenv.cfg" ;;
    "-m pip install "*)
        echo "pip ${!#}" >> "$HERE/calls"
        while [ -e "$HERE/pip_waits" ]; do sleep 0.01; done
        echo "Collecting everything"
        if [ -e "$HERE/pip_fails" ]; then echo "ERROR: no network"; exit 1; fi ;;
    *)
        echo "run $* in $PWD" >> "$HERE/calls"
        if [ -e "$HERE/job_waits" ]; then
            trap 'echo drained >> "$HERE/calls"; exit 5' TERM
            echo "pid $$" >> "$HERE/calls"
            while :; do sleep 0.01; done
        fi
        exit "$(cat "$HERE/exit_code" 2>/dev/null || echo 0)" ;;
esac
"""


class Checkout:
    """A checkout with the real script, and a machine whose only Python is the one above."""

    def __init__(self, here: Path) -> None:
        self.here = here
        self.root = here / "check out"  # a space, as in "My Documents"
        for folder in (here / "bin", here / "elsewhere", self.root / ".ci"):
            folder.mkdir(parents=True)
        shutil.copy(ROOT / "run_local.sh", self.root)
        self.write(self.root / "setup.py", "one")
        self.write(self.root / ".ci" / "check", '#!/bin/sh\necho "check ${1##*/.venv}" >> "$HERE/calls"\n')
        self.write(here / "bin" / "python3.11", PYTHON)
        self.write(here / "version", "3.11")
        self.env = {"HERE": str(here), "PATH": f"{here}/bin:/usr/bin:/bin", "HOME": str(here)}

    def write(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def switch(self, name: str, *, on: bool) -> None:
        if on:
            (self.here / name).touch()
        else:
            (self.here / name).unlink()

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.root / "run_local.sh", *arguments],
            cwd=self.here / "elsewhere",
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        with self.start(*arguments) as process:
            output = process.communicate(timeout=150)[0]
        return process.returncode, output

    def calls(self) -> list[str]:
        """Return what was asked since the last look, with the test's own folder left out."""
        record = self.here / "calls"
        said = record.read_text().replace(f"{self.here}/", "").splitlines() if record.exists() else []
        record.unlink(missing_ok=True)
        return said


JOB = "run -m millrace.cli local in elsewhere"
TESTS = ["check /bin/python", "run -m pytest in check out"]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def until(condition: Callable[[], bool], limit_s: float = 90.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def asked(checkout: Checkout, text: str) -> bool:
    record = checkout.here / "calls"
    return record.exists() and text in record.read_text()


def test_the_first_run_sets_up_and_the_second_only_runs(checkout: Checkout) -> None:
    code, output = checkout.run("--rate", "5", "--data", "my data")
    ran = "run -m millrace.cli local --rate 5 --data my data in elsewhere"
    assert (code, checkout.calls()) == (0, ["venv", "pip check out[local]", ran])
    assert "making" in output
    assert "ready after" in output
    assert checkout.run("--rate", "5", "--data", "my data") == (0, "")
    assert checkout.calls() == [ran]


def test_the_tests_need_more_than_the_job_and_bring_it_along(checkout: Checkout) -> None:
    assert checkout.run()[0] == 0
    assert checkout.calls() == ["venv", "pip check out[local]", JOB]
    assert checkout.run("test")[0] == 0
    assert checkout.calls() == ["pip check out[test]", *TESTS]
    assert checkout.run() == checkout.run("test") == (0, "")
    assert checkout.calls() == [JOB, *TESTS]


def test_findings_of_the_check_end_the_test_run_with_its_code(checkout: Checkout) -> None:
    checkout.write(checkout.root / ".ci" / "check", "#!/bin/sh\nexit 7\n")
    assert checkout.run("test", "-k", "one")[0] == 7
    assert checkout.calls() == ["venv", "pip check out[test]"]


def test_another_setup_py_is_installed_into_the_same_environment(checkout: Checkout) -> None:
    checkout.run()
    checkout.calls()
    (checkout.root / "setup.py").write_text("two")
    assert checkout.run()[0] == 0
    assert checkout.calls() == ["pip check out[local]", JOB]


def test_a_moved_checkout_is_set_up_again(checkout: Checkout) -> None:
    checkout.run()
    checkout.calls()
    checkout.root = checkout.root.rename(checkout.here / "moved")
    assert checkout.run()[0] == 0
    assert checkout.calls() == ["pip moved[local]", JOB]


def test_another_python_that_is_asked_for_makes_another_environment(checkout: Checkout) -> None:
    checkout.run()
    checkout.calls()
    checkout.write(checkout.here / "bin" / "mine", PYTHON.replace('cat "$HERE/version"', "echo 3.13"))
    checkout.env["PYTHON"] = "mine"
    assert checkout.run()[0] == 0
    assert checkout.calls() == ["venv", "pip check out[local]", JOB]


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_setup_that_was_interrupted_is_noticed_and_redone(checkout: Checkout, sign: signal.Signals) -> None:
    checkout.switch("pip_waits", on=True)
    with checkout.start() as process:
        until(lambda: asked(checkout, "pip"))
        os.killpg(process.pid, sign)
    assert process.returncode != 0
    checkout.switch("pip_waits", on=False)
    (checkout.root / ".venv" / "rubbish").touch()
    checkout.calls()
    assert checkout.run()[0] == 0
    assert checkout.calls() == ["venv", "pip check out[local]", JOB]
    assert not (checkout.root / ".venv" / "rubbish").exists()


def test_an_environment_that_somebody_else_made_is_used_and_never_removed(checkout: Checkout) -> None:
    (checkout.root / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(checkout.here / "bin" / "python3.11", checkout.root / ".venv" / "bin" / "python")
    checkout.switch("pip_fails", on=True)
    assert checkout.run()[0] == 2
    (checkout.root / ".venv" / "precious").touch()
    checkout.switch("pip_fails", on=False)
    assert checkout.run()[0] == 0
    assert checkout.calls() == ["pip check out[local]", "pip check out[local]", JOB]
    assert (checkout.root / ".venv" / "precious").exists()


def test_what_pip_said_is_shown_when_it_fails(checkout: Checkout) -> None:
    checkout.switch("pip_fails", on=True)
    code, output = checkout.run()
    assert code == 2
    assert output.splitlines()[-3:] == [
        "Collecting everything",
        "ERROR: no network",
        "run_local: pip could not install it: see above; run this again to try again",
    ]


@pytest.mark.skipif(shutil.which("flock") is None, reason="there is no flock here")
def test_of_two_at_once_one_sets_up_and_the_other_waits_for_it(checkout: Checkout) -> None:
    checkout.switch("pip_waits", on=True)
    with checkout.start() as one:
        until(lambda: asked(checkout, "pip"))
        with checkout.start() as two:
            assert two.stdout
            assert two.stdout.readline() == "run_local: another run is setting up: waiting for it\n"
            checkout.switch("pip_waits", on=False)
            one.communicate(timeout=150)
            two.communicate(timeout=150)
    assert (one.returncode, two.returncode) == (0, 0)
    assert checkout.calls() == ["venv", "pip check out[local]", JOB, JOB]


def test_a_running_job_does_not_keep_others_from_setting_up(checkout: Checkout) -> None:
    checkout.switch("job_waits", on=True)
    with checkout.start() as job:
        until(lambda: asked(checkout, "pid"))
        checkout.switch("job_waits", on=False)
        assert checkout.run("test")[0] == 0
        job.terminate()


def test_exit_codes_and_signals_pass_through(checkout: Checkout) -> None:
    (checkout.here / "exit_code").write_text("3")
    assert checkout.run()[0] == 3
    checkout.calls()
    checkout.switch("job_waits", on=True)
    with checkout.start() as job:
        until(lambda: asked(checkout, "pid"))
        job.send_signal(signal.SIGTERM)
    assert (job.returncode, checkout.calls()) == (5, [JOB, f"pid {job.pid}", "drained"])


@pytest.mark.parametrize("named", [False, True])
def test_without_a_new_enough_python_it_says_what_is_needed(checkout: Checkout, *, named: bool) -> None:
    for name in ("python3.11", "python3.12", "python3.13", "python3", "python"):  # shims that lead nowhere
        checkout.write(checkout.here / "bin" / name, "#!/bin/sh\nexit 127\n")
    if named:
        checkout.env["PYTHON"] = "python3.12"
    code, output = checkout.run()
    assert code == 2
    assert output == (
        "run_local: PYTHON=python3.12 is not a Python 3.11 or newer that runs\n"
        if named
        else "run_local: no Python 3.11 or newer on the PATH; install one "
        "(Debian: apt-get install python3 python3-venv), or say PYTHON=/path/to/python\n"
    )


def test_help_sets_nothing_up(checkout: Checkout) -> None:
    code, output = checkout.run("--help")
    assert code == 0
    assert output.startswith("./run_local.sh [OPTION...]")
    assert checkout.calls() == []
    checkout.run()
    checkout.calls()
    assert checkout.run("--help")[0] == 0
    assert checkout.calls() == ["run -m millrace.cli local --help in elsewhere"]
