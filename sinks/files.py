"""The sink `files`: events as lines of JSON in files of a folder, each exactly once.

A file grows under a hidden name (`.NAME.ndjson.part`) and gets its final one when it is closed, by a rename: a reader
that takes only final names never sees a part of one. Delivered means synced, and the file's length noted in the lane's
ledger with the ids: what is beyond that length when the process ends was never said to be delivered, and is cut off at
the next start, torn line or not; what is within it is known again.
"""

import asyncio
import contextlib
import dataclasses
import gzip
import os
import secrets
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from millrace.sinks.file_names import fields_of, file_name
from millrace.sinks.recent_ids import RecentIds
from millrace.sinks.sink import DELIVERED, CannotOpenSinkError, Delivery, Memory, Outcome, Sink, SinkDownError

_LOOK_S = 1.0
"""How often is looked for files that are old enough to be closed."""


class _Note(msgspec.Struct, array_like=True, frozen=True):
    """What is noted with each delivery."""

    token: str
    """In the names of this lane's files: other lanes may write into the same folder."""
    serial: int
    parts: dict[str, tuple[int, float]]
    """Path of each open file, in the folder -> its bytes, and when it was opened (seconds since the epoch)."""


_note = msgspec.msgpack.Decoder(_Note).decode
_encode = msgspec.msgpack.Encoder().encode


@dataclasses.dataclass
class _Opened:
    """What `open` made."""

    recent: RecentIds | None = None
    token: str = ""
    serial: int = 0
    parts: dict[str, "_Part"] = dataclasses.field(default_factory=dict)
    """By the name that the template gives, or by their path."""
    lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    closer: asyncio.Task[None] | None = None
    writing: set[asyncio.Task[list[Outcome]]] = dataclasses.field(default_factory=set)

    def note(self) -> bytes:
        return _encode(_Note(self.token, self.serial, {p.path: (p.size, p.opened_s) for p in self.parts.values()}))


@dataclasses.dataclass
class _Part:
    """A file that grows."""

    path: str
    size: int
    opened_s: float
    descriptor: int


@dataclasses.dataclass(frozen=True)
class Files(Sink):
    """Writes NDJSON files.

    Attributes:
        folder: where; it is made.
        name: of the files, with {route}, {target}, {date} and {hour} (of writing, UTC); a number and `.ndjson` follow.
        roll_bytes: a file is closed when it has as many.
        roll_s: or when it is so old.
        fsync: whether delivered means synced: without it a power cut takes what was delivered last.
        compress: gzip, a member a delivery: better with larger deliveries.
    """

    folder: str
    name: str = "{route}/{date}T{hour}"
    roll_bytes: int = 128 * 1024 * 1024
    roll_s: float = 300.0
    fsync: bool = True
    compress: bool = False
    _opened: _Opened = dataclasses.field(default_factory=_Opened, init=False, repr=False, compare=False)

    keeps_ids = True
    max_in_flight = 2  # they are written one after the other; one waits, so that the disk need not

    def __post_init__(self) -> None:
        """Check the settings: ValueError, in a sentence."""
        if not self.folder:
            raise ValueError("folder must name a folder")
        fields_of(self.name)
        if self.roll_bytes <= 0 or self.roll_s <= 0:
            raise ValueError("roll_bytes and roll_s must be positive")

    def check_target(self, target: str) -> None:  # noqa: ARG002  what is unfit in it becomes _
        """Refuse a target that the files' names do not hold."""
        if "target" not in fields_of(self.name):
            raise ValueError("the files' name lacks {target}, so it would mean nothing: add that, or remove it")

    async def open(self, memory: Memory) -> None:
        """Make the folder, and cut off what was not delivered when the last process ended."""
        await self._stop()
        opened, folder = self._opened, Path(self.folder)
        try:
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise CannotOpenSinkError(f"folder {folder} cannot be made: {error.strerror}") from error
        except OSError as error:
            raise SinkDownError(f"folder {folder} cannot be made: {error.strerror}") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise CannotOpenSinkError(f"folder {folder} cannot be written to: change its owner or mode")
        recent = opened.recent = RecentIds(memory, str(folder.resolve()))
        note = _note(recent.note) if recent.note else _Note(secrets.token_hex(4), 0, {})
        opened.token, opened.serial = note.token, note.serial
        try:
            await asyncio.to_thread(self._restore, note.parts)
        except OSError as error:
            raise SinkDownError(f"a file in {folder} cannot be repaired: {error.strerror}") from error
        recent.write(opened.note())
        opened.closer = asyncio.get_running_loop().create_task(self._close_old())

    def _restore(self, noted: Mapping[str, tuple[int, float]]) -> None:
        """Open the files of this lane where they were, as long as they were when the last delivery was said."""
        opened, folder = self._opened, Path(self.folder)
        for path in folder.rglob(f".*-{opened.token}-*.part"):
            if str(path.relative_to(folder)) not in noted:
                path.unlink()  # nothing in it was ever said to be delivered
        for name, (noted_size, opened_s) in noted.items():
            if not (folder / name).exists():
                continue  # it got its final name, and the process ended before that was noted
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_APPEND)
            there = os.fstat(descriptor).st_size
            # A file that is shorter had a power cut, without fsync: its whole lines are kept.
            size = noted_size if there >= noted_size else _whole_bytes(folder / name, compress=self.compress)
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
            opened.parts[name] = _Part(name, size, opened_s, descriptor)

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        """Append the rows to a file; when it is cancelled, the write goes on, and its events are known again."""
        opened = self._opened
        if opened.recent is None:
            raise SinkDownError("the sink is not open")
        task = asyncio.get_running_loop().create_task(self._write(opened.recent, delivery))
        opened.writing.add(task)
        task.add_done_callback(self._written)
        return await asyncio.shield(task)

    def _written(self, task: asyncio.Task[list[Outcome]]) -> None:
        self._opened.writing.discard(task)
        if not task.cancelled():
            task.exception()  # seen: whoever waited for it was perhaps cancelled

    async def _write(self, recent: RecentIds, delivery: Delivery) -> list[Outcome]:
        opened = self._opened
        async with opened.lock:
            known = recent.are_known(delivery.message_ids)
            new = [row for row, is_known in enumerate(known) if not is_known]
            if new:
                lines = delivery.json()
                stem = file_name(self.name, delivery.route, delivery.target, time.time())
                await self._append(recent, stem, b"".join(lines[row] + b"\n" for row in new))
                ids = [delivery.message_ids[row] for row in new]
                recent.add(ids)
                recent.write(opened.note())
        return [DELIVERED] * len(delivery)

    async def _append(self, recent: RecentIds, stem: str, data: bytes) -> None:
        opened = self._opened
        if self.compress:
            data = await asyncio.to_thread(gzip.compress, data, 6, mtime=0)
        part = opened.parts.get(stem)
        try:
            if part is not None and part.size + len(data) > self.roll_bytes and part.size:
                await self._finish(recent, [part])
                part = None
            if part is None:
                opened.serial += 1
                part = await asyncio.to_thread(self._create, stem)
            await asyncio.to_thread(self._write_whole, part, data)
        except OSError as error:
            raise SinkDownError(f"{self.folder} cannot be written to: {error.strerror}") from error
        opened.parts[stem] = part
        part.size += len(data)

    def _create(self, stem: str) -> _Part:
        ending = "ndjson.gz" if self.compress else "ndjson"
        name = Path(f"{stem}-{self._opened.token}-{self._opened.serial:08d}.{ending}")
        path = Path(self.folder) / name.with_name(f".{name.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        _sync_folder(path.parent)
        return _Part(str(path.relative_to(self.folder)), 0, time.time(), descriptor)

    def _write_whole(self, part: _Part, data: bytes) -> None:
        """Append all of it, or nothing."""
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(part.descriptor, left) :]
            if self.fsync:
                os.fsync(part.descriptor)
        except OSError:
            with contextlib.suppress(OSError):  # where this fails too, the next start does it
                os.ftruncate(part.descriptor, part.size)
            raise

    async def _close_old(self) -> None:
        """Close files by their age, also when nothing comes any more."""
        opened = self._opened
        while True:
            await asyncio.sleep(_LOOK_S)
            async with opened.lock:
                old = [part for part in opened.parts.values() if time.time() - part.opened_s >= self.roll_s]
                if old and opened.recent is not None:
                    with contextlib.suppress(OSError):  # the next delivery says it
                        await self._finish(opened.recent, old)

    async def _finish(self, recent: RecentIds, parts: Sequence[_Part]) -> None:
        """Give files their final names."""
        opened = self._opened
        for part in parts:
            await asyncio.to_thread(self._rename, part)
            opened.parts = {stem: each for stem, each in opened.parts.items() if each is not part}
        recent.write(opened.note())

    def _rename(self, part: _Part) -> None:
        path = Path(self.folder) / part.path
        final = path.with_name(path.name.removeprefix(".").removesuffix(".part"))
        os.fsync(part.descriptor)
        path.rename(final)
        os.close(part.descriptor)
        _sync_folder(final.parent)

    async def close(self) -> None:
        """Give all files their final names."""
        opened = self._opened
        if opened.recent is not None:
            async with opened.lock:
                with contextlib.suppress(OSError):  # the next start goes on with them
                    await self._finish(opened.recent, list(opened.parts.values()))
        await self._stop()

    async def _stop(self) -> None:
        opened = self._opened
        if opened.closer is not None:
            async with opened.lock:  # not in the middle of a rename
                opened.closer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await opened.closer
        if opened.writing:
            await asyncio.gather(*opened.writing, return_exceptions=True)
        for part in opened.parts.values():
            os.close(part.descriptor)
        opened.parts, opened.recent, opened.closer = {}, None, None
        opened.lock = asyncio.Lock()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _whole_bytes(path: Path, *, compress: bool) -> int:
    """Return how many bytes of a file are whole lines, or whole members of gzip."""
    data = path.read_bytes()
    if not compress:
        return data.rfind(b"\n") + 1
    whole, left = 0, data
    while left:
        member = zlib.decompressobj(wbits=31)
        try:
            member.decompress(left)
        except zlib.error:
            break
        if not member.eof:
            break
        left = member.unused_data
        whole = len(data) - len(left)
    return whole
