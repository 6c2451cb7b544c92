"""The ledger of a lane: one SQLite file, whose transactions are whole, also on a full disk; and what it forgets."""

import dataclasses
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from millrace.delivery.ledger import Ledger
from millrace.delivery.records import Entry, Mark, Order, Parked, Status, Trying

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
NOW_US = 1_800_000_000_000_000 // HOUR_US * HOUR_US


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    found = Ledger(tmp_path / "state" / "crm.sqlite")
    yield found
    found.close()


def part(version: int, committed_us: int = NOW_US, rows: int = 3) -> Entry:
    return Entry(version, committed_us - 5, committed_us, (f"date=2026-03-01/w{version}.parquet",), rows)


def marks(*each: Mark) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.array(each, np.uint8)


def test_parts_are_numbered_in_order_and_read_one_behind_the_other(ledger: Ledger) -> None:
    ledger.enrol([part(7), part(9)])
    first, second = ledger.entries()
    assert (first, second) == (
        Entry(7, NOW_US - 5, NOW_US, ("date=2026-03-01/w7.parquet",), 3, seq=1),
        Entry(9, NOW_US - 5, NOW_US, ("date=2026-03-01/w9.parquet",), 3, seq=2),
    )
    assert (ledger.unread(0, 1), ledger.unread(1, 9), ledger.behind()) == ([first], [second], 6)
    assert ledger.marks(1).tolist() == [Mark.NOT_ROUTED] * 3
    ledger.set_marks(1, marks(Mark.NOT_ROUTED, Mark.WAITING, Mark.DELIVERED))
    ((unfinished, found),) = ledger.unfinished()
    assert (unfinished, found.tolist()) == (first, [0, 1, 2])
    assert (ledger.unread(0, 9), ledger.behind(), ledger.oldest_open_us()) == ([second], 3, NOW_US)
    ledger.set_marks(1, marks(Mark.NOT_ROUTED, Mark.DEAD, Mark.DELIVERED))
    ledger.set_marks(2, marks(Mark.NOT_ROUTED, Mark.NOT_ROUTED, Mark.NOT_ROUTED))  # no row is routed: it is settled
    assert (ledger.unfinished(), ledger.unread(0, 9), ledger.behind(), ledger.oldest_open_us()) == ([], [], 0, None)
    assert ledger.marks(99).tolist() == []


def test_settled_parts_are_forgotten_in_time_but_none_that_is_asked_for_and_never_the_last(ledger: Ledger) -> None:
    ledger.enrol([part(n, NOW_US + n * DAY_US) for n in range(1, 7)])
    for seq in (1, 2, 4, 5, 6):
        ledger.set_marks(seq, marks(Mark.DELIVERED, Mark.DELIVERED, Mark.PARKED if seq == 2 else Mark.DEAD))
    ledger.park(Parked((2 << 24) + 2, "ann", "m1", "crm", b"rows"))
    ledger.forget(NOW_US + 5 * DAY_US)
    assert [entry.seq for entry in ledger.entries()] == [2, 3, 5, 6]  # parked; open; young
    ledger.forget(NOW_US + 100 * DAY_US)
    assert [entry.seq for entry in ledger.entries()] == [2, 3, 6]
    ledger.unpark((2 << 24) + 2)
    ledger.set_marks(3, marks(Mark.DELIVERED))
    ledger.forget(NOW_US + 100 * DAY_US)
    ledger.enrol([part(10)])
    assert [entry.seq for entry in ledger.entries()] == [6, 7]  # positions rise for ever


def test_totals_are_kept_by_the_hour_for_a_season_and_their_sum_for_ever(ledger: Ledger) -> None:
    def hours() -> list[tuple[int, str, int]]:
        return list(ledger.file.execute("SELECT hour_s, name, count FROM totals ORDER BY hour_s, name"))

    hour_s = NOW_US // 1_000_000
    ledger.add_totals({"delivered": 2, "dead": 0}, NOW_US)
    ledger.add_totals({"delivered": 3, "parked": 1}, NOW_US + HOUR_US - 1)
    ledger.add_totals({"delivered": 4, "parked": -1}, NOW_US + 100 * DAY_US)
    late = hour_s + 100 * 86_400
    by_hour = [(hour_s, "delivered", 5), (hour_s, "parked", 1), (late, "delivered", 4), (late, "parked", -1)]
    assert hours() == by_hour
    for _ in range(2):
        ledger.forget(NOW_US + 100 * DAY_US)
        assert hours() == [(0, "delivered", 5), (0, "parked", 1), *by_hour[2:]]
    ledger.forget(NOW_US + 300 * DAY_US)
    assert hours() == [(0, "delivered", 9), (0, "parked", 0)]
    assert ledger.totals() == {"delivered": 9, "parked": 0}


def test_what_is_retried_is_replaced_as_a_whole_or_changed(ledger: Ledger) -> None:
    one, two, three = (Trying(n, "ann", f"m{n}", 1, 2, 3, "failed", "HTTP 500", 4) for n in (8, 5, 9))
    ledger.set_trying([one, two])
    assert ledger.trying() == [two, one]
    ledger.set_trying([one])
    assert ledger.trying() == [one]
    again = dataclasses.replace(one, attempts=2)
    ledger.change_trying([three, again], [5])
    assert ledger.trying() == [again, three]
    ledger.change_trying([], [9, 77])
    assert ledger.trying() == [again]


def test_a_parked_event_that_is_brought_back_is_kept_until_it_is_settled(ledger: Ledger) -> None:
    one, two = (Parked(n, "ann", f"m{n}", "crm", b"rows") for n in (5, 8))
    for each in (two, one):
        ledger.park(each)
    assert (ledger.parked(), ledger.parked(brought_back=True)) == ([one, two], [])
    ledger.bring_back(5)
    assert (ledger.parked(), ledger.parked(brought_back=True)) == ([two], [one])
    ledger.park(one)  # put aside again
    assert (ledger.parked(), ledger.parked(brought_back=True)) == ([one, two], [])
    ledger.unpark(5)
    assert ledger.parked() == [two]


def test_orders_and_what_came_of_them_stay(ledger: Ledger) -> None:
    assert (ledger.tell("skip", "user:ann", "bob", "he left"), ledger.tell("retry", "all", "eve", "")) == (1, 2)
    ledger.done(1, "1 skipped: m1")
    first, second = ledger.orders()
    assert first == Order(1, first.told_us, "bob", "skip", "user:ann", "he left", first.done_us, "1 skipped: m1")
    assert second == Order(2, second.told_us, "eve", "retry", "all", "", None, None)
    assert ledger.orders(pending=True) == [second]


def test_what_a_sink_keeps_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "crm.sqlite"
    one = Ledger(path)
    assert one.get("offset") is None
    one.put("offset", b"17")
    one.put("offset", b"18")
    one.put("gone", b"1")
    one.put("gone", None)
    one.close()
    again = Ledger(path)
    assert (again.get("offset"), again.get("gone")) == (b"18", None)
    again.close()


def test_threads_of_a_sink_may_put_at_once_each_of_them_synced(ledger: Ledger) -> None:
    said: list[str] = []
    ledger._db.set_trace_callback(lambda text: said.append(text.split(" (")[0]))
    threads = [threading.Thread(target=ledger.put, args=(f"k{n}", b"v")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger._db.set_trace_callback(None)
    one = ["PRAGMA synchronous=FULL", "INSERT OR REPLACE INTO memory", "PRAGMA synchronous=NORMAL"]
    assert [" ".join(each.split(" ")[:5]) for each in said] == one * 8
    assert [ledger.get(f"k{n}") for n in range(8)] == [b"v"] * 8


def test_a_transaction_that_fails_leaves_nothing_and_the_next_one_works(ledger: Ledger) -> None:
    def fail() -> None:
        with ledger.writing():
            ledger.enrol([part(1)])
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    with ledger.writing():
        ledger.enrol([part(2)])
    assert [entry.version for entry in ledger.entries()] == [2]


def test_on_a_full_disk_nothing_is_half_written_and_it_goes_on_once_there_is_room(ledger: Ledger) -> None:
    (pages,) = ledger._db.execute("PRAGMA page_count").fetchone()
    ledger._db.execute(f"PRAGMA max_page_count={pages + 2}")

    def write() -> None:
        with ledger.writing():
            ledger.add_totals({"delivered": 1}, NOW_US)
            ledger.enrol([part(n) for n in range(1_000)])

    for _ in range(2):
        with pytest.raises(sqlite3.OperationalError, match="full"):
            write()
    assert (ledger.entries(), ledger.totals()) == ([], {})
    ledger._db.execute("PRAGMA max_page_count=100000")
    write()
    assert (len(ledger.entries()), ledger.totals()) == (1_000, {"delivered": 1})


def test_a_commit_that_fails_leaves_no_transaction_open(ledger: Ledger) -> None:
    """As where the disk is full, or the file locked, only when the log is written."""
    real = ledger._db

    class Failing:
        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def execute(self, text: str, *values: Any) -> sqlite3.Cursor:
            if text == "COMMIT":
                raise sqlite3.OperationalError("disk I/O error")
            return real.execute(text, *values)

    ledger._db = Failing()  # type: ignore[assignment]
    with pytest.raises(sqlite3.OperationalError, match="I/O"), ledger.writing():
        ledger.enrol([part(1)])
    ledger._db = real
    with ledger.writing():
        ledger.enrol([part(2)])
    assert [entry.version for entry in ledger.entries()] == [2]


def test_who_reads_a_file_whose_tables_are_not_made_yet_knows_it(tmp_path: Path) -> None:
    (tmp_path / "crm.sqlite").touch()
    reader = Ledger(tmp_path / "crm.sqlite", read_only=True)
    assert not reader.is_made()
    writer = Ledger(tmp_path / "crm.sqlite")
    assert reader.is_made()
    assert reader.status() is None
    reader.close()
    writer.close()


def test_others_read_while_the_lane_writes_and_cannot_write(tmp_path: Path) -> None:
    folder = tmp_path / "odd #1? 50%"  # characters that mean something in a URI
    writer = Ledger(folder / "crm.sqlite")
    reader = Ledger(folder / "crm.sqlite", read_only=True)
    status = Status(sink="crm", is_ordered=True, state="running", totals={"delivered": 3}, pid=7)
    with writer.writing():
        writer.set_status(status)
        assert reader.status() is None
    said = reader.status()
    assert said is not None
    assert said[1] == status
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.tell("skip", "all", "eve", "")
    reader.close()
    writer.close()
