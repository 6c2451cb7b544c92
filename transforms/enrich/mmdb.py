"""MMDB files: opened as a copy of one's own, and anew when they have changed.

The copy is there since such a file is mapped into memory: one that is overwritten in place under its reader ends the
process. It is a temporary file without a name, so it takes disk and no memory, and is gone with the process.
"""

import ipaddress
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import maxminddb

from millrace.transforms.counts import count
from millrace.transforms.enrich.distinct import STAGE

_LOG = logging.getLogger(__name__)

CHECK_S = 3.0
"""How often files are asked whether they have changed."""


class MmdbError(Exception):
    """A file is no database that can be read. One sentence, for a person."""


class _Stamp(NamedTuple):
    """What tells one content of a file from another."""

    inode: int
    modified_ns: int
    size: int


class Database(NamedTuple):
    """What some files held at one time."""

    readers: Sequence[maxminddb.Reader]
    stamps: Sequence[_Stamp]
    versions: dict[str, str]
    """Build (s since the epoch) by the type that a file says it is of."""

    def records(self, address: str | None) -> list[Any]:
        """Return what each file has on an address; nothing on one that is none, or is not of the public Internet.

        An address that privacy has shortened is one: its last part is 0.
        """
        parsed = _public(address)
        if parsed is None:
            return []
        readers = [each for each in self.readers if parsed.version == 4 or each.metadata().ip_version == 6]
        found = [reader.get(str(parsed)) for reader in readers]
        return [each for each in found if isinstance(each, dict)]


def _public(address: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        parsed = ipaddress.ip_address((address or "").strip())
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return parsed if parsed.is_global and not parsed.is_multicast else None


def open_files(paths: Sequence[str]) -> Database:
    """Open files, each as it is now.

    Raises:
        MmdbError: one cannot be read, or is no MMDB file.
    """
    opened = [_open(path) for path in paths]
    versions: dict[str, str] = {}
    for reader, _ in opened:
        metadata = reader.metadata()
        name, build = f"mmdb {metadata.database_type}", str(metadata.build_epoch)
        versions[name] = f"{versions[name]}, {build}" if name in versions else build
    return Database([reader for reader, _ in opened], [stamp for _, stamp in opened], versions)


def _open(path: str) -> tuple[maxminddb.Reader, _Stamp]:
    try:
        with Path(path).open("rb") as source, tempfile.NamedTemporaryFile(prefix="millrace-", suffix=".mmdb") as copy:
            before = _stamp(os.fstat(source.fileno()))
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.flush()
            if _stamp(os.fstat(source.fileno())) != before:
                raise MmdbError(f"{path} is being written")
            return maxminddb.open_database(copy.name), before
    except OSError as error:
        raise MmdbError(f"{path} cannot be read: {error.strerror or error}") from error
    except (maxminddb.InvalidDatabaseError, ValueError) as error:
        raise MmdbError(f"{path} is no MMDB file") from error


def _stamp(status: os.stat_result) -> _Stamp:
    return _Stamp(status.st_ino, status.st_mtime_ns, status.st_size)


class Watched:
    """Some files, opened anew when one has changed. For several threads.

    A new content that cannot be read is counted (`geo_reload_failed`) and logged once; the old one goes on.
    """

    def __init__(self, paths: Sequence[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Open them.

        Raises:
            MmdbError: one cannot be opened.
        """
        self._paths = tuple(paths)
        self._clock = clock
        self._checked_s = clock()
        self._refused: Sequence[_Stamp] = ()
        self._lock = threading.Lock()
        self._now = open_files(paths)

    def now(self) -> Database:
        """Return the newest content, which is looked for every CHECK_S."""
        if self._clock() - self._checked_s >= CHECK_S and self._lock.acquire(blocking=False):
            try:
                self._checked_s = self._clock()
                self._reload()
            finally:
                self._lock.release()
        return self._now

    def _reload(self) -> None:
        try:
            stamps = [_stamp(Path(path).stat()) for path in self._paths]
        except OSError:
            return  # between two files of that name: the next look finds it
        if stamps in (self._now.stamps, self._refused):
            return
        try:
            self._now = open_files(self._paths)
            count(STAGE, "geo_reloaded")
        except MmdbError as error:
            count(STAGE, "geo_reload_failed")
            _LOG.warning("geo: %s; the one that is open goes on", error)
            self._refused = stamps
