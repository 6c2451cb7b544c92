"""The spool on a real disk: order, groups, capacity, adoption, damage, and what it says when the disk refuses."""

import errno
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from millrace.collector.frames import HEADER
from millrace.collector.message import Message
from millrace.collector.spool import Spool, SpoolBrokenError, SpoolFullError, SpoolVersionError, Stats
from millrace.collector.spool_disk import Disk

CAPACITY_BYTES = 1 << 20
ALL = 1 << 30
Opener = Callable[..., Spool]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opener]:
    """Open spools under one root, and close them in the end."""
    spools: list[Spool] = []

    def open_one(capacity_bytes: int = CAPACITY_BYTES, **options: Any) -> Spool:
        spools.append(Spool(tmp_path / "spool", capacity_bytes, **options))
        return spools[-1]

    yield open_one
    for spool in spools:
        spool.close()


def message(number: int, size: int = 10) -> Message:
    return Message(f"{number:0{size}d}".encode(), {"request_id": f"r{number}"}, events=number + 1)


def append(spool: Spool, *messages: Message) -> None:
    for future in [spool.append(each) for each in messages]:
        future.result(timeout=60)


def held(spool: Spool) -> list[Message]:
    return [each for _, each in spool.oldest(ALL)]


def segments(root: Path) -> list[Path]:
    return sorted(root.rglob("*.spool"))


class GatedDisk(Disk):
    """Its fsync waits to be let through, and says that it began."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def sync(self, descriptor: int) -> None:
        self.began.release()
        assert self.gate.acquire(timeout=60)
        super().sync(descriptor)


class FailingDisk(Disk):
    """Its next calls fail with these errors, by name."""

    def __init__(self, **failing: list[int]) -> None:
        self.failing = failing

    def _may(self, name: str) -> None:
        if errors := self.failing.get(name):
            raise OSError(errors.pop(0), "simulated")

    def write(self, descriptor: int, data: bytes, at: int) -> int:
        if self.failing.get("write"):
            super().write(descriptor, data[: len(data) // 2], at)
        self._may("write")
        return super().write(descriptor, data, at)

    def sync(self, descriptor: int) -> None:
        self._may("sync")
        super().sync(descriptor)

    def read(self, path: Path, start: int, size: int) -> bytes:
        self._may("read")
        return super().read(path, start, size)

    def lock(self, path: Path) -> int | None:
        self._may("lock")
        return super().lock(path)

    def truncate(self, path: Path, size: int) -> None:
        self._may("truncate")
        super().truncate(path, size)

    def create(self, path: Path) -> int:
        self._may("create")
        return super().create(path)


def test_messages_are_read_in_order_until_they_are_settled(opened: Opener):
    spool = opened()
    messages = [message(n) for n in range(5)]
    append(spool, *messages)
    assert held(spool) == messages
    assert held(spool) == messages
    places = [place for place, _ in spool.oldest(ALL)]
    spool.settle([places[0], places[3]])
    spool.settle([places[3]])
    assert held(spool) == [messages[1], messages[2], messages[4]]


def test_reading_takes_one_message_and_more_while_they_are_within_the_limit(opened: Opener):
    spool = opened(segment_bytes=300)
    messages = [message(n, size=100) for n in range(6)]  # of 148 bytes, one a segment
    append(spool, *messages)
    assert [len(spool.oldest(limit)) for limit in (0, 1, 148, 149, 300, 446, 740, ALL)] == [1, 1, 1, 1, 2, 3, 5, 6]


def test_a_segment_is_deleted_when_all_of_it_is_settled(opened: Opener, tmp_path: Path):
    spool = opened(segment_bytes=300)
    append(spool, *(message(n, size=100) for n in range(3)))
    places = [place for place, _ in spool.oldest(ALL)]
    assert len(segments(tmp_path)) == 3
    spool.settle(places[1:2])
    assert [place.segment.rpartition("/")[2] for place in (places[0], places[2])] == [
        p.name for p in segments(tmp_path)
    ]
    spool.settle(places)
    assert segments(tmp_path) == []
    assert spool.stats()[:2] == (0, 0)
    append(spool, message(9))
    assert held(spool) == [message(9)]


def test_one_fsync_serves_all_that_waited_for_it(opened: Opener):
    disk = GatedDisk()
    spool = opened(disk=disk)
    first = spool.append(message(0))
    assert disk.began.acquire(timeout=60)
    rest = [spool.append(message(n)) for n in range(1, 200)]
    assert not first.done()
    disk.gate.release()
    first.result(timeout=60)
    assert disk.began.acquire(timeout=60)
    assert not any(future.done() for future in rest)
    assert held(spool) == [message(0)]
    disk.gate.release()
    assert wait(rest, timeout=60).not_done == set()
    assert held(spool) == [message(n) for n in range(200)]
    assert spool.stats()[5:7] == (200, 2)


def test_an_append_that_is_cancelled_while_it_waits_is_not_written(opened: Opener):
    disk = GatedDisk()
    spool = opened(disk=disk)
    first = spool.append(message(0))
    assert disk.began.acquire(timeout=60)
    waiting = spool.append(message(1))
    assert not first.cancel()
    assert waiting.cancel()
    last = spool.append(message(2))
    disk.gate.release(2)
    last.result(timeout=60)
    with pytest.raises(CancelledError):
        waiting.result(timeout=0)
    assert held(spool) == [message(0), message(2)]


def test_threads_append_while_others_read_settle_and_adopt(opened: Opener, tmp_path: Path):
    spool = opened(segment_bytes=400)  # a segment for some messages, so that they come and go

    def append_all(thread: int) -> None:
        for first in range(0, 300, 6):
            append(spool, *(message(thread * 1_000 + n) for n in range(first, first + 6)))

    seen: list[int] = []
    with ThreadPoolExecutor() as threads:
        appending = [threads.submit(append_all, thread) for thread in range(4)]
        while True:
            last_round = all(future.done() for future in appending)
            found = spool.oldest(1_000)
            spool.settle([place for place, _ in found])
            seen += [each.events - 1 for _, each in found]
            spool.adopt()
            if last_round and not found:
                break
        for future in appending:
            future.result()
    assert sorted(seen) == [thread * 1_000 + n for thread in range(4) for n in range(300)]
    for thread in range(4):
        of_thread = [number for number in seen if number // 1_000 == thread]
        assert of_thread == sorted(of_thread)
    assert (segments(tmp_path), spool.stats()[:2]) == ([], (0, 0))


def test_an_append_over_the_capacity_is_refused_until_there_is_room(opened: Opener):
    spool = opened(capacity_bytes=400, segment_bytes=200)
    append(spool, message(0, size=100), message(1, size=100))
    refused = spool.append(message(2, size=100))
    with pytest.raises(SpoolFullError, match="may hold 400") as full:
        refused.result(timeout=0)
    assert full.value.retry_after_s > 0
    spool.settle([spool.oldest(1)[0][0]])
    append(spool, message(3, size=100))
    assert held(spool) == [message(1, size=100), message(3, size=100)]


def test_what_waits_for_a_slow_disk_is_bounded(opened: Opener):
    disk = GatedDisk()
    spool = opened(disk=disk, waiting_bytes=300)
    futures = [spool.append(message(n, size=100)) for n in range(2)]
    with pytest.raises(SpoolFullError, match="wait for the disk"):
        spool.append(message(2, size=250)).result(timeout=0)
    disk.gate.release(2)
    assert wait(futures, timeout=60).not_done == set()


def test_stats_say_what_is_there_and_how_old(opened: Opener):
    now = [1_000.0]
    spool = opened(clock=lambda: now[0])
    assert spool.stats() == Stats(0, 0, CAPACITY_BYTES, 0.0, 0, 0, 0, 0, 0, 0, 0, None)
    append(spool, message(0))
    now[0] = 1_030.0
    append(spool, message(1))
    stats = spool.stats()
    assert stats == Stats(2, stats.bytes, CAPACITY_BYTES, 30.0, 0, 2, 2, 0, 0, 0, 0, None)
    (place, _), _ = spool.oldest(ALL)
    assert place.spooled_us == 1_000_000_000
    spool.settle([place])
    assert spool.stats().oldest_age_s == 0.0
    now[0] = 10.0  # the clock was set back
    assert spool.stats().oldest_age_s == 0.0


def test_the_next_process_goes_on_with_what_was_left(opened: Opener, tmp_path: Path):
    messages = [message(n, size=100) for n in range(4)]
    spool = opened(segment_bytes=350)
    append(spool, *messages)
    spool.settle([place for place, _ in spool.oldest(ALL)[:2]])
    left = spool.close()
    assert left[:2] == (2, len(segments(tmp_path)[0].read_bytes()))
    later = opened(segment_bytes=350)
    append(later, message(4))
    assert held(later) == [*messages[2:], message(4)]
    later.settle([place for place, _ in later.oldest(ALL)])
    assert later.close().messages == 0
    assert list((tmp_path / "spool").iterdir()) == []


def test_progress_within_a_segment_is_not_kept(opened: Opener):
    """Its messages come again after a start; downstream the same message id is the same event."""
    spool = opened()
    append(spool, message(0), message(1))
    spool.settle([spool.oldest(1)[0][0]])
    spool.close()
    assert held(opened()) == [message(0), message(1)]


def test_a_living_process_keeps_its_folder(opened: Opener):
    first = opened()
    append(first, message(0))
    second = opened()
    append(second, message(1))
    assert (second.adopt(), first.adopt()) == (0, 0)
    assert (held(first), held(second)) == ([message(0)], [message(1)])
    first.close()
    assert second.adopt() == 1
    assert held(second) == [message(0), message(1)]


def test_leftovers_are_adopted_as_far_as_they_fit(opened: Opener):
    dead = [opened() for _ in range(3)]
    for n, spool in enumerate(dead):
        append(spool, message(n, size=300))
    for spool in dead:
        spool.close()
    first = opened(capacity_bytes=400)
    second = opened(capacity_bytes=800)
    assert (held(first), held(second)) == ([message(0, size=300)], [message(1, size=300), message(2, size=300)])


def test_what_the_dead_left_is_read_before_what_the_living_append(opened: Opener):
    living, dead = opened(), opened()
    append(living, message(0))
    append(dead, message(1))
    dead.close()
    assert living.adopt() == 1
    append(living, message(2))
    living.settle([place for place, each in living.oldest(ALL) if each == message(0)])
    append(living, message(3))
    assert held(living) == [message(1), message(2), message(3)]


def test_what_waits_for_the_disk_leaves_less_room_to_adopt(opened: Opener):
    dead = opened()
    disk = GatedDisk()
    living = opened(capacity_bytes=400, disk=disk)
    append(dead, message(0, size=300))
    dead.close()
    waiting = living.append(message(1))
    assert disk.began.acquire(timeout=60)
    assert living.adopt() == 0
    disk.gate.release()
    waiting.result(timeout=60)
    living.settle([place for place, _ in living.oldest(ALL)])
    assert living.adopt() == 1
    assert held(living) == [message(0, size=300)]


def test_a_full_disk_that_has_no_room_for_a_lock_does_not_stop_the_start(opened: Opener):
    spool = opened()
    append(spool, message(0))
    spool.close()
    later = opened(disk=FailingDisk(lock=[errno.ENOSPC]))
    assert held(later) == []
    assert later.adopt() == 1
    assert held(later) == [message(0)]


def test_leftovers_larger_than_the_capacity_are_adopted_by_an_empty_spool(opened: Opener):
    spool = opened()
    append(spool, *(message(n, size=300) for n in range(9)))
    spool.close()
    small = opened(capacity_bytes=400)
    assert len(held(small)) == 9
    with pytest.raises(SpoolFullError):
        small.append(message(9)).result(timeout=0)
    small.settle([place for place, _ in small.oldest(ALL)])
    append(small, message(9))


def test_damaged_frames_are_set_aside_with_their_offset_and_the_others_are_read(opened: Opener, tmp_path: Path):
    spool = opened()
    messages = [message(n) for n in range(4)]
    append(spool, *messages)
    spool.close()
    (path,) = segments(tmp_path)
    data = bytearray(path.read_bytes())
    size = (len(data) - len(HEADER)) // 4
    place = len(HEADER) + size
    data[place + 40] ^= 1
    path.write_bytes(data)
    later = opened()
    assert held(later) == [messages[0], *messages[2:]]
    assert later.stats()[7:10] == (1, 1, 0)
    aside = tmp_path / "spool" / "set-aside" / f"{path.parent.name}.{path.name}.{place}.corrupt"
    assert aside.read_bytes() == data[place : place + size]
    later.close()
    again = opened()  # finds the same, and the file that is there
    assert again.stats()[7:10] == (1, 1, 0)
    again.settle([p for p, _ in again.oldest(ALL)])
    assert segments(tmp_path) == []
    assert [p.name for p in aside.parent.iterdir()] == [aside.name]


def test_a_frame_that_rots_while_the_process_lives_is_set_aside_when_it_is_read(opened: Opener, tmp_path: Path):
    spool = opened()
    append(spool, message(0), message(1))
    (path,) = segments(tmp_path)
    with path.open("r+b") as file:
        file.seek(len(HEADER) + 40)
        file.write(b"\xff\xff")
    assert len(spool.oldest(1)) == 1
    assert held(spool) == [message(1)]
    assert spool.stats()[7:9] == (1, 1)
    assert len(list((tmp_path / "spool" / "set-aside").iterdir())) == 1


def test_a_segment_stays_while_its_damage_cannot_be_set_aside(opened: Opener, tmp_path: Path):
    disk = FailingDisk()
    spool = opened(disk=disk)
    append(spool, message(0))
    (path,) = segments(tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    disk.failing["create"] = [errno.ENOSPC] * 2
    assert held(spool) == []
    spool.settle([])
    assert segments(tmp_path) == [path]
    assert spool.stats()[7:9] == (1, 0)
    spool.settle([])
    assert segments(tmp_path) == []
    assert spool.stats()[7:9] == (1, 1)


def test_a_torn_tail_is_cut_off_and_counted(opened: Opener, tmp_path: Path):
    spool = opened()
    append(spool, message(0), message(1))
    spool.close()
    (path,) = segments(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    later = opened()
    assert held(later) == [message(0)]
    assert later.stats()[7:10] == (0, 0, 1)
    assert path.read_bytes() == data[: len(HEADER) + (len(data) - len(HEADER)) // 2]


def test_a_segment_of_another_version_is_refused_and_left_alone(opened: Opener, tmp_path: Path):
    older = opened()
    append(older, message(0))
    newer = opened()
    append(newer, message(1))
    older.close()
    newer.close()
    first, second = segments(tmp_path)
    head = b"MR SPOOL\x00\x00\x00\x09"
    first.write_bytes(head + zlib.crc32(head).to_bytes(4, "big") + first.read_bytes()[len(HEADER) :])
    before = first.read_bytes()
    with pytest.raises(SpoolVersionError, match=rf"{first} has spool format 9, and this Millrace reads format 1"):
        opened()
    assert (first.read_bytes(), second.exists()) == (before, True)
    first.rename(tmp_path / "elsewhere")
    assert held(opened()) == [message(1)]


def test_a_failed_write_is_undone_and_later_frames_are_readable(opened: Opener, tmp_path: Path):
    disk = FailingDisk()
    spool = opened(disk=disk)
    append(spool, message(0))
    size = segments(tmp_path)[0].stat().st_size
    disk.failing["write"] = [errno.ENOSPC]
    with pytest.raises(SpoolFullError):
        spool.append(message(1)).result(timeout=60)
    assert (segments(tmp_path)[0].stat().st_size, spool.stats().refusing) == (size, "full")
    append(spool, message(2))
    assert spool.stats().refusing is None
    spool.close()
    later = opened()
    assert held(later) == [message(0), message(2)]
    assert later.stats()[7:10] == (0, 0, 0)


def test_what_could_not_be_undone_is_not_read_and_counts_as_full(opened: Opener, tmp_path: Path):
    disk = FailingDisk()
    spool = opened(disk=disk)
    append(spool, message(0))
    disk.failing |= {"write": [errno.EIO], "truncate": [errno.EIO]}
    with pytest.raises(SpoolBrokenError):
        spool.append(message(1, size=1_000)).result(timeout=60)
    append(spool, message(2))
    first, second = segments(tmp_path)
    assert spool.stats().bytes >= first.stat().st_size + second.stat().st_size
    assert held(spool) == [message(0), message(2)]
    spool.close()
    later = opened()
    assert held(later) == [message(0), message(2)]
    assert later.stats()[7:10] == (0, 0, 1)


def test_after_a_failed_fsync_the_group_goes_into_another_segment(opened: Opener, tmp_path: Path):
    disk = FailingDisk()
    spool = opened(disk=disk)
    append(spool, message(0))
    disk.failing["sync"] = [errno.EIO]
    append(spool, message(1))
    append(spool, message(2))
    assert [len(path.read_bytes().split(b"request_id")) - 1 for path in segments(tmp_path)] == [1, 2]
    assert held(spool) == [message(0), message(1), message(2)]


def test_a_disk_that_fails_again_refuses_and_takes_the_next(opened: Opener):
    disk = FailingDisk()
    spool = opened(disk=disk)
    append(spool, message(0))
    disk.failing["sync"] = [errno.EIO, errno.EIO]
    with pytest.raises(SpoolBrokenError, match="the disk refused") as broken:
        spool.append(message(1)).result(timeout=60)
    assert broken.value.retry_after_s > 0
    assert spool.stats().refusing == "broken"
    append(spool, message(2))
    spool.close()
    assert held(opened()) == [message(0), message(2)]


def test_a_segment_that_the_disk_does_not_read_is_left_alone(opened: Opener, tmp_path: Path):
    disk = FailingDisk()
    spool = opened(disk=disk, segment_bytes=300)
    append(spool, message(0, size=200), message(1, size=200))
    disk.failing["read"] = [errno.EIO]
    assert held(spool) == [message(1, size=200)]
    assert spool.stats()[0] == 1
    assert spool.stats().unreadable_segments == 1
    spool.settle([place for place, _ in spool.oldest(ALL)])
    spool.close()
    assert held(opened()) == [message(0, size=200)]


def test_a_read_that_fails_for_now_is_tried_again(opened: Opener):
    disk = FailingDisk()
    spool = opened(disk=disk)
    append(spool, message(0))
    disk.failing["read"] = [errno.EMFILE]
    with pytest.raises(SpoolBrokenError):
        spool.oldest(ALL)
    assert held(spool) == [message(0)]


def test_a_closed_spool_has_written_what_waited_and_takes_no_more(opened: Opener):
    spool = opened()
    futures = [spool.append(message(n)) for n in range(50)]
    left = spool.close()
    assert (left.messages, all(future.done() and future.exception() is None for future in futures)) == (50, True)
    with pytest.raises(SpoolBrokenError, match="closed"):
        spool.append(message(9)).result(timeout=0)
    assert spool.oldest(ALL) == []
    assert held(opened()) == [message(n) for n in range(50)]


def test_what_could_not_be_published_either_is_refused_at_once(opened: Opener):
    with pytest.raises(ValueError, match="at most 10485760"):
        opened().append(Message(bytes(11_000_000), {}))


def test_a_message_of_ten_megabytes_fits(opened: Opener):
    spool = opened(capacity_bytes=20_000_000, segment_bytes=1_000)
    large = Message(os.urandom(10_000_000), {"content-encoding": "gzip"})
    append(spool, message(0), large, message(1))
    assert held(spool) == [message(0), large, message(1)]


def test_only_its_owner_may_read_what_is_spooled(opened: Opener, tmp_path: Path):
    append(opened(), message(0))
    assert [path.stat().st_mode & 0o077 for path in segments(tmp_path)] == [0]


def test_a_root_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SpoolBrokenError, match="file/spool"):
        Spool(tmp_path / "file" / "spool", CAPACITY_BYTES)


def test_other_files_in_the_root_are_left_alone(opened: Opener, tmp_path: Path):
    spool = opened()
    append(spool, message(0))
    folder = segments(tmp_path)[0].parent
    spool.close()
    strangers = [tmp_path / "spool" / "notes.txt", folder / "notes.txt"]
    for path in strangers:
        path.write_text("mine")
    later = opened()
    later.settle([place for place, _ in later.oldest(ALL)])
    later.close()
    assert [path.read_text() for path in strangers] == ["mine", "mine"]
