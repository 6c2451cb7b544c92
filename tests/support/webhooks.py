"""For tests of the sink `webhook`: a receiver in a process of its own, and deliveries."""

import base64
import contextlib
import json
import subprocess
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import trustme

from millrace.sinks.addresses import LookUp
from millrace.sinks.json_rows import JSON
from millrace.sinks.sink import Delivery
from millrace.sinks.webhook import Webhook
from tests.support.node import node

HOST = "hooks.example"
SECRET = "whsec_" + base64.b64encode(b"twenty-four random bytes").decode()
_SCRIPT = Path(__file__).with_name("webhook_receiver.js")


async def look_up_here(_host: str, _port: int) -> Sequence[str]:
    """Every name is this machine."""
    return ["127.0.0.1"]


class Hook(Webhook):
    """The sink, for which every name is this machine."""

    @property
    def look_up(self) -> LookUp:
        return look_up_here


class NoMemory:
    """The webhook remembers nothing."""

    def get(self, key: str) -> bytes | None:
        raise AssertionError(key)

    def put(self, key: str, value: bytes | None) -> None:
        raise AssertionError(key, value)


class Received(NamedTuple):
    """A request, as the receiver saw it."""

    at_ms: int
    method: str
    url: str
    version: str
    host: str
    headers: Mapping[str, str]
    body: bytes
    sni: str | None
    tls: str | None
    connection: int

    @property
    def json(self) -> bytes:
        """The body, as it was signed."""
        return zlib.decompress(self.body, 31) if self.headers.get("content-encoding") == "gzip" else self.body

    @property
    def ids(self) -> list[str]:
        """The message ids in it."""
        if self.headers["content-type"] == "application/x-ndjson":
            return [json.loads(line)["message_id"] for line in self.json.splitlines()]
        found = json.loads(self.json)
        return [each["message_id"] for each in (found if isinstance(found, list) else [found])]


class Receiver:
    """A receiver that can be killed and started again, on the same port."""

    def __init__(self, folder: Path, *, kind: str, streams: int = 100) -> None:
        self.kind = kind
        self.log = folder / "requests.ndjson"
        self.ca_file = folder / "ca.pem"
        self.port = 0
        self._tls: list[str] = []
        if kind != "plain":
            ca = trustme.CA()
            ca.cert_pem.write_to_path(str(self.ca_file))
            certificate = ca.issue_cert(HOST)
            certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
            (folder / "cert.pem").write_bytes(b"".join(each.bytes() for each in certificate.cert_chain_pems))
            self._tls = [str(folder / "key.pem"), str(folder / "cert.pem"), str(streams)]
            if kind == "h1":
                self._tls.append("h1")
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start, and wait until it listens."""
        command = [node(), str(_SCRIPT), str(self.port), str(self.log), *self._tls]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """End it with kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def hook(self, path: str, **settings: Any) -> Hook:
        """Return a webhook to a path here."""
        if self.kind == "plain":
            return Hook(f"http://{HOST}:{self.port}{path}", allow_http=True, allow_private=True, **settings)
        given = {"allow_private": True, "ca_file": str(self.ca_file), **settings}
        return Hook(f"https://{HOST}:{self.port}{path}", **given)

    def requests(self) -> list[Received]:
        """Return the requests so far, in the order in which they came whole."""
        if not self.log.exists():
            return []
        return [
            Received(*{**json.loads(line), "body": base64.b64decode(json.loads(line)["body"])}.values())
            for line in self.log.read_text().splitlines()
        ]


@contextlib.contextmanager
def receiving(folder: Path, kind: str, **settings: Any) -> Iterator[Receiver]:
    """Run a receiver: `h2` (and HTTP/1.1), `h1` (TLS) or `plain`."""
    receiver = Receiver(folder, kind=kind, **settings)
    try:
        receiver.start()
        yield receiver
    finally:
        receiver.kill()


def delivery(
    ids: Sequence[str],
    users: Sequence[str] | None = None,
    properties: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    is_ordered: bool = True,
) -> Delivery:
    """Return a delivery of events; each of a user of its own, where none are given."""
    users = users or [f"user of {each}" for each in ids]
    texts = [
        json.dumps((properties or {})[each], ensure_ascii=False) if each in (properties or {}) else None for each in ids
    ]
    rows = pa.record_batch(
        [pa.array(ids), pa.array(users), pa.array(texts, pa.string())],
        schema=pa.schema(
            [
                ("message_id", pa.string()),
                ("user_id", pa.string()),
                pa.field("properties", pa.string(), metadata=JSON),
            ]
        ),
    )
    count = len(ids)
    return Delivery(rows, ids, users, range(count), [is_ordered] * count, [0] * count, route="hook")
