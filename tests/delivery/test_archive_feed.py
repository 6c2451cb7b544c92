"""The feed of an ordered lane, over a real archive and a real ledger: each row settled once, whatever happens."""

import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.delivery.archive_feed import ArchiveFeed
from millrace.delivery.follow import Log
from millrace.delivery.ledger import Ledger
from millrace.delivery.pending import Pending
from millrace.delivery.records import ROW_BITS, Mark, Trying
from millrace.delivery.settings import LaneSettings
from millrace.sinks.compact import compact, vacuum
from millrace.sinks.delta import Table, open_table
from millrace.sinks.storage import Location, StorageError, locate
from millrace.sinks.tables import ARCHIVE
from tests.support.lanes import archive, clean_log, commit, ids, lane_settings, window
from tests.support.rows import archive_rows

NOW_US = time.time_ns() // 1_000
DAY_US = 86_400_000_000
WINDOWS = 5
NAMES = {Mark.DELIVERED: "delivered", Mark.DEAD: "dead", Mark.SKIPPED: "skipped", Mark.PARKED: "parked"}
TRACKS = '{to: out, name: tracks, when: type == "track" and event != "Search", columns: [message_id, {event: what}]}'
PAGES = '{to: out, name: pages, when: type == "page"}'
TWO_ROUTES = f"- {TRACKS}\n  - {PAGES}"


class Feed:
    """A feed with its ledger, which may crash at any moment."""

    def __init__(self, location: Location, path: Path, lane: LaneSettings, *, from_start: bool = True) -> None:
        self._make = (location, path, lane, from_start)
        self.failed: list[Pending] = []
        self.waiting: list[Pending] = []
        self.open()

    def open(self) -> None:
        location, path, lane, from_start = self._make
        self.ledger = Ledger(path)
        self.feed = ArchiveFeed(location, self.ledger, lane, from_start=from_start)
        self.failed, self.waiting = self.feed.open()
        self._trying: dict[int, Trying] = {}

    def crash(self, lane: LaneSettings | None = None) -> None:
        """Lose what was not saved, and begin again."""
        self.ledger.close()
        location, path, before, from_start = self._make
        self._make = (location, path, lane or before, from_start)
        self.open()

    def read(self) -> list[Pending]:
        """Read until there is nothing more."""
        found: list[Pending] = []
        while True:
            self.look()
            events = self.feed.read()
            found += events
            self.save()
            if not events and not self.feed.behind():
                return found

    def look(self) -> None:
        """Let the next look be now."""
        enrolment = self.feed._enrolment
        enrolment._next_look = enrolment._next_identity = enrolment._log._next_gap_s = 0.0

    def save(self, trying: Sequence[Trying] = ()) -> None:
        """Save, with all that is being tried now."""
        now = {each.position: each for each in trying}
        changed = [each for each in trying if self._trying.get(each.position) != each]
        self.feed.save(changed, sorted(self._trying.keys() - now.keys()), NOW_US)
        self._trying = now

    def settle(self, events: Sequence[Pending], mark: Mark = Mark.DELIVERED) -> None:
        self.feed.settle(events, mark)
        self.save()

    def close(self) -> None:
        self.ledger.close()


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return archive(tmp_path)


@contextlib.contextmanager
def feeding(table: Table, lane: LaneSettings, *, from_start: bool = True) -> Iterator[Feed]:
    path = Path(table.location.uri).parent / "state" / "out.sqlite"
    feed = Feed(table.location, path, lane, from_start=from_start)
    try:
        yield feed
    finally:
        feed.close()


def trying(event: Pending) -> Trying:
    return Trying(event.position, event.payload.user_key, event.message_id, 2, 5, 7, "failed", "HTTP 500")


def content(event: Pending) -> str:
    """The id in the columns of an event."""
    found: str = event.payload.rows.column("message_id")[event.payload.at].as_py()
    return found


# Any mix of what may happen


@pytest.fixture(scope="module")
def old_archive(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """An archive of some windows, of which the third has nothing for the routes."""
    table = archive(tmp_path_factory.mktemp("old"), 1, 2)
    nothing = window(3, 60).filter(pa.compute.equal(window(3, 60).column("event"), "Search"))
    commit(table, 3, nothing)
    for number in range(4, WINDOWS + 1):
        commit(table, number)
    return table


STEPS = st.one_of(
    st.sampled_from(["see", "read", "read", "save", "crash", "back"]),
    st.tuples(st.sampled_from(list(NAMES)), st.integers(0, 4), st.integers(1, 3)),
    st.tuples(st.just("fail"), st.integers(0, 30), st.just(0)),
)


class Model:
    """What a feed owes, by position."""

    def __init__(self, table: Table, folder: Path) -> None:
        self.visible = 1
        self.hand: dict[int, Pending] = {}
        self.failing: dict[int, Trying] = {}
        self.saved: dict[int, Mark] = {}
        self.noted: dict[int, Mark] = {}
        self.truth = {}
        self.routed: set[int] = set()
        for seq, entry in enumerate(Log(table.location).since(-1, frozenset).entries, 1):
            rows = Log(table.location).rows(entry, lambda there: there).to_pylist()
            for at, row in enumerate(rows):
                position = (seq << ROW_BITS) + at
                self.truth[position] = (row["message_id"], row["user_key"])
                if row["type"] == "page" or row["event"] not in ("Search", None):
                    self.routed.add(position)
        lane = lane_settings(TWO_ROUTES)
        self.feed = Feed(table.location, folder / "out.sqlite", lane)

    def entry(self, whole: object) -> object:
        """The log, as far as it is visible."""

        def read(log: Log, version: int) -> bytes | None:
            return whole(log, version) if version <= self.visible else None  # type: ignore[operator]

        return read

    def do(self, step: object) -> None:
        if step == "see":
            self.visible += 1
        elif step == "read":
            self.feed.look()
            self.take(self.feed.feed.read())
        elif step == "back":
            self.take(self.feed.feed.bring_back("all"))
        elif step == "save":
            self.save()
        elif step == "crash":
            self.crash()
        elif isinstance(step, tuple) and step[0] == "fail":
            for position in list(self.hand)[step[1] : step[1] + 1]:
                self.failing[position] = trying(self.hand[position])
        elif isinstance(step, tuple):
            mark, start, every = step
            events = list(self.hand.values())[start::every]
            self.feed.feed.settle(events, mark)
            for event in events:
                self.noted[event.position] = mark
                del self.hand[event.position]
                self.failing.pop(event.position, None)

    def take(self, events: Sequence[Pending]) -> None:
        for event in events:
            assert event.position not in self.hand, "twice in one life"
            assert (event.message_id, event.payload.user_key) == self.truth[event.position]
            assert event.position in self.routed
            self.hand[event.position] = event
            self.noted[event.position] = Mark.WAITING

    def save(self) -> None:
        self.feed.save([self.failing[position] for position in sorted(self.failing)])
        self.saved |= self.noted
        self.noted.clear()
        assert all(content(event) == event.message_id for event in self.hand.values())

    def crash(self) -> None:
        saved_failing = {each.position: each for each in self.feed.ledger.trying()}
        self.feed.crash()
        self.noted.clear()
        self.hand.clear()
        owed = {position for position, mark in self.saved.items() if mark is Mark.WAITING}
        found = [*self.feed.failed, *self.feed.waiting]
        assert sorted(event.position for event in found) == sorted(owed)
        assert {e.position: e.attempts for e in self.feed.failed} == dict.fromkeys(saved_failing, 2)
        assert [e.position for e in self.feed.waiting] == sorted(e.position for e in self.feed.waiting)
        self.take(found)
        self.noted.clear()
        self.failing = saved_failing

    def finish(self) -> None:
        self.visible = WINDOWS + 10
        self.take(self.feed.read())
        self.do((Mark.DELIVERED, 0, 1))
        self.save()

    def check(self) -> None:
        assert set(self.saved) == self.routed
        ledger = self.feed.ledger
        marks = {
            (entry.seq << ROW_BITS) + at: Mark(mark)
            for entry in ledger.entries()
            for at, mark in enumerate(ledger.marks(entry.seq).tolist())
            if mark
        }
        assert marks == self.saved
        counted = Counter(NAMES[mark] for mark in self.saved.values()) + Counter(routed=len(self.routed))
        assert +Counter({n: c for n, c in ledger.totals().items() if n != "without order"}) == counted
        assert ledger.unfinished() == []
        assert ledger.trying() == []
        parked = [position for position, mark in self.saved.items() if mark is Mark.PARKED]
        assert [each.position for each in ledger.parked()] == sorted(parked)
        assert ledger.parked(brought_back=True) == []
        assert (self.feed.feed.behind(), self.feed.feed.lag_us(NOW_US)) == (0, 0)


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(STEPS, max_size=40))
def test_every_routed_row_is_settled_once_in_the_accounts_whatever_crashes_between(
    old_archive: Table, steps: list[object]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = Log._entry
        model = None
        with mock.patch("millrace.delivery.archive_feed.time.sleep"):
            try:
                model = Model(old_archive, Path(folder))
                with mock.patch.object(Log, "_entry", model.entry(whole)):
                    for step in steps:
                        model.do(step)
                    model.finish()
                    model.check()
            finally:
                if model is not None:
                    model.feed.close()


# The archive


def test_a_new_lane_begins_behind_the_last_row_or_at_the_first(table: Table, tmp_path: Path) -> None:
    commit(table, 1)
    with feeding(table, lane_settings(), from_start=False) as feed:
        assert feed.read() == []
        commit(table, 2)
        assert [event.message_id for event in feed.read()] == ids(window(2))
    first = Feed(table.location, tmp_path / "other" / "out.sqlite", lane_settings())
    assert [event.message_id for event in first.read()] == [*ids(window(1)), *ids(window(2))]
    first.close()


def test_an_archive_that_is_not_there_yet_is_waited_for_and_read_from_its_first_row(tmp_path: Path) -> None:
    location = locate(str(tmp_path / "archive"))
    feed = Feed(location, tmp_path / "state" / "out.sqlite", lane_settings(), from_start=False)
    assert feed.read() == []
    assert not (tmp_path / "archive").exists()  # no bookmark makes a folder in which no table is
    assert feed.feed.note() == f"waits for an archive at {tmp_path / 'archive'}"
    archive(tmp_path, 1)
    assert [event.message_id for event in feed.read()] == ids(window(1))
    assert feed.feed.note() == ""
    feed.close()


@pytest.mark.parametrize("restarts", [False, True])
def test_an_archive_that_was_made_anew_or_is_gone_is_told_and_not_taken_for_an_idle_one(
    table: Table, *, restarts: bool
) -> None:
    for number in (1, 2):
        commit(table, number)
    uri = table.location.uri
    with feeding(table, lane_settings()) as feed:
        feed.settle(feed.read())
        Path(uri).rename(f"{uri}.old")
        with pytest.raises(StorageError) as gone:
            feed.crash() if restarts else feed.read()
        assert str(gone.value) == f"There is no table at {uri} any more, which this lane has read up to version 2."
        commit(open_table(uri, ARCHIVE), 3)
        with pytest.raises(StorageError) as other:
            feed.crash() if restarts else feed.read()
        assert str(other.value) == (
            f"The table at {uri} is not the one that this lane has read up to version 2: it was made anew, or set "
            f"back; begin with another --state, or delete {feed.ledger.path}, and with it what it remembers."
        )


def test_the_log_is_followed_while_the_lane_has_no_room_so_that_its_cleaning_loses_nothing(table: Table) -> None:
    commit(table, 1)
    with feeding(table, lane_settings()) as feed:
        assert len(feed.feed.read()) == 20
        for number in range(2, 6):  # the sink is down, the lane full: it reads no more, and saves on
            commit(table, number)
        feed.look()
        feed.save()
        clean_log(table)
        assert feed.feed.behind() == 80
        entries = feed.ledger.entries()
        assert [entry.version for entry in entries] == [1, 2, 3, 4, 5]
        assert None not in {entry.window_us for entry in entries}  # as the log told, not as a snapshot
        feed.crash()
        assert [event.message_id for event in [*feed.waiting, *feed.read()]] == [
            each for number in range(1, 6) for each in ids(window(number))
        ]


def test_what_the_archive_no_longer_has_is_counted_and_stops_nothing(
    table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1, 4):
        commit(table, number)
    with feeding(table, lane_settings()) as feed:
        read = feed.feed.read()  # the first part; the others are in the queue, and not read
        feed.settle(read[:15])
        commit(table, 4)
        compact(table, older_than_s=0)  # which it would not do if it had the bookmark, for a week
        (Path(table.location.uri) / "_followers").rename(f"{table.location.uri}.followers")
        compact(table, older_than_s=0, min_files=1)
        vacuum(table, 0)
        gone = not Path(table.location.uri, feed.ledger.entries()[0].files[0]).exists()
        assert gone
        feed.crash()
        assert (feed.failed, feed.waiting) == ([], [])
        assert feed.read() == []
        totals = feed.ledger.totals()
        assert (totals["routed"], totals["delivered"], totals["skipped"], totals["unreadable"]) == (20, 15, 5, 60)
        assert feed.ledger.unfinished() == []
        assert "20 rows are lost to this sink" in caplog.text
        commit(table, 5)
        assert [event.message_id for event in feed.read()] == ids(window(5))


def test_compaction_waits_for_what_is_not_settled(table: Table) -> None:
    for number in range(1, 10):
        commit(table, number)
    with feeding(table, lane_settings()) as feed:
        events = feed.read()
        feed.settle(events[1:])
        feed.feed.close()
        assert compact(table, older_than_s=0).files_after == 0
        feed.settle(events[:1])
        feed.look()
        feed.save()
        with mock.patch("millrace.sinks.bookmarks._MARGIN_MS", 0):
            feed.feed.close()
            assert compact(table, older_than_s=0).files_after == 1


# Memory


def test_a_blocked_user_keeps_no_more_in_memory_than_their_own_rows(table: Table) -> None:
    for number in range(1, 71):
        commit(table, number, window(number, 40))
    with feeding(table, lane_settings()) as feed:
        kept: list[Pending] = []
        most = 0
        for _ in range(70):
            events = feed.feed.read()
            feed.settle(events[1:])
            kept.append(events[0])
            most = max(most, len(feed.feed._parts._marks))
        assert [event.payload.rows.num_rows for event in kept] == [1] * 70
        assert [content(event) for event in kept] == [event.message_id for event in kept]
        assert [event.payload.user_key for event in kept] == [
            window(n, 40)["user_key"][0].as_py() for n in range(1, 71)
        ]
        assert most <= 64
        feed.settle(kept)
        assert feed.ledger.unfinished() == []
        assert (feed.feed._parts._marks, feed.feed._parts._held) == ({}, {})


def test_parts_are_forgotten_while_the_lane_runs_and_their_numbers_never_given_again(table: Table) -> None:
    for number in range(1, 4):
        commit(table, number)
    with feeding(table, lane_settings()) as feed:
        feed.settle(feed.read())
        assert len(feed.ledger.entries()) == 3
        feed.feed._next_forget = 0.0
        feed.feed.save((), (), NOW_US + 8 * DAY_US)
        assert [entry.seq for entry in feed.ledger.entries()] == [3]
        commit(table, 4)
        assert {event.position >> ROW_BITS for event in feed.read()} == {4}


# Hot users


def test_beyond_the_cap_of_a_window_a_users_events_go_without_order_and_are_counted_once(table: Table) -> None:
    rows = [archive_rows(30, seed=n, users=2, start=window(n)["released_at"][0].as_py()) for n in (1, 2)]
    for number, part in enumerate(rows, 1):
        commit(table, number, part)
    with feeding(table, lane_settings(sink="use: console, hot_user_events: 4")) as feed:
        events = feed.read()
        assert [event.message_id for event in events] == [i for part in rows for i in ids(part.sort_by("order_index"))]
        seen: Counter[tuple[int, str]] = Counter()
        for event in events:
            of = (event.position >> ROW_BITS, event.payload.user_key)
            assert event.user_key == (event.payload.user_key if seen[of] < 4 else None)
            seen[of] += 1
        over = sum(count - 4 for count in seen.values() if count > 4)
        assert over > 20
        feed.crash()
        assert [(e.position, e.user_key) for e in feed.waiting] == [(e.position, e.user_key) for e in events]
        feed.settle(feed.waiting)
        assert feed.ledger.totals() == {"routed": 60, "without order": over, "delivered": 60}


# Parked events


def test_what_was_parked_comes_back_though_its_files_are_gone_and_the_lane_crashes_meanwhile(table: Table) -> None:
    for number in range(1, 10):
        commit(table, number)
    with feeding(table, lane_settings(TWO_ROUTES)) as feed:
        events = feed.read()
        feed.settle(events[2:])
        feed.settle(events[:2], Mark.PARKED)
        with mock.patch("millrace.sinks.bookmarks._MARGIN_MS", 0):
            feed.look()
            feed.save()
            feed.feed.close()
            assert compact(table, older_than_s=0).files_after == 1
        vacuum(table, 0)
        feed.feed._next_forget = 0.0
        feed.feed.save((), (), NOW_US + 8 * DAY_US)  # nor does the ledger forget their part
        (back,) = feed.feed.bring_back(f"event:{events[0].message_id}")
        assert feed.feed.bring_back(f"event:{events[0].message_id}") == []
        feed.save([trying(back)])
        assert [each.message_id for each in feed.ledger.parked()] == [events[1].message_id]
        feed.crash()
        (again,) = feed.failed
        assert feed.waiting == []
        assert (again.position, again.message_id, again.attempts) == (events[0].position, events[0].message_id, 2)
        assert again.user_key is None  # their user has gone on: it waits for nobody
        assert again.payload.rows.to_pylist() == events[0].payload.rows.slice(events[0].payload.at, 1).to_pylist()
        feed.settle([again], Mark.PARKED)  # and once more
        feed.settle(feed.feed.bring_back("all"))
        assert feed.ledger.parked() + feed.ledger.parked(brought_back=True) == []
        totals = feed.ledger.totals()
        assert (totals["routed"], totals["delivered"], totals["parked"]) == (len(events), len(events), 0)


# A changed configuration


def test_over_a_change_of_the_routes_what_waits_takes_those_that_there_are_and_keeps_its_position(
    table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    commit(table, 1)
    with feeding(table, lane_settings(TWO_ROUTES)) as feed:
        events = feed.read()
        routes = {event.message_id: event.route for event in events}
        positions = {event.message_id: event.position for event in events}
        assert set(routes.values()) == {0, 1}
        feed.crash(lane_settings(f"- {PAGES}\n  - {TRACKS.replace('name: tracks', 'name: renamed')}"))
        assert {event.message_id: 1 - event.route for event in feed.waiting} == routes
        assert {event.message_id: event.position for event in feed.waiting} == positions
        track = next(event for event in feed.waiting if event.route == 1)
        feed.settle([track], Mark.PARKED)
        feed.save([trying(event) for event in feed.waiting if event.route == 1 and event is not track][:1])

        feed.crash(lane_settings(f"- {PAGES}"))  # tracks go no more
        pages = [message_id for message_id, route in routes.items() if route == 1]
        assert [event.message_id for event in feed.waiting] == pages
        assert feed.failed == []
        feed.settle(feed.waiting)
        assert feed.feed.bring_back("all") == []  # its route is gone: it stays parked
        tracks = len(events) - len(pages)
        assert feed.ledger.totals() == {
            "routed": len(events), "delivered": len(pages), "skipped": tracks - 1, "parked": 1,
        }  # fmt: skip
        assert (feed.ledger.unfinished(), feed.ledger.trying()) == ([], [])
        assert f"out: {tracks - 1} waiting events are skipped: take no route any more." in caplog.text


def test_what_no_route_took_is_not_taken_by_one_that_comes_later(table: Table) -> None:
    commit(table, 1)
    with feeding(table, lane_settings(f"- {PAGES}")) as feed:
        pages = feed.read()
        feed.crash(lane_settings(TWO_ROUTES))
        assert [event.message_id for event in feed.waiting] == [event.message_id for event in pages]
        commit(table, 2)
        assert {event.route for event in feed.read()} == {0, 1}
