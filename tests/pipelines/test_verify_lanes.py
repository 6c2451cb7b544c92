"""`millrace verify` on the ledgers of lanes: they close, and whatever is changed behind their back is found."""

import shutil
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from millrace.config.fanout import read_fanout
from millrace.delivery.archive_feed import ArchiveFeed
from millrace.delivery.ledger import Ledger, Mark, Trying
from millrace.delivery.pending import Pending
from millrace.delivery.undelivered import Dead, Undelivered
from millrace.pipelines.verify_findings import Findings, Kind
from millrace.pipelines.verify_tables import ALL, SPECS, open_tables
from millrace.pipelines.verify_unordered import unsettled
from millrace.sinks.bookmarks import FOLDER
from millrace.sinks.compact import compact
from millrace.sinks.delta import open_table
from millrace.sinks.sink import Fault
from millrace.sinks.storage import locate
from millrace.sinks.tables import ARCHIVE, UNDELIVERED
from tests.support.verifying import NOON_S, place, text, verdict, write, write_all

CONFIG = """
sinks:
  crm: {{use: console}}
routes:
  - {{to: crm, when: event == "{event}"}}
"""
PARTS, ROWS = 4, 6
DEAD = "p2-1"
WAITING = {"p3-3", "p3-5"}
PARKED = "p1-5"


class Lane:
    """A lane that got every second row of four parts: most are delivered, one is dead, one parked, two wait."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.configure("Ordered")
        write_all(data)
        for part in range(PARTS):
            self.commit(part)
        self.run()

    def configure(self, event: str) -> None:
        (self.data / "millrace.yaml").write_text(CONFIG.format(event=event))

    def commit(self, part: int) -> None:
        """Add a part to the archive; its odd rows are for the lane."""
        write(
            self.data,
            "archive",
            *(
                place(f"p{part}", row, part * 60.0, event="Ordered" if row % 2 else "Seen", order_index=row)
                for row in range(ROWS)
            ),
        )

    def run(self) -> None:
        """Have the lane carry out what is there."""
        (lane,) = read_fanout((self.data / "millrace.yaml").read_text(), "millrace.yaml").lanes
        ledger = Ledger(self.data / "delivery" / "crm.sqlite")
        feed = ArchiveFeed(locate(str(self.data / "archive")), ledger, lane, from_start=True)
        feed.open()
        events = [event for _ in range(PARTS + 2) for event in feed.read()]
        dead = [event for event in events if event.message_id == DEAD]
        if dead:
            records = [Dead(event, "crm", "crm", Fault.REJECTED, "400", 10**15) for event in dead]
            Undelivered(str(self.data / "undelivered")).write(records)
            feed.settle(dead, Mark.DEAD)
        feed.settle([event for event in events if event.message_id == PARKED], Mark.PARKED)
        others = {DEAD, PARKED, *WAITING}
        feed.settle([event for event in events if event.message_id not in others], Mark.DELIVERED)
        feed.save([_trying(event) for event in events if event.message_id in WAITING], 10**15)
        feed.close()
        ledger.close()

    def change(self, query: str, *values: object) -> None:
        """Change the ledger by hand."""
        with sqlite3.connect(self.data / "delivery" / "crm.sqlite") as database:
            database.execute(query, values)
        database.close()

    def flip(self, seq: int, row: int, mark: Mark) -> None:
        """Change a mark by hand."""
        ledger = Ledger(self.data / "delivery" / "crm.sqlite")
        marks = ledger.marks(seq)
        ledger.close()
        marks[row] = mark
        self.change(
            "UPDATE entries SET outcomes = ? WHERE seq = ?", zlib.compress(marks.astype(np.uint8).tobytes()), seq
        )


def _trying(event: Pending) -> Trying:
    return Trying(event.position, "x", event.message_id, 1, 1, 1, "failed", "500")


@pytest.fixture
def lane(tmp_path: Path) -> Lane:
    return Lane(tmp_path)


CLOSES = {"lane": "crm", "routed": 12, "delivered": 8, "dead": 1, "skipped": 0, "parked": 1, "waiting": 2}


def test_a_lane_that_did_its_work_closes(lane: Lane) -> None:
    found = verdict(lane.data)
    assert (found.code, found.ids) == (0, [])
    rest = {"unread": 0, "missing": 0, "checked": 24, "unchecked": 0, "not_configured": False}
    assert found.said["sinks"] == [CLOSES | rest]
    assert """
sink  routed  delivered  dead  skipped  parked  waiting  unread
crm       12          8     1        0       1        2       0
""" in text(lane.data)


def test_what_was_committed_since_is_not_missing(lane: Lane) -> None:
    lane.commit(PARTS)
    found = verdict(lane.data)
    assert (found.code, found.said["sinks"][0]["unread"]) == (0, ROWS)


@pytest.mark.parametrize(
    ("mutate", "kinds"),
    [
        pytest.param(
            lambda lane: lane.flip(1, 1, Mark.NOT_ROUTED),
            {("not routed", "p0-1"), ("totals", "routed: 12 counted, 11 marked")},
            id="routed, forgotten",
        ),
        pytest.param(
            lambda lane: lane.flip(1, 0, Mark.DELIVERED),
            {("routed wrongly", "p0-0"), ("totals", "routed: 12 counted, 13 marked")},
            id="not routed, delivered",
        ),
        pytest.param(
            lambda lane: lane.flip(2, 1, Mark.DEAD),
            {("dead, not recorded", "p1-1"), ("totals", "dead: 1 counted, 2 marked")},
            id="delivered, now dead",
        ),
        pytest.param(
            lambda lane: lane.flip(3, 1, Mark.DELIVERED),
            {("recorded, not dead", "p2-1"), ("totals", "dead: 1 counted, 0 marked")},
            id="dead, now delivered",
        ),
        pytest.param(
            lambda lane: lane.flip(4, 3, Mark.SKIPPED),
            {("totals", "p3-3 is tried again, and marked as settled"), ("totals", "skipped: 0 counted, 1 marked")},
            id="waiting, now skipped",
        ),
    ],
)
def test_a_mark_that_was_changed_is_found(
    lane: Lane, mutate: Callable[[Lane], None], kinds: set[tuple[str, str]]
) -> None:
    mutate(lane)
    found = verdict(lane.data)
    assert found.code == 1
    assert kinds <= set(found.ids)
    assert {kind for kind, _ in found.ids} == {kind for kind, _ in kinds}


@pytest.mark.parametrize("seq", range(1, PARTS + 1))
def test_a_part_that_is_not_in_the_queue_is_found(lane: Lane, seq: int) -> None:
    lane.change("DELETE FROM entries WHERE seq = ?", seq)
    lane.change("DELETE FROM trying")
    found = verdict(lane.data)
    (file,) = [id_ for kind, id_ in found.ids if kind == "not enrolled"]
    assert (found.code, f"test-{seq}" in file) == (1, True)
    assert found.said["sinks"][0]["missing"] == ROWS


def test_a_part_is_missed_even_where_the_log_no_longer_tells(lane: Lane) -> None:
    lane.change("DELETE FROM entries WHERE seq = 2")
    open_table(str(lane.data / "archive"), ARCHIVE).delta.create_checkpoint()
    for entry in (lane.data / "archive" / "_delta_log").glob("*.json"):
        entry.unlink()
    assert ("not enrolled", "part 2 of the queue") in verdict(lane.data).ids


def test_a_record_that_was_deleted_is_found(lane: Lane) -> None:
    open_table(str(lane.data / "undelivered"), UNDELIVERED).delta.delete(f"message_id = '{DEAD}'")
    found = verdict(lane.data)
    assert (found.code, found.ids) == (1, [("dead, not recorded", DEAD)])


def test_routes_that_changed_are_not_held_against_what_was_read_before(lane: Lane) -> None:
    lane.configure("Seen")
    found = verdict(lane.data)
    assert (found.code, found.said["sinks"][0]["checked"], found.said["sinks"][0]["unchecked"]) == (0, 0, 24)
    lane.run()  # what waits takes no route any more
    lane.commit(PARTS)
    lane.run()
    found = verdict(lane.data)
    account = found.said["sinks"][0]
    assert (found.code, found.ids) == (0, [])
    assert (account["checked"], account["unchecked"], account["skipped"]) == (ROWS, 24, 2)


def test_files_that_were_merged_and_deleted_are_taken_on_trust(lane: Lane) -> None:
    table = open_table(str(lane.data / "archive"), ARCHIVE)
    shutil.rmtree(lane.data / "archive" / FOLDER)  # else compaction leaves alone what the lane may read again
    compact(table, min_files=2, older_than_s=-10)
    for file in (lane.data / "archive").rglob("test-*.parquet"):
        file.unlink()
    found = verdict(lane.data)
    assert (found.code, found.said["sinks"][0]["unchecked"]) == (0, 24)


def test_fast_trusts_the_marks(lane: Lane) -> None:
    found = verdict(lane.data, "--fast")
    assert (found.code, found.said["sinks"][0]["checked"], found.said["sinks"][0]["unchecked"]) == (0, 0, 24)


def test_a_lane_that_is_not_configured_is_checked_by_its_own_books(lane: Lane) -> None:
    (lane.data / "millrace.yaml").write_text("")
    found = verdict(lane.data)
    assert (found.code, found.said["sinks"][0]["not_configured"]) == (0, True)
    lane.flip(2, 1, Mark.DEAD)
    assert verdict(lane.data).code == 1


def test_a_lane_without_order_is_checked_by_its_totals(lane: Lane) -> None:
    ledger = Ledger(lane.data / "delivery" / "crm.unordered.sqlite")
    ledger.add_totals({"routed": 10, "delivered": 7}, 10**15)
    found = verdict(lane.data)
    assert (found.code, found.said["sinks"][1]["waiting"]) == (0, 3)
    ledger.add_totals({"delivered": 4}, 10**15)
    ledger.close()
    assert verdict(lane.data).ids == [("totals", "1 more are settled than were routed")]


class Settled:
    """What a lane without order says it is done with: events by message."""

    since_us = NOON_S * 1_000_000
    until_us = (NOON_S + 240) * 1_000_000

    def __init__(self, **events: int) -> None:
        self._events = events

    def events_of(self, envelope_ids: pa.Array, published_at: pa.Array) -> npt.NDArray[np.int64]:
        assert len(published_at) == len(envelope_ids)
        return np.array([self._events.get(each, -1) for each in envelope_ids.to_pylist()], np.int64)


@pytest.mark.parametrize(
    ("events", "ids"),
    [
        pytest.param({"p0": 3, "p1": 3, "p2": 3, "p3": 4}, [], id="all of them, and a copy"),
        pytest.param({"p0": 3, "p2": 2, "p3": 3}, ["p1-1", "p1-3", "p1-5", "p2-1", "p2-3", "p2-5"], id="some lack"),
    ],
)
def test_what_a_lane_without_order_never_settled_is_found(lane: Lane, events: dict[str, int], ids: list[str]) -> None:
    write(lane.data, "archive", place("p0", 1, message_id="p0-1/split/1", event="Ordered"))  # made by the job
    write(lane.data, "archive", place("recent", 0, 200.0, event="Ordered"))  # the lane may not have come to it
    write(lane.data, "archive", place("old", 0, -1.0, event="Ordered"))
    (settings,) = read_fanout((lane.data / "millrace.yaml").read_text(), "millrace.yaml", only="").lanes
    tables = open_tables({name: str(lane.data / name) for name in SPECS})
    with Findings() as findings:
        _, missing = unsettled(tables, settings, Settled(**events), ALL, findings)
    assert sorted(each.what for each in findings.shown) == ids
    assert {each.kind for each in findings.shown} <= {Kind.UNSETTLED}
    assert missing == (4 if ids else 0)
