"""The sink `webhook`: events as signed HTTP requests, to public addresses only. docs/sinks.md describes it for people.

webhook_requests.py  deliveries -> requests, answers -> outcomes
addresses.py         where it may go
signature.py         who sent it: Standard Webhooks
http_pool.py         connections: HTTP/1.1 (http_connection.py) or HTTP/2 (http2.py), as the receiver offers
http_answers.py      what an answer says of each event
"""

import asyncio
import dataclasses
import importlib.metadata
import re
import resource
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from millrace.config.secrets import SecretError, SecretReference
from millrace.sinks.addresses import LookUp, look_up, read_url
from millrace.sinks.http_pool import Pool
from millrace.sinks.signature import key_of
from millrace.sinks.sink import CannotOpenSinkError, Delivery, Memory, Outcome, Sink
from millrace.sinks.webhook_requests import Sender

_OURS = re.compile(
    r"host|content-(length|type|encoding)|transfer-encoding|connection|proxy-connection|keep-alive|upgrade|te|trailer|expect"
    r"|webhook-(id|timestamp|signature)|idempotency-key"
)
_SECRET_HEADERS = re.compile(r"authorization|proxy-authorization|cookie|(x-)?api-key|x-auth-token")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")  # a token, RFC 9110, 5.6.2
_VALUE = re.compile(rb"[!-~]([ -~]*[!-~])?")  # visible ASCII: no end of line can come in
_REFERENCE = re.compile(r"(env|file|gcp-sm):")
_SPARE_FILES = 256  # of the process's open files, for all that is no connection


@dataclasses.dataclass(frozen=True)
class Webhook(Sink):
    """Sends events to a URL.

    Attributes:
        url: https://...; or, where its path is a secret, a reference to it (env:NAME ...).
        secret: a reference to what requests are signed with; None: they are not signed.
        old_secret: a reference to the secret before: while it is there, requests carry both signatures.
        single: one event a request, so that each has its own answer; else as many as a delivery holds.
        format: of a batch: array (one JSON array) or ndjson (one line an event).
        verdicts: the receiver takes or refuses each event of a batch by itself, and says so in its answer: then a batch
            holds one event of a user at most, for what it refuses must not be overtaken.
        method: of HTTP.
        headers: further ones; a value may be a reference, and that of authorization and its like has to be.
        timeout_s: for a whole answer, from when the request is sent.
        gzip: bodies are compressed; the signature is that of the JSON.
        down_on: statuses by which the receiver as a whole does not work: everything waits, nothing is rejected.
        max_connections: with HTTP/1.1 also the most requests at once.
        allow_http: url may be http://.
        allow_private: other addresses than public ones are allowed: this machine, its network, its cloud's metadata.
        ca_file: certificates (PEM) to trust instead of the system's.
    """

    url: str = dataclasses.field(repr=False)
    secret: str | None = None
    old_secret: str | None = None
    single: bool = False
    format: Literal["array", "ndjson"] = "array"
    verdicts: bool = False
    method: Literal["POST", "PUT", "PATCH"] = "POST"
    headers: dict[str, str] = dataclasses.field(default_factory=dict, repr=False)
    timeout_s: float = 10.0
    gzip: bool = False
    down_on: tuple[int, ...] = ()
    max_connections: int = 2_000
    allow_http: bool = False
    allow_private: bool = False
    ca_file: str | None = None
    _senders: list[Sender] = dataclasses.field(init=False, repr=False, compare=False, default_factory=list)

    # 16 deliveries of 100: in single mode 1,600 requests at once, with which a receiver that takes 0.5 s gets 3,200/s.
    max_events = 100
    max_in_flight = 16

    def __post_init__(self) -> None:
        if not _REFERENCE.match(self.url):
            read_url(self.url, allow_http=self.allow_http, allow_private=self.allow_private)
        else:
            _reference(self.url, "url")
        for name, text in (("secret", self.secret), ("old_secret", self.old_secret)):
            if text is not None:
                _reference(text, name)
        if self.old_secret and not self.secret:
            raise ValueError("old_secret needs secret, the new one, beside it")
        _check_headers(self.headers)
        if self.format not in ("array", "ndjson"):
            raise ValueError("format has to be array or ndjson")
        if self.method not in ("POST", "PUT", "PATCH"):
            raise ValueError("method has to be POST, PUT or PATCH")
        if not 0.1 <= self.timeout_s <= 600:
            raise ValueError(f"timeout_s has to be from 0.1 to 600, not {self.timeout_s:g}")
        if not 1 <= self.max_connections <= 10_000:
            raise ValueError(f"max_connections has to be from 1 to 10000, not {self.max_connections}")
        if any(not 400 <= each <= 599 for each in self.down_on):
            raise ValueError("down_on has to list statuses from 400 to 599")
        if self.single and (self.verdicts or self.format == "ndjson"):
            raise ValueError("verdicts and format are for batches: leave them out beside single: true")
        object.__setattr__(self, "keeps_order", not (self.single or self.verdicts))

    @property
    def look_up(self) -> LookUp:
        """What looks up names; a class of your own may ask another resolver."""
        return look_up

    async def open(self, memory: Memory) -> None:  # noqa: ARG002  the receiver knows ids again; nothing is kept here
        await self.close()
        self._senders.append(await asyncio.to_thread(self._sender))  # reads files, or asks a secret manager

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        """Send the events; each comes back with the outcome that its request had."""
        return await self._senders[0].deliver(delivery)

    async def close(self) -> None:
        while self._senders:
            await self._senders.pop().pool.close()

    def _sender(self) -> Sender:
        try:
            url = self.url
            if _REFERENCE.match(url):
                url = _resolved(url, "url").decode("latin-1")
            to = read_url(url, allow_http=self.allow_http, allow_private=self.allow_private)
            keys = [
                _key(text, name) for name, text in (("secret", self.secret), ("old_secret", self.old_secret)) if text
            ]
            headers = [(name.lower().encode(), _value(name, value)) for name, value in self.headers.items()]
        except (SecretError, ValueError) as error:
            raise CannotOpenSinkError(f"webhook: {error}") from None
        is_lines = self.format == "ndjson"
        headers.append((b"content-type", b"application/x-ndjson" if is_lines else b"application/json"))
        if "user-agent" not in {name.lower() for name in self.headers}:
            headers.append((b"user-agent", f"millrace/{importlib.metadata.version('millrace')}".encode()))
        if self.gzip:
            headers.append((b"content-encoding", b"gzip"))
        pool = Pool(
            to,
            self.look_up,
            _tls(self.ca_file) if to.is_tls else None,
            allow_private=self.allow_private,
            max_connections=_connections(self.max_connections),
        )
        return Sender(
            pool=pool,
            method=self.method.encode(),
            keys=tuple(keys),
            headers=tuple(headers),
            single=self.single,
            is_lines=is_lines,
            gzip=self.gzip,
            timeout_s=self.timeout_s,
            down_on=self.down_on,
        )


def _reference(text: str, name: str) -> SecretReference:
    try:
        return SecretReference.parse(text)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


def _resolved(text: str, name: str) -> bytes:
    return _reference(text, name).resolve().reveal()


def _key(text: str, name: str) -> bytes:
    try:
        return key_of(_resolved(text, name))
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


def _check_headers(headers: dict[str, str]) -> None:
    for name, value in headers.items():
        if not _NAME.fullmatch(name):
            raise ValueError("headers: a name has to be letters, digits and hyphens")
        if _OURS.fullmatch(name.lower()):
            raise ValueError(f"headers: {name.lower()} is set by the sink itself")
        if _REFERENCE.match(value):
            _reference(value, f"headers: {name}")
        elif _SECRET_HEADERS.fullmatch(name.lower()):
            raise ValueError(
                f"headers: {name} has to be a reference (env:NAME ...) to its whole value, never the value"
            )
        else:
            _value(name, value)
    if len({name.lower() for name in headers}) < len(headers):
        raise ValueError("headers may name each header once")


def _value(name: str, text: str) -> bytes:
    value = _resolved(text, f"headers: {name}") if _REFERENCE.match(text) else text.encode()
    if len(value) > 8_192 or not _VALUE.fullmatch(value):
        raise ValueError(f"headers: the value of {name} has to be one line of visible ASCII")
    return value


def _tls(ca_file: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # SSLError is one
        shown = Path(ca_file).name if ca_file else "the system's certificates"
        raise CannotOpenSinkError(
            f"webhook: ca_file: {shown} cannot be read as certificates: {error.strerror}"
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def _connections(wanted: int) -> int:
    """Return how many connections this process may have, its limit of open files raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - _SPARE_FILES))
