"""Tables: what is committed, once, and how it is read back."""

import concurrent.futures
import datetime as dt
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from millrace.schemas.event import ARCHIVE as ROWS
from millrace.sinks import delta, tables
from millrace.sinks.delta import Table, open_table
from millrace.sinks.storage import StorageError
from millrace.sinks.tables import ARCHIVE, DEAD_LETTERS
from tests.support.rows import START, archive_rows


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return open_table(str(tmp_path / "archive"), ARCHIVE)


def _us(moment: dt.datetime) -> int:
    return (moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)


def _ids(rows: pa.Table) -> list[str]:
    return sorted(rows.column("message_id").to_pylist())


def _window(number: int, count: int = 20) -> pa.Table:
    return archive_rows(count, start=START + dt.timedelta(seconds=5 * number), seed=number)


def test_committed_rows_are_read_back_by_delta_by_duckdb_and_from_the_files(table: Table) -> None:
    rows = _window(0, 300)
    assert table.commit(table.write(rows, "a"), app_id="job", version=1)

    by_delta = DeltaTable(table.location.uri).to_pyarrow_table().select(ROWS.names).cast(ROWS)
    assert by_delta.equals(rows)
    by_duckdb = duckdb.read_parquet(table.uris(), hive_partitioning=True).to_arrow_table().select(ROWS.names).cast(ROWS)
    assert by_duckdb.sort_by("message_id").equals(rows.sort_by("message_id"))
    file = pq.ParquetFile(table.uris()[0])
    assert "date" not in file.schema_arrow.names
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_rows_of_two_days_go_into_one_file_each(table: Table) -> None:
    midnight = dt.datetime(2026, 3, 2, tzinfo=dt.UTC)
    rows = archive_rows(100, start=midnight - dt.timedelta(seconds=2), seconds=4)
    files = table.write(rows, "a")
    assert [(file.path, file.partition) for file in files] == [
        ("date=2026-03-01/a.parquet", "2026-03-01"),
        ("date=2026-03-02/a.parquet", "2026-03-02"),
    ]
    assert table.commit(files, app_id="job", version=1)
    assert _ids(table.delta.to_pyarrow_table()) == []  # a handle shows what it last looked at
    table.refresh()
    assert _ids(table.delta.to_pyarrow_table()) == _ids(rows)


def test_rows_without_a_date_are_refused(table: Table) -> None:
    rows = _window(0)
    dateless = rows.set_column(rows.schema.get_field_index("date"), "date", pa.nulls(rows.num_rows, pa.date32()))
    with pytest.raises(ValueError, match="20 rows without date"):
        table.write(dateless, "a")


def test_a_transaction_goes_in_once(table: Table) -> None:
    files = table.write(_window(0), "a")
    assert table.committed_version("job") is None
    assert table.commit(files, app_id="job", version=7, counts={"late": 2})
    assert not table.commit(files, app_id="job", version=7, counts={"late": 2})
    assert not table.commit(table.write(_window(1), "b"), app_id="job", version=6)
    assert table.commit(table.write(_window(2), "c"), app_id="another job", version=1)
    assert table.committed_version("job") == 7
    assert table.committed_totals() == {"rows": 40, "late": 2}
    assert len(table.uris()) == 2


def test_a_commit_without_files_still_counts(table: Table) -> None:
    assert table.commit([], app_id="job", version=1, counts={"duplicates": 3})
    assert not table.commit([], app_id="job", version=1, counts={"duplicates": 3})
    assert table.committed_totals() == {"rows": 0, "duplicates": 3}


def test_an_attempt_that_failed_after_it_went_in_is_not_repeated(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Table.transact

    def lose_the_answer(*given: object) -> None:
        original(*given)  # type: ignore[arg-type]
        monkeypatch.setattr(Table, "transact", original)
        raise CommitFailedError("connection reset")

    monkeypatch.setattr(Table, "transact", lose_the_answer)
    assert table.commit(table.write(_window(0), "a"), app_id="job", version=1)
    assert (len(table.uris()), table.committed_totals()) == (1, {"rows": 20})


def test_a_store_that_keeps_refusing_is_an_error_and_nothing_goes_in(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Table, "transact", refuse)
    monkeypatch.setattr(delta, "pause", lambda _: None)
    with pytest.raises(StorageError, match="No space left on device"):
        table.commit(table.write(_window(0), "a"), app_id="job", version=1)
    assert table.uris() == []


def test_commits_of_many_at_once_all_go_in_once(tmp_path: Path) -> None:
    uri = str(tmp_path / "archive")

    def append(job: int) -> list[bool]:
        table = open_table(uri, ARCHIVE)  # all create it at the same moment, too
        return [
            table.commit(
                table.write(_window(number), f"{job}-{number}"), app_id=f"job {job}", version=number, counts={"late": 1}
            )
            for number in (0, 1, 2, 2)
        ]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(append, range(4)))
    assert answers == [[True, True, True, False]] * 4
    table = open_table(uri, ARCHIVE)
    assert table.committed_totals() == {"rows": 240, "late": 12}
    assert table.delta.to_pyarrow_table().num_rows == 240


def test_two_processes_with_one_transaction_commit_it_once(tmp_path: Path) -> None:
    first, second = (open_table(str(tmp_path / "archive"), ARCHIVE) for _ in range(2))
    answers = [
        opened.commit(opened.write(_window(0), name), app_id="job", version=1)
        for name, opened in (("a", first), ("b", second))
    ]
    assert answers == [True, False]
    assert [Path(uri).name for uri in second.uris()] == ["a.parquet"]


def test_totals_outlive_expired_log_entries_and_other_tools_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tables.CONFIGURATION, "delta.logRetentionDuration", "interval 0 seconds")
    table = open_table(str(tmp_path / "archive"), ARCHIVE)
    stale = open_table(table.location.uri, ARCHIVE)
    for number in range(50):
        assert table.commit(table.write(_window(number, 2), f"f{number}"), app_id="job", version=number)
    left = sorted(path.name for path in (tmp_path / "archive" / "_delta_log").glob("*.json"))
    assert len(left) < 50, "the log was never cleared"
    for _ in range(25):  # past a checkpoint, so that no entry of ours is left
        DeltaTable(table.location.uri).alter.set_table_properties({"delta.appendOnly": "false"})
    assert stale.committed_totals() == {"rows": 100}
    reopened = open_table(table.location.uri, ARCHIVE)
    assert reopened.committed_totals() == {"rows": 100}
    assert reopened.committed_version("job") == 49
    assert reopened.commit([], app_id="job", version=50, counts={"rows": 0, "late": 1})
    assert reopened.committed_totals() == {"rows": 100, "late": 1}


def test_recent_rows_come_from_the_files_that_may_hold_them(table: Table) -> None:
    windows = [_window(number) for number in range(10)]
    for number, rows in enumerate(windows):
        table.commit(table.write(rows, f"w{number}"), app_id="job", version=number)
    since = START + dt.timedelta(seconds=37.5)
    for number in range(7):  # files that end before are not even opened
        (Path(table.location.uri) / f"date=2026-03-01/w{number}.parquet").write_bytes(b"not Parquet")

    found = pa.Table.from_batches(table.read_recent(["message_id", "date"], _us(since)))

    everything = pa.concat_tables(windows)
    expected = everything.filter(pc.field("released_at") >= since)
    assert 0 < expected.num_rows < 60
    assert found.column_names == ["message_id", "date"]
    assert _ids(found) == _ids(expected)


def test_nothing_recent_is_nothing(table: Table) -> None:
    assert list(table.read_recent(["message_id"], 0)) == []
    table.commit(table.write(_window(0), "a"), app_id="job", version=1)
    assert list(table.read_recent(["message_id"], _us(START + dt.timedelta(days=1)))) == []


def test_queries_skip_files_by_partition_and_by_statistics(table: Table) -> None:
    for number in range(6):
        start = START + dt.timedelta(days=number // 3, seconds=5 * number)
        table.commit(
            table.write(archive_rows(50, start=start, seed=number), f"w{number}"), app_id="job", version=number
        )
    table.refresh()

    def files(predicate: str) -> list[str]:
        return sorted(Path(uri).name for uri in table.delta.file_uris(file_pruning_predicate=predicate))

    assert files("date = '2026-03-02'") == ["w3.parquet", "w4.parquet", "w5.parquet"]
    assert files("released_at < '2026-03-01T12:00:05Z'") == ["w0.parquet"]
    assert files("date = '2026-03-02' AND released_at >= '2026-03-02T12:00:25Z'") == ["w5.parquet"]
    assert files("user_key > 'v'") == []
    assert len(files("user_key > 'user-0'")) == 6


def test_an_existing_table_gets_the_columns_it_lacks_and_keeps_others(tmp_path: Path) -> None:
    uri = str(tmp_path / "archive")
    older = pa.schema([field for field in ROWS if field.name != "context_ip"]).append(pa.field("mine", pa.string()))
    DeltaTable.create(uri, older, partition_by=["date"], name="archive")
    table = open_table(uri, ARCHIVE)
    assert {field.name for field in table.delta.schema().fields} == {*ROWS.names, "mine"}
    rows = _window(0)
    assert table.commit(table.write(rows, "a"), app_id="job", version=1)
    found = DeltaTable(uri).to_pyarrow_table()
    assert found.column("mine").null_count == rows.num_rows
    assert found.select(ROWS.names).cast(ROWS).equals(rows)


@pytest.mark.parametrize(
    ("schema", "partition", "message"),
    [
        (DEAD_LETTERS.schema, "date", "is another kind of table"),
        (ROWS, "type", "is partitioned by ['type'], not by 'date'"),
        (
            ROWS.set(ROWS.get_field_index("order_index"), pa.field("order_index", pa.string(), nullable=False)),
            "date",
            "Column order_index of {uri} is string, but the archive needs int64",
        ),
    ],
)
def test_another_kind_of_table_is_refused(tmp_path: Path, schema: pa.Schema, partition: str, message: str) -> None:
    uri = str(tmp_path / "archive")
    DeltaTable.create(uri, schema, partition_by=[partition])
    with pytest.raises(StorageError) as refused:
        open_table(uri, ARCHIVE)
    assert message.format(uri=uri) in str(refused.value)
