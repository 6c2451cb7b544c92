"""A disk in memory that fills up, fails, and loses power: what was not synced goes sector by sector, in any order."""

import errno
import os
from collections import Counter
from pathlib import Path
from random import Random

from millrace.collector.spool_disk import Disk

SECTOR_BYTES = 16
"""Small, so that small files have many."""


class _File:
    """What the processes see, what is on the platter, and which bytes have yet to go there."""

    def __init__(self) -> None:
        self.seen = bytearray()
        self.kept = bytearray()
        self.dirty: list[tuple[int, int]] = []

    def write(self, data: bytes, at: int) -> None:
        self.seen[len(self.seen) : at] = bytes(max(0, at - len(self.seen)))
        self.seen[at : at + len(data)] = data
        self.dirty.append((at, at + len(data)))

    def truncate(self, size: int) -> None:
        del self.seen[size:]
        self.dirty = [(start, min(end, size)) for start, end in self.dirty if start < size]

    def sync(self) -> None:
        self._keep([range_ for range_ in self.dirty if range_[0] < range_[1]], len(self.seen))
        self.dirty = []

    def sync_fails(self, random: Random) -> None:
        """Some of it is kept; of the rest nobody knows any more that it has yet to be written."""
        self._keep(self._some_sectors(random), random.choice([len(self.kept), len(self.seen)]))
        self.dirty = []

    def lose_power(self, random: Random) -> None:
        low, high = sorted((len(self.kept), len(self.seen)))
        self._keep(self._some_sectors(random), random.randint(low, high))
        self.seen, self.dirty = bytearray(self.kept), []

    def _some_sectors(self, random: Random) -> list[tuple[int, int]]:
        return [
            (at, min(at + SECTOR_BYTES, end))
            for start, end in self.dirty
            for at in range(start, end, SECTOR_BYTES)
            if random.random() < 0.5
        ]

    def _keep(self, ranges: list[tuple[int, int]], size: int) -> None:
        for start, end in ranges:
            self.kept[len(self.kept) : start] = bytes(max(0, start - len(self.kept)))
            self.kept[start:end] = self.seen[start:end]
        del self.kept[size:]
        self.kept.extend(bytes(size - len(self.kept)))


Names = dict[Path, "_File | None"]  # None is a folder


class SimulatedDisk(Disk):
    """One machine's disk. `owner` is the process that calls."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.owner = "main"
        self.room_bytes: int | None = None
        """What files may still grow by; None: any."""
        self.failing: dict[str, list[int]] = {}
        """By call: the errors of its next calls."""
        self.calls: Counter[str] = Counter()
        self._seen: Names = {Path("/"): None}
        self._kept: Names = dict(self._seen)
        self._locks: dict[Path, str] = {}
        self._open: dict[int, Path | _File] = {}

    def kill(self, owner: str) -> None:
        """End a process: its locks go, what it wrote stays."""
        self._locks = {path: holder for path, holder in self._locks.items() if holder != owner}

    def lose_power(self) -> None:
        """End all processes, and lose some of what was not synced."""
        self._locks.clear()
        for path in self._known():
            if (path in self._seen) != (path in self._kept) and self.random.random() < 0.5:
                self._keep_name(path)
        # What stands in a folder that is gone is gone.
        names = {path: file for path, file in self._kept.items() if all(above in self._kept for above in path.parents)}
        for file in names.values():
            if file is not None:
                file.lose_power(self.random)
        self._seen, self._kept = dict(names), dict(names)

    def segments(self) -> dict[Path, bytes]:
        """Return what the processes see in the segment files."""
        return {path: bytes(file.seen) for path, file in self._seen.items() if file and path.suffix == ".spool"}

    def rot(self, path: Path, at: int) -> None:
        """Change a byte, on the platter too."""
        file = self._file(path)
        file.seen[at] ^= 0x55
        file.kept[at] ^= 0x55

    def names(self, folder: Path) -> list[str]:
        self._call("names")
        return [path.name for path in self._seen if path.parent == folder and path != folder]

    def make_folder(self, folder: Path) -> None:
        if folder not in self._seen:
            self._call("make_folder")
            self.make_folder(folder.parent)
            self._seen[folder] = None
            self.sync_folder(folder.parent)

    def sync_folder(self, folder: Path) -> None:
        self._call("sync_folder")
        for path in self._known():
            if path.parent == folder:
                self._keep_name(path)

    def create(self, path: Path) -> int:
        self._call("create")
        if path.parent not in self._seen:
            raise FileNotFoundError(path)
        if path in self._seen:
            raise FileExistsError(path)
        self._seen[path] = file = _File()
        return self._opened(file)

    def write(self, descriptor: int, data: bytes, at: int) -> int:
        self.calls["write"] += 1
        file = self._open[descriptor]
        assert isinstance(file, _File)
        if self.failing.get("write"):
            file.write(data[: self.random.randrange(len(data))], at)  # a write that fails may have begun
            self._call("write")
        grows = at + len(data) - len(file.seen)
        if self.room_bytes is not None and grows > self.room_bytes:
            data = data[: max(0, len(data) - (grows - self.room_bytes))]
            if not data:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            grows = at + len(data) - len(file.seen)
        if self.room_bytes is not None:
            self.room_bytes -= grows
        data = data[: self.random.choice([len(data), max(1, len(data) // 2)])]  # a short write is no failure
        file.write(data, at)
        return len(data)

    def sync(self, descriptor: int) -> None:
        file = self._open[descriptor]
        assert isinstance(file, _File)
        try:
            self._call("sync")
        except OSError:
            file.sync_fails(self.random)
            raise
        file.sync()

    def close(self, descriptor: int) -> None:
        closed = self._open.pop(descriptor)
        if isinstance(closed, Path):
            self._locks.pop(closed, None)

    def truncate(self, path: Path, size: int) -> None:
        self._call("truncate")
        self._free(self._file(path), size)
        self._file(path).truncate(size)

    def read(self, path: Path, start: int, size: int) -> bytes:
        self._call("read")
        return bytes(self._file(path).seen[start : start + size])

    def size(self, path: Path) -> int:
        return len(self._file(path).seen)

    def remove(self, path: Path) -> None:
        self._call("remove")
        if path in self._seen:
            self._free(self._file(path), 0)
            del self._seen[path]

    def remove_folder(self, folder: Path) -> None:
        self._call("remove_folder")
        if any(path.parent == folder for path in self._seen):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        self._seen.pop(folder, None)

    def lock(self, path: Path) -> int | None:
        self._call("lock")
        if path in self._locks:
            return None
        self._seen.setdefault(path, _File())
        self._locks[path] = self.owner
        return self._opened(path)

    def _call(self, name: str) -> None:
        self.calls[name] += 1
        if errors := self.failing.get(name):
            error = errors.pop(0)
            raise OSError(error, os.strerror(error))

    def _free(self, file: _File, size: int) -> None:
        if self.room_bytes is not None:
            self.room_bytes += len(file.seen) - size

    def _file(self, path: Path) -> _File:
        file = self._seen.get(path)
        if file is None:
            raise FileNotFoundError(path)
        return file

    def _known(self) -> list[Path]:
        return list(self._seen | self._kept)  # not a set: its order is another in each run

    def _keep_name(self, path: Path) -> None:
        if path in self._seen:
            self._kept[path] = self._seen[path]
        else:
            self._kept.pop(path, None)

    def _opened(self, what: Path | _File) -> int:
        descriptor = max(self._open, default=2) + 1
        self._open[descriptor] = what
        return descriptor
