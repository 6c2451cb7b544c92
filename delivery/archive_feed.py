"""The feed of an ordered lane: the archive's commits, routed, with what became of every row in the lane's ledger."""

import logging
import time
from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millrace.delivery.feed import Row
from millrace.delivery.follow import Log
from millrace.delivery.ledger import ROW_BITS, Entry, Ledger, Mark, Parked, Trying
from millrace.delivery.parked import read_parked, write_parked
from millrace.delivery.pending import Pending
from millrace.delivery.settings import LaneSettings
from millrace.sinks.bookmarks import write_bookmark
from millrace.sinks.storage import Location
from millrace.transforms.route import columns_for, route_rows, rows_for

_LOG = logging.getLogger(__name__)
SEEN = "archive version"
"""In the ledger's memory: up to which version of the archive its parts are enrolled."""
BEGAN = "began at version"
"""In the ledger's memory: what was in the archive up to this version is not for this lane."""
_ROW_MASK = (1 << ROW_BITS) - 1
ROUTES = "routes"
"""In the ledger's memory: a JSON list of (LaneSettings.digest, the first part that was read with it)."""
_MOST_ROUTES = 50
KEEP_S = 7 * 86_400
"""How long the marks of settled parts are kept, for `millrace verify`."""
_BOOKMARK_S = 30.0

_NAMES = {Mark.DELIVERED: "delivered", Mark.DEAD: "dead", Mark.SKIPPED: "skipped", Mark.PARKED: "parked"}


class ArchiveFeed:
    """Implements Feed; see there.

    Args:
        location: of the archive.
        ledger: open, for writing.
        settings: the lane's.
        from_start: where a new lane begins: at the archive's first row, or behind its last.
    """

    def __init__(self, location: Location, ledger: Ledger, settings: LaneSettings, *, from_start: bool = False) -> None:
        self._location = location
        self._ledger = ledger
        self._settings = settings
        self._from_start = from_start
        self._log = Log(location)
        self._routes = {route.name: at for at, route in enumerate(settings.routes)}
        self._marks: dict[int, npt.NDArray[np.uint8]] = {}
        self._changed: set[int] = set()
        self._counts: Counter[str] = Counter()
        self._parked: list[Parked] = []
        self._brought_back: list[int] = []
        self._trying: list[Trying] = []
        self._read_up_to = 0  # of what the ledger does not know to be read yet
        self._next_look = 0.0
        self._next_bookmark = 0.0

    def open(self) -> tuple[list[Pending], list[Pending]]:
        """Return what an earlier run left unsettled."""
        if self._ledger.get(SEEN) is None:
            newest = None if self._from_start else self._log.newest()
            self._ledger.put(BEGAN, str(-1 if newest is None else newest).encode())
            self._ledger.put(SEEN, str(-1 if newest is None else newest).encode())
        self._note_routes()
        self._ledger.forget(time.time_ns() // 1_000 - KEEP_S * 1_000_000)
        tried = {each.position: each for each in self._ledger.trying()}
        failed: list[Pending] = []
        waiting: list[Pending] = []
        for entry, marks in self._ledger.unfinished():
            for event in self._events(entry, marks, np.flatnonzero(marks == Mark.WAITING)):
                trying = tried.get(event.position)
                if trying is None:
                    waiting.append(event)
                    continue
                event.attempts, event.first_us, event.next_us = trying.attempts, trying.first_us, trying.next_us
                event.fault, event.detail = trying.fault, trying.detail
                failed.append(event)
        return failed, waiting

    def read(self) -> list[Pending]:
        """Return the next part's events; [] where there is none now, or none of them is routed."""
        self._look()
        unread = self._ledger.unread(self._read_up_to, 1)
        if not unread:
            time.sleep(min(self._log.poll_s, 0.05))
            return []
        entry = unread[0]
        events = self._events(entry, np.zeros(entry.rows, np.uint8), None)
        self._read_up_to = entry.seq
        return events

    def settle(self, events: Sequence[Pending], mark: Mark) -> None:
        """Note that events are settled."""
        for event in events:
            seq, row = event.position >> ROW_BITS, event.position & _ROW_MASK
            self._marks[seq][row] = mark
            self._changed.add(seq)
            if mark is Mark.PARKED:
                self._parked.append(write_parked(event, self._settings.routes[event.route].name))
        self._counts[_NAMES[mark]] += len(events)

    def save(self, trying: Sequence[Trying], now_us: int) -> None:
        """Make it durable, in one transaction."""
        if self._changed or self._counts or list(trying) != self._trying:
            self._write(trying, now_us)
        if time.monotonic() >= self._next_bookmark:
            self._next_bookmark = time.monotonic() + _BOOKMARK_S
            self._write_bookmark(now_us)

    def _write(self, trying: Sequence[Trying], now_us: int) -> None:
        with self._ledger.writing():
            for seq in self._changed:
                self._ledger.set_marks(seq, self._marks[seq])
            for parked in self._parked:
                self._ledger.park(parked)
            for position in self._brought_back:
                self._ledger.unpark(position)
            self._ledger.add_totals(self._counts, now_us)
            self._ledger.set_trying(trying)
        for seq in self._changed:
            if not (self._marks[seq] == Mark.WAITING).any():
                del self._marks[seq]
        self._changed.clear()
        self._counts.clear()
        self._parked.clear()
        self._brought_back.clear()
        self._trying = list(trying)

    def bring_back(self, subject: str) -> list[Pending]:
        """Return parked events, which wait again."""
        found = []
        for parked in self._ledger.parked():
            if subject not in {"all", f"user:{parked.user_key}", f"event:{parked.message_id}"}:
                continue
            route = self._routes.get(parked.route)
            if route is None:  # the configuration has changed: it stays parked
                continue
            seq, row = parked.position >> ROW_BITS, parked.position & _ROW_MASK
            if seq not in self._marks:
                self._marks[seq] = self._ledger.marks(seq)
            self._marks[seq][row] = Mark.WAITING
            self._changed.add(seq)
            self._brought_back.append(parked.position)
            found.append(read_parked(parked, route))
        self._counts["parked"] -= len(found)
        return found

    def lag_us(self, now_us: int) -> int:
        """Return how long ago the oldest part was committed that is not settled."""
        oldest = self._ledger.oldest_open_us()
        return 0 if oldest is None else max(0, now_us - oldest)

    def behind(self) -> int:
        """Return how many rows were committed that the lane has not read."""
        return self._ledger.behind()

    def close(self) -> None:
        """Say where the lane is, for compaction."""
        self._write_bookmark(time.time_ns() // 1_000)

    def _note_routes(self) -> None:
        """Note from which part on which routes were asked, for `millrace verify`."""
        told = msgspec.json.decode(self._ledger.get(ROUTES) or b"[]", type=list[tuple[str, int]])
        if not told or told[-1][0] != self._settings.digest:
            told.append((self._settings.digest, self._ledger.first_unread()))
            self._ledger.put(ROUTES, msgspec.json.encode(told[-_MOST_ROUTES:]))

    def _look(self) -> None:
        """Enrol what was committed since the last look."""
        if time.monotonic() < self._next_look:
            return
        seen_before = int(self._ledger.get(SEEN) or b"-1")
        seen = self._log.since(seen_before, lambda: {file for entry in self._ledger.entries() for file in entry.files})
        if seen.version != seen_before:
            with self._ledger.writing():
                self._ledger.enrol(seen.entries)
                self._ledger.keep(SEEN, str(seen.version).encode())
        self._next_look = time.monotonic() + self._log.poll_s

    def _events(
        self, entry: Entry, marks: npt.NDArray[np.uint8], wanted: npt.NDArray[np.int64] | None
    ) -> list[Pending]:
        """Route a part, and return its events in delivery order: those wanted, or all that are routed."""
        rows = self._log.rows(entry, lambda there: columns_for(self._settings.routes, there))
        taken = route_rows(rows, self._settings.routes)
        if wanted is None:
            wanted = np.flatnonzero(taken >= 0)
            marks = np.where(taken >= 0, np.uint8(Mark.WAITING), np.uint8(Mark.NOT_ROUTED))
            self._counts["routed"] += len(wanted)
            self._changed.add(entry.seq)
        gone = wanted[taken[wanted] < 0]  # the configuration has changed since they were first read
        if len(gone):
            marks[gone] = Mark.SKIPPED
            self._counts["skipped"] += len(gone)
            self._changed.add(entry.seq)
            _LOG.warning("%d waiting events take no route any more, and are skipped.", len(gone))
        self._marks[entry.seq] = marks
        in_order = ~_overflow(rows.column("user_key"), taken >= 0, self._settings.sink.hot_user_events)
        found: list[Pending] = []
        for at in range(len(self._settings.routes)):
            of_route = wanted[taken[wanted] == at]
            if len(of_route):
                found += self._of_route(entry.seq, rows.take(pa.array(of_route)), of_route, at, in_order[of_route])
        found.sort(key=lambda event: event.position)
        return found

    def _of_route(
        self,
        seq: int,
        rows: pa.RecordBatch,
        places: npt.NDArray[np.int64],
        route: int,
        in_order: npt.NDArray[np.bool_],
    ) -> list[Pending]:
        sent = rows_for(rows, self._settings.routes[route])
        size = sent.nbytes // max(sent.num_rows, 1)
        users = rows.column("user_key").to_pylist()
        ids = rows.column("message_id").to_pylist()
        positions = ((seq << ROW_BITS) + places).tolist()
        self._counts["without order"] += len(places) - int(np.count_nonzero(in_order))
        return [
            Pending(position, user if ordered else None, message_id, route, size, Row(sent, at, user))
            for at, (position, user, message_id, ordered) in enumerate(
                zip(positions, users, ids, in_order.tolist(), strict=True)
            )
        ]

    def _write_bookmark(self, now_us: int) -> None:
        oldest = self._ledger.oldest_open_us()
        try:
            write_bookmark(self._location, self._settings.name, now_us if oldest is None else oldest)
        except OSError as error:
            _LOG.warning("Compaction is not told how far %s is: %s", self._settings.name, error)


def _overflow(users: pa.Array, routed: npt.NDArray[np.bool_], cap: int) -> npt.NDArray[np.bool_]:
    """Say which rows go without order: of those routed of one release window, a user's beyond the first `cap`."""
    over = np.zeros(len(routed), np.bool_)
    places = np.flatnonzero(routed)
    if len(places) <= cap:
        return over
    codes = pc.dictionary_encode(users.take(pa.array(places))).indices.to_numpy()
    if np.bincount(codes).max() <= cap:
        return over
    by_user = np.argsort(codes, kind="stable")
    firsts = np.flatnonzero(np.diff(codes[by_user], prepend=-1))
    nth = np.arange(len(places)) - np.repeat(firsts, np.diff(firsts, append=len(places)))
    over[places[by_user[nth >= cap]]] = True
    return over
