"""The spool: messages on the local disk, for while Pub/Sub is slow or away.

An append is answered when it is on disk; one fsync serves all that waited for it. Messages are read back in the order
they were appended until they are settled, by the next process too: it adopts the folders of those that died. A segment
is deleted when all of it is settled. Which of its messages were settled is not on disk: after a crash they come again,
and so do those of a segment whose deletion the disk forgot. Downstream, the same message id is the same event.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

from millrace.collector.frames import FRAME_BYTES, HEADER, encode_message
from millrace.collector.message import Message
from millrace.collector.segments import Segment
from millrace.collector.spool_backlog import Backlog, Place
from millrace.collector.spool_disk import Disk
from millrace.collector.spool_errors import FULL, SpoolBrokenError, SpoolError, SpoolFullError, SpoolVersionError
from millrace.collector.spool_folders import Claim, give_up
from millrace.collector.spool_stats import Stats
from millrace.collector.spool_writer import Writer

__all__ = ["Place", "Spool", "SpoolBrokenError", "SpoolError", "SpoolFullError", "SpoolVersionError", "Stats"]

log = logging.getLogger(__name__)

SEGMENT_BYTES = 16 * 1024 * 1024
WAITING_BYTES = 64 * 1024 * 1024


class _Waiting(NamedTuple):
    payload: bytes
    spooled_us: int
    future: Future[None]

    @property
    def cost(self) -> int:
        """At most what it adds on disk: it may be the one that starts a segment."""
        return len(HEADER) + FRAME_BYTES + len(self.payload)


class Spool:
    """The spool of one process, in a folder of its own under the root. Safe between threads.

    `append` and `stats` do not touch the disk. All else does, so keep it off an event loop.
    """

    def __init__(
        self, root: Path, capacity_bytes: int, *, segment_bytes: int = SEGMENT_BYTES,
        waiting_bytes: int = WAITING_BYTES, disk: Disk | None = None, clock: Callable[[], float] = time.time,
        own_thread: bool = True,
    ) -> None:  # fmt: skip
        """Open the spool and adopt what dead processes left.

        Args:
            root: the folder of all processes' spools.
            capacity_bytes: of this process; an append that would exceed it is refused.
            segment_bytes: when a segment is followed by the next. Larger: settled messages stay on disk for longer.
            waiting_bytes: what may wait in memory for the disk.
            disk: the calls to the operating system.
            clock: s since the epoch.
            own_thread: without one somebody must call `commit`.

        Raises:
            SpoolVersionError: a segment was written by another version. Nothing of its folder was touched.
            SpoolBrokenError: the root cannot be made or read.
        """
        self._root = root
        self._capacity_bytes = capacity_bytes
        self._waiting_bytes = waiting_bytes
        self._disk = disk or Disk()
        self._clock = clock
        self._lock = threading.Condition()
        """Guards what waits and what is known of the segments; never held while the disk works."""
        self._waiting: deque[_Waiting] = deque()
        self._reserved = 0
        self._committing = False
        self._closing = False
        self._refusing: str | None = None
        self._appended = 0
        self._reading = threading.Lock()
        """One at a time reads, settles, adopts: no segment goes away under another's hands."""
        self._backlog = Backlog(self._disk, root, self._lock, self._release)
        self._claim: Claim | None = None
        self._writer = Writer(self._disk, root, segment_bytes, self._claimed, self._opened)
        try:
            self._disk.make_folder(root)
        except OSError as error:
            raise SpoolBrokenError(f"the spool's folder {root} cannot be made: {error}") from error
        try:
            self.adopt()
        except BaseException:
            self._backlog.close()
            raise
        self._thread = threading.Thread(target=self._commit_all, name="spool-commit", daemon=True)
        self._own_thread = own_thread
        if own_thread:
            self._thread.start()

    def append(self, message: Message) -> Future[None]:
        """Store a message; the future ends when it is on disk, or with SpoolFullError or SpoolBrokenError.

        A future that is cancelled before its group is written takes its message with it.

        Raises:
            ValueError: no spool could hold it, and Pub/Sub neither: larger than 10 MiB, or text that is no UTF-8.
        """
        waiting = _Waiting(encode_message(message), int(self._clock() * 1e6), Future())
        with self._lock:
            refusal = self._refusal(waiting.cost)
            if refusal is None:
                self._waiting.append(waiting)
                self._reserved += waiting.cost
                self._lock.notify_all()
        if refusal is not None:
            waiting.future.set_exception(refusal)
        return waiting.future

    def oldest(self, limit_bytes: int) -> list[tuple[Place, Message]]:
        """Return the oldest messages that are not settled, in order: one, and more while they are within the limit.

        Raises:
            SpoolBrokenError: the disk cannot be read now.
        """
        with self._reading:
            return self._backlog.oldest(limit_bytes)

    def settle(self, places: Iterable[Place]) -> None:
        """Never return these again, and delete the segments of which nothing is left. Again is fine."""
        with self._reading:
            self._backlog.settle(places)

    def adopt(self) -> int:
        """Take over what processes left that are dead by now, while it fits: the rest is for a later call, or another.

        Returns:
            How many messages came with it.

        Raises:
            SpoolVersionError: a segment was written by another version; folders without such were adopted.
            SpoolBrokenError: the disk cannot be read now.
        """
        with self._reading:
            return self._backlog.adopt(self._capacity_bytes, lambda: self._reserved)

    def stats(self) -> Stats:
        """Return what is in the spool, and what happened since it was opened."""
        with self._lock:
            known = self._backlog.segments()
            readable = [segment for segment in known if not segment.unreadable]
            oldest = next((frame for segment in readable for _, frame in segment.pending()), None)
            return Stats(
                messages=sum(segment.unsettled for segment in readable),
                bytes=self._backlog.bytes,
                capacity_bytes=self._capacity_bytes,
                oldest_age_s=max(0.0, self._clock() - oldest.spooled_us / 1e6) if oldest else 0.0,
                waiting=len(self._waiting),
                appended=self._appended,
                syncs=self._writer.syncs,
                corrupt_frames=self._backlog.corrupt,
                set_aside=self._backlog.set_aside,
                torn_tails=self._backlog.torn,
                unreadable_segments=len(known) - len(readable),
                refusing=self._refusing,
            )

    def commit(self) -> bool:
        """Bring a group of what waits to disk, with one fsync; return whether anything waited. The thread does this."""
        group, waited = self._next_group()
        if not group:
            return waited
        failure: Exception | None = None
        try:
            segment, frames = self._writer.write([(waiting.payload, waiting.spooled_us) for waiting in group])
        except Exception as error:  # noqa: BLE001  whatever it is, those who wait must hear of it
            failure = error
        with self._lock:
            self._committing = False
            self._reserved -= sum(waiting.cost for waiting in group)
            before, self._refusing = self._refusing, None
            if failure is None:
                segment.add(frames)
                segment.bytes = segment.end
                self._appended += len(group)
            else:
                self._refusing = "full" if isinstance(_refused(failure), SpoolFullError) else "broken"
            self._backlog.count()
        if self._refusing != before:  # said once, not for each group
            if failure is None:
                log.warning("spool: messages are taken again")
            else:
                log.error("spool: messages are refused: %r", failure)
        for waiting in group:
            if failure is None:
                waiting.future.set_result(None)
            else:
                waiting.future.set_exception(_refused(failure))
        if failure is not None:
            with self._reading:
                self._backlog.sweep()
        return True

    def close(self) -> Stats:
        """Write what waits, and let go of the folders; return what is left in them for the next process."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        if self._own_thread:
            self._thread.join()
        while self.commit():
            pass
        left = self.stats()
        self._writer.seal()
        with self._reading:
            self._backlog.close()
        if self._claim is not None:
            give_up(self._disk, self._claim)
            self._claim = None
        return left

    def _refusal(self, cost: int) -> SpoolError | None:
        if self._closing:
            return SpoolBrokenError("the spool is closed")
        if self._backlog.bytes + self._reserved + cost > self._capacity_bytes:
            return SpoolFullError(f"the spool holds {self._backlog.bytes} bytes, and may hold {self._capacity_bytes}")
        if self._reserved and self._reserved + cost > self._waiting_bytes:
            return SpoolFullError(f"{self._reserved} bytes wait for the disk already")
        return None

    def _next_group(self) -> tuple[list[_Waiting], bool]:
        """Take what fits into one segment, in order; also say whether anything waited, cancelled or not."""
        group: list[_Waiting] = []
        with self._lock:
            waited = bool(self._waiting)
            room = self._writer.room()
            while self._waiting and (not group or self._waiting[0].cost <= room):
                waiting = self._waiting.popleft()
                if waiting.future.set_running_or_notify_cancel():
                    group.append(waiting)
                    room -= waiting.cost
                else:
                    self._reserved -= waiting.cost
            self._committing = bool(group)
        return group, waited

    def _commit_all(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
            self.commit()

    def _claimed(self, claim: Claim) -> None:
        self._claim = claim

    def _opened(self, segment: Segment) -> None:
        with self._lock:
            self._backlog.add(segment)

    def _release(self, segment: Segment) -> bool:
        """Let go of a segment, under the lock; return False while it is being written."""
        if segment is not self._writer.active:
            return True
        if self._committing:
            return False
        self._writer.seal()
        return True


def _refused(error: Exception) -> SpoolError:
    if isinstance(error, OSError) and error.errno in FULL:
        return SpoolFullError(f"no room on the disk: {error}")
    return SpoolBrokenError(f"the disk refused: {error}")
