"""`millrace verify`: accounts of sources close, and each way in which they may not is found, with its id."""

import asyncio
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millrace.collector.accepted import Accepted
from millrace.pipelines import verify, verify_tables
from tests.support.gcs import gcs_server
from tests.support.verifying import NOON_S, Note, Place, accept, message, place, text, verdict, write, write_all

LATER_S = 3_000.0
"""Of a message that moves the tables' time on, so that what is missing before it is settled."""


def later(data: Path) -> None:
    accept(data, Note("later", 1, LATER_S))
    write(data, "archive", place("later", at_s=LATER_S))


def all_doors(data: Path) -> None:
    """One message of five events, each of which left by another door, and one that could not be taken apart."""
    accept(data, Note("a", 5), Note("b", 3, 10.0, "app"))
    write_all(
        data,
        archive=[place("a", 0), place("a", 1)],
        duplicates=[place("a", 2)],
        dead_letters=[place("a", 3), place("b", -1, 10.0, "app")],
        dropped=[place("a", 4)],
    )


def test_an_event_that_left_by_any_door_is_accounted_for(tmp_path: Path) -> None:
    all_doors(tmp_path)
    found = verdict(tmp_path)
    assert (found.code, found.ids, found.said["oldest_in_flight"]) == (0, [], None)
    assert found.account() == {"accepted": 5, "archive": 2, "duplicates": 1, "dead_letters": 1, "dropped": 1}
    assert found.account("app") == {"accepted": 3, "dead_letters": 3}


def test_what_it_prints(tmp_path: Path) -> None:
    all_doors(tmp_path)
    assert (
        text(tmp_path)
        == """\
hour           source  accepted  archived  duplicates  dead letters  dropped  in flight
2026-11-25T12  app            3         0           0             3        0          0
2026-11-25T12  web            5         2           1             1        1          0
total                         8         2           1             4        1          0

It closes: each accepted event is in one table, once.
"""
    )


def test_a_row_that_is_in_no_table_is_missing_once_the_tables_have_gone_on(tmp_path: Path) -> None:
    accept(tmp_path, Note("a", 3), Note("b", 2))
    write_all(tmp_path, archive=[place("a", 0), place("a", 2)])
    found = verdict(tmp_path)
    assert (found.code, found.ids) == (0, [])
    assert found.account() == {"accepted": 5, "archive": 2, "in_flight": 3}
    assert found.said["oldest_in_flight"] == "2026-11-25T12:00:00Z"
    later(tmp_path)
    found = verdict(tmp_path)
    assert (found.code, sorted(found.ids)) == (1, [("missing", "a/1"), ("missing", "b/0"), ("missing", "b/1")])
    assert found.account() == {"accepted": 6, "archive": 3, "missing": 3}
    assert verdict(tmp_path, "--settled-after=1h").account() == {"accepted": 6, "archive": 3, "in_flight": 3}


def test_a_job_that_stands_still_is_no_loss_however_long(tmp_path: Path) -> None:
    accept(tmp_path, Note("a"), *(Note(f"later{hour}", 1, hour * 3_600.0) for hour in range(1, 5)))
    write_all(tmp_path, archive=[place("a")])
    found = verdict(tmp_path)
    assert (found.code, found.said["tables_hold_messages_up_to"]) == (0, "2026-11-25T12:00:00Z")
    assert [found.account(hour=f"2026-11-25T{hour}")["in_flight"] for hour in range(13, 17)] == [1] * 4
    assert "the oldest was accepted at 2026-11-25T13:00:00Z" in text(tmp_path)


def test_a_file_that_is_gone_is_named_with_what_was_in_it(tmp_path: Path) -> None:
    accept(tmp_path, Note("a", 2))
    write_all(tmp_path, archive=[place("a", 0), place("a", 1)])
    later(tmp_path)
    assert verdict(tmp_path).code == 0
    (file,) = [path for path in (tmp_path / "archive").rglob("*.parquet") if "test-1" in path.name]
    file.unlink()
    found = verdict(tmp_path)
    gone = str(file.relative_to(tmp_path / "archive"))
    assert (found.code, found.ids) == (1, [("file gone", gone), ("missing", "a/0"), ("missing", "a/1")])


@pytest.mark.parametrize("table", ["archive", "duplicates", "dead_letters", "dropped"])
def test_a_record_that_is_there_twice_is_named(tmp_path: Path, table: str) -> None:
    all_doors(tmp_path)
    write(tmp_path, table, place("a", 0))
    found = verdict(tmp_path)
    assert (found.code, found.ids) == (1, [("repeated", "a/0")])
    places = "archive" if table == "archive" else f"archive, {table}"
    assert [each["where"] for each in found.said["ids"]] == [f"web in {places}"]


def test_a_message_that_is_recorded_whole_and_in_parts_is_named(tmp_path: Path) -> None:
    all_doors(tmp_path)
    write(tmp_path, "archive", place("b", 1, 10.0, "app"))
    assert verdict(tmp_path).ids == [("repeated", "b/-1")]


def test_what_transforms_made_of_an_event_is_no_repeat(tmp_path: Path) -> None:
    accept(tmp_path, Note("split", 3))
    made = {number: f"split-0/lines/{number}" for number in (1, 2)}
    write_all(
        tmp_path,
        archive=[
            place("split", 0),
            *(place("split", 0, message_id=id_) for id_ in made.values()),
            place("split", 1, message_id="split-1/lines/1"),  # the event itself was refused by the next step
            place("split", 2, message_id="a/b/1"),  # a client's own id
        ],
        dead_letters=[
            place("split", 1, stage="prices: 2", payload=b'{"messageId":"split-1"}'),
            place("split", 1, stage="prices: 2", payload=b'{"messageId":"split-1/lines/2"}'),
        ],
    )
    found = verdict(tmp_path)
    assert (found.code, found.ids) == (0, [])
    assert found.account() == {"accepted": 3, "archive": 3}
    write(tmp_path, "archive", place("split", 0, message_id=made[2]), place("split", 2, message_id="a/b/1"))
    assert sorted(verdict(tmp_path).ids) == [
        ("repeated", "split/0"),
        ("repeated", "split/2"),
    ]


def test_an_id_that_is_archived_twice_is_named_within_the_horizon(tmp_path: Path) -> None:
    day_s = 86_400.0
    accept(tmp_path, Note("a"), Note("b", 1, 60.0), Note("c", 1, day_s + 120.0), Note("d"), Note("e"))
    write_all(
        tmp_path,
        archive=[
            place("a", message_id="same"),
            place("b", 0, 60.0, message_id="same"),
            place("d", message_id="free", fingerprint=None),  # archived without deduplication
            place("e", message_id="free", fingerprint=None),
        ],
    )
    write(tmp_path, "archive", place("c", 0, day_s + 120.0, message_id="same"))
    assert verdict(tmp_path).ids == [("id repeated", "same")]
    assert verdict(tmp_path, "--dedup_horizon_s=59").ids == []
    assert verdict(tmp_path, "--dedup_horizon_s=90000").ids == [("id repeated", "same")]


def test_an_event_beyond_a_messages_last_was_never_accepted(tmp_path: Path) -> None:
    accept(tmp_path, Note("a", 1))
    write_all(tmp_path, archive=[place("a", 0), place("a", 1)])
    assert verdict(tmp_path).ids == [("never accepted", "a/1")]


def test_what_nobody_noted_is_counted_beside_the_accounts(tmp_path: Path) -> None:
    accept(tmp_path, Note("a"))
    write_all(tmp_path, archive=[place("a"), place("theirs")], dropped=[place("own", source="app")])
    found = verdict(tmp_path)
    assert (found.code, found.account(), found.account("app")) == (
        0,
        {"accepted": 1, "archive": 1, "others": 1},
        {"others": 1},
    )


def test_without_notes_the_tables_are_counted_and_repeats_found(tmp_path: Path) -> None:
    write_all(tmp_path, archive=[place("a"), place("b")], duplicates=[place("c")])
    found = verdict(tmp_path)
    assert (found.code, found.said["accepted_is_known"], found.account()) == (0, False, {"others": 3})
    assert (
        text(tmp_path)
        == """\
hour           source  archived  duplicates  dead letters  dropped
2026-11-25T12  web            2           1             0        0

Nothing is there twice. What was accepted is not known: collectors note it with --accepted, \
give their folder as --accepted DIR.
"""
    )
    write(tmp_path, "dropped", place("c"))
    assert verdict(tmp_path).ids == [("repeated", "c/0")]


@pytest.mark.parametrize("slice_rows", [1, 1_000])
def test_clocks_that_differ_make_nothing_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slice_rows: int
) -> None:
    """Pub/Sub's clock is a day behind the collector's; its other messages have settled everything."""
    monkeypatch.setattr(verify_tables, "SLICE_ROWS", slice_rows)
    accept(tmp_path, Note("a", 2), Note("b", 1, 4_000.0))
    write_all(tmp_path, archive=[place("a", 0, -86_400.0), place("b", 0, 4_000.0)])
    write(tmp_path, "duplicates", place("a", 1, -86_400.0))
    found = verdict(tmp_path)
    assert (found.code, found.account()) == (0, {"accepted": 2, "archive": 1, "duplicates": 1})
    assert [each["hour"] for each in found.said["sources"]] == ["2026-11-25T12", "2026-11-25T13"]


def test_only_some_hours(tmp_path: Path) -> None:
    """At the edges an event may be published in one hour and noted in the next."""
    accept(tmp_path, Note("before", 1, -1.0), Note("a", 1, 0.1), Note("b", 1, 3_599.9), Note("after", 1, 3_600.1))
    write_all(
        tmp_path,
        archive=[place("before", 0, -1.0), place("a", 0, -0.1), place("b", 0, 3_600.05), place("after", 0, 3_600.05)],
    )
    found = verdict(tmp_path, "--since=2026-11-25T12", "--until=2026-11-25T13")
    assert [each["hour"] for each in found.said["sources"]] == ["2026-11-25T12"]
    assert (found.code, found.account()) == (0, {"accepted": 2, "archive": 2})


def test_what_went_through_the_spool_counts_once_and_in_the_hour_it_came(tmp_path: Path) -> None:
    """Three were spooled: one is published, one twice since its collector died in between, one waits."""
    once, twice, waits = Note("once", 2), Note("twice", 3, 1.0), Note("waits", 4, 2.0)
    at_s = 10.0

    async def main() -> None:
        nonlocal at_s
        accepted = Accepted(tmp_path / "accepted", clock=lambda: NOON_S + at_s)
        for note in (once, twice, waits):
            accepted.spooled(message(note))
        at_s = 4_000.0
        await accepted.replayed([message(once), message(twice)], ["p1", "p2"])
        await accepted.replayed([message(twice)], ["p3"])

    asyncio.run(main())
    write_all(
        tmp_path,
        archive=[place("p1", index, 4_000.0) for index in range(2)]
        + [place("p2", index, 4_000.0) for index in range(3)],
        duplicates=[place("p3", index, 4_000.0) for index in range(3)],
    )
    found = verdict(tmp_path)
    assert (found.code, found.ids, found.said["in_spool"]) == (0, [], 4)
    assert found.account() == {"accepted": 9, "again": 3, "archive": 5, "duplicates": 3, "in_flight": 4}


def test_a_spool_that_was_lost_is_found_when_younger_messages_have_left_theirs(tmp_path: Path) -> None:
    lost, left = Note("lost", 2), Note("left", 1, 7_300.0)
    at_s = 0.0

    async def main() -> None:
        nonlocal at_s
        accepted = Accepted(tmp_path / "accepted", clock=lambda: NOON_S + at_s)
        accepted.spooled(message(lost))
        at_s = 7_300.0
        accepted.spooled(message(left))
        await accepted.replayed([message(left)], ["p1"])

    asyncio.run(main())
    write_all(tmp_path, archive=[place("p1", 0, 7_300.0)])
    found = verdict(tmp_path)
    assert (found.code, found.account()) == (1, {"accepted": 2, "missing": 2})
    assert [kind for kind, _ in found.ids] == ["lost in the spool"]


def test_torn_and_damaged_notes_are_passed_over(tmp_path: Path) -> None:
    accept(tmp_path, Note("a"), Note("b"))
    write_all(tmp_path, archive=[place("a"), place("b")])
    (notes,) = (tmp_path / "accepted").glob("*.log")
    whole = notes.read_bytes()
    for cut in range(len(whole) // 2, len(whole)):
        notes.write_bytes(whole[:cut] + b"\0" * 40)
        found = verdict(tmp_path)
        known = whole[:cut].count(b" .\n")
        assert (found.code, sum(account["accepted"] for account in found.said["sources"])) == (0, known)


def test_all_ids_go_to_a_file_and_twenty_to_the_screen(tmp_path: Path) -> None:
    accept(tmp_path, Note("a", 50))
    write_all(tmp_path)
    later(tmp_path)
    ids = tmp_path / "ids.csv"
    assert "and 30 more: --ids FILE writes all" in text(tmp_path, f"--ids={ids}")
    lines = ids.read_text().splitlines()
    assert lines[0] == "kind,id,where,at"
    assert sorted(lines[1:]) == sorted(f"missing,a/{index},web,2026-11-25T12:00:00Z" for index in range(50))


def test_the_tables_may_be_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept(tmp_path, Note("a", 2))
    with gcs_server("millrace-test") as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint.removeprefix("http://"))
        write_all("gs://millrace-test/events", archive=[place("a")], duplicates=[place("a", 1)])
        found = verdict("gs://millrace-test/events", f"--accepted={tmp_path / 'accepted'}")
    assert (found.code, found.account()) == (0, {"accepted": 2, "archive": 1, "duplicates": 1})


def test_what_cannot_be_told_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict_code(tmp_path) == 2
    assert capsys.readouterr().err == (
        f"millrace verify: There is no Delta table at {tmp_path / 'archive'}: correct the location.\n"
    )
    write_all(tmp_path)
    assert verdict_code(tmp_path, f"--accepted={tmp_path / 'nothing'}") == 2
    assert "give the folder of millrace collector --accepted" in capsys.readouterr().err


def verdict_code(data: Path, *options: str) -> int:
    return verify.main([str(data), *options])


_messages = st.lists(
    st.tuples(
        st.integers(0, 150),  # minutes after noon
        st.sampled_from(["web", "app"]),
        st.booleans(),  # whether a collector noted it
        st.lists(st.sampled_from(["archive", "duplicates", "dead_letters", "dropped", ""]), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=12,
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(messages=_messages, slice_rows=st.sampled_from([1, 4, 1_000]))
def test_however_it_is_cut_into_slices_each_event_is_counted_once(
    tmp_path_factory: pytest.TempPathFactory, messages: list[tuple[int, str, bool, list[str]]], slice_rows: int
) -> None:
    data = tmp_path_factory.mktemp("data")
    accept(data, Note("newest", 1, 200 * 60.0, "newest"))
    rows: dict[str, list[Place]] = {"archive": [place("newest", 0, 200 * 60.0, "newest")]}
    expected: Counter[tuple[str, str, str]] = Counter()
    missing = set()
    for number, (minute, source, noted, doors) in enumerate(messages):
        id_, hour = f"e{number}", f"2026-11-25T{12 + minute // 60}"
        if noted:
            accept(data, Note(id_, len(doors), minute * 60.0, source))
            expected[source, hour, "accepted"] += len(doors)
        for index, door in enumerate(doors):
            if door:
                rows.setdefault(door, []).append(place(id_, index, minute * 60.0, source))
            if noted or door:
                expected[source, hour, (door or "missing") if noted else "others"] += 1
            if noted and not door:
                missing.add(("missing", f"{id_}/{index}"))
    write_all(data, **rows)
    with mock.patch.object(verify_tables, "SLICE_ROWS", slice_rows):
        found = verdict(data, f"--ids={data / 'ids.csv'}")
    counted = {
        (each["source"], each["hour"], name): count
        for each in found.said["sources"]
        for name, count in found.account(each["source"], each["hour"]).items()
        if each["source"] != "newest"
    }
    assert counted == dict(expected)
    lines = (data / "ids.csv").read_text().splitlines()[1:]
    assert {tuple(line.split(",")[:2]) for line in lines} == missing
    assert found.code == (1 if missing else 0)
