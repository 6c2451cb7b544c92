"""Segments: the spool's files. Which frames are in one and not settled, and what a crash or a bad disk left of it."""

import contextlib
import re
import secrets
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from millrace.collector.frames import HEADER, MARK_BYTES, VERSION, Frame, Span, scan, version_of
from millrace.collector.spool_disk import Disk
from millrace.collector.spool_errors import SpoolVersionError

_NAME = re.compile(r"(?P<number>\d{8})-(?P<mark>[0-9a-f]{16})\.spool")


class Segment:
    """One file. Its frames are those that are known to be on disk, in the order they were appended."""

    def __init__(self, path: Path, mark: bytes) -> None:
        self.path = path
        self.mark = mark
        self.key = f"{path.parent.name}/{path.name}"
        """Sorts as the segments follow each other."""
        self.end = 0
        """Behind the last byte that is known to be on disk."""
        self.bytes = 0
        """The file's length, or more where that is not known."""
        self.damaged: list[Span] = []
        """Not set aside yet; the file stays until they are."""
        self.unreadable = False
        """The disk does not give the bytes back: what is unsettled is left alone, for the next process to try."""
        self.unsettled = 0
        self._starts = array("Q")
        self._ends = array("Q")
        self._spooled_us = array("Q")
        self._settled = bytearray()
        self._first = 0

    def add(self, frames: Sequence[Frame]) -> None:
        """Know of further frames, which are on disk."""
        for frame in frames:
            self._starts.append(frame.start)
            self._ends.append(frame.end)
            self._spooled_us.append(frame.spooled_us)
        self._settled.extend(bytes(len(frames)))
        self.unsettled += len(frames)

    def settle(self, index: int) -> bool:
        """Mark a frame as settled; return whether it was not before."""
        if self._settled[index]:
            return False
        self._settled[index] = 1
        self.unsettled -= 1
        while self._first < len(self._settled) and self._settled[self._first]:
            self._first += 1
        return True

    def pending(self) -> Iterator[tuple[int, Frame]]:
        """Yield the frames that are not settled, and their indexes, in order."""
        for index in range(self._first, len(self._settled)):
            if not self._settled[index]:
                yield index, Frame(self._starts[index], self._ends[index], self._spooled_us[index])


def new_segment(folder: Path, number: int) -> Segment:
    """Return a segment that has no file yet."""
    mark = secrets.token_bytes(MARK_BYTES)
    return Segment(folder / f"{number:08d}-{mark.hex()}.spool", mark)


def segment_paths(disk: Disk, folder: Path) -> list[Path]:
    """Return the segments of a folder, in order. Other files are not the spool's. Raises OSError."""
    return [folder / name for name in sorted(disk.names(folder)) if _NAME.fullmatch(name)]


def check_version(disk: Disk, path: Path) -> None:
    """Check that a segment can be read by this version.

    Raises:
        SpoolVersionError: it cannot.
        OSError: the disk did not give its first bytes back.
    """
    version = version_of(disk.read(path, 0, len(HEADER)))
    if version not in {None, VERSION}:
        raise SpoolVersionError(
            f"{path} has spool format {version}, and this Millrace reads format {VERSION}: "
            "run the version that wrote it until its spool is empty, or move the file elsewhere"
        )


def left_segment(disk: Disk, path: Path) -> Segment:
    """Return a segment that a former process left, not read yet. Raises OSError."""
    matched = _NAME.fullmatch(path.name)
    assert matched is not None
    segment = Segment(path, bytes.fromhex(matched["mark"]))
    segment.bytes = disk.size(path)
    return segment


def recover(disk: Disk, segment: Segment) -> int:
    """Read a segment that a former process left, and cut off its torn tail.

    Returns:
        How many bytes were torn: of a write that had not ended, so nobody was told that it had.

    Raises:
        OSError: it could not be read.
    """
    data = disk.read(segment.path, 0, segment.bytes)
    found = scan(data, segment.mark)
    segment.add(found.frames)
    segment.damaged += found.damaged
    segment.end = found.end
    with contextlib.suppress(OSError):  # else the tail stays: it is not in the index
        if found.end < len(data):
            disk.truncate(segment.path, found.end)
        segment.bytes = found.end
    return len(data) - found.end


def set_aside(disk: Disk, segment: Segment, folder: Path) -> int:
    """Copy the damaged bytes of a segment into files named by segment and offset.

    What the disk does not take now stays in `segment.damaged`, and in the segment, for another try.

    Returns:
        How many stretches are in files of their own now that were not before.
    """
    done = 0
    for span in list(segment.damaged):
        path = folder / f"{segment.path.parent.name}.{segment.path.name}.{span.start}.corrupt"
        try:
            _copy(disk, segment.path, span, path)
        except OSError:
            continue
        segment.damaged.remove(span)
        done += 1
    return done


def _copy(disk: Disk, source: Path, span: Span, target: Path) -> None:
    size = span.end - span.start
    data = disk.read(source, span.start, size)
    disk.make_folder(target.parent)
    if target.name in disk.names(target.parent):
        if disk.read(target, 0, size + 1) == data:  # by an earlier process
            return
        disk.remove(target)
    descriptor = disk.create(target)
    try:
        write_all(disk, descriptor, data, 0)
        disk.sync(descriptor)
    finally:
        disk.close(descriptor)
    disk.sync_folder(target.parent)


def write_all(disk: Disk, descriptor: int, data: bytes, at: int) -> None:
    """Write all of the data. Raises OSError: some of it may be written."""
    done = 0
    while done < len(data):
        done += disk.write(descriptor, data[done:] if done else data, at + done)
