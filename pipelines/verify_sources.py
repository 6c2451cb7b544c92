"""The accounts of sources: what was accepted of each source and hour against what the tables have of it.

Joined by place in the queue: Pub/Sub's id of a message (in the tables `envelope_id`) and the event's index in it.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb

from millrace.pipelines.verify_accepted import HOUR_US, PENDING, Acceptances
from millrace.pipelines.verify_findings import Finding, Findings, Kind
from millrace.pipelines.verify_places import (
    ABSENT,
    ENVELOPES,
    ID,
    LEFT,
    MATCHED,
    OTHERS,
    PLACES,
    REPEATED,
    SUMS,
    SUSPECTS,
    UNFORESEEN,
)
from millrace.pipelines.verify_tables import ALL, SPECS, Slice, Tables, hour_name, iso

DOORS = tuple(SPECS)
_MARGIN_US = 300_000_000
"""How far the clocks of Pub/Sub and of a collector may differ before the accounts take a second look."""
_PLACE = ("envelope_id", "envelope_index", "source_id", "published_at")
_COLUMNS = {
    "archive": (*_PLACE, "message_id"),
    "duplicates": (*_PLACE, "message_id"),
    "dead_letters": (*_PLACE, "stage", "payload"),
    "dropped": (*_PLACE, "message_id"),
}


@dataclasses.dataclass
class Account:
    """Of one source and hour, in events. `accepted + again` = all that follow but `others`, where it closes."""

    accepted: int = 0
    again: int = 0
    """Published a second time from the spool, by a collector that did not live to note the first."""
    archive: int = 0
    duplicates: int = 0
    dead_letters: int = 0
    dropped: int = 0
    in_flight: int = 0
    missing: int = 0
    others: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(DOORS, 0))
    """In the tables by door, and not noted by any collector: of other publishers, or of a publish that nobody learnt
    had succeeded. By the hour of publication."""


@dataclasses.dataclass
class Sources:
    """What was found.

    Attributes:
        accounts: by source and hour (µs since the epoch).
        is_known: whether what was accepted is known.
        oldest_in_flight_us: when the oldest event was accepted that is nowhere yet.
        in_spool: events of those in flight that are in collectors' spools.
    """

    accounts: dict[tuple[str, int], Account] = dataclasses.field(default_factory=dict)
    is_known: bool = False
    oldest_in_flight_us: int | None = None
    in_spool: int = 0

    def of(self, source: str, hour_us: int) -> Account:
        """Return an account, a new one where there is none."""
        return self.accounts.setdefault((source, hour_us), Account())

    def wait(self, source: str, hour_us: int, at_us: int, events: int = 1) -> None:
        """Count events that are nowhere yet, and need not be."""
        self.of(source, hour_us).in_flight += events
        self.oldest_in_flight_us = min(self.oldest_in_flight_us or at_us, at_us)


class SourceCheck:
    """One run over the tables.

    Args:
        tables: what to read.
        connection: of DuckDB, for tables of this run's own.
        acceptances: None where what was accepted is not known.
        findings: where to say what is wrong.
        settled_after_us: how far the tables' newest message may be ahead of one that is in none of them.
        hours: from which on, up to which (µs since the epoch, whole hours): of acceptance, and of publication for what
            nobody noted.
    """

    def __init__(
        self,
        tables: Tables,
        connection: duckdb.DuckDBPyConnection,
        acceptances: Acceptances | None,
        findings: Findings,
        *,
        settled_after_us: int,
        hours: Slice = ALL,
    ) -> None:
        self._tables = tables
        self._db = connection
        self._acceptances = acceptances
        self._findings = findings
        self._settled_us = (tables.newest_us or 0) - settled_after_us
        self._hours = hours
        self._found = Sources(is_known=acceptances is not None)

    def run(self) -> Sources:
        """Look at all of it."""
        if self._acceptances is None:
            self._db.execute(PENDING)
        for part in self._tables.slices(self._hours.low_us - _MARGIN_US, self._hours.high_us + _MARGIN_US):
            if self._acceptances is not None:
                end_us = part.high_us + _MARGIN_US
                self._acceptances.load(None if end_us > ALL.high_us else hour_name(end_us))
            self._gather(part)
            self._account()
        if self._acceptances is not None:
            self._acceptances.load(None)
            self._second_look()
            self._still_pending()
            self._spooled()
        self._found.accounts = {key: each for key, each in self._found.accounts.items() if each != Account()}
        return self._found

    def _gather(self, part: Slice, only: str = "") -> None:
        """Fill `found` with the places of a slice, of the messages in a table `only` where one is named."""
        self._db.execute(
            "CREATE OR REPLACE TABLE found (envelope_id VARCHAR, envelope_index INTEGER, source_id VARCHAR, "
            "published_us BIGINT, door UTINYINT)"
        )
        only = f"SEMI JOIN {only} USING (envelope_id)" if only else ""
        for door, name in enumerate(DOORS):
            rows = self._tables.read(name, _PLACE, part)
            if rows is not None:
                self._db.register("rows_read", rows)
                self._db.execute(
                    "INSERT INTO found SELECT envelope_id, envelope_index, source_id, epoch_us(published_at), "  # noqa: S608
                    f"{door} FROM rows_read {only}"
                )
                self._db.unregister("rows_read")

    def _account(self, *, second: bool = False) -> None:
        """Enter what was gathered."""
        for statement in (PLACES, ENVELOPES, MATCHED):
            self._db.execute(statement)
        for source, hour, events, *doors in self._db.execute(SUMS).fetchall():
            if not self._in_range(hour):
                continue
            account = self._found.of(source, hour)
            account.accepted += int(events)
            for name, count in zip(DOORS, doors, strict=True):
                setattr(account, name, getattr(account, name) + int(count))
        if second:  # it was taken for another publisher's before
            self._db.execute("DELETE FROM envelopes WHERE envelope_id NOT IN (SELECT envelope_id FROM matched)")
            taken_back = OTHERS.replace("ANTI JOIN", "SEMI JOIN")
            self._enter_others(taken_back, -1)
        else:
            self._enter_others(OTHERS, 1)
            self._repeated()
        self._findings.add(
            Finding(Kind.UNFORESEEN, f"{id_}/{index}", source, iso(at))
            for id_, index, source, at in self._rows(UNFORESEEN)
        )
        for id_, index, source, hour, at in self._rows(ABSENT):
            self._absent(f"{id_}/{index}", source, hour, at)
        self._db.execute(LEFT)

    def _enter_others(self, query: str, sign: int) -> None:
        for source, hour, *doors in self._db.execute(query).fetchall():
            if not self._in_range(hour):
                continue
            others = self._found.of(source, hour).others
            for name, count in zip(DOORS, doors, strict=True):
                others[name] += sign * int(count)

    def _absent(self, place: str, source: str, hour_us: int, at_us: int) -> None:
        if not self._in_range(hour_us):
            return
        if at_us > self._settled_us:
            self._found.wait(source, hour_us, at_us)
        else:
            self._found.of(source, hour_us).missing += 1
            self._findings.add([Finding(Kind.MISSING, place, source, iso(at_us))])

    def _repeated(self) -> None:
        """Look closely at places that were found more than once: with their ids."""
        self._db.execute(SUSPECTS)
        count, low, high = self._db.execute(
            "SELECT count(*), min(published_us), max(published_us) FROM suspects JOIN envelopes USING (envelope_id)"
        ).fetchall()[0]
        if not count:
            return
        self._db.execute(
            "CREATE OR REPLACE TABLE details (envelope_id VARCHAR, envelope_index INTEGER, source_id VARCHAR, "
            "published_us BIGINT, door UTINYINT, id VARCHAR)"
        )
        for door, name in enumerate(DOORS):
            rows = self._tables.read(name, _COLUMNS[name], Slice(low, high + 1))
            if rows is None:
                continue
            # What a step refused has its id; anything else is refused as it came.
            id_ = "message_id" if name != "dead_letters" else "CASE WHEN contains(stage, ': ') THEN " + ID + " END"
            self._db.register("rows_read", rows)
            self._db.execute(
                "INSERT INTO details SELECT envelope_id, envelope_index, source_id, epoch_us(published_at), "  # noqa: S608
                f"{door}, {id_} FROM rows_read SEMI JOIN suspects USING (envelope_id)"
            )
            self._db.unregister("rows_read")
        self._findings.add(
            Finding(Kind.REPEATED, f"{id_}/{index}", f"{source} in {', '.join(DOORS[door] for door in doors)}", iso(at))
            for id_, index, source, at, doors in self._rows(REPEATED)
        )

    def _second_look(self) -> None:
        """Look at all times for what would be missing: clocks may differ more than the margin, spools take longer."""
        self._db.execute(
            "CREATE TABLE unsettled AS SELECT envelope_id FROM pending "
            "WHERE at_us <= ? AND hour_us >= ? AND hour_us < ?",
            [self._settled_us, *self._hours],
        )
        if self._db.execute("SELECT count(*) FROM unsettled").fetchall()[0][0]:
            self._gather(ALL, "unsettled")
            self._account(second=True)

    def _still_pending(self) -> None:
        for id_, source, hour, events, at in self._rows(
            "SELECT envelope_id, source, hour_us, events, at_us FROM pending WHERE hour_us >= ? AND hour_us < ?",
            self._hours,
        ):
            self._found.of(source, hour).accepted += events
            for index in range(events):
                self._absent(f"{id_}/{index}", source, hour, at)

    def _spooled(self) -> None:
        """Enter what is in a spool yet, and what was published from one twice."""
        (newest,) = self._db.execute("SELECT max(hour_us) FROM spooled WHERE replayed > 0").fetchall()[0]
        for key, source, hour, events, at, spooled, replayed in self._rows(
            "SELECT key, source, hour_us, events, at_us, spooled, replayed FROM spooled "
            "WHERE replayed != spooled AND hour_us >= ? AND hour_us < ?",
            self._hours,
        ):
            again = events * max(0, replayed - max(spooled, 1))
            account = self._found.of(source, hour)
            account.again += again
            account.accepted -= again
            left = events * max(0, spooled - replayed)
            account.accepted += left
            if not left:
                continue
            # A spool is emptied oldest first: what came an hour later has been published, so this should have been.
            if newest is not None and newest > hour + HOUR_US:
                account.missing += left
                self._findings.add([Finding(Kind.SPOOL_LOST, key, source, iso(at))])
            else:
                self._found.in_spool += left
                self._found.wait(source, hour, at, left)

    def _in_range(self, hour_us: int) -> bool:
        return self._hours.low_us <= hour_us < self._hours.high_us

    def _rows(self, query: str, values: Sequence[int] = ()) -> Iterator[tuple[Any, ...]]:
        """Give the rows of a query bit by bit."""
        with self._db.cursor() as cursor:
            cursor.execute(query, list(values))
            while chunk := cursor.fetchmany(10_000):
                yield from chunk
