"""The spool's writer: groups of frames into segments, each group on disk with one fsync, or undone."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from millrace.collector.frames import FRAME_BYTES, HEADER, Frame, frame_head
from millrace.collector.segments import Segment, new_segment, write_all
from millrace.collector.spool_disk import Disk
from millrace.collector.spool_folders import Claim, claim_new


class _NotSyncedError(Exception):
    """The group was written, and the fsync failed; it has been cut off again, so it may go to another segment."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


class Writer:
    """Appends to one segment at a time, in a folder of its own that is made for the first group.

    Not safe between threads, but for `seal`, which must not run within `write`.
    """

    def __init__(
        self, disk: Disk, root: Path, segment_bytes: int, claimed: Callable[[Claim], None],
        opened: Callable[[Segment], None],
    ) -> None:  # fmt: skip
        """Args: what to tell of the folder that was made, and of each segment, before anything is in it."""
        self._disk = disk
        self._root = root
        self._segment_bytes = segment_bytes
        self._claimed = claimed
        self._opened = opened
        self._folder: Path | None = None
        self._number = 0
        self._descriptor = -1
        self.active: Segment | None = None
        self.syncs = 0
        """How many groups an fsync brought to disk."""

    def room(self) -> int:
        """Return how many bytes of frames the segment takes that comes next."""
        used = self.active.end if self.active is not None else 0
        return self._segment_bytes - (used if 0 < used < self._segment_bytes else len(HEADER))

    def write(self, group: Sequence[tuple[bytes, int]]) -> tuple[Segment, list[Frame]]:
        """Append payloads, each with its time.

        Returns:
            The segment, and the frames that are on disk now; not yet added to the segment.

        Raises:
            OSError: the disk refused. Nothing of the group will be read by this process; the next one may find frames
                of it, where the disk refused to undo them too.
        """
        try:
            return self._write(group)
        except _NotSyncedError:
            # The kernel forgets what it could not write, and a second fsync of that file says that all is well
            # (https://wiki.postgresql.org/wiki/Fsync_Errors). So: the whole group again, in another file.
            pass
        try:
            return self._write(group)
        except _NotSyncedError as error:
            raise error.error from None

    def seal(self) -> None:
        """Append no more to the segment; the next group starts another."""
        if self.active is not None:
            with contextlib.suppress(OSError):  # what counts is synced
                self._disk.close(self._descriptor)
            self.active = None

    def _write(self, group: Sequence[tuple[bytes, int]]) -> tuple[Segment, list[Frame]]:
        size = sum(FRAME_BYTES + len(payload) for payload, _ in group)
        if self.active is not None and self.active.end + size > self._segment_bytes:
            self.seal()
        segment = self.active or self._start()
        is_new = segment.end == 0
        parts = [HEADER] if is_new else []
        at = segment.end + (len(HEADER) if is_new else 0)
        frames = []
        for payload, spooled_us in group:
            parts += frame_head(payload, segment.mark, spooled_us), payload
            frames.append(Frame(at, at + FRAME_BYTES + len(payload), spooled_us))
            at = frames[-1].end
        try:
            write_all(self._disk, self._descriptor, b"".join(parts), segment.end)
        except BaseException:
            self._undo(segment, at)
            raise
        try:
            self._disk.sync(self._descriptor)
            if is_new:
                self._disk.sync_folder(segment.path.parent)
        except OSError as error:
            undone = self._undo(segment, at)
            self.seal()
            if undone:
                raise _NotSyncedError(error) from error
            raise
        self.syncs += 1
        segment.end = at
        return segment, frames

    def _start(self) -> Segment:
        if self._folder is None:
            claim = claim_new(self._disk, self._root)
            self._claimed(claim)
            self._folder = claim.folder
        self._number += 1
        segment = new_segment(self._folder, self._number)
        self._descriptor = self._disk.create(segment.path)
        self.active = segment
        self._opened(segment)
        return segment

    def _undo(self, segment: Segment, end: int) -> bool:
        """Cut off what was not synced; return whether that worked. A segment with nothing in it is given up."""
        try:
            self._disk.truncate(segment.path, segment.end)
        except OSError:
            segment.bytes = max(segment.bytes, end)
            self.seal()
            return False
        if segment.end == 0:
            self.seal()
        return True
