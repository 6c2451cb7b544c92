"""A Google Cloud Storage server for tests: gcp-storage-emulator, plus the part of the XML API that it lacks.

deltalake talks to Google through the XML API (https://cloud.google.com/storage/docs/xml-api). PyPI's emulator
answers its listing with JSON, ignores `x-goog-if-generation-match` (so that two commits of one version would both
succeed), and sends neither ETag nor Last-Modified. Those requests are served here, from the emulator's own storage;
the JSON API, through which pyarrow reads and writes data files, is the emulator's.
"""

import contextlib
import hashlib
import json
import re
import subprocess
import sys
import threading
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from email.utils import formatdate
from functools import partial
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.handlers.objects import _checksums, _make_object_resource
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

_REQUESTS = "/_requests"
_JSON_API = ("/storage/", "/upload/", "/download/", "/batch/", "/b/", "/wipe")


class _Handler(RequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet a reply, at once: small ones would wait for the client's delayed acknowledgement
    disable_nagle_algorithm = True

    def __init__(self, shared: "_Shared", *args: Any) -> None:
        self.shared = shared
        super().__init__(shared.storage, *args)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:  # noqa: ARG002  the base class's
        self.shared.requests.append(f"{self.command} {self.path}")

    def log_message(self, *_: Any) -> None:
        """Say nothing: the requests are kept."""

    def _is_xml(self) -> bool:
        path = urlsplit(self.path).path
        return len(path) > 1 and not path.startswith(_JSON_API) and path != "/b"

    def do_GET(self) -> None:  # noqa: N802
        if self.path == _REQUESTS:
            return self._reply(200, json.dumps(self.shared.requests).encode())
        if not self._is_xml():
            return super().do_GET()  # type: ignore[no-any-return]
        with self.shared.lock:
            bucket, name, query = self._target()
            if "list-type" in query:
                return self._list(bucket, query)
            return self._read(bucket, name, with_body=True)

    def do_HEAD(self) -> None:  # noqa: N802
        with self.shared.lock:
            bucket, name, _ = self._target()
            self._read(bucket, name, with_body=False)

    def do_PUT(self) -> None:  # noqa: N802
        if not self._is_xml():
            return super().do_PUT()  # type: ignore[no-any-return]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.shared.lock:
            bucket, name, query = self._target()
            if "uploadId" in query:
                self.shared.parts[query["uploadId"][0]][int(query["partNumber"][0])] = body
                return self._reply(200, b"", {"ETag": hashlib.md5(body).hexdigest()})  # noqa: S324  an ETag
            if self.headers.get("x-goog-if-generation-match") == "0" and self._exists(bucket, name):
                return self._error(412, "PreconditionFailed")
            return self._create(bucket, name, body)

    def do_POST(self) -> None:  # noqa: N802
        if not self._is_xml():
            return super().do_POST()  # type: ignore[no-any-return]
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.shared.lock:
            bucket, name, query = self._target()
            if "uploads" in query:
                upload = uuid.uuid4().hex
                self.shared.parts[upload] = {}
                return self._xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")
            parts = self.shared.parts.pop(query["uploadId"][0])
            content = b"".join(parts[number] for number in sorted(parts))
            etag = self._store(bucket, name, content)["etag"]
            return self._xml("CompleteMultipartUploadResult", f"<ETag>{etag}</ETag>")

    def do_DELETE(self) -> None:  # noqa: N802
        if not self._is_xml():
            return super().do_DELETE()  # type: ignore[no-any-return]
        with self.shared.lock:
            bucket, name, query = self._target()
            if "uploadId" in query:
                self.shared.parts.pop(query["uploadId"][0], None)
                return self._reply(204)
            try:
                self.storage.delete_file(bucket, name)
            except NotFound:
                return self._error(404, "NoSuchKey")
            return self._reply(204)

    def _target(self) -> tuple[str, str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        bucket, _, name = parts.path.lstrip("/").partition("/")
        return unquote(bucket), unquote(name), parse_qs(parts.query, keep_blank_values=True)

    def _exists(self, bucket: str, name: str) -> bool:
        try:
            self.storage.get_file_obj(bucket, name)
        except NotFound:
            return False
        return True

    def _list(self, bucket: str, query: dict[str, list[str]]) -> None:
        if bucket not in self.storage.buckets:
            return self._error(404, "NoSuchBucket")
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [None])[0]
        offset = query.get("start-after", [""])[0]
        objects = sorted(self.storage.objects.get(bucket, {}).items())
        contents, folders = [], set()
        for name, found in objects:
            if not name.startswith(prefix) or name <= offset:
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
                continue
            contents.append(
                f"<Contents><Key>{escape(name)}</Key><Size>{found['size']}</Size>"
                f"<LastModified>{found['updated']}</LastModified><ETag>{found['etag']}</ETag></Contents>"
            )
        common = "".join(f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders)
        return self._xml("ListBucketResult", f"<IsTruncated>false</IsTruncated>{''.join(contents)}{common}")

    def _read(self, bucket: str, name: str, *, with_body: bool) -> None:
        try:
            found = self.storage.get_file_obj(bucket, name)
            content = self.storage.get_file(bucket, name)
        except NotFound:
            code = "NoSuchKey" if bucket in self.storage.buckets else "NoSuchBucket"
            return self._error(404, code, with_body=with_body)
        headers = {
            "ETag": found["etag"],
            "x-goog-generation": found["generation"],
            "Last-Modified": formatdate(int(found["generation"]) / 1e9, usegmt=True),
        }
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self._reply(200, content, headers, with_body)
        start = int(asked[1]) if asked[1] else max(len(content) - int(asked[2]), 0)
        end = min(int(asked[2]) + 1, len(content)) if asked[1] and asked[2] else len(content)
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        return self._reply(206, content[start:end], headers, with_body)

    def _create(self, bucket: str, name: str, body: bytes) -> None:
        try:
            made = self._store(bucket, name, body)
        except NotFound:
            return self._error(404, "NoSuchBucket")
        return self._reply(200, b"", {"ETag": made["etag"], "x-goog-generation": made["generation"]})

    def _store(self, bucket: str, name: str, body: bytes) -> dict[str, str]:
        made: dict[str, str] = _make_object_resource("", bucket, name, "application/octet-stream", str(len(body)))
        self.storage.create_file(bucket, name, body, _checksums(body, made))
        return made

    def _xml(self, root: str, content: str) -> None:
        self._reply(200, f"<{root}>{content}</{root}>".encode())

    def _error(self, status: int, code: str, *, with_body: bool = True) -> None:
        message = {"NoSuchBucket": "The specified bucket does not exist."}.get(code, code)
        self._reply(status, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode(), {}, with_body)

    def _reply(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None, with_body: bool = True
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            with contextlib.suppress(BrokenPipeError):  # clients may hang up once they have read enough
                self.wfile.write(body)


class _Shared:
    def __init__(self) -> None:
        self.storage = Storage(use_memory_fs=True)
        self.lock = threading.RLock()
        self.parts: dict[str, dict[int, bytes]] = {}
        self.requests: list[str] = []


class GcsServer:
    """A running server: its endpoint, and every request it got, in order."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def names(self, bucket: str) -> list[str]:
        """Return the names of a bucket's objects, sorted; asks the emulator's own JSON API."""
        with urllib.request.urlopen(f"{self.endpoint}/storage/v1/b/{bucket}/o") as reply:  # noqa: S310  ours
            return sorted(item["name"] for item in json.load(reply).get("items", []))

    def requests(self) -> list[str]:
        """Return the method and path of every request so far."""
        with urllib.request.urlopen(f"{self.endpoint}{_REQUESTS}") as reply:  # noqa: S310  ours
            requests: list[str] = json.load(reply)
            return requests


@contextlib.contextmanager
def gcs_server(bucket: str) -> Iterator[GcsServer]:
    """Run a server with one empty bucket on a free port.

    It is a process of its own, since deltalake holds the interpreter's lock while it waits for some replies; it ends
    when its standard input does, so it outlives no test.
    """
    command = [sys.executable, "-m", "tests.support.gcs", bucket]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield GcsServer(process.stdout.readline().strip())
        finally:
            process.stdin.close()
            process.wait(timeout=90)


def main(bucket: str) -> None:
    """Serve until standard input ends; print the endpoint first."""
    shared = _Shared()
    buckets.create_bucket(bucket, shared.storage)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, shared))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
