"""`millrace verify` on the ledgers of lanes: they close, and whatever is changed behind their back is found."""

import re
import shutil
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from millrace.config.fanout import read_fanout
from millrace.delivery.archive_feed import ArchiveFeed
from millrace.delivery.ledger import Ledger, Mark, Status, Trying
from millrace.delivery.pending import Pending
from millrace.delivery.settled import Envelopes, SettledRecord, envelope_keys
from millrace.delivery.undelivered import Dead, Undelivered
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
NOON_US = NOON_S * 1_000_000
UNTIL_US = NOON_US + 240_000_000
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
        feed.save([_trying(event) for event in events if event.message_id in WAITING], (), 10**15)
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


def test_what_the_ledger_has_forgotten_is_not_missing(lane: Lane) -> None:
    """The first part still waits after nine days; of the others, which are as old, the ledger has forgotten two."""
    lane.flip(1, 1, Mark.WAITING)
    nine_days_us = 9 * 86_400_000_000
    lane.change("UPDATE entries SET is_open = 1 WHERE seq = 1")
    lane.change("UPDATE entries SET committed_us = committed_us - ?", nine_days_us)
    lane.change("UPDATE totals SET count = count - 1 WHERE name = 'delivered'")
    for entry in (lane.data / "archive" / "_delta_log").glob("*.json"):
        text_ = entry.read_text()
        for stamp in set(re.findall(r'"(?:timestamp|modificationTime)":([0-9]{13})', text_)):
            text_ = text_.replace(stamp, str(int(stamp) - nine_days_us // 1_000))
        entry.write_text(text_)
    assert verdict(lane.data).ids == []
    lane.change("DELETE FROM entries WHERE seq IN (2, 3)")
    assert verdict(lane.data).ids == []


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


@pytest.fixture
def unordered(lane: Lane) -> Iterator[Ledger]:
    """The ledger of a lane without order, with the route of the other; it began at noon, and came four minutes far."""
    (lane.data / "millrace.yaml").write_text(
        CONFIG.format(event="Ordered") + "  - {to: crm, order: none, name: live}\n"
    )
    (settings,) = (each for each in read_fanout(_config(lane), "millrace.yaml").lanes if not each.is_ordered)
    ledger = Ledger(lane.data / "delivery" / "crm.unordered.sqlite")
    ledger.put("live: routes", msgspec.json.encode([settings.digest, NOON_US]))
    yield ledger
    ledger.close()


def _config(lane: Lane) -> str:
    return (lane.data / "millrace.yaml").read_text()


def _settle(ledger: Ledger, **events: int) -> None:
    """Have a lane without order be done with so many events of messages; those of part N are published N minutes on."""
    keys = envelope_keys(pa.array(list(events)))
    published = np.array([NOON_US + int(name[1:]) * 60_000_000 for name in events], np.int64)
    record = SettledRecord(ledger, 86_400.0, NOON_US)
    with ledger.writing():
        record.add(Envelopes(keys, published, np.array(list(events.values()), np.uint32)), UNTIL_US, NOON_US)


def test_a_lane_without_order_is_checked_by_its_totals(lane: Lane, unordered: Ledger) -> None:
    unordered.add_totals({"routed": 8, "delivered": 7, "dead": 1}, 10**15)
    found = verdict(lane.data)
    assert found.ids == [("dead, not recorded", "1 events")]
    account = found.said["sinks"][1]
    assert (account["routed"], account["delivered"], account["dead"], account["waiting"]) == (8, 7, 1, 0)
    unordered.set_status(Status(sink="crm", is_ordered=False, state="running", waiting=3))
    unordered.add_totals({"delivered": 4}, 10**15)
    found = verdict(lane.data)
    assert found.ids == [("totals", "routed: 8 counted, 12 settled"), ("dead, not recorded", "1 events")]
    assert found.said["sinks"][1]["waiting"] == 3


@pytest.mark.parametrize(
    ("events", "ids"),
    [
        pytest.param({"p0": 6, "p1": 6, "p2": 6, "p3": 7}, [], id="all of them, and a copy"),
        pytest.param(
            {"p0": 6, "p2": 5, "p3": 6}, [f"p{part}-{row}" for part in (1, 2) for row in range(6)], id="not all"
        ),
    ],
)
def test_what_a_lane_without_order_never_settled_is_found(
    lane: Lane, unordered: Ledger, events: dict[str, int], ids: list[str]
) -> None:
    write(
        lane.data,
        "archive",
        place("p0", 1, message_id="p0-1/split/1"),  # made by the job: in no subscription
        place("recent", 0, 200.0),  # the lane may not have come to it
        place("old", 0, -1.0),
    )
    _settle(unordered, **events)
    found = verdict(lane.data)
    assert sorted(found.ids) == [("not settled", each) for each in ids]
    assert (found.said["sinks"][1]["missing"], found.code) == ((7, 1) if ids else (0, 0))


def test_what_came_under_other_routes_is_not_held_against_a_lane_without_order(lane: Lane, unordered: Ledger) -> None:
    _settle(unordered)
    assert verdict(lane.data).code == 1
    lane.configure("Seen")
    (lane.data / "millrace.yaml").write_text(
        _config(lane) + '  - {to: crm, order: none, name: live, when: type == "x"}\n'
    )
    assert verdict(lane.data).code == 0
