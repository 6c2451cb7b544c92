"""The sink `redis`: a live profile of each user, with traits, times and counters, each event applied once."""

import dataclasses
import hashlib
import secrets
import ssl
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
from redis import asyncio as client
from redis import exceptions as errors
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from millrace.sinks.profile_events import lacking, profile_events
from millrace.sinks.redis_errors import down, is_configured_wrong
from millrace.sinks.references import is_reference, resolved
from millrace.sinks.sink import (
    DELIVERED,
    CannotOpenSinkError,
    Delivery,
    Fault,
    Memory,
    Outcome,
    Rejected,
    Sink,
    SinkDownError,
)

BOOKS = "millrace:"
"""In front of a profile's key: what was applied to it, and the time of each trait (a hash)."""
IDS = "millrace:ids:"
"""In front of a profile's key: ids of its events that came without order, by when (a sorted set)."""

_BEFORE = (BOOKS, IDS, IDS.removeprefix(BOOKS))
"""No prefix may be such that a user's key, with one of these before it, is another user's."""
_EPOCH = "redis_epoch"
_SCHEMES = ("redis", "rediss", "unix")
_SCRIPT = resources.files(__package__).joinpath("profile.lua").read_text(encoding="utf-8")
_SCRIPT_SHA = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()

_pack = msgspec.msgpack.Encoder().encode

_UNREADABLE = Rejected(Fault.REJECTED, "the traits are not JSON that can be read")
_OTHER_TYPE = Rejected(Fault.REJECTED, "the user's key in Redis is of another type than a profile: another prefix?")


class _Open:
    """What the sink holds while it is open."""

    def __init__(self) -> None:
        self.client: client.Redis | None = None
        self.epoch = ""
        self.was_open = False


@dataclasses.dataclass(frozen=True)
class Redis(Sink):
    """Keeps a hash for each user: `trait:NAME`, first_seen, last_seen, last_event, and how many events.

    Attributes:
        url: `redis://host:port/db`, `rediss://` for TLS, without a password; or a reference to a secret that holds the
            whole.
        password: a reference to the password; none: without.
        ca: a file with the certificates that rediss:// trusts; none: the system's.
        prefix: in front of the user's key. No other sink may have the same.
        ttl_days: a profile goes when its user sent nothing for so long; none: it stays.
        traits: which traits of identify events are kept; none: all.
        counters: names of events that are counted each; all are counted together, and by type.
        ids_kept: of events that come without order, so many of a user's last ids are known again ...
        ids_days: ... for so long.
        timeout_s: without an answer for so long, Redis counts as down.
    """

    url: str
    password: str = ""
    ca: str = ""
    prefix: str = "user:"
    ttl_days: float | None = None
    traits: tuple[str, ...] | None = None
    counters: tuple[str, ...] = ()
    ids_kept: int = 10_000
    ids_days: float = 1.0
    timeout_s: float = 10.0
    _open: _Open = dataclasses.field(default_factory=_Open, init=False, repr=False, compare=False)

    max_in_flight = 4
    keeps_order = True
    keeps_ids = True

    def __post_init__(self) -> None:
        if not is_reference(self.url):
            _check_url(self.url)
        if self.password and not is_reference(self.password):
            raise ValueError("password has to say where the secret is, such as env:REDIS_KEY, never the secret itself")
        if self.prefix.startswith(BOOKS) or any((each + self.prefix).startswith(self.prefix) for each in _BEFORE):
            raise ValueError("prefix would mix a user's key with what is noted of another; take one such as user:")
        if self.ttl_days is not None and self.ttl_days <= 0:
            raise ValueError(f"ttl_days has to be above 0, got {self.ttl_days}; leave it out for ever")
        if self.ids_kept < 1 or self.ids_days <= 0 or self.timeout_s <= 0:
            raise ValueError("ids_kept, ids_days and timeout_s have to be above 0")

    def check_columns(self, columns: Mapping[str, str]) -> None:
        """Refuse a route without what a profile is made of."""
        if lacks := lacking(columns, None if self.traits is None else frozenset(self.traits)):
            raise ValueError(f"a profile is made of columns that the route leaves out: add {', '.join(lacks)}")

    async def open(self, memory: Memory) -> None:
        """Connect; see Sink.open."""
        await self.close()
        epoch = memory.get(_EPOCH)
        if epoch is None:  # positions of another ledger would say nothing about this one's
            epoch = secrets.token_hex(8).encode()
            memory.put(_EPOCH, epoch)
        self._open.epoch = epoch.decode()
        url = resolved(self.url) if is_reference(self.url) else self.url
        password = resolved(self.password) if self.password else None
        try:
            found = client.Redis.from_url(
                url,
                **self._tls(url),
                password=password,  # one in the url goes before it
                socket_timeout=self.timeout_s,
                socket_connect_timeout=self.timeout_s,
                retry=Retry(NoBackoff(), 0),  # the lane tries again
                client_name="millrace",
            )
        except ValueError as error:  # not repeated, since it may show a part of a secret
            raise CannotOpenSinkError(f"the url of Redis cannot be read: {type(error).__name__}") from None
        self._open.client = found
        try:
            await found.ping()
        except (errors.RedisError, OSError) as error:
            if not self._open.was_open and is_configured_wrong(error):
                raise CannotOpenSinkError(str(down(error, _place(found)))) from None
            raise down(error, _place(found)) from None
        self._open.was_open = True

    def _tls(self, url: str) -> dict[str, Any]:
        """Return what redis-py is to trust; it reads the file with the first connection only.

        Raises:
            CannotOpenSinkError: there are no certificates in the file.
        """
        if not url.startswith("rediss:") or not self.ca:
            return {}
        try:
            ssl.create_default_context(cafile=self.ca)
        except OSError as error:
            raise CannotOpenSinkError(f"the certificates in {self.ca} cannot be read: {error.strerror}") from None
        return {"ssl_ca_certs": self.ca}

    async def close(self) -> None:
        """Disconnect."""
        opened, self._open.client = self._open.client, None
        if opened is not None:
            await opened.aclose()

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        """Apply the events to their users' profiles, all of them in one call; see Sink.deliver."""
        events = profile_events(delivery, None if self.traits is None else frozenset(self.traits))
        rows_of: dict[str, list[int]] = {}
        for row, user in enumerate(delivery.user_keys):
            if events[row] is not None:
                rows_of.setdefault(user, []).append(row)
        outcomes: list[Outcome] = [DELIVERED if event is not None else _UNREADABLE for event in events]
        if rows_of:
            answers = await self._apply(list(rows_of), [[events[row] for row in rows] for rows in rows_of.values()])
            for rows, answer in zip(rows_of.values(), answers, strict=True):
                if isinstance(answer, bytes):
                    for row in rows:
                        outcomes[row] = _OTHER_TYPE
        return outcomes

    async def _apply(self, users: Sequence[str], events: Sequence[Any]) -> Sequence[Any]:
        opened = self._open.client
        if opened is None:
            raise SinkDownError("no connection to Redis")
        keys = [text for user in users for text in self._keys(user)]
        lives = 0 if self.ttl_days is None else max(1, round(self.ttl_days * 86_400))
        ids_live = max(1, round(self.ids_days * 86_400))
        job = _pack((self._open.epoch, lives, self.ids_kept, ids_live, self.counters, events))
        try:
            try:
                found: Any = await opened.evalsha(_SCRIPT_SHA, len(keys), *keys, job)
            except errors.NoScriptError:  # the server was started anew
                found = await opened.eval(_SCRIPT, len(keys), *keys, job)
        except (errors.RedisError, OSError) as error:
            raise down(error, _place(opened)) from None
        answers: Sequence[Any] = found
        return answers

    def _keys(self, user: str) -> tuple[str, str, str]:
        key = self.prefix + user
        return key, BOOKS + key, IDS + key


def _place(opened: client.Redis) -> str:
    """Return where a client connects to: not the url, which may be a secret."""
    found = opened.connection_pool.connection_kwargs
    return str(found["path"]) if "path" in found else f"{found.get('host', 'localhost')}:{found.get('port', 6379)}"


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        has_password = parts.password is not None or "password" in parse_qs(parts.query)
    except ValueError:
        raise ValueError("url has to be redis://host:port/db, rediss:// for TLS, or unix:///path") from None
    if parts.scheme not in _SCHEMES:
        raise ValueError("url has to be redis://host:port/db, rediss:// for TLS, or unix:///path")
    if has_password:
        raise ValueError("url may not hold a password: name the secret that holds it in password")
