"""The spool under kill -9, and on a disk that is really full."""

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.collector.message import Message
from millrace.collector.spool import Spool, SpoolFullError

CAPACITY_BYTES = 1 << 30
ALL = 1 << 30

# Appends for ever, some at a time, and prints each number once its message is on disk.
_APPEND_FOR_EVER = """
import itertools, sys
from pathlib import Path
from millrace.collector.message import Message
from millrace.collector.spool import Spool
spool = Spool(Path(sys.argv[1]), 1 << 30, segment_bytes=20_000)
def say(number):
    return lambda future: print(number, flush=True) if future.exception() is None else None
for first in itertools.count(int(sys.argv[2]), 20):
    for number in range(first, first + 20):
        future = spool.append(Message(b"x" * (number % 700), {"number": str(number)}))
        future.add_done_callback(say(number))
    future.result()
"""


def test_what_a_killed_process_acknowledged_is_there_in_order(tmp_path: Path):
    moments = random.Random(5)  # noqa: S311  the same every time
    acknowledged: list[int] = []
    for run in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", _APPEND_FOR_EVER, str(tmp_path), str(run * 1_000_000)],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            acknowledged += [int(process.stdout.readline()) for _ in range(moments.randrange(1, 400))]
            process.kill()
            acknowledged += [int(line) for line in process.stdout if line.endswith("\n")]
    spool = Spool(tmp_path, CAPACITY_BYTES)
    found = [message for _, message in spool.oldest(ALL)]
    numbers = [int(message.attributes["number"]) for message in found]
    assert set(acknowledged) <= set(numbers)
    assert numbers == sorted(set(numbers))
    assert [message.body for message in found] == [b"x" * (number % 700) for number in numbers]
    spool.settle([place for place, _ in spool.oldest(ALL)])
    assert spool.close().corrupt_frames == 0
    assert list(tmp_path.iterdir()) == []


# Says what it holds, and holds it until its input ends.
_ADOPT_AND_HOLD = """
import sys
from pathlib import Path
from millrace.collector.spool import Spool
sys.stdin.readline()
spool = Spool(Path(sys.argv[1]), 1 << 30)
print(*(message.attributes["number"] for _, message in spool.oldest(1 << 30)), flush=True)
sys.stdin.readline()
"""


def test_processes_that_start_together_adopt_each_folder_once(tmp_path: Path):
    dead = [Spool(tmp_path, CAPACITY_BYTES) for _ in range(12)]
    for number, spool in enumerate(dead):
        spool.append(message(number)).result(timeout=60)
    for spool in dead:
        spool.close()
    command = [sys.executable, "-c", _ADOPT_AND_HOLD, str(tmp_path)]
    living = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    held: list[str] = []
    for process in living:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in living:
        assert process.stdout is not None
        held += process.stdout.readline().split()
    for process in living:
        process.communicate("\n", timeout=60)
    assert sorted(map(int, held)) == list(range(12))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB of its own."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def message(number: int) -> Message:
    return Message(number.to_bytes(4, "big") * 2_500, {"number": str(number)})


def fill(spool: Spool) -> list[Message]:
    """Append until the disk is full; return what was acknowledged."""
    taken: list[Message] = []
    while True:
        future = spool.append(message(len(taken)))
        try:
            future.result(timeout=60)
        except SpoolFullError:
            return taken
        taken.append(message(len(taken)))


def test_a_full_disk_refuses_keeps_what_it_has_and_takes_more_once_there_is_room(small_disk: Path):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(300_000))
    spool = Spool(small_disk / "spool", CAPACITY_BYTES, segment_bytes=150_000)
    taken = fill(spool)
    assert 50 < len(taken) < 100
    assert spool.stats().refusing == "full"
    assert [each for _, each in spool.oldest(ALL)] == taken

    ballast.unlink()
    for _ in range(5):
        taken.append(message(len(taken)))
        spool.append(taken[-1]).result(timeout=60)
    assert spool.stats().refusing is None
    assert [each for _, each in spool.oldest(ALL)] == taken
    spool.close()


def test_a_process_starts_on_a_full_disk_and_makes_room_by_sending_on(small_disk: Path):
    spool = Spool(small_disk / "spool", CAPACITY_BYTES, segment_bytes=150_000)
    taken = fill(spool)
    with (small_disk / "ballast").open("wb", buffering=0) as ballast:
        while True:
            try:
                ballast.write(bytes(512))
            except OSError:
                break
    spool.close()

    later = Spool(small_disk / "spool", CAPACITY_BYTES, segment_bytes=150_000)
    assert [each for _, each in later.oldest(ALL)] == taken
    with pytest.raises(SpoolFullError):
        later.append(message(0)).result(timeout=60)
    later.settle([place for place, _ in later.oldest(ALL)])
    later.append(message(0)).result(timeout=60)
    assert [each for _, each in later.oldest(ALL)] == [message(0)]
    later.close()
