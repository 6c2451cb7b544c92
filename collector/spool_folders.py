"""The spool's folders: one for each process, its lock beside it, and which of them a dead process left.

    <root>/00000007-5d1b0c9e.lock           held for as long as its process lives
    <root>/00000007-5d1b0c9e/<segments>
    <root>/set-aside/                       damaged bytes of all of them

The numbers rise, so folders sort by age whatever the clock did; the rest of the name keeps two processes apart.
"""

import contextlib
import logging
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from millrace.collector.spool_disk import Disk
from millrace.collector.spool_errors import FULL

log = logging.getLogger(__name__)

SET_ASIDE = "set-aside"
_FOLDER = re.compile(r"\d{8}-[0-9a-f]{8}")


class Claim(NamedTuple):
    """A folder that this process holds the lock of."""

    folder: Path
    lock: int


def claim_new(disk: Disk, root: Path) -> Claim:
    """Make a folder that sorts behind all others, durably, and hold its lock. Raises OSError."""
    while True:
        number = max((int(name[:8]) for name in _names(disk, root)), default=0) + 1
        folder = root / f"{number:08d}-{secrets.token_hex(4)}"
        lock = disk.lock(_lock_of(folder))
        if lock is None:  # one that looks for leftovers was faster: it takes a lock without a folder for one of them
            continue
        try:
            disk.make_folder(folder)
        except OSError:
            give_up(disk, Claim(folder, lock))
            raise
        return Claim(folder, lock)


def claim_leftovers(disk: Disk, root: Path) -> Iterator[Claim]:
    """Take the lock of each folder whose process is gone, the oldest first. Raises OSError."""
    for name in _names(disk, root):
        try:
            lock = disk.lock(_lock_of(root / name))
        except OSError as error:
            if error.errno not in FULL:
                raise
            log.error("spool: no room on the disk for the lock of %s: left for later", name)  # noqa: TRY400
            continue
        if lock is not None:
            yield Claim(root / name, lock)


def give_up(disk: Disk, claim: Claim) -> None:
    """Let go of a folder, and remove it if it is empty."""
    with contextlib.suppress(OSError):  # not empty, or not now: then it is a leftover of the next process
        disk.remove_folder(claim.folder)
        disk.remove(_lock_of(claim.folder))
    with contextlib.suppress(OSError):
        disk.close(claim.lock)


def _names(disk: Disk, root: Path) -> list[str]:
    stems = {name.removesuffix(".lock") for name in disk.names(root)}
    return sorted(stem for stem in stems if _FOLDER.fullmatch(stem))


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")
