"""Where tables live: one address for a local folder or a bucket, for the Delta log and for Parquet files alike.

`locate` turns what a person typed into a `Location`, or says in one sentence what is wrong with it. The log is read
and written by deltalake, data files by pyarrow; both look for Google's credentials in the same places, and for an
emulator where Google's own clients do.
"""

import dataclasses
import datetime as dt
import functools
import json
import os
import re
import uuid
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow.fs as pafs

EMULATOR_VARIABLE = "STORAGE_EMULATOR_HOST"
"""Google's own clients read the endpoint of a storage emulator from it; so does this module."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")  # https://cloud.google.com/storage/docs/buckets#naming
_ANSI = re.compile(r"\x1b\[[0-9;]*m|\u21b3")  # deltalake colours the chain of causes in its errors

_GIVE_UP_AFTER = dt.timedelta(seconds=15)
_PATIENCE = {
    "retry_timeout": "30s",
    "connect_timeout": "10s",
}  # deltalake's defaults let a wrong address hang for minutes


class StorageError(Exception):
    """A table cannot be opened or written; the message is one sentence that a person can act on."""


@dataclasses.dataclass(frozen=True)
class Location:
    """The root folder of one table.

    Attributes:
        uri: for deltalake, and for people: an absolute path or `gs://bucket/folder`.
        local: the folder, where it is on this machine; else None.
        options: deltalake's storage options.
    """

    uri: str
    local: Path | None
    options: dict[str, str]

    @functools.cached_property
    def files(self) -> pafs.FileSystem:
        """The table's folder as a file system: paths in it are relative to the folder."""
        if self.local is not None:
            return pafs.SubTreeFileSystem(str(self.local), pafs.LocalFileSystem(use_mmap=False))
        # Not deltalake.fs: it holds the interpreter's lock while it waits for the network (measured).
        emulator = _emulator()
        if emulator is None:
            google = pafs.GcsFileSystem(retry_time_limit=_GIVE_UP_AFTER)
        else:
            scheme, _, host = emulator.partition("://")
            google = pafs.GcsFileSystem(
                anonymous=True, scheme=scheme, endpoint_override=host, retry_time_limit=_GIVE_UP_AFTER
            )
        return pafs.SubTreeFileSystem(self.uri.removeprefix("gs://"), google)

    def store(self, path: str, content: memoryview) -> None:
        """Write one file whole: readers see all of it or nothing, and locally it survives a power cut."""
        if self.local is None:
            with self.files.open_output_stream(path) as stream:
                stream.write(content)
            return
        target = self.local / path
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not `.parquet` until it is whole, since people read folders by glob; vacuum clears what a crash leaves.
        partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
        try:
            with partial.open("xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    def sync(self, path: str) -> None:
        """Make a local file that another library wrote, and its name, survive a power cut; a bucket's already does."""
        if self.local is None:
            return
        descriptor = os.open(self.local / path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _sync_folder((self.local / path).parent)

    def discard(self, path: str) -> None:
        """Delete a file that no commit refers to; one that is gone already is fine."""
        if self.local is not None:
            (self.local / path).unlink(missing_ok=True)
        elif self.files.get_file_info(path).type != pafs.FileType.NotFound:
            self.files.delete_file(path)

    def names(self) -> list[str]:
        """Return the names right under the root, sorted; none where the folder does not exist."""
        found = self.files.get_file_info(pafs.FileSelector("", allow_not_found=True, recursive=False))
        return sorted(info.base_name for info in found)

    def check_writable(self) -> None:
        """Write and delete a small file.

        Raises:
            StorageError: it cannot be done; the message says what to change.
        """
        probe = f"_millrace_probe_{uuid.uuid4().hex}"
        try:
            if self.local is not None:
                self.local.mkdir(parents=True, exist_ok=True)
            self.store(probe, memoryview(b"millrace"))
            self.discard(probe)
        except OSError as error:
            raise explain(self, error) from error


def locate(uri: str) -> Location:
    """Return the location that a path, a `file://` or a `gs://` URI names; touches no storage but for credentials.

    Raises:
        StorageError: a malformed URI, a scheme that is not supported, or no Google credentials.
    """
    if not uri.strip() or "\0" in uri:
        raise StorageError("The table's location is empty: give a folder or gs://bucket/folder.")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", uri)
    if scheme is None:
        return _local(Path(uri).expanduser())
    if not uri[scheme.end() :].startswith("//"):
        raise StorageError(f"{uri!r} is not a location: after {scheme[0]!r} two slashes must follow.")
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise StorageError(f"{uri!r} is not a location: {error}.") from error
    if parts.query or parts.fragment:
        raise StorageError(f"{uri!r} is not a location: ? and # have no meaning in it.")
    if parts.scheme == "file":
        if parts.netloc not in {"", "localhost"} or not parts.path.strip("/"):
            raise StorageError(f"{uri!r} is not a location on this machine: write file:///folder/of/the/table.")
        return _local(Path(unquote(parts.path)))
    if parts.scheme == "gs":
        if not _BUCKET.fullmatch(parts.netloc):
            raise StorageError(f"{uri!r} names no valid bucket: write gs://bucket/folder.")
        return Location(f"gs://{parts.netloc}{parts.path.rstrip('/')}", None, _google_options(uri))
    raise StorageError(f"{parts.scheme}:// is not supported in {uri!r}: give a folder, file:// or gs://bucket/folder.")


def explain(location: Location, error: Exception) -> StorageError:
    """Turn what a storage library raised into one sentence: what failed, and what to do about it."""
    text = " ".join(_ANSI.sub("", str(error)).split())
    if location.local is not None:
        reason = (error.strerror if isinstance(error, OSError) else None) or text
        return StorageError(f"Cannot write to {location.uri} ({reason}): choose a folder that this user may write to.")
    bucket = urlsplit(location.uri).netloc
    # pyarrow says NOT_FOUND of an upload, deltalake quotes Google's answer; what is created cannot lack but its bucket.
    if "NoSuchBucket" in text or "bucket does not exist" in text or ("NOT_FOUND" in text and "Upload" in text):
        return StorageError(f"The bucket {bucket!r} does not exist: create it, or correct {location.uri}.")
    if "token request" in text:
        return _no_credentials(location.uri)
    if re.search(r"\b(401|403)\b|Forbidden|UNAUTHENTICATED|PERMISSION_DENIED|AccessDenied", text):
        return StorageError(
            f"Google refused access to {location.uri}: give this account roles/storage.objectAdmin on the bucket."
        )
    if re.search(r"UNAVAILABLE|error sending request|DEADLINE_EXCEEDED", text):
        endpoint = f"the emulator at {_emulator()}" if _emulator() else "Google Cloud Storage"
        return StorageError(f"Cannot reach {endpoint} for {location.uri}: check the network and try again.")
    return StorageError(f"Cannot use {location.uri}: {text[:300]}")


def _local(path: Path) -> Location:
    absolute = path.absolute()
    return Location(str(absolute), absolute, {})


def _google_options(uri: str) -> dict[str, str]:
    emulator = _emulator()
    if emulator is not None:
        # A key without a key: with `google_skip_signature` deltalake reads unsigned, but asks for a token to write (m).
        key = {"gcs_base_url": emulator, "disable_oauth": True}
        unused = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        return {"google_service_account_key": json.dumps(key | unused), "allow_http": "true", **_PATIENCE}
    import google.auth  # noqa: PLC0415  only where Google is asked: it costs start-up time
    from google.auth.exceptions import DefaultCredentialsError  # noqa: PLC0415

    try:  # deltalake itself would look for a metadata server for minutes before it says so
        google.auth.default()
    except DefaultCredentialsError as error:
        raise _no_credentials(uri) from error
    return dict(_PATIENCE)


def _emulator() -> str | None:
    given = os.environ.get(EMULATOR_VARIABLE, "").rstrip("/")
    if not given:
        return None
    return given if "://" in given else f"http://{given}"


def _no_credentials(uri: str) -> StorageError:
    return StorageError(
        f"No Google credentials for {uri}: run `gcloud auth application-default login`, "
        f"or set GOOGLE_APPLICATION_CREDENTIALS."
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
