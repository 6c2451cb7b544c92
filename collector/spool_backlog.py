"""The spool's backlog: the segments of this process and of the dead ones it adopted, read in order until settled."""

import errno
import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from millrace.collector import segments
from millrace.collector.frames import Frame, Span, decode_frame
from millrace.collector.message import Message
from millrace.collector.segments import Segment
from millrace.collector.spool_disk import Disk
from millrace.collector.spool_errors import SpoolBrokenError, SpoolVersionError
from millrace.collector.spool_folders import SET_ASIDE, Claim, claim_leftovers, give_up

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where a message is in the spool; good within this process."""

    segment: str
    frame: int
    spooled_us: int
    """When it was appended, µs since the epoch."""


class Backlog:
    """All segments, in order. Everything here but `add`, `count` and what they change is for one thread at a time."""

    def __init__(self, disk: Disk, root: Path, lock: threading.Condition, release: Callable[[Segment], bool]) -> None:
        """Args: what guards the segments; who says, under it, whether the writer lets go of a segment."""
        self._disk = disk
        self._root = root
        self._lock = lock
        self._release = release
        self._segments: dict[str, Segment] = {}
        self._adopted: dict[Path, Claim] = {}
        self.bytes = 0
        """Of all segments on disk, as of the last `count`."""
        self.corrupt = 0
        self.set_aside = 0
        self.torn = 0

    def add(self, *new: Segment) -> None:
        """Take segments in, each in its place: what the dead left, then what this process appends. Under the lock."""
        known = [*self._segments.values(), *new]
        known.sort(key=lambda segment: (segment.path.parent not in self._adopted, segment.key))
        self._segments = {segment.key: segment for segment in known}

    def count(self) -> None:
        """Bring `bytes` up to date. Under the lock."""
        self.bytes = sum(segment.bytes for segment in self._segments.values())

    def segments(self) -> list[Segment]:
        """Return the segments, in order. Under the lock."""
        return list(self._segments.values())

    def oldest(self, limit_bytes: int) -> list[tuple[Place, Message]]:
        """Return the oldest messages: one, and more while they are within the limit. Raises SpoolBrokenError."""
        while True:
            found, skipped = self._oldest(limit_bytes)
            if found or not skipped:
                return found

    def settle(self, places: Iterable[Place]) -> None:
        """Never return these again, and delete the segments of which nothing is left."""
        with self._lock:
            for place in places:
                segment = self._segments.get(place.segment)
                if segment is not None:
                    segment.settle(place.frame)
        self.sweep()

    def sweep(self) -> None:
        """Delete the segments of which nothing is left. What the disk refuses to do now is tried again next time."""
        with self._lock:
            done = [s for s in self.segments() if not s.unsettled and not s.unreadable and self._release(s)]
        for segment in done:
            self._set_aside(segment)
            if segment.damaged:
                continue
            try:
                self._disk.remove(segment.path)
            except OSError:
                log.warning("spool: %s is done with and cannot be removed now", segment.key)
                continue
            with self._lock:
                del self._segments[segment.key]
                self.count()
            self._leave_if_empty(segment.path.parent)

    def adopt(self, capacity_bytes: int, reserved_bytes: Callable[[], int]) -> int:
        """Take over the folders of dead processes, the oldest first, while they fit; any one fits into an empty spool.

        Args:
            capacity_bytes: of this process.
            reserved_bytes: how much of it waits to be written; called under the lock.

        Returns:
            How many messages came with them.

        Raises:
            SpoolVersionError: a segment is of another version; folders without such were adopted.
            SpoolBrokenError: the disk cannot be read now.
        """
        messages = 0
        unknown: SpoolVersionError | None = None
        try:
            for claim in claim_leftovers(self._disk, self._root):
                try:
                    messages += self._adopt(claim, capacity_bytes, reserved_bytes)
                except SpoolVersionError as error:
                    unknown = unknown or error
        except OSError as error:
            raise SpoolBrokenError(f"the spool {self._root} cannot be read: {error}") from error
        if unknown is not None:
            raise unknown
        return messages

    def close(self) -> None:
        """Let go of all folders; what is in them is the next process's."""
        with self._lock:
            self._segments.clear()
            self.count()
        while self._adopted:
            give_up(self._disk, self._adopted.popitem()[1])

    def _oldest(self, limit_bytes: int) -> tuple[list[tuple[Place, Message]], bool]:
        found: list[tuple[Place, Message]] = []
        skipped = False
        left = limit_bytes
        with self._lock:
            known = self.segments()
        for segment in known:
            picked: list[tuple[int, Frame]] = []
            with self._lock:
                for index, frame in segment.pending() if not segment.unreadable else ():
                    left -= frame.end - frame.start
                    if left < 0 and (found or picked):
                        break
                    picked.append((index, frame))
            read = self._read(segment, picked)
            skipped |= len(read) < len(picked)
            found += read
            if left <= 0:
                break
        return found, skipped

    def _read(self, segment: Segment, picked: list[tuple[int, Frame]]) -> list[tuple[Place, Message]]:
        if not picked:
            return []
        start, end = picked[0][1].start, picked[-1][1].end
        try:
            data = self._disk.read(segment.path, start, end - start)
        except OSError as error:
            if error.errno != errno.EIO:
                raise SpoolBrokenError(f"the spool {self._root} cannot be read: {error}") from error
            self._leave_alone(segment)
            return []
        messages: list[tuple[Place, Message]] = []
        for index, frame in picked:
            message = decode_frame(data[frame.start - start : frame.end - start], segment.mark)
            if message is None:
                self._skip_damaged(segment, index, frame)
            else:
                messages.append((Place(segment.key, index, frame.spooled_us), message))
        return messages

    def _skip_damaged(self, segment: Segment, index: int, frame: Frame) -> None:
        log.error("spool: bytes %d to %d of %s are damaged", frame.start, frame.end, segment.key)
        self.corrupt += 1
        segment.damaged.append(Span(frame.start, frame.end))
        with self._lock:
            segment.settle(index)
        self._set_aside(segment)

    def _leave_alone(self, segment: Segment) -> None:
        log.error("spool: the disk does not read %s: it stays, for the next start to try again", segment.key)
        with self._lock:
            segment.unreadable = True

    def _set_aside(self, segment: Segment) -> None:
        self.set_aside += segments.set_aside(self._disk, segment, self._root / SET_ASIDE)

    def _adopt(self, claim: Claim, capacity_bytes: int, reserved_bytes: Callable[[], int]) -> int:
        try:
            paths = segments.segment_paths(self._disk, claim.folder)
            for path in paths:
                segments.check_version(self._disk, path)
            found = [segments.left_segment(self._disk, path) for path in paths]
        except (OSError, SpoolVersionError):
            give_up(self._disk, claim)
            raise
        with self._lock:
            taken = self.bytes + reserved_bytes()
            fits = not taken or taken + sum(segment.bytes for segment in found) <= capacity_bytes
            if fits and found:
                self._adopted[claim.folder] = claim
                self.add(*found)
                self.count()
        if claim.folder not in self._adopted:
            give_up(self._disk, claim)
            return 0
        for segment in found:
            self._recover(segment)
        self.sweep()
        messages = sum(segment.unsettled for segment in found)
        log.warning("spool: adopted %s: %d messages in %d segments", claim.folder.name, messages, len(found))
        return messages

    def _recover(self, segment: Segment) -> None:
        try:
            torn_bytes = segments.recover(self._disk, segment)
        except OSError:
            self._leave_alone(segment)
            return
        if torn_bytes:
            log.warning("spool: cut %d torn bytes off %s", torn_bytes, segment.key)
            self.torn += 1
        if segment.damaged:
            log.error("spool: %d stretches of %s are damaged", len(segment.damaged), segment.key)
            self.corrupt += len(segment.damaged)
            self._set_aside(segment)
        with self._lock:
            self.count()

    def _leave_if_empty(self, folder: Path) -> None:
        if folder in self._adopted and not any(segment.path.parent == folder for segment in self.segments()):
            give_up(self._disk, self._adopted.pop(folder))
