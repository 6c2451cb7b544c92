"""Suppression: the users whose events are left out; a file with one id a line, read again when it changes."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_LOG = logging.getLogger(__name__)

LOOK_S = 30.0
"""How often the file is looked at."""

_PACKED = {".bz2", ".deflate", ".gz", ".zst", ".zstd", ".xz", ".lzma"}
"""Names by which Beam tells that a file has to be unpacked."""

Forms = Callable[[str], Sequence[str]]
"""The other forms in which an id may come: hashed, where a replay brings what was protected already."""


class SuppressionError(Exception):
    """The file cannot be read. One sentence that says what to do."""


class Suppression:
    """The ids in a file, a path or gs://. Holds all of them: about 100 bytes an id, and as much for each other form."""

    def __init__(self, file: str, forms: Forms, now_s: Callable[[], float] = time.monotonic) -> None:
        """Read the file.

        Raises:
            SuppressionError: it cannot be read.
        """
        self._file = file
        self._forms = forms
        self._now_s = now_s
        self._looked_s = now_s()
        self._signature = _signature(file)
        self._ids = self._read()

    def refresh(self) -> None:
        """Look whether the file has changed, if it is time; while it cannot be read, what was read last holds."""
        if self._now_s() - self._looked_s < LOOK_S:
            return
        self._looked_s = self._now_s()
        try:
            signature = _signature(self._file)
            if signature != self._signature:
                self._ids = self._read()
                self._signature = signature
        except SuppressionError as error:
            _LOG.error("%s; the list read before still holds", error)

    def __contains__(self, user: object) -> bool:
        return user in self._ids

    def __bool__(self) -> bool:
        return bool(self._ids)

    def rows(self, columns: Sequence[pa.Array]) -> npt.NDArray[np.bool_]:
        """Say in which rows one of some columns holds such a user."""
        found = np.zeros(len(columns[0]), np.bool_)
        if not self._ids:
            return found
        for column in columns:
            encoded = pc.dictionary_encode(column)
            listed = [value in self._ids for value in encoded.dictionary.to_pylist()]
            if any(listed):
                rows = pa.array([*listed, False]).take(pc.fill_null(encoded.indices, len(listed)))
                found |= rows.to_numpy(zero_copy_only=False)
        return found

    def _read(self) -> frozenset[str]:
        try:
            lines = _bytes_of(self._file).decode("utf-8-sig").split("\n")
        except UnicodeDecodeError:
            raise SuppressionError(f"the suppression list {self._file} is not UTF-8: write one id a line") from None
        except Exception as error:  # noqa: BLE001  each file system has its own errors
            raise _unreadable(self._file, error) from None
        ids = {line.strip() for line in lines} - {""}
        return frozenset(ids).union(*(self._forms(each) for each in ids))


def _is_plain(file: str) -> bool:
    """Say whether it is a file of this machine to be read as it is: all else is Beam's, which not every process has."""
    return "://" not in file and Path(file).suffix.lower() not in _PACKED


def _bytes_of(file: str) -> bytes:
    if _is_plain(file):
        return Path(file).read_bytes()
    from apache_beam.io.filesystems import FileSystems  # noqa: PLC0415  see _is_plain

    with FileSystems.open(file) as opened:
        content: bytes = opened.read()
        return content


def _signature(file: str) -> tuple[object, ...]:
    try:
        found = _look_at(file)
    except Exception as error:  # noqa: BLE001  each file system has its own errors
        raise _unreadable(file, error) from None
    if found is None:
        raise SuppressionError(f"the suppression list {file} is not there: write one id a line, or remove the setting")
    return found


def _look_at(file: str) -> tuple[object, ...] | None:
    if _is_plain(file):
        try:
            stat = Path(file).stat()
        except FileNotFoundError:
            return None
        return stat.st_size, stat.st_mtime_ns
    from apache_beam.io.filesystems import FileSystems  # noqa: PLC0415  see _is_plain

    found = FileSystems.match([file])[0].metadata_list
    return (found[0].size_in_bytes, found[0].last_updated_in_seconds) if found else None


def _unreadable(file: str, error: Exception) -> SuppressionError:
    return SuppressionError(
        f"the suppression list {file} cannot be read ({type(error).__name__}): let the job read it, as text with one "
        "id a line"
    )
