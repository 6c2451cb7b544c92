"""Bookmarks: compaction leaves alone what a follower has yet to read, for a week at most; vacuum leaves them alone."""

import os
import time
from pathlib import Path

import msgspec
import pytest

from millrace.sinks.bookmarks import FOLDER, Bookmark, held_since_ms, write_bookmark
from millrace.sinks.compact import compact, main, vacuum
from millrace.sinks.delta import Table, open_table
from millrace.sinks.storage import StorageError, locate
from millrace.sinks.tables import ARCHIVE
from tests.support.gcs import gcs_server
from tests.support.lanes import archive, commit

NOW_MS = 1_800_000_000_000
MINUTE_MS, DAY_MS = 60_000, 86_400_000


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return archive(tmp_path, *range(1, 10))


def at(monkeypatch: pytest.MonkeyPatch, now_ms: int) -> None:
    monkeypatch.setattr("millrace.sinks.bookmarks.time.time_ns", lambda: now_ms * 1_000_000)


def test_files_are_held_from_some_minutes_before_the_oldest_unread_commit_of_any_follower(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, NOW_MS)
    assert held_since_ms(table.location) == NOW_MS
    write_bookmark(table.location, "crm", (NOW_MS - 5 * MINUTE_MS) * 1_000)
    write_bookmark(table.location, "shop", (NOW_MS - 60 * MINUTE_MS) * 1_000)
    assert held_since_ms(table.location) == NOW_MS - 70 * MINUTE_MS
    write_bookmark(table.location, "shop", NOW_MS * 1_000)
    assert held_since_ms(table.location) == NOW_MS - 15 * MINUTE_MS


def test_nobody_holds_files_for_more_than_a_week(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, NOW_MS)
    # One event has waited for a month, and what came in the last week is held still.
    write_bookmark(table.location, "crm", (NOW_MS - 30 * DAY_MS) * 1_000)
    assert held_since_ms(table.location) == NOW_MS - 7 * DAY_MS
    at(monkeypatch, NOW_MS + 6 * DAY_MS)
    assert held_since_ms(table.location) == NOW_MS - DAY_MS
    at(monkeypatch, NOW_MS + 7 * DAY_MS)  # it has said nothing for a week
    assert held_since_ms(table.location) == NOW_MS + 7 * DAY_MS


def test_compaction_goes_by_them(table: Table) -> None:
    write_bookmark(table.location, "crm", time.time_ns() // 1_000)
    assert compact(table, older_than_s=0).files_before == 0  # all of it is from the last minutes
    (Path(table.location.uri) / FOLDER / "crm.json").unlink()
    assert compact(table, older_than_s=0).files_before == 9


def test_neither_vacuum_nor_opening_the_table_minds_them(table: Table) -> None:
    write_bookmark(table.location, "crm", 0)
    path = Path(table.location.uri) / FOLDER / "crm.json"
    orphan = Path(table.location.uri) / "date=2026-03-01" / "orphan.parquet"
    orphan.write_bytes(b"left by a crash")
    for old in (path, orphan):
        os.utime(old, (1_000_000_000, 1_000_000_000))
    assert vacuum(table, 0) == 1
    assert (path.exists(), orphan.exists()) == (True, False)
    assert commit(open_table(table.location.uri, ARCHIVE), 10)


def test_where_there_is_no_table_yet_there_is_nothing_to_hold(tmp_path: Path) -> None:
    location = locate(str(tmp_path / "archive"))
    write_bookmark(location, "crm", 0)
    assert not (tmp_path / "archive").exists()


def test_one_that_is_damaged_is_told_and_not_passed_over(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    write_bookmark(table.location, "crm", 0)
    (Path(table.location.uri) / FOLDER / "crm.json").write_text("{")
    (Path(table.location.uri) / FOLDER / "crm.json.123.partial").write_text("{")  # left by a crash
    with pytest.raises(StorageError, match="delete it; a sink in use writes its own anew"):
        held_since_ms(table.location)
    assert main([table.location.uri]) == 2
    assert capsys.readouterr().err.startswith(f"millrace compact: {table.location.uri}/_followers/crm.json is no bookm")


def test_in_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    with gcs_server("followed") as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint.removeprefix("http://"))
        table = open_table("gs://followed/archive", ARCHIVE)
        before_ms = time.time_ns() // 1_000_000
        assert held_since_ms(table.location) >= before_ms
        write_bookmark(table.location, "crm", before_ms * 1_000)
        assert held_since_ms(table.location) == before_ms - 10 * MINUTE_MS
        assert vacuum(table, 0) == 0
        name = f"archive/{FOLDER}/crm.json"
        assert name in server.names("followed")
        with table.location.files.open_input_stream(f"{FOLDER}/crm.json") as stream:
            assert msgspec.json.decode(stream.read(), type=Bookmark).oldest_unread_us == before_ms * 1_000
