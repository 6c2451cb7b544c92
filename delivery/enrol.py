"""Enrol: what is committed to the archive becomes part of a lane's queue, whether or not the lane has room for it."""

import logging
import time

from millrace.delivery import clock
from millrace.delivery.follow import Log
from millrace.delivery.ledger import Ledger
from millrace.sinks.bookmarks import write_bookmark
from millrace.sinks.storage import Location, StorageError

SEEN = "archive version"
"""In the ledger's memory: up to which version of the archive its parts are enrolled."""
BEGAN = "began at version"
"""In the ledger's memory: what was in the archive up to this version is not for this lane."""
_TABLE = "archive id"
"""In the ledger's memory: which table that is."""
_LOOKED = "archive looked at"
"""In the ledger's memory: when there was nothing newer, microseconds since the epoch."""

_LOG = logging.getLogger(__name__)
_BOOKMARK_S = 30.0
_GOES_ON_S = 1.0
"""How often the log is looked at while there is no room for more events: it is cleaned up after two hours."""
_IDENTITY_S = 10.0
"""How often it is asked whether the archive is still the same table, while nothing comes."""


class Enrolment:
    """Looks at the archive's log. For one thread.

    Args:
        location: of the archive.
        log: its log.
        ledger: open, for writing.
        lane: the name of the lane, and of its bookmark.
    """

    def __init__(self, location: Location, log: Log, ledger: Ledger, lane: str) -> None:
        self._location = location
        self._log = log
        self._ledger = ledger
        self._lane = lane
        self._looked_us = 0
        self.is_there = True
        """Whether there was an archive at the last look."""
        self._is_well = True
        self._next_look = self._next_identity = self._next_bookmark = 0.0

    @property
    def uri(self) -> str:
        """Where the archive is."""
        return self._location.uri

    def open(self, *, from_start: bool) -> None:
        """Begin where an earlier run was, or at the archive's first row, or behind its last.

        Raises:
            StorageError: the archive cannot be read, or is not the one of the earlier run.
        """
        self._looked_us = int(self._ledger.get(_LOOKED) or 0)
        if self._ledger.get(SEEN) is None:
            found = None if from_start else self._log.identity()
            self._looked_us = 0 if from_start else clock.now_us()
            self._ledger.put(_LOOKED, str(self._looked_us).encode())
            version = str(-1 if found is None else found.version).encode()
            self._ledger.put(BEGAN, version)
            self._ledger.put(SEEN, version)
        self._check_identity()

    def look(self) -> None:
        """Enrol what was committed since the last look.

        Raises:
            StorageError: the archive cannot be read, or is another one.
        """
        if time.monotonic() < self._next_look:
            return
        now_us = clock.now_us()
        seen_before = int(self._ledger.get(SEEN) or b"-1")
        seen = self._log.since(seen_before, self._known, self._looked_us)
        if seen.version != seen_before:
            self.is_there = True
            with self._ledger.writing():
                self._ledger.enrol(seen.entries)
                self._ledger.keep(SEEN, str(seen.version).encode())
        elif time.monotonic() >= self._next_identity:
            self._check_identity()
        self._looked_us = now_us
        self._next_look = time.monotonic() + self._log.poll_s

    def go_on(self) -> None:
        """Look, though nothing more may be read for long; and say from time to time where the lane is."""
        if time.monotonic() >= self._next_look - self._log.poll_s + _GOES_ON_S:
            self._look_in_passing()
        if time.monotonic() >= self._next_bookmark:
            self._next_bookmark = time.monotonic() + _BOOKMARK_S
            self.write_bookmark()

    def write_bookmark(self) -> None:
        """Say where the lane is, for compaction."""
        oldest_us = self._ledger.oldest_open_us()
        since_us = self._looked_us if oldest_us is None else min(oldest_us, self._looked_us)
        self._ledger.keep(_LOOKED, str(self._looked_us).encode())
        try:
            write_bookmark(self._location, self._lane, since_us)
        except OSError as error:
            _LOG.warning("Compaction is not told how far %s is: %s", self._lane, error)

    def _look_in_passing(self) -> None:
        try:
            self.look()
        except StorageError as error:
            self._next_look = time.monotonic() + _GOES_ON_S
            if self._is_well:
                _LOG.warning("%s does not see what is committed: %s", self._lane, error)
            self._is_well = False
        else:
            self._is_well = True

    def _known(self) -> set[str]:
        return {file for entry in self._ledger.entries() for file in entry.files}

    def _check_identity(self) -> None:
        """Make sure that the archive is the table that the ledger speaks of."""
        self._next_identity = time.monotonic() + _IDENTITY_S
        seen = int(self._ledger.get(SEEN) or b"-1")
        known = self._ledger.get(_TABLE)
        found = self._log.identity()
        self.is_there = found is not None
        uri = self.uri
        if found is None:
            if seen >= 0:
                raise StorageError(
                    f"There is no table at {uri} any more, which this lane has read up to version {seen}."
                )
        elif known is None:
            self._ledger.put(_TABLE, found.id.encode())
        elif known.decode() != found.id or found.version < seen:
            raise StorageError(
                f"The table at {uri} is not the one that this lane has read up to version {seen}: it was made anew, or "
                f"set back; begin with another --state, or delete {self._ledger.path}, and with it what it remembers."
            )
