"""Requests to the collector's protocol, and what came of them."""

import base64
from typing import Any

import msgspec

from millrace.collector.keys import Kind, stored
from millrace.collector.limits import Limits
from millrace.collector.origins import Origins
from millrace.collector.protocol import Outcome, Request, handle
from millrace.collector.sources import Source, Sources
from millrace.schemas.envelope import Envelope
from millrace.transforms.decode import decode_envelopes
from millrace.transforms.pending import Decoding
from tests.support.decoding import NOW_US, body

BROWSER_KEY = "mrb_browserbrowserbrowser"
SERVER_KEY = "mrs_serverserverserverserver"
TRACKS_KEY = "mrm_tracksonlytracksonlytracks"
SHOP = "https://shop.example"

SOURCES = Sources(
    (
        Source("shop", "Shop", Kind.BROWSER, (stored(BROWSER_KEY),), Origins([SHOP])),
        Source("backend", "Backend", Kind.SERVER, (stored(SERVER_KEY),)),
        Source("app", "App", Kind.MOBILE, (stored(TRACKS_KEY),), allowed_types=frozenset(["track"])),
    )
)


def basic(key: str) -> bytes:
    """Return an Authorization header with a key as user name."""
    return b"Basic " + base64.b64encode(f"{key}:".encode())


def request(method: str, path: str, sent: Any = b"", query: bytes = b"", /, **headers: bytes | None) -> Request:
    """Return a request of the server source; headers that are None are left out."""
    text = body(sent)
    base: dict[str, bytes | None] = {
        "authorization": basic(SERVER_KEY),
        "content-type": b"application/json",
        "content-length": b"%d" % len(text),
        "host": b"collector.example",
        "user-agent": b"test/1",
    }
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    told = {name.encode(): value for name, value in (base | named).items() if value is not None}
    return Request(method, path, query, told, text, "192.0.2.77")


def ask(asked: Request, limits: Limits = Limits(), sources: Sources = SOURCES) -> Outcome:  # noqa: B008
    """Handle a request at NOW."""
    return handle(asked, sources, NOW_US, "req-1", limits)


def post(path: str, sent: Any, /, limits: Limits = Limits(), **headers: bytes | None) -> Outcome:  # noqa: B008
    """Send events."""
    return ask(request("POST", path, sent, **headers), limits)


def told(outcome: Outcome) -> Any:
    """Return the answer's JSON."""
    return msgspec.json.decode(outcome.answer.body)


def header(outcome: Outcome, name: bytes) -> bytes | None:
    """Return the value of an answer's header that stands once, or None."""
    values = [value for key, value in outcome.answer.headers if key == name]
    assert len(values) <= 1
    return values[0] if values else None


def decoded(outcome: Outcome) -> Decoding:
    """Decode the messages of an outcome."""
    envelopes = [
        Envelope(message.body, message.attributes, f"e{number}", NOW_US, NOW_US, number)
        for number, message in enumerate(outcome.messages)
    ]
    return decode_envelopes(envelopes, NOW_US)
