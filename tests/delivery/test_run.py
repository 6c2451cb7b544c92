"""`millrace deliver`: its refusals, in one line each, and its processes: started again, told to end, told twice."""

import contextlib
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from millrace.delivery import run
from millrace.delivery.ledger import Ledger
from millrace.local import children
from millrace.sinks.delta import Table
from tests.support.deliver_process import Delivering, delivering
from tests.support.lanes import archive, commit, ids, window

CONFIG = "sinks:\n  out: {use: console}\n  idle: {use: console}\nroutes:\n  - {to: out}\n"


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr(children, "start", fail)


def write(root: Path, text: str) -> Path:
    (root / "millrace.yaml").write_text(text)
    return root / "millrace.yaml"


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize(
    ("config", "arguments", "said"),
    [
        (None, [], "{root}/millrace.yaml: cannot be read: No such file or directory"),
        ("sinks:\n  out: {use: nothing}\n", [], "{root}/millrace.yaml:2: out: use: there is no sink 'nothing'"),
        ("sinks:\n  out: {use: console}\n", [], "millrace deliver: {root}/millrace.yaml has no routes to deliver by"),
        (CONFIG, ["--only", "out", "crm"], "millrace deliver: --only crm: {root}/millrace.yaml has no such sink"),
        (CONFIG, ["--only", "idle"], "millrace deliver: {root}/millrace.yaml has no routes to deliver by"),
        (
            CONFIG + "  - {to: out, name: live, order: none}\n",
            [],
            "millrace deliver: out.unordered has routes with `order: none`, which take the job's raw topic: ",
        ),
        (CONFIG, ["--archive", "s3://bucket/x"], "millrace deliver: s3:// is not supported in 's3://bucket/x'"),
        (CONFIG, ["--undelivered", "file:/x"], "millrace deliver: --undelivered: 'file:/x' is not a location"),
        (
            CONFIG,
            ["--archive", "gs://shop"],
            "millrace deliver: nothing can be beside gs://shop, a bucket; give --unde",
        ),
        (CONFIG, ["--state", "{root}/millrace.yaml"], "millrace deliver: --state {root}/millrace.yaml cannot be made"),
        (CONFIG, ["--port", "{port}"], "millrace deliver: --port {port} cannot be had: Address already in use"),
    ],
)
def test_a_mistake_is_told_in_one_line(  # noqa: PLR0917  pytest gives them by name
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    config: str | None,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:1")  # Google is not asked for credentials
    if config is not None:
        write(tmp_path, config)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = {"root": str(tmp_path), "port": str(taken.getsockname()[1])}
        options = ["--config", "{root}/millrace.yaml", "--archive", "{root}/archive", "--state", "{root}/state"]
        assert run.main([each.format(**given) for each in (*options, *arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said.format(**given))


@pytest.mark.parametrize("seconds", ["-1", "x", "1e9", "nan"])
def test_a_drain_that_is_no_time(capsys: pytest.CaptureFixture[str], seconds: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        run.main(["--archive=x", f"--drain_s={seconds}"])
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"must be seconds from 0 to 86400, got {seconds!r}")


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return archive(tmp_path, 1)


@contextlib.contextmanager
def faulty(root: Path, *more: str, other: str = "") -> Iterator[Delivering]:
    use = "use: 'tests.support.faulty:Faulty', with: {rejects: none, record: "
    sinks = f"  one: {{{use}{root}/one}}}}\n  two: {{{use}{root}/two}}}}\n{other}"
    write(root, f"sinks:\n{sinks}routes:\n  - {{to: one}}\n  - {{to: two}}\n")
    with delivering(root, ("one", "two"), *more) as it:
        yield it


def taken(root: Path, name: str) -> list[str]:
    path = root / name
    return [msgspec.json.decode(line)[2] for line in path.read_bytes().splitlines()] if path.exists() else []


def has(root: Path, *numbers: int, names: Sequence[str] = ("one", "two")) -> bool:
    """Whether sinks have all events of some windows."""
    there = {each for number in numbers for each in ids(window(number))}
    return all(set(taken(root, name)) == there for name in names)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def health(port: int) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def test_a_lane_that_is_killed_starts_again_where_it_was_and_another_deliver_cannot_have_it(
    table: Table, tmp_path: Path
) -> None:
    port = free_port()
    with faulty(tmp_path, "--port", str(port)) as it, faulty(tmp_path, "--only", "one") as other:
        it.start()
        it.wait(lambda: has(tmp_path, 1))
        it.wait(lambda: it.runs() and health(port) == (200, "ok\n"))
        before = it.said()
        other.start()
        assert other.ends(20) == 2
        assert it.process is not None
        assert other.said() == before + (
            f"millrace deliver: another one (process {it.process.pid}) delivers for one with --state {it.state}: "
            "end it first, nothing is lost by that\n"
        )
        it.kill_lane("one")
        it.wait(lambda: "one was killed (SIGKILL); it starts again in 0 s, where it was." in it.said())
        commit(table, 2)
        it.wait(lambda: has(tmp_path, 1, 2))
        it.terminate()
        assert it.ends(90) == 0
        assert it.said().startswith(
            f"Delivering: one, two. Ctrl-C ends it; `millrace sinks --state {it.state}` shows how it goes.\n"
        )
        assert it.said().endswith(
            "Ending: what is under way arrives. Ctrl-C once more ends it at once; what is under way then comes again.\n"
            "one: delivered 40 in this run; nothing waits.\ntwo: delivered 40 in this run; nothing waits.\n"
        )
        there = [f"{name}.{end}" for name in ("one", "two") for end in ("lock", "pid", "sqlite")]
        assert sorted(path.name for path in it.state.iterdir()) == there
        assert health(port) == (0, "")


def test_an_archive_that_is_not_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_run", lambda *_, **__: 0)
    options = ["--config", str(write(tmp_path, CONFIG)), "--state", str(tmp_path / "state")]
    assert run.main([*options, "--archive", f"{tmp_path}/archiv"]) == 0
    told = f"No archive is at {tmp_path}/archiv yet: the lanes wait for it. If it should be there, correct --archive.\n"
    assert capsys.readouterr().err == told


def test_only_some_sinks(table: Table, tmp_path: Path) -> None:
    assert table.uris()
    with faulty(tmp_path, "--only", "two", "--drain_s", "60", "--quiet") as it:
        it.start()
        it.wait(lambda: it.state_of("two"))
        it.terminate()
        assert it.ends(90) == 0
        assert has(tmp_path, 1, names=["two"])
        assert not taken(tmp_path, "one")
        assert [path.name for path in it.state.glob("*.sqlite")] == ["two.sqlite"]
        assert "Delivering" not in it.said()


def test_lanes_that_cannot_work_say_why_are_tried_again_and_hold_up_no_other(table: Table, tmp_path: Path) -> None:
    port = free_port()
    other = "  three: {use: 'tests.support.sinks:Hopeless'}\n  four: {use: console}\n"
    with faulty(tmp_path, "--port", str(port), other=other) as it:
        path = tmp_path / "millrace.yaml"
        path.write_text(path.read_text() + "  - {to: three}\n  - {to: four}\n")
        it.state.mkdir()
        (it.state / "four.sqlite").write_bytes(b"this is no database, but something else that is long enough" * 100)
        it.start()
        it.wait(lambda: has(tmp_path, 1))
        it.wait(lambda: it.said().count("three: there is no database shop: create it") >= 2)
        four = f"four: {it.state}/four.sqlite cannot be used: file is not a database"
        it.wait(lambda: it.said().count(four) >= 2)
        it.wait(lambda: health(port) == (503, "three is failed\nfour is unreadable\n"))
        it.terminate()
        assert it.ends(90) == 1
        assert "Traceback" not in it.said()
        commit(table, 2)


def test_told_to_end_it_ends_though_a_sink_hangs_in_a_thread_and_at_once_where_it_is_told_twice(
    table: Table, tmp_path: Path
) -> None:
    assert table.uris()
    stuck = "sinks:\n  out: {{use: 'tests.support.sinks:Stuck', deadline: {0}}}\nroutes:\n  - {{to: out}}\n"
    write(tmp_path, stuck.format("500ms"))
    with delivering(tmp_path, ("out",), "--quiet") as it:
        it.start()
        it.wait(lambda: it.state_of("out") and it.said_by("out")[1].in_flight)  # type: ignore[index]
        it.terminate()
        assert it.ends(90) == 0
        write(tmp_path, stuck.format("10m"))
        it.start()
        it.wait(lambda: it.state_of("out") and it.said_by("out")[1].in_flight)  # type: ignore[index]
        began = time.monotonic()
        it.terminate()
        with pytest.raises(Exception, match="timed out"):
            it.ends(1)
        it.terminate()
        assert it.ends(90) == 0
        assert time.monotonic() - began < 60  # and not the ten minutes of the sink
        assert it.state_of("out") == "stopped"
    with contextlib.closing(Ledger(tmp_path / "state" / "out.sqlite", read_only=True)) as ledger:
        assert ledger.totals() == {"routed": 20}  # all of it comes again


def test_a_lane_outlives_no_deliver(table: Table, tmp_path: Path) -> None:
    assert table.uris()
    with faulty(tmp_path) as it:
        it.start()
        it.wait(it.runs)
        pids = [it.said_by(name)[1].pid for name in ("one", "two")]  # type: ignore[index]
        it.kill()
        end = time.monotonic() + 90
        while any(_runs(pid) for pid in pids):
            assert time.monotonic() < end
            time.sleep(0.02)  # polled


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path(f"/proc/{pid}").exists() else False


def test_a_state_that_is_full_for_a_moment_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, CONFIG)
    starts: list[str] = []

    def start(module: str, arguments: list[str], *_: object) -> object:
        starts.append(Path(arguments[0]).name.split(".")[0])
        if len(starts) < 3:
            raise OSError(28, "No space left on device")
        signal.raise_signal(signal.SIGTERM)
        return _Ended()

    monkeypatch.setattr(children, "start", start)
    monkeypatch.setattr(run, "_FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(run, "_LONGEST_PAUSE_S", 0.01)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        options = ["--config", "millrace.yaml", "--archive", "archive", "--state", "state", "--quiet"]
        monkeypatch.chdir(tmp_path)
        assert run.main(options) == 0
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    assert starts == ["out"] * 3


class _Ended:
    """A process that has ended well."""

    stdin = stdout = None

    def poll(self) -> int:
        return 0

    def wait(self, _: float) -> int:
        return 0
