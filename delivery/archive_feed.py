"""The feed of an ordered lane: the archive's commits, routed, with what became of every row in the lane's ledger."""

import itertools
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millrace.delivery.enrol import Enrolment
from millrace.delivery.feed import Row
from millrace.delivery.follow import GoneError, Log
from millrace.delivery.ledger import Ledger
from millrace.delivery.parked import read_parked, write_parked
from millrace.delivery.parts import Marks, Parts
from millrace.delivery.pending import Pending
from millrace.delivery.records import ROW_BITS, Entry, Mark, Parked, Trying
from millrace.delivery.settings import LaneSettings
from millrace.sinks.column_values import column_values
from millrace.sinks.storage import Location
from millrace.transforms.route import columns_for, route_rows, rows_for

_LOG = logging.getLogger(__name__)
ROUTES = "routes"
"""In the ledger's memory: a JSON list of (LaneSettings.digest, the first part that was read with it)."""
_MOST_ROUTES = 50
KEEP_S = 7 * 86_400
"""How long the marks of settled parts are kept, for `millrace verify`."""
_FORGET_S = 3_600.0
_AT_ONCE = 4_096

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
        self._ledger = ledger
        self._settings = settings
        self._from_start = from_start
        self._log = Log(location)
        self._enrolment = Enrolment(location, self._log, ledger, settings.name)
        self._routes = {route.name: at for at, route in enumerate(settings.routes)}
        self._parts = Parts(ledger)
        self._counts: Counter[str] = Counter()
        self._parked: list[Parked] = []
        self._brought_back: list[int] = []
        self._back: set[int] = set()  # positions of events that were parked, and are tried again
        self._unparked: list[int] = []
        self._has_saved = False
        self._read_up_to = 0  # of what the ledger does not know to be read yet
        self._coming: Iterator[list[Pending]] = iter(())
        self._next_forget = 0.0

    def open(self) -> tuple[list[Pending], list[Pending]]:
        """Return what an earlier run left unsettled.

        Raises:
            StorageError: the archive cannot be read, or is not the one of the earlier run.
        """
        self._enrolment.open(from_start=self._from_start)
        self._note_routes()
        tried = {each.position: each for each in self._ledger.trying()}
        back = {each.position: each for each in self._ledger.parked(brought_back=True)}
        self._back = set(back)
        failed: list[Pending] = []
        waiting: list[Pending] = []
        for entry, marks in self._ledger.unfinished():
            for event in self._unsettled(entry, marks, back):
                trying = tried.get(event.position)
                if trying is None:
                    waiting.append(event)
                    continue
                event.attempts, event.first_us, event.next_us = trying.attempts, trying.first_us, trying.next_us
                event.fault, event.detail = trying.fault, trying.detail
                failed.append(event)
        return failed, waiting

    def read(self) -> list[Pending]:
        """Return the next of a part's events; [] where there is none now, or none of them is routed."""
        self._enrolment.look()
        events = next(self._coming, None)
        if events is not None:
            return events
        unread = self._ledger.unread(self._read_up_to, 1)
        if not unread:
            time.sleep(min(self._log.poll_s, 0.05))
            return []
        entry = unread[0]
        try:
            self._coming = self._events(entry, None)
        except GoneError as error:
            _LOG.error("%s: %s: %d rows are lost to this sink.", self._settings.name, error, entry.rows)
            self._counts["unreadable"] += entry.rows
            self._parts.set(entry.seq, np.zeros(entry.rows, np.uint8))
        self._read_up_to = entry.seq
        return next(self._coming, [])

    def settle(self, events: Sequence[Pending], mark: Mark) -> None:
        """Note that events are settled."""
        for event in events:
            self._parts.mark(event.position, mark)
            if event.position in self._back:
                self._back.remove(event.position)
                self._unparked.append(event.position)
            if mark is Mark.PARKED:
                self._parked.append(write_parked(event, self._settings.routes[event.route].name))
        self._counts[_NAMES[mark]] += len(events)

    def save(self, trying: Sequence[Trying], over: Sequence[int], now_us: int) -> None:
        """Make it durable, in one transaction."""
        if len(self._parts) or self._counts or trying or over or not self._has_saved:
            self._write(trying, over, now_us)
        self._enrolment.go_on()
        if time.monotonic() >= self._next_forget:
            self._next_forget = time.monotonic() + _FORGET_S
            self._ledger.forget(now_us - KEEP_S * 1_000_000)

    def _write(self, trying: Sequence[Trying], over: Sequence[int], now_us: int) -> None:
        with self._ledger.writing():
            self._parts.write()
            for position in self._brought_back:
                self._ledger.bring_back(position)
            for position in self._unparked:
                self._ledger.unpark(position)
            for parked in self._parked:
                self._ledger.park(parked)
            self._ledger.add_totals(self._counts, now_us)
            if self._has_saved:
                self._ledger.change_trying(trying, over)
            else:
                self._ledger.set_trying(trying)
        self._parts.written()
        for noted in (self._counts, self._parked, self._brought_back, self._unparked):
            noted.clear()
        self._has_saved = True

    def bring_back(self, subject: str) -> list[Pending]:
        """Return parked events, which wait again."""
        found = []
        for parked in self._ledger.parked():
            if subject not in {"all", f"user:{parked.user_key}", f"event:{parked.message_id}"}:
                continue
            route = self._routes.get(parked.route)
            if route is None or parked.position in self._back:  # gone: it stays parked
                continue
            self._parts.mark(parked.position, Mark.WAITING)
            self._brought_back.append(parked.position)
            self._back.add(parked.position)
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

    def note(self) -> str:
        """Say where no archive is."""
        return "" if self._enrolment.is_there else f"waits for an archive at {self._enrolment.uri}"

    def _note_routes(self) -> None:
        """Note from which part on which routes were asked, for `millrace verify`."""
        told = msgspec.json.decode(self._ledger.get(ROUTES) or b"[]", type=list[tuple[str, int]])
        if not told or told[-1][0] != self._settings.digest:
            told.append((self._settings.digest, self._ledger.first_unread()))
            self._ledger.put(ROUTES, msgspec.json.encode(told[-_MOST_ROUTES:]))

    def close(self) -> None:
        """Say where the lane is, for compaction."""
        self._enrolment.write_bookmark()

    def _events(self, entry: Entry, waiting: Marks | None) -> Iterator[list[Pending]]:
        """Route a part, and return its events in delivery order: those that wait by its marks, or (None) all routed.

        They come some thousand at a time: the first are on their way while the others are made.

        Raises:
            GoneError, StorageError: as Log.rows.
        """
        rows = self._log.rows(entry, lambda there: columns_for(self._settings.routes, there))
        taken = route_rows(rows, self._settings.routes)
        in_order = ~_overflow(rows.column("user_key"), taken >= 0, self._settings.sink.hot_user_events)
        if waiting is None:
            wanted = np.flatnonzero(taken >= 0)
            self._counts["routed"] += len(wanted)
            self._counts["without order"] += len(wanted) - int(np.count_nonzero(in_order[wanted]))
            self._parts.set(entry.seq, np.where(taken >= 0, np.uint8(Mark.WAITING), np.uint8(Mark.NOT_ROUTED)))
        else:
            wanted = np.flatnonzero(waiting == Mark.WAITING)
            self._skip(entry.seq, wanted[taken[wanted] < 0], "take no route any more")
        return self._slices(entry.seq, rows, wanted, taken, in_order)

    def _slices(
        self,
        seq: int,
        rows: pa.RecordBatch,
        wanted: npt.NDArray[np.int64],
        taken: npt.NDArray[np.int16],
        in_order: npt.NDArray[np.bool_],
    ) -> Iterator[list[Pending]]:
        for start in range(0, len(wanted), _AT_ONCE):
            places = wanted[start : start + _AT_ONCE]
            found: list[Pending] = []
            for at in range(len(self._settings.routes)):
                of_route = places[taken[places] == at]
                if len(of_route):
                    found += self._of_route(seq, rows.take(pa.array(of_route)), of_route, at, in_order[of_route])
            found.sort(key=lambda event: event.position)
            self._parts.hold(seq, found)
            yield found

    def _unsettled(self, entry: Entry, marks: Marks, back: dict[int, Parked]) -> list[Pending]:
        """Return the events of a part that an earlier run read and did not settle."""
        first = entry.seq << ROW_BITS
        found: list[Pending] = []
        for row in np.flatnonzero(marks == Mark.WAITING).tolist():
            parked = back.get(first + row)
            if parked is None:
                continue
            marks[row] = Mark.PARKED  # not to be read
            route = self._routes.get(parked.route)
            if route is not None:
                found.append(read_parked(parked, route))
            else:
                self._skip(entry.seq, np.array([row]), "take no route any more")
                self._back.discard(parked.position)
                self._unparked.append(parked.position)
        if (marks == Mark.WAITING).any():
            try:
                found += itertools.chain.from_iterable(self._events(entry, marks))
            except GoneError as error:
                self._skip(entry.seq, np.flatnonzero(marks == Mark.WAITING), str(error))
        return found

    def _skip(self, seq: int, rows: npt.NDArray[np.int64], why: str) -> None:
        """Settle rows of an earlier run that cannot be delivered any more."""
        if not len(rows):
            return
        for row in rows.tolist():
            self._parts.mark((seq << ROW_BITS) + row, Mark.SKIPPED)
        self._counts["skipped"] += len(rows)
        _LOG.warning("%s: %d waiting events are skipped: %s.", self._settings.name, len(rows), why)

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
        users = column_values(rows.column("user_key"))
        ids = column_values(rows.column("message_id"))
        positions = ((seq << ROW_BITS) + places).tolist()
        return [
            Pending(position, user if ordered else None, message_id, route, size, Row(sent, at, user))
            for at, (position, user, message_id, ordered) in enumerate(
                zip(positions, users, ids, in_order.tolist(), strict=True)
            )
        ]


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
