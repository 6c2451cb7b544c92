"""Locations: what may be given, and the one sentence that says what is wrong with the rest."""

import os
from pathlib import Path

import pytest

from millrace.sinks.delta import find_table, open_table
from millrace.sinks.storage import StorageError, locate
from millrace.sinks.tables import ARCHIVE, SPECS


@pytest.mark.parametrize("written", ["{path}", "file://{path}", "file://localhost{path}"])
def test_a_folder_may_be_a_path_or_a_file_uri(tmp_path: Path, written: str) -> None:
    folder = tmp_path / "my archive"
    location = locate(written.format(path=str(folder).replace(" ", "%20") if "://" in written else folder))
    assert (location.uri, location.local) == (str(folder), folder)


def test_a_relative_path_stays_where_it_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    location = locate("data/archive")
    monkeypatch.chdir("/")
    assert location.local == tmp_path / "data" / "archive"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "The table's location is empty: give a folder or gs://bucket/folder."),
        ("  ", "The table's location is empty: give a folder or gs://bucket/folder."),
        ("gs:/b/archive", "'gs:/b/archive' is not a location: after 'gs:' two slashes must follow."),
        ("gs://", "'gs://' names no valid bucket: write gs://bucket/folder."),
        ("gs://UPPER/x", "'gs://UPPER/x' names no valid bucket: write gs://bucket/folder."),
        ("gs://b/x?y=1", "'gs://b/x?y=1' is not a location: ? and # have no meaning in it."),
        ("gs://[b/x", "'gs://[b/x' is not a location: Invalid IPv6 URL."),
        ("file://host/x", "'file://host/x' is not a location on this machine: write file:///folder/of/the/table."),
        ("s3://b/x", "s3:// is not supported in 's3://b/x': give a folder, file:// or gs://bucket/folder."),
    ],
)
def test_what_is_not_a_location_is_named(uri: str, message: str) -> None:
    with pytest.raises(StorageError) as refused:
        locate(uri)
    assert str(refused.value) == message


def test_a_folder_under_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError) as refused:
        open_table(str(tmp_path / "file" / "archive"), ARCHIVE)
    assert str(refused.value) == (
        f"Cannot write to {tmp_path}/file/archive (Not a directory): choose a folder that this user may write to."
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="Permission denied"):
        open_table(str(tmp_path / "archive"), ARCHIVE)


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.txt", "d.txt"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(StorageError) as refused:
        open_table(str(tmp_path), ARCHIVE)
    assert str(refused.value) == (
        f"{tmp_path} is not a Delta table and holds other things (a.txt, b.txt, c.txt ...): give a new or empty folder."
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt", "c.txt", "d.txt"]


def test_a_table_that_is_not_there_is_not_made_by_looking_for_it(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as refused:
        find_table(str(tmp_path / "archive"), SPECS)
    assert str(refused.value) == f"There is no Delta table at {tmp_path}/archive: correct the location."
    assert not (tmp_path / "archive").exists()


def test_no_google_credentials_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with pytest.raises(StorageError, match="No Google credentials for gs://bucket/archive: run `gcloud auth"):
        locate("gs://bucket/archive")


def test_a_file_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = locate(str(tmp_path))

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        location.store("date=2026-03-01/a.parquet", memoryview(b"content"))
    assert list((tmp_path / "date=2026-03-01").iterdir()) == []
