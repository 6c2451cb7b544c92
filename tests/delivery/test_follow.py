"""The archive as a queue: what the log of a real table tells a follower, and which rows it reads, in which order."""

import dataclasses
import datetime as dt
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from millrace.delivery.follow import LOCAL_POLL_S, REMOTE_POLL_S, GoneError, Identity, Log, Seen
from millrace.delivery.records import Entry
from millrace.sinks.compact import compact, vacuum
from millrace.sinks.delta import Table, open_table
from millrace.sinks.storage import StorageError, locate
from millrace.sinks.tables import ARCHIVE, with_columns
from tests.support.gcs import GcsServer, gcs_server
from tests.support.lanes import clean_log, commit, ids, window
from tests.support.rows import START, archive_rows

ROWS = 20
NOW_US = time.time_ns() // 1_000


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return open_table(str(tmp_path / "archive"), ARCHIVE)


def follow(log: Log, version: int = -1, known: frozenset[str] = frozenset(), looked_us: int = 0) -> Seen:
    log._next_gap_s = 0.0  # whatever the time
    return log.since(version, lambda: known, looked_us)


def read(log: Log, seen: Seen) -> list[str]:
    return [row for entry in seen.entries for row in ids(log.rows(entry, lambda there: there))]


def in_order(*windows: pa.Table) -> list[str]:
    return [each for rows in windows for each in ids(rows.sort_by("order_index"))]


def test_each_commit_is_a_part_with_its_window_its_time_and_its_files(table: Table) -> None:
    log = Log(table.location)
    files = [commit(table, number) for number in (1, 2)]
    stamps = [action["timestamp"] for action in reversed(table.delta.history()) if action["operation"] == "WRITE"]
    start_us = round(START.timestamp() * 1e6)
    assert follow(log) == Seen(
        (
            Entry(1, start_us + 5_000_000, stamps[0] * 1_000, tuple(files[0]), ROWS),
            Entry(2, start_us + 10_000_000, stamps[1] * 1_000, tuple(files[1]), ROWS),
        ),
        2,
    )
    assert follow(log, 2) == Seen((), 2)
    commit(table, 3)
    assert [entry.version for entry in follow(log, 2).entries] == [3]
    assert log.identity() == Identity(str(table.delta.metadata().id), 3)
    assert log.poll_s == LOCAL_POLL_S


def test_there_is_nothing_to_follow_until_the_table_is_there(tmp_path: Path) -> None:
    log = Log(locate(str(tmp_path / "archive")))
    assert (log.identity(), follow(log)) == (None, Seen((), -1))
    table = open_table(str(tmp_path / "archive"), ARCHIVE)
    commit(table, 1)
    assert read(log, follow(log)) == in_order(window(1))


def test_rows_come_in_delivery_order_whole_with_their_date_and_only_the_columns_that_are_wanted(table: Table) -> None:
    commit(table, 1)
    log = Log(table.location)
    (entry,) = follow(log).entries
    rows = pa.table(log.rows(entry, lambda there: there))
    assert rows.to_pylist() == window(1).sort_by("order_index").to_pylist()
    narrow = log.rows(entry, lambda _: ["message_id", "date"])
    assert narrow.schema.names == ["message_id", "order_index", "date"]
    assert narrow.column("date").unique().to_pylist() == [START.date()]


def test_a_commit_of_several_files_of_two_dates_is_one_part_in_each_users_order(table: Table) -> None:
    # One window over midnight, in three files: users of one shard each, and two dates.
    midnight = dt.datetime.combine(START.date() + dt.timedelta(days=1), dt.time(), dt.UTC)
    rows = archive_rows(200, start=midnight - dt.timedelta(seconds=2), seconds=5, users=4, seed=3)
    users = sorted(set(rows.column("user_key").to_pylist()))
    of = [rows.filter(pa.compute.is_in(rows.column("user_key"), pa.array(part))) for part in (users[:3], users[3:])]
    files = commit(table, 1, *of)
    log = Log(table.location)
    (entry,) = follow(log).entries
    assert (len(files), list(entry.files), entry.rows) == (4, files, 200)
    found = log.rows(entry, lambda there: there)
    assert ids(found) == in_order(rows)
    assert found.column("date").unique().to_pylist() == [START.date(), midnight.date()]


def test_what_compaction_merges_is_not_new_and_its_old_files_are_read_until_vacuum_deletes_them(table: Table) -> None:
    for number in range(1, 9):
        commit(table, number)
    log = Log(table.location)
    first = follow(log)
    assert compact(table, older_than_s=0).files_after == 1
    commit(table, 9)
    later = follow(log, first.version)
    assert [entry.version for entry in later.entries] == [10]  # 9 is the merge
    assert read(log, first) == in_order(*map(window, range(1, 9)))
    assert vacuum(table, 0) == 8
    with pytest.raises(GoneError, match=r"is no longer in .*archive$"):
        read(log, first)


def test_a_file_that_the_table_needs_and_that_is_not_there_is_no_reason_to_go_on_without_it(table: Table) -> None:
    (path,) = commit(table, 1)
    log = Log(table.location)
    (entry,) = follow(log).entries
    Path(table.location.uri, path).rename(Path(table.location.uri, "elsewhere"))
    with pytest.raises(StorageError, match="is all of the storage there") as missing:
        log.rows(entry, lambda there: there)
    assert not isinstance(missing.value, GoneError)
    Path(table.location.uri, path).write_bytes(b"PAR1 torn")
    with pytest.raises(StorageError, match="cannot be read"):
        log.rows(entry, lambda there: there)


def test_rows_that_were_deleted_or_changed_by_others_leave_files_in_which_nothing_is_new(table: Table) -> None:
    commit(table, 1)
    log = Log(table.location)
    first = follow(log)
    user = window(1).column("user_key")[0].as_py()
    DeltaTable(table.location.uri).delete(f"user_key = '{user}'")  # an erasure writes the others' rows anew
    assert follow(log, first.version) == Seen((), first.version + 1)


def test_a_column_that_the_archive_gains_is_read_with_the_commits_after_and_null_in_those_before(table: Table) -> None:
    commit(table, 1)
    log = Log(table.location)
    before = follow(log)
    assert "plan" not in log.rows(before.entries[0], lambda there: there).schema.names
    wide = open_table(table.location.uri, with_columns(ARCHIVE, [pa.field("plan", pa.string())]))
    at = ARCHIVE.schema.get_field_index("date")
    rows = window(2).add_column(at, "plan", pa.array(["gold"] * ROWS, pa.string()))
    assert wide.commit(wide.write(rows, "w2"), app_id="job", version=2)
    after = follow(log, before.version)
    assert [len(entry.files) for entry in after.entries] == [1]
    assert log.rows(after.entries[0], lambda there: there).column("plan").to_pylist() == ["gold"] * ROWS
    assert log.rows(before.entries[0], lambda there: there).column("plan").null_count == ROWS


def test_where_the_log_was_cleaned_up_the_files_that_came_since_are_the_queue(
    table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    known = frozenset(path for number in (1, 2) for path in commit(table, number))
    log = Log(table.location)
    seen = follow(log)
    for number in range(3, 7):
        commit(table, number)
    clean_log(table)
    later = follow(log, seen.version, known, NOW_US)
    assert later.version == 6
    assert read(log, later) == in_order(*map(window, range(3, 7)))
    assert "does not reach back to the last look: of version 6 4 files are new, 0 of them merged." in caplog.text
    assert follow(log, 6, known, NOW_US) == Seen((), 6)


def test_what_was_there_before_a_lane_began_stays_unread_even_where_the_log_was_cleaned_up(table: Table) -> None:
    (old,) = table.write(window(1), "w1")
    old = dataclasses.replace(old, modified_ms=old.modified_ms - 2 * 3_600_000)
    assert table.commit([old], app_id="job", version=1)
    log = Log(table.location)
    seen = log.identity()  # its queue knows no file
    assert seen is not None
    for number in (2, 3):
        commit(table, number)
    clean_log(table)
    assert read(log, follow(log, seen.version, frozenset(), NOW_US)) == in_order(window(2), window(3))


def test_a_checkpoint_that_comes_between_two_looks_is_no_gap(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(table, 1)
    log = Log(table.location)
    seen = follow(log)
    entry = log._entry

    def comes_just_after(version: int) -> bytes | None:
        found = entry(version)
        if version == 2 and found is None:
            commit(table, 2)
            table.refresh()
            table.delta.create_checkpoint()
        return found

    monkeypatch.setattr(log, "_entry", comes_just_after)
    assert follow(log, seen.version) == Seen((), 1)
    assert read(log, follow(log, 1)) == in_order(window(2))


def test_merged_files_are_read_again_where_only_they_can_hold_what_came_since(table: Table) -> None:
    """Better twice than not at all: compaction went on though the lane was away for more than it holds files."""
    released_us = round((START + dt.timedelta(seconds=60)).timestamp() * 1e6)
    for number in range(1, 9):
        commit(table, number)
    known = frozenset(path for entry in follow(Log(table.location)).entries for path in entry.files)
    assert compact(table, older_than_s=0).files_after == 1
    clean_log(table)
    log = Log(table.location)
    # The lane knew all of them, and looked long after the last was released: the merged file has nothing new.
    assert follow(log, 8, known, released_us + 3_600_000_000).entries == ()
    # It knew all but the last ones.
    assert sorted(read(log, follow(log, 6, frozenset(), released_us))) == sorted(in_order(*map(window, range(1, 9))))


def test_from_the_first_row_of_a_table_whose_log_was_cleaned_up_and_which_was_merged(table: Table) -> None:
    for number in range(1, 9):
        commit(table, number)
    compact(table, older_than_s=0)
    commit(table, 9)
    clean_log(table)
    log = Log(table.location)
    assert read(log, follow(log)) == in_order(pa.concat_tables(map(window, range(1, 9))), window(9))


def test_a_log_that_others_wrote_oddly(table: Table) -> None:
    (path,) = commit(table, 1)
    log = Log(table.location)
    entry = {"add": {"path": path, "dataChange": True, "stats": None, "size": 1, "modificationTime": 1}}
    Path(table.location.uri, "_delta_log", f"{2:020}.json").write_text(json.dumps(entry))
    assert follow(log, 1) == Seen((Entry(2, None, 0, (path,), 0),), 2)
    Path(table.location.uri, "_delta_log", f"{3:020}.json").write_text("{torn")
    with pytest.raises(StorageError, match=r"Version 3 of the log of .* cannot be read"):
        follow(log, 2)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[GcsServer]:
    with gcs_server("followed") as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint.removeprefix("http://"))
        yield server


def test_an_archive_in_a_bucket(bucket: GcsServer) -> None:
    location = locate("gs://followed/archive")
    log = Log(location)
    assert (log.identity(), follow(log), log.poll_s) == (None, Seen((), -1), REMOTE_POLL_S)
    table = open_table(location.uri, ARCHIVE)
    for number in (1, 2):
        commit(table, number)
    seen = follow(log)
    assert read(log, seen) == in_order(window(1), window(2))
    before = len(bucket.requests())
    assert log.since(seen.version, frozenset, 0) == Seen((), 2)
    asked = [line for line in bucket.requests()[before:] if "_requests" not in line]
    assert len(asked) <= 2, asked  # a look that finds nothing is one request, the question for a gap another
    for number in range(3, 9):
        commit(table, number)
    clean_log(table)
    known = frozenset(path for entry in seen.entries for path in entry.files)
    assert read(log, follow(log, seen.version, known, NOW_US)) == in_order(*map(window, range(3, 9)))
    entry = seen.entries[0]
    location.discard(entry.files[0])
    with pytest.raises(StorageError, match="is all of the storage there"):
        log.rows(entry, lambda there: there)
