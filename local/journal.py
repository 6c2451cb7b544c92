"""Journal: what the sample traffic sent and was told is kept, event by event, so that the accounts can be closed.

A line is written when the answer is there: until then nobody promised anything. What was sent, and taken without our
learning of it, is noted when it is given up.
"""

import enum
import hashlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from millrace.local.shop import Sent

HEADER = b"kind,name,answered\n"


class Kind(enum.Enum):
    """Which table has to have it."""

    EVENT = "event"  # the archive, by its message id; copies of it the duplicates
    LETTER = "letter"  # the dead letters, by the SHA-256 of its bytes


class Record(NamedTuple):
    """One record as the tables know it, whatever envelope it came in."""

    kind: Kind
    name: str
    """The message id, or the hash."""


def records_of(sent: Sent) -> list[Record]:
    """Return what a body has to become."""
    letters = [Record(Kind.LETTER, hashlib.sha256(payload).hexdigest()) for payload in sent.payloads]
    return [*(Record(Kind.EVENT, message_id) for message_id in sent.message_ids), *letters]


class Journal:
    """A CSV file that grows by a line for each record; a context manager. Several processes may write one file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)  # one write each: lines of two writers never mix
        self._lock = threading.Lock()
        if not self._file.tell():
            self._file.write(HEADER)

    def answered(self, records: Iterable[Record]) -> None:
        """Enter records that are promised to be in the tables; those sent twice twice."""
        self._enter(records, 1)

    def given_up(self, records: Iterable[Record]) -> None:
        """Enter records that may be in the tables: sent, and never answered."""
        self._enter(records, 0)

    def _enter(self, records: Iterable[Record], answered: int) -> None:
        lines = "".join(f"{kind.value},{name},{answered}\n" for kind, name in records).encode()
        with self._lock:
            while lines:
                lines = lines[os.write(self._file.fileno(), lines) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
