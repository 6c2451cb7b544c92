"""Prism's process: ready when it says so, gone when its owner is, whatever the owner died of."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to

from millrace.local.orphans import Identity, end_orphans, note_down
from millrace.local.prism import Prism, PrismStartError, find_prism

# It waits in short steps: a signal that comes just before one long wait would be seen only after it.
OWNER = """
import select, signal, sys
from pathlib import Path
from millrace.local.prism import Prism
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born deaf to it
with Prism(Path(sys.argv[1]), log=Path(sys.argv[2]) / "prism.log", notes=Path(sys.argv[2]) / "notes") as prism:
    print(prism.pid, flush=True)
    while not select.select([sys.stdin], [], [], 0.05)[0]:
        pass
"""

STUBBORN = """
import concurrent.futures, grpc, signal, sys, threading
signal.signal(signal.SIGTERM, signal.SIG_IGN)
server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
server.add_insecure_port("127.0.0.1:" + sys.argv[1].partition("=")[2])
server.start()
threading.Event().wait()
"""


@pytest.fixture(scope="session")
def binary() -> Path:
    return find_prism(None, print)


@pytest.fixture
def owner(binary: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that owns a Prism; its first line is the Prism's id."""
    command = [sys.executable, "-c", OWNER, str(binary), str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def until(condition: Callable[[], bool], limit_s: float = 90.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    return Identity.of(pid) is not None


def prism_of(owner: subprocess.Popen[bytes]) -> int:
    assert owner.stdout
    return int(owner.stdout.readline())


def children(pid: int) -> list[int]:
    """Return the children of a process, from /proc, which is all that these tests need."""
    return [
        int(stat.parent.name)
        for stat in Path("/proc").glob("[0-9]*/stat")
        if _text(stat).rpartition(")")[2].split()[1:2] == [str(pid)]
    ]


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the test looks into /proc")


def test_a_pipeline_runs_on_it_with_its_workers_in_this_process(binary: Path, tmp_path: Path) -> None:
    seen_in = tmp_path / "process"

    def note_process(value: tuple[str, list[int]]) -> tuple[str, list[int]]:
        seen_in.write_text(str(os.getpid()))
        return value

    with Prism(binary, log=tmp_path / "prism.log", notes=tmp_path / "notes") as prism:
        assert len(list((tmp_path / "notes").iterdir())) == 1
        with beam.Pipeline(options=PipelineOptions(prism.pipeline_arguments)) as pipeline:
            pairs = pipeline | beam.Create([("ann", 1), ("bob", 2), ("ann", 3)]) | beam.GroupByKey()
            found = pairs | beam.MapTuple(lambda user, values: (user, sorted(values))) | beam.Map(note_process)
            assert_that(found, equal_to([("ann", [1, 3]), ("bob", [2])]))
        pid = prism.pid
        assert prism.exit_code is None
    assert not alive(pid)
    assert seen_in.read_text() == str(os.getpid())
    assert list((tmp_path / "notes").iterdir()) == []


def test_two_run_side_by_side_and_stopping_twice_is_stopping_once(binary: Path, tmp_path: Path) -> None:
    one, two = (Prism(binary, log=tmp_path / "prism.log", notes=tmp_path / "notes") for _ in range(2))
    with one, two:
        first, second = one.pid, two.pid
        assert one.endpoint != two.endpoint
        one.stop()
        one.stop()
        assert (alive(first), alive(second)) == (False, True)
    assert not alive(second)


def test_that_it_was_killed_shows_in_its_exit_code(binary: Path, tmp_path: Path) -> None:
    with Prism(binary, log=tmp_path / "prism.log", notes=tmp_path / "notes") as prism:
        os.kill(prism.pid, signal.SIGKILL)
        until(lambda: prism.exit_code is not None)
        assert prism.exit_code == -signal.SIGKILL


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_goes_with_its_owner_whatever_the_owner_dies_of(
    owner: subprocess.Popen[bytes], sign: signal.Signals
) -> None:
    prism = prism_of(owner)
    assert alive(prism)
    owner.send_signal(sign)
    owner.wait(90)
    until(lambda: not alive(prism))


@needs_proc
def test_its_leash_leaves_with_it(owner: subprocess.Popen[bytes]) -> None:
    prism = prism_of(owner)
    (leash,) = children(prism)
    owner.kill()
    until(lambda: not alive(prism) and not alive(leash))


@needs_proc
def test_a_forked_child_of_the_owner_does_not_keep_it_alive(binary: Path, tmp_path: Path) -> None:
    forking = OWNER.replace(
        "    print", "    import os\n    if os.fork() == 0:\n        sys.stdin.read()\n    print", 1
    )
    command = [sys.executable, "-W", "ignore", "-c", forking, str(binary), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        prism = prism_of(owner)
        owner.kill()
        owner.wait()
        until(lambda: not alive(prism))


@needs_proc
def test_an_orphan_is_ended_by_the_next_start(binary: Path, tmp_path: Path, owner: subprocess.Popen[bytes]) -> None:
    orphan = prism_of(owner)
    (leash,) = children(orphan)
    os.kill(leash, signal.SIGKILL)  # the leash ignores nothing that strong: now Prism outlives its owner
    until(lambda: not alive(leash))
    owner.kill()
    owner.wait()
    assert alive(orphan)
    with Prism(binary, log=tmp_path / "prism.log", notes=tmp_path / "notes") as prism:
        assert not alive(orphan)
        assert [note.name for note in (tmp_path / "notes").iterdir()] == [f"{prism.pid}.json"]


def test_another_owners_prism_is_no_orphan(binary: Path, tmp_path: Path, owner: subprocess.Popen[bytes]) -> None:
    theirs = prism_of(owner)
    with Prism(binary, log=tmp_path / "prism.log", notes=tmp_path / "notes"):
        assert alive(theirs)
    assert [note.name for note in (tmp_path / "notes").iterdir()] == [f"{theirs}.json"]


def test_a_stranger_under_a_noted_id_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as stranger:
        until(lambda: "sys.stdin" in getattr(Identity.of(stranger.pid), "command", ""))
        note = note_down(stranger.pid, tmp_path)
        told = json.loads(note.read_text())
        told["owner"]["started"] = "before"  # so the owner is gone
        for field, value in (("started", "0"), ("command", "prism --job_port=1")):
            note.write_text(json.dumps(told | {"child": told["child"] | {field: value}}))
            assert (end_orphans(tmp_path), note.exists(), stranger.poll()) == ([], False, None)
        note.write_text(json.dumps(told))
        assert (end_orphans(tmp_path), note.exists()) == ([stranger.pid], False)


def put(path: Path, program: str) -> Path:
    path.write_text(program)
    path.chmod(0o755)
    return path


def test_one_that_ends_instead_of_answering_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    lines = "".join(f"echo line {number}\n" for number in range(20))
    broken, log = put(tmp_path / "broken", f"#!/bin/sh\n{lines}exit 3\n"), tmp_path / "logs" / "prism.log"
    log.parent.mkdir()
    log.write_text("of an earlier run\n")
    with pytest.raises(PrismStartError) as told, Prism(broken, log=log, notes=tmp_path):
        pass
    end = "\n".join(f"line {number}" for number in range(5, 20))
    assert str(told.value) == f"Prism ({broken}) ended with 3. The end of its log, {log}:\n{end}"


def test_one_that_is_not_ready_in_time_is_reported_and_ended(tmp_path: Path) -> None:
    silent, log = put(tmp_path / "silent", "#!/bin/sh\necho $$\nexec sleep 600\n"), tmp_path / "log"
    with pytest.raises(PrismStartError) as told, Prism(silent, log=log, ready_s=1.0, notes=tmp_path):
        pass
    pid = log.read_text().strip()
    assert str(told.value) == f"Prism ({silent}) did not answer within 1 s. The end of its log, {log}:\n{pid}"
    assert not alive(int(pid))


def test_one_that_does_not_end_when_told_to_is_killed_after_the_grace(tmp_path: Path) -> None:
    stubborn = put(tmp_path / "stubborn", f"#!{sys.executable}\n{STUBBORN}")
    with Prism(stubborn, log=tmp_path / "log", grace_s=0.2, notes=tmp_path / "notes") as prism:
        pid = prism.pid
        began = time.monotonic()
    assert not alive(pid)
    assert 0.2 <= time.monotonic() - began < 5


def test_a_port_that_was_taken_in_the_meantime_is_tried_again_with_another(binary: Path, tmp_path: Path) -> None:
    said, log = "listen tcp :1: bind: address already in use", tmp_path / "log"
    first_time = f">{tmp_path}/tried\necho {said}\nexit 2\n"
    once = put(tmp_path / "once", f"#!/bin/sh\n[ -e {tmp_path}/tried ] && exec {binary} $*\n{first_time}")
    with Prism(once, log=log, notes=tmp_path / "notes") as prism:
        assert prism.exit_code is None
    assert log.read_text().splitlines()[0] == said
