"""Tables in Google Cloud Storage, against a server of PyPI."""

import concurrent.futures
from collections.abc import Iterator

import pytest

from millrace.sinks.compact import compact, vacuum
from millrace.sinks.delta import open_table
from millrace.sinks.storage import StorageError
from millrace.sinks.tables import ARCHIVE
from tests.support.gcs import GcsServer, gcs_server
from tests.support.rows import archive_rows

_BUCKET = "millrace-test"


@pytest.fixture(scope="module")
def server() -> Iterator[GcsServer]:
    with gcs_server(_BUCKET) as running:
        yield running


@pytest.fixture
def root(server: GcsServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint.removeprefix("http://"))
    return f"gs://{_BUCKET}/{request.node.name}"


def test_a_table_lives_in_a_bucket(root: str, server: GcsServer) -> None:
    table = open_table(root, ARCHIVE)
    windows = [archive_rows(30, seed=number) for number in range(25)]  # past a checkpoint of the log
    for version, rows in enumerate(windows):
        assert table.commit(table.write(rows, f"w{version}"), app_id="job", version=version, counts={"late": 1})
    assert not table.commit([], app_id="job", version=24)
    expected = sorted(key for rows in windows for key in rows.column("message_id").to_pylist())

    reopened = open_table(root + "/", ARCHIVE)
    assert reopened.committed_totals() == {"rows": 750, "late": 25}
    recent = [key for batch in reopened.read_recent(["message_id"], 0) for key in batch.column(0).to_pylist()]
    assert sorted(recent) == expected
    assert compact(reopened, older_than_s=0).files_after == 1
    assert vacuum(table, 0) == 25
    assert sorted(table.delta.to_pyarrow_table().column("message_id").to_pylist()) == expected
    prefix = f"{root.removeprefix(f'gs://{_BUCKET}/')}/date="
    assert [name for name in server.names(_BUCKET) if name.startswith(prefix)] == [
        uri.removeprefix(f"gs://{_BUCKET}/") for uri in reopened.uris()
    ]


def test_appends_and_a_compaction_at_once_lose_and_double_nothing(root: str) -> None:
    tables = [open_table(root, ARCHIVE) for _ in range(3)]

    def append(job: int) -> list[str]:
        ids = []
        for version in range(6):
            rows = archive_rows(10, seed=100 * job + version)
            assert tables[job].commit(tables[job].write(rows, f"{job}-{version}"), app_id=f"job {job}", version=version)
            ids += rows.column("message_id").to_pylist()
        return ids

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(append, job) for job in range(2)]
        while not all(job.done() for job in jobs):
            compact(tables[2], older_than_s=0, min_files=2)
        expected = sorted(key for job in jobs for key in job.result())
    found = open_table(root, ARCHIVE)
    assert sorted(found.delta.to_pyarrow_table().column("message_id").to_pylist()) == expected
    assert found.committed_totals() == {"rows": 120}


def test_a_bucket_that_does_not_exist_is_named(root: str) -> None:
    with pytest.raises(StorageError) as refused:
        open_table("gs://no-such-bucket/archive", ARCHIVE)
    assert str(refused.value) == (
        "The bucket 'no-such-bucket' does not exist: create it, or correct gs://no-such-bucket/archive."
    )
