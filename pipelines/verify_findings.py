"""Findings of `millrace verify`: what does not close, by its id; a few for the screen, all for a file."""

import csv
import enum
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

SHOWN = 20


class Kind(enum.Enum):
    """What is wrong, and where to look."""

    MISSING = "missing"
    """Accepted, and in no table."""
    SPOOL_LOST = "lost in the spool"
    """Spooled, never published, though younger ones were."""
    REPEATED = "repeated"
    """One place in the queue is recorded more than once."""
    REPEATED_ID = "id repeated"
    """Two events of one source in the archive have one id."""
    UNFORESEEN = "never accepted"
    """A place of an accepted message beyond its last event."""
    FILE_GONE = "file gone"
    """A table's log refers to a file that is not there."""
    NOT_ENROLLED = "not enrolled"
    """A part of the archive that a lane never took into its queue."""
    NOT_ROUTED = "not routed"
    """A route takes the event, and the lane's ledger says that none does."""
    ROUTED = "routed wrongly"
    """No route takes the event, and the lane's ledger says that one does."""
    UNSETTLED = "not settled"
    """A route without order takes the event, and its lane never had it, or not all of its message's events."""
    DEAD_UNRECORDED = "dead, not recorded"
    """Given up, and not in the table of what could not be delivered."""
    DEAD_UNMARKED = "recorded, not dead"
    """In the table of what could not be delivered, and the ledger says otherwise."""
    TOTALS = "totals"
    """The ledger's totals and its marks say different things."""


HINTS = {
    Kind.MISSING: "look for these messages in the subscription (and its dead-letter topic), and in the job's log",
    Kind.SPOOL_LOST: "look into the collector's spool: set-aside/, unfit/, and folders of other collectors",
    Kind.REPEATED: "two jobs have written these tables, or a message was delivered again past --commit_horizon_s",
    Kind.REPEATED_ID: "deduplication had forgotten them (deduplicate/forgotten_early), or two jobs wrote the archive",
    Kind.UNFORESEEN: "collector and job read these messages differently: their versions differ",
    Kind.FILE_GONE: "restore the files, or find out who deleted them: vacuum does not",
    Kind.NOT_ENROLLED: "replay that time to the sink: millrace sinks",
    Kind.NOT_ROUTED: "the routes have changed since, or replay the events to the sink: millrace sinks",
    Kind.ROUTED: "the routes have changed since",
    Kind.UNSETTLED: "the lane's subscription lost them or its routes see other columns than the archive has",
    Kind.DEAD_UNRECORDED: "a crash came between ledger and table: replay the events to the sink",
    Kind.DEAD_UNMARKED: "a crash came between table and ledger: the event was tried again after it was recorded",
    Kind.TOTALS: "the ledger was copied or repaired by hand",
}


class Finding(NamedTuple):
    """One thing that is wrong."""

    kind: Kind
    what: str
    """`envelope_id/envelope_index`, a message id, a file."""
    where: str
    """The source, the table or the lane."""
    at: str = ""
    """When it was accepted, or committed."""


class Findings:
    """Counts findings, keeps some, and writes all to a CSV file where one is wanted; a context manager."""

    def __init__(self, path: Path | None = None) -> None:
        """Args: path: of the file; None: none."""
        self.counts: Counter[Kind] = Counter()
        self.shown: list[Finding] = []
        self._file = None if path is None else path.open("w", newline="", encoding="utf-8")
        self._writer = None if self._file is None else csv.writer(self._file)
        if self._writer is not None:
            self._writer.writerow(["kind", "id", "where", "at"])

    def add(self, findings: Iterable[Finding]) -> None:
        """Take findings in."""
        for finding in findings:
            self.counts[finding.kind] += 1
            if self.counts[finding.kind] <= SHOWN:
                self.shown.append(finding)
            if self._writer is not None:
                self._writer.writerow([finding.kind.value, finding.what, finding.where, finding.at])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
