"""Compaction: which files it merges, and that the rows stay the same whoever else is at the table."""

import datetime as dt
import math
import threading
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st

from millrace import cli
from millrace.sinks import compact as compaction
from millrace.sinks.compact import compact, main, vacuum
from millrace.sinks.compact_plan import Entry, plan
from millrace.sinks.delta import Table, open_table
from millrace.sinks.tables import ARCHIVE
from tests.support.pubsub import wait_until
from tests.support.rows import START, archive_rows

_MIB = 1024 * 1024


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return open_table(str(tmp_path / "archive"), ARCHIVE)


def _append(table: Table, numbers: range, rows: int = 20) -> pa.Table:
    windows = [
        archive_rows(rows, start=START + dt.timedelta(seconds=5 * number), seed=number, users=10) for number in numbers
    ]
    for number, window in zip(numbers, windows, strict=True):
        assert table.commit(table.write(window, f"w{number:04}"), app_id="job", version=number)
    return pa.concat_tables(windows)


def _rows(uri: str) -> list[dict[str, object]]:
    rows = DeltaTable(uri).to_pyarrow_table().select(ARCHIVE.schema.names)
    return rows.sort_by([("message_id", "ascending")]).to_pylist()  # type: ignore[no-any-return]


def test_small_files_become_one_sorted_file_with_the_same_rows(table: Table) -> None:
    appended = _append(table, range(10))
    report = compact(table, older_than_s=0)

    assert (report.files_before, report.files_after, report.rows, report.abandoned) == (10, 1, 200, 0)
    assert _rows(table.location.uri) == appended.sort_by([("message_id", "ascending")]).to_pylist()
    [uri] = table.uris()
    merged = pq.read_table(uri, partitioning=None)
    assert merged.equals(merged.sort_by([("user_key", "ascending"), ("order_index", "ascending")]))
    assert len(duckdb.read_parquet(uri)) == 200


def test_statistics_of_a_merged_file_still_let_queries_skip_it(table: Table) -> None:
    _append(table, range(10))
    compact(table, older_than_s=0)
    _append(table, range(10, 12))
    table.refresh()
    found = table.delta.file_uris(file_pruning_predicate="released_at >= '2026-03-01T12:00:50Z'")
    assert sorted(Path(uri).name for uri in found) == ["w0010.parquet", "w0011.parquet"]


def test_totals_transactions_and_appends_go_on_after_it(table: Table) -> None:
    _append(table, range(10))
    compact(table, older_than_s=0)
    assert table.committed_totals() == {"rows": 200}
    assert table.committed_version("job") == 9
    assert not table.commit([], app_id="job", version=9)
    _append(table, range(10, 11))
    assert open_table(table.location.uri, ARCHIVE).committed_totals() == {"rows": 220}


def test_young_files_and_few_files_wait(table: Table) -> None:
    _append(table, range(7))
    assert compact(table, older_than_s=0).files_before == 0  # fewer than min_files
    _append(table, range(7, 10))
    assert compact(table, older_than_s=3600).files_before == 0
    assert compact(table, older_than_s=0).files_before == 10


def test_days_are_never_merged(table: Table) -> None:
    for day in range(2):
        for number in range(8):
            start = START + dt.timedelta(days=day, seconds=5 * number)
            rows = archive_rows(5, start=start, seed=number)
            assert table.commit(table.write(rows, f"{day}-{number}"), app_id="job", version=day * 8 + number)
    assert compact(table, older_than_s=0).files_after == 2
    assert [Path(uri).parent.name for uri in table.uris()] == ["date=2026-03-01", "date=2026-03-02"]


def test_what_one_merge_holds_in_memory_is_bounded(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    appended = _append(table, range(12))
    assert compact(table, older_than_s=0, min_files=2, max_rows=80).files_after == 3  # of 4 files, 80 rows, each
    assert _rows(table.location.uri) == appended.sort_by([("message_id", "ascending")]).to_pylist()
    monkeypatch.setattr(compaction, "MAX_DECODED_BYTES", 1)
    assert compact(table, older_than_s=0, min_files=2).files_before == 0


def test_columns_that_others_added_are_kept(table: Table) -> None:
    _append(table, range(4))
    other = DeltaTable(table.location.uri)
    rows = archive_rows(3, seed=99).append_column("mine", pa.array(["a", "b", None]))
    from deltalake import write_deltalake

    write_deltalake(other, rows, mode="append", schema_mode="merge")
    _append(table, range(4, 8))
    before = DeltaTable(table.location.uri).to_pyarrow_table(columns=["message_id", "mine"])
    assert compact(table, older_than_s=0, min_files=2).files_after == 1
    after = DeltaTable(table.location.uri).to_pyarrow_table(columns=["message_id", "mine"])
    assert after.sort_by("message_id").equals(before.sort_by("message_id"))
    assert sorted(filter(None, after.column("mine").to_pylist())) == ["a", "b"]


def test_two_compactions_of_the_same_files_double_nothing(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    appended = _append(table, range(10))
    rival = open_table(table.location.uri, ARCHIVE)
    original = compaction._merge

    def merge_while_a_rival_does(*given: object) -> object:
        monkeypatch.setattr(compaction, "_merge", original)
        merged = original(*given)  # type: ignore[arg-type]
        assert compact(rival, older_than_s=0).files_after == 1
        return merged

    monkeypatch.setattr(compaction, "_merge", merge_while_a_rival_does)
    report = compact(table, older_than_s=0)
    assert (report.abandoned, report.files_after) == (1, 0)
    assert _rows(table.location.uri) == appended.sort_by([("message_id", "ascending")]).to_pylist()
    on_disk = {path.name for path in Path(table.location.uri).glob("date=*/compact-*")}
    assert on_disk == {Path(uri).name for uri in table.uris()}  # the loser's file is gone


def test_rows_deleted_while_merging_stay_deleted(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    _append(table, range(10))
    original = compaction._merge

    def merge_while_someone_is_forgotten(*given: object) -> object:
        merged = original(*given)  # type: ignore[arg-type]
        DeltaTable(table.location.uri).delete("user_key = 'user-000001'")
        return merged

    monkeypatch.setattr(compaction, "_merge", merge_while_someone_is_forgotten)
    assert compact(table, older_than_s=0).abandoned == 1
    assert [row for row in _rows(table.location.uri) if row["user_key"] == "user-000001"] == []


def test_appends_racing_compactions_lose_and_double_nothing(table: Table) -> None:
    uri = table.location.uri
    done = threading.Event()
    merged = 0
    errors: list[BaseException] = []

    def compact_all_the_time() -> None:
        nonlocal merged
        try:
            mine = open_table(uri, ARCHIVE)
            while not done.is_set():
                merged += compact(mine, older_than_s=0, min_files=3).files_before
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=compact_all_the_time) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        appended = _append(table, range(60), rows=5)
        wait_until(lambda: merged > 10 or errors)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert merged > 10
    assert _rows(uri) == appended.sort_by([("message_id", "ascending")]).to_pylist()
    assert table.committed_totals() == {"rows": 300}


def test_vacuum_deletes_what_was_replaced_and_nothing_else(table: Table) -> None:
    appended = _append(table, range(10))
    stale = open_table(table.location.uri, ARCHIVE)
    compact(table, older_than_s=0)
    waiting = table.write(archive_rows(3, seed=7), "waits-for-its-commit")
    assert vacuum(table) == 0  # all younger than the table's retention
    assert vacuum(stale, 0) == 11  # with none, the one that waits goes too
    assert not (Path(table.location.uri) / waiting[0].path).exists()
    assert _rows(table.location.uri) == appended.sort_by([("message_id", "ascending")]).to_pylist()


def test_the_command_compacts_and_says_what_it_did(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    appended = _append(table, range(10))
    assert main([table.location.uri, "--older_than_s", "0"]) == 0
    assert capsys.readouterr().out.startswith("10 files became 1 (200 rows, ")
    assert len(_rows(table.location.uri)) == appended.num_rows
    assert cli.main(["compact", table.location.uri]) == 0


def test_the_command_names_a_table_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"millrace compact: There is no Delta table at {tmp_path}: correct the location.\n"
    )


_SIZES = st.lists(st.integers(1, 40 * _MIB), max_size=60)


def _entries(sizes: list[int], days: int = 1) -> list[Entry]:
    return [
        Entry(
            path=f"{number}",
            day=dt.date(2026, 3, 1 + number % days),
            size=size,
            rows=size // 150 + 1,
            low=START + dt.timedelta(seconds=number),
            modified_ms=0,
        )
        for number, size in enumerate(sizes)
    ]


@given(_SIZES, st.integers(1, 3), st.integers(2, 10))
def test_plans_keep_their_promises(sizes: list[int], days: int, min_files: int) -> None:
    files = _entries(sizes, days)
    groups = plan(files, target_bytes=32 * _MIB, min_files=min_files, max_rows=250_000)
    planned = [entry.path for group in groups for entry in group]
    assert len(planned) == len(set(planned))
    for group in groups:
        total = sum(entry.size for entry in group)
        assert len({entry.day for entry in group}) == 1
        assert len(group) > 1
        assert len(group) >= min_files or total >= 16 * _MIB
        assert total <= 32 * _MIB
        assert sum(entry.rows for entry in group) <= 250_000
        assert max(entry.size for entry in group) * 2 <= total
        between = [entry for entry in files if entry.day == group[0].day and group[0].low <= entry.low <= group[-1].low]
        assert between == group  # next to each other in time


def test_a_day_of_small_files_is_written_only_a_few_times() -> None:
    size = 100 * 1024
    files: list[Entry] = []
    written = 0
    for number, fresh in enumerate(_entries([size] * 2_000)):
        files.append(fresh)
        if number % 12 == 11:
            for group in plan(files, target_bytes=32 * _MIB, min_files=8, max_rows=10**9):
                gone = {entry.path for entry in group}
                merged = sum(entry.size for entry in group)
                files = [entry for entry in files if entry.path not in gone]
                files.append(Entry(f"m{written}", group[0].day, merged, 1, group[0].low, 0))
                written += merged
    assert written / (2_000 * size) < math.log2(16 * _MIB / size) + 1
    assert len(files) < 40


def test_the_command_refuses_to_delete_what_a_pipeline_is_about_to_commit(
    table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        main([table.location.uri, "--retention_hours", "0"])
    assert exited.value.code == 2
    assert "--retention_hours must be 1 or more" in capsys.readouterr().err
