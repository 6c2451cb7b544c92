"""The accounts of lanes: what the routes took of the archive against what became of it, by each lane's ledger.

    routed = delivered + dead + skipped + parked + waiting

A ledger has a mark for each row of each part of the archive. Held against it: the archive's log (is each part in the
queue), the routes (is each row marked that they take), its own totals, and the table of what could not be delivered.
"""

import contextlib
import dataclasses
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millrace.delivery.archive_feed import ROUTES
from millrace.delivery.enrol import SEEN
from millrace.delivery.follow import Log
from millrace.delivery.ledger import ROW_BITS, Entry, Ledger, Mark
from millrace.delivery.records import ROW_MASK
from millrace.delivery.settings import LaneSettings
from millrace.pipelines.verify_enrolled import enrolment
from millrace.pipelines.verify_findings import Finding, Findings, Kind
from millrace.pipelines.verify_tables import Slice, Tables, iso
from millrace.pipelines.verify_unordered import unsettled
from millrace.sinks.delta import Table
from millrace.sinks.storage import StorageError
from millrace.transforms.route import columns_for, route_rows

Marks = npt.NDArray[np.uint8]

_NAMES = {Mark.DELIVERED: "delivered", Mark.DEAD: "dead", Mark.SKIPPED: "skipped", Mark.PARKED: "parked"}


@dataclasses.dataclass
class LaneAccount:
    """Of one lane, in events."""

    lane: str
    routed: int = 0
    delivered: int = 0
    dead: int = 0
    skipped: int = 0
    parked: int = 0
    waiting: int = 0
    unread: int = 0
    """Rows of the archive that the lane has not looked at."""
    missing: int = 0
    """Rows that a route takes, and that the ledger does not know, or says that none does."""
    checked: int = 0
    """Rows that the routes were asked for again."""
    unchecked: int = 0
    """Rows for which that cannot be: their files were merged, or the routes have changed since."""
    not_configured: bool = False
    """Whether the configuration has no such lane: its routes are not known."""


class LaneCheck:
    """One run over the ledgers of a folder.

    Args:
        tables: of the job.
        undelivered: the table of what was given up; None where there is none.
        findings: where to say what is wrong.
        scratch: a folder for copies of the ledgers.
        fast: trust the marks: ask no routes again.
        hours: parts that were committed then are held against the routes.
    """

    def __init__(
        self,
        tables: Tables,
        undelivered: Table | None,
        findings: Findings,
        scratch: Path,
        *,
        fast: bool,
        hours: Slice,
    ) -> None:
        self._tables = tables
        self._undelivered = undelivered
        self._findings = findings
        self._scratch = scratch
        self._fast = fast
        self._hours = hours

    def run(self, state: Path, lanes: Sequence[LaneSettings]) -> list[LaneAccount]:
        """Check all lanes that have a ledger.

        Args:
            state: the folder of ledgers.
            lanes: as configured.

        Raises:
            FileNotFoundError: there is no ledger.
        """
        paths = sorted(state.glob("*.sqlite"))
        if not paths:
            raise FileNotFoundError(f"{state} holds no ledger: give the --state of millrace deliver")
        by_name = {lane.name: lane for lane in lanes}
        found = []
        for path in paths:
            # A copy: the lane goes on meanwhile, and marks, totals and tables are compared as of one moment.
            copy = self._scratch / path.name
            with (
                contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as source,
                contextlib.closing(sqlite3.connect(copy)) as target,
            ):
                source.backup(target)
            with contextlib.closing(Ledger(copy)) as ledger:
                found.append(_Lane(self, path.stem, ledger, by_name.get(path.stem)).check())
        return found

    @property
    def table(self) -> Table:
        """The archive."""
        return self._tables.tables["archive"]

    def unsettled(self, settings: LaneSettings | None, ledger: Ledger) -> tuple[int, int]:
        """Find what a lane without order never settled; return (rows checked, missing)."""
        if self._fast or settings is None:
            return 0, 0
        return unsettled(self._tables, settings, ledger, self._hours, self._findings)

    def add(self, kind: Kind, what: str, lane: str, at_us: int | None = None) -> None:
        """Say what is wrong."""
        self._findings.add([Finding(kind, what, lane, "" if at_us is None else iso(at_us))])

    def asks_routes(self, entry: Entry) -> bool:
        """Say whether a part is to be held against the routes."""
        return not self._fast and self._hours.low_us <= entry.committed_us < self._hours.high_us

    def recorded(self, lane: str) -> dict[int, str]:
        """Return position and message id of what a lane's sink did not take."""
        if self._undelivered is None:
            return {}
        self._undelivered.refresh()
        dataset = self._undelivered.delta.to_pyarrow_dataset(filesystem=self._undelivered.location.files)
        rows = dataset.to_table(columns=["position", "message_id"], filter=pc.field("lane") == lane)
        return dict(zip(rows.column("position").to_pylist(), rows.column("message_id").to_pylist(), strict=True))


class _Lane:
    """One lane's check."""

    def __init__(self, run: LaneCheck, name: str, ledger: Ledger, settings: LaneSettings | None) -> None:
        self._run = run
        self._name = name
        self._ledger = ledger
        self._settings = settings
        self._log = Log(run.table.location)
        self._account = LaneAccount(name, not_configured=settings is None)

    def check(self) -> LaneAccount:
        entries = self._ledger.entries()
        if self._ledger.get(SEEN) is None:  # it takes its events from a subscription
            self._by_totals()
            self._account.checked, self._account.missing = self._run.unsettled(self._settings, self._ledger)
            return self._account
        self._enrolled(entries)
        recorded = self._run.recorded(self._name)
        asked_from = self._asked_from()
        counts = np.zeros(len(Mark), np.int64)
        by_position: dict[int, int] = {}
        for entry in entries:
            if not self._ledger.was_read(entry.seq):
                self._account.unread += entry.rows
                continue
            marks = self._ledger.marks(entry.seq)
            counts += np.bincount(marks, minlength=len(Mark))[: len(Mark)]
            if self._settings is not None and entry.seq >= asked_from and self._run.asks_routes(entry):
                self._hold_against_routes(entry, marks, self._settings)
            else:
                self._account.unchecked += entry.rows
            self._dead(entry, marks, recorded, by_position)
        for mark, name in _NAMES.items():
            setattr(self._account, name, int(counts[mark]))
        self._account.waiting = int(counts[Mark.WAITING])
        self._account.routed = int(counts.sum() - counts[Mark.NOT_ROUTED])
        self._totals(entries, recorded, by_position)
        self._trying(by_position)
        return self._account

    def _enrolled(self, entries: Sequence[Entry]) -> None:
        """Find parts of the archive that are not in the queue."""
        found = enrolment(self._run.table, self._log, self._ledger, entries, time.time_ns() // 1_000)
        for each in found.lacking:
            self._run.add(Kind.NOT_ENROLLED, each.what, self._name, each.at_us)
        self._account.missing += sum(each.rows for each in found.lacking)
        self._account.unread += found.behind

    def _asked_from(self) -> int:
        """Return from which part on the lane has asked the routes that are configured now."""
        told = msgspec.json.decode(self._ledger.get(ROUTES) or b"[]", type=list[tuple[str, int]])
        if self._settings is None or not told:
            return 0
        digest, seq = told[-1]
        return seq if digest == self._settings.digest else 1 << 62

    def _hold_against_routes(self, entry: Entry, marks: Marks, settings: LaneSettings) -> None:
        # Which columns they send does not matter, and would all have to be read.
        routes = [dataclasses.replace(route, columns=(("message_id", "message_id"),)) for route in settings.routes]
        try:
            rows = self._log.rows(entry, lambda there: columns_for(routes, there))
        except StorageError:
            self._account.unchecked += entry.rows
            return
        self._account.checked += rows.num_rows
        if rows.num_rows != len(marks):
            self._run.add(Kind.TOTALS, f"part {entry.seq} has {rows.num_rows} rows, {len(marks)} marks", self._name)
            return
        takes = route_rows(rows, routes) >= 0
        lost = np.flatnonzero(takes & (marks == Mark.NOT_ROUTED))
        self._account.missing += len(lost)
        wrong = np.flatnonzero(~takes & (marks != Mark.NOT_ROUTED) & (marks != Mark.SKIPPED))
        for kind, places in ((Kind.NOT_ROUTED, lost), (Kind.ROUTED, wrong)):
            for message_id in rows.column("message_id").take(pa.array(places)).to_pylist():
                self._run.add(kind, message_id, self._name, entry.committed_us)

    def _dead(self, entry: Entry, marks: Marks, recorded: dict[int, str], by_position: dict[int, int]) -> None:
        """Find what was given up without a record, and note the marks of what is on record or being tried again."""
        base = entry.seq << ROW_BITS
        unrecorded = [int(row) for row in np.flatnonzero(marks == Mark.DEAD) if base + int(row) not in recorded]
        if unrecorded:
            ids = self._ids(entry)
            for row in unrecorded:
                self._run.add(
                    Kind.DEAD_UNRECORDED, ids.get(row, f"position {base + row}"), self._name, entry.committed_us
                )
        wanted = {*recorded, *(each.position for each in self._ledger.trying())}
        of_entry = [position for position in wanted if position >> ROW_BITS == entry.seq]
        by_position |= {position: int(marks[position & ROW_MASK]) for position in of_entry}

    def _ids(self, entry: Entry) -> dict[int, str]:
        try:
            rows = self._log.rows(entry, lambda _: ["message_id"])
        except StorageError:
            return {}
        return dict(enumerate(rows.column("message_id").to_pylist()))

    def _totals(self, entries: Sequence[Entry], recorded: dict[int, str], by_position: dict[int, int]) -> None:
        """Compare the marks with what the lane has counted; of parts that are settled and old the ledger keeps none."""
        totals = self._ledger.totals()
        is_whole = bool(entries) and entries[0].seq == 1 and entries[-1].seq == len(entries)
        differ = []
        for name in ("routed", *_NAMES.values()):
            counted, marked = totals.get(name, 0), getattr(self._account, name)
            if counted < marked or (is_whole and counted != marked):
                differ.append(name)
                self._run.add(Kind.TOTALS, f"{name}: {counted:,} counted, {marked:,} marked", self._name)
        for position, message_id in sorted(recorded.items()):
            mark = by_position.get(position)
            # After a crash between table and ledger an event is tried again: on record, and perhaps delivered.
            if mark == Mark.NOT_ROUTED or ("dead" in differ and mark not in (None, Mark.DEAD)):
                self._run.add(Kind.DEAD_UNMARKED, message_id, self._name)

    def _trying(self, by_position: dict[int, int]) -> None:
        for each in self._ledger.trying():
            if by_position.get(each.position) not in (None, Mark.WAITING):
                self._run.add(Kind.TOTALS, f"{each.message_id} is tried again, and marked as settled", self._name)

    def _by_totals(self) -> None:
        """Enter a lane without order: its ledger has totals, of messages that are settled, and these messages."""
        totals, account, said = self._ledger.totals(), self._account, self._ledger.status()
        for name in _NAMES.values():
            setattr(account, name, totals.get(name, 0))
        settled = account.delivered + account.dead + account.skipped + account.parked
        if settled != totals.get("routed", 0):
            self._run.add(Kind.TOTALS, f"routed: {totals.get('routed', 0):,} counted, {settled:,} settled", self._name)
        account.waiting = 0 if said is None else said[1].waiting
        account.routed = settled + account.waiting
        recorded = len(self._run.recorded(self._name))
        if recorded < account.dead:
            self._run.add(Kind.DEAD_UNRECORDED, f"{account.dead - recorded:,} events", self._name)
