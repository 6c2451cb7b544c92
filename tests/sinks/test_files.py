"""The sink `files`."""

import asyncio
import contextlib
import errno
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from millrace.sinks import files
from millrace.sinks.files import Files
from millrace.sinks.sink import DELIVERED, CannotOpenSinkError, Delivery, Memory, SinkDownError
from millrace.testing import DictMemory, check_sink, deliveries_of, track
from tests.sinks.child_deliveries import PART


def final(folder: Path) -> dict[str, list[str]]:
    """The message_ids in each file with a final name, by its name without the lane's token."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            stem, _, number = path.name.split(".")[0].rsplit("-", 2)
            assert not data or data.endswith(b"\n")
            name = f"{path.parent.relative_to(folder)}/{stem}-{int(number)}"
            found[name] = [json.loads(line)["message_id"] for line in data.splitlines()]
    return found


def ids(folder: Path) -> list[str]:
    return [
        each
        for _, held in sorted(final(folder).items(), key=lambda file: int(file[0].rsplit("-", 1)[1]))
        for each in held
    ]


def parts(folder: Path) -> list[Path]:
    return sorted(folder.rglob(".*.part"))


def delivery(*message_ids: str, **more: Any) -> Delivery:
    events = [track("Order Completed", user="ann", at=n, message_id=each) for n, each in enumerate(message_ids)]
    return deliveries_of(events, **more)[0]


@contextlib.asynccontextmanager
async def opened(sink: Files, memory: Memory | None = None) -> AsyncIterator[Files]:
    await sink.open(memory or DictMemory())
    try:
        yield sink
    finally:
        await sink.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time, in seconds since 2026-01-05 12:00 UTC."""
    now = [0.0]
    monkeypatch.setattr(time, "time", lambda: 1_767_614_400 + now[0])

    def set_to(at: float) -> None:
        now[0] = at

    return set_to


@pytest.mark.parametrize("compress", [False, True])
def test_it_keeps_what_every_sink_has_to(tmp_path: Path, *, compress: bool):
    def read() -> list[str]:
        return ids(tmp_path / "out")

    report = check_sink(
        lambda: Files(folder=str(tmp_path / "out"), compress=compress), read=_by_serial(tmp_path / "out")
    )
    print(f"\nfiles: {report.events_per_s:,.0f} events/s, {report.cpu_us_per_event:.1f} us of CPU an event")
    assert not parts(tmp_path)
    assert read()


def _by_serial(folder: Path) -> Callable[[], list[str]]:
    """Reads files in the order in which they were written: each check of the kit has a token of its own."""

    def read() -> list[str]:
        found = []
        for path in sorted(folder.rglob("*.ndjson*"), key=lambda path: (path.stat().st_mtime_ns, path.name)):
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            found += [json.loads(line)["message_id"] for line in data.splitlines()]
        return found

    return read


def test_lines_are_the_rows_without_their_nulls_and_json_is_json(tmp_path: Path):
    async def story() -> None:
        async with opened(Files(folder=str(tmp_path))) as sink:
            event = track("Order Completed", user="ann", message_id="a", properties={"total": 3, "none": None})
            (given,) = deliveries_of([event], route="crm")
            assert await sink.deliver(given) == [DELIVERED]

    asyncio.run(story())
    (path,) = (tmp_path / "crm").iterdir()
    line = json.loads(path.read_text())
    assert line["properties"] == {"total": 3, "none": None}
    assert (line["occurred_at"], "context_ip" in line) == ("2026-01-05T12:00:00.000000Z", False)


def test_delivered_means_synced_and_a_reader_of_final_names_sees_whole_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    synced: list[int] = []
    fsync = os.fsync

    def noted_fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted_fsync)

    async def story() -> None:
        async with opened(Files(folder=str(tmp_path), name="{route}")) as sink:
            synced.clear()
            await sink.deliver(delivery("a", "b"))
            (part,) = parts(tmp_path)
            assert synced[-1] == part.stat().st_size > 0
            assert final(tmp_path) == {}
        assert final(tmp_path) == {"./route-1": ["a", "b"]}

    asyncio.run(story())


def test_files_are_closed_by_their_size(tmp_path: Path):
    async def story() -> None:
        one = len(b"".join(delivery("a").json())) + 1
        async with opened(Files(folder=str(tmp_path), name="{route}", roll_bytes=2 * one + 10)) as sink:
            for each in "abcde":
                await sink.deliver(delivery(each))
            assert final(tmp_path) == {"./route-1": ["a", "b"], "./route-2": ["c", "d"]}
            await sink.deliver(delivery("f", "g", "h"))
        assert final(tmp_path) == {
            "./route-1": ["a", "b"], "./route-2": ["c", "d"], "./route-3": ["e"], "./route-4": ["f", "g", "h"],
        }  # fmt: skip

    asyncio.run(story())


def test_files_are_closed_by_their_age_also_when_nothing_comes(
    tmp_path: Path, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "_LOOK_S", 0.001)

    async def story() -> None:
        clock(0)
        async with opened(Files(folder=str(tmp_path), roll_s=60)) as sink:
            await sink.deliver(delivery("a"))
            clock(59)
            await sink.deliver(delivery("b"))
            assert final(tmp_path) == {}
            clock(60)
            while parts(tmp_path):
                await asyncio.sleep(0.001)
            assert final(tmp_path) == {"route/2026-01-05T12-1": ["a", "b"]}
            clock(3_600)
            await sink.deliver(delivery("c"))
        assert list(final(tmp_path)) == ["route/2026-01-05T12-1", "route/2026-01-05T13-2"]

    asyncio.run(story())


def test_routes_and_targets_name_files_inside_the_folder_whatever_they_are_called(tmp_path: Path):
    async def story() -> None:
        async with opened(Files(folder=str(tmp_path / "out"), name="{route}/{target}")) as sink:
            for route, target in (("a", "x"), ("a", "../../x"), ("..", "/etc/x"), ("b", "")):
                assert await sink.deliver(delivery("m", "n", route=route, target=target)) == [DELIVERED] * 2

    asyncio.run(story())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out"]
    assert {name.rsplit("-", 1)[0] for name in final(tmp_path / "out")} == {"a/x"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "compress"),
    [("after_write", False), ("torn", False), ("torn", True), ("after_note", False), ("after_rename", False)],
)
def test_a_process_that_is_killed_leaves_each_event_once_and_no_torn_line(
    tmp_path: Path, where: str, *, compress: bool
):
    count = 8 * PART
    command = [sys.executable, "-m", "tests.sinks.files_child", str(tmp_path), str(count), str(compress)]
    killed = subprocess.run([*command, where], check=False, timeout=120, capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert ids(tmp_path / "out") == [f"m{n:06}" for n in range(len(ids(tmp_path / "out")))]
    subprocess.run([*command, "never"], check=True, timeout=120, capture_output=True)
    assert ids(tmp_path / "out") == [f"m{n:06}" for n in range(count)]
    assert not parts(tmp_path)


def test_a_file_that_a_power_cut_shortened_is_cut_to_whole_lines(tmp_path: Path):
    async def story() -> None:
        for compress in (False, True):
            folder, memory = tmp_path / str(compress), DictMemory()
            sink = Files(folder=str(folder), fsync=False, compress=compress)
            await sink.open(memory)
            await sink.deliver(delivery("a", "b"))
            await sink.deliver(delivery("c", "d"))
            await sink._stop()  # as a process ends, with the file open
            (part,) = parts(folder)
            os.truncate(part, part.stat().st_size - 5)
            async with opened(sink, memory):
                await sink.deliver(delivery("e"))
            (first,) = (held for name, held in final(folder).items() if name.endswith("-1"))
            assert first == (["a", "b"] if compress else ["a", "b", "c"])

    asyncio.run(story())


def test_two_lanes_of_one_sink_share_a_folder(tmp_path: Path):
    async def story() -> None:
        one, other = Files(folder=str(tmp_path)), Files(folder=str(tmp_path))
        memory = DictMemory()
        await one.open(memory)
        await other.open(DictMemory())
        await one.deliver(delivery("a"))
        await other.deliver(delivery("b"))
        async with opened(one, memory):  # it is opened again, and leaves the other's file alone
            await other.deliver(delivery("c"))
        await other.close()

    asyncio.run(story())
    assert sorted(each for path in tmp_path.rglob("*.ndjson") for each in _ids_of(path)) == ["a", "b", "c"]
    assert not parts(tmp_path)


def _ids_of(path: Path) -> list[str]:
    return [json.loads(line)["message_id"] for line in path.read_text().splitlines()]


def test_a_full_disk_puts_the_sink_down_and_leaves_no_part_of_a_delivery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = os.write
    is_full = True

    def write(descriptor: int, data: bytes) -> int:
        if is_full:
            if len(data) > 100:
                return real(descriptor, data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    async def story() -> None:
        nonlocal is_full
        memory = DictMemory()
        async with opened(Files(folder=str(tmp_path)), memory) as sink:
            is_full = False
            await sink.deliver(delivery("a"))
            is_full = True
            monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data[:150])))
            with pytest.raises(SinkDownError, match="No space left on device"):
                await sink.deliver(delivery("b"))
            is_full = False
            await sink.open(memory)
            assert await sink.deliver(delivery("b")) == [DELIVERED]

    asyncio.run(story())
    assert ids(tmp_path) == ["a", "b"]


def test_a_folder_that_cannot_be_is_said(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(CannotOpenSinkError, match="cannot be made"):
        asyncio.run(Files(folder=str(tmp_path / "file" / "below")).open(DictMemory()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"folder": ""}, "folder must name a folder"),
        ({"name": "{user}"}, r"name may hold \{date\}, \{hour\}, \{route\}, \{target\}, got '\{user\}'"),
        ({"name": "{route"}, "name is no template"),
        ({"name": "../{route}"}, "name must name a file inside the folder"),
        ({"name": "/{route}"}, "name must name a file inside the folder"),
        ({"roll_s": 0}, "roll_bytes and roll_s must be positive"),
    ],
)
def test_settings_that_cannot_work_are_said(given: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Files(**{"folder": "out", **given})
