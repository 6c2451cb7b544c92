"""Credentials: which write key a request shows, and whose it is.

The first of these that a request has decides, and is not followed by the next where it is wrong: the Authorization
header (Basic with the key as user name, or Bearer), `writeKey` in the query, `writeKey` at the top of the body.
"""

import binascii
from urllib.parse import parse_qsl

import msgspec

from millrace.collector.answers import Code, Refusal
from millrace.collector.request import Request
from millrace.collector.sources import Source, Sources

# Not Basic: on that a browser would ask the visitor for a password.
_CHALLENGE = (b"www-authenticate", b'Bearer realm="millrace"')
_WAYS = "Authorization: Basic with the key as user name and no password, Bearer, or writeKey in the query or body"


class _Keyed(msgspec.Struct, rename="camel"):
    write_key: str | None = None


_read_key = msgspec.json.Decoder(_Keyed).decode


def source_of_head(request: Request, sources: Sources, now_us: int) -> Source | None:
    """Return the source whose key is in the header or the query; None where neither has one.

    Raises:
        Refusal: UNKNOWN_KEY, SECRET_KEY_IN_URL.
    """
    authorization = request.headers.get(b"authorization")
    if authorization is not None:
        return known(_authorized_key(authorization), sources, now_us)
    key = query_key(request.query)
    if key is None:
        return None
    source = known(key, sources, now_us)
    check_public(source)
    return source


def source_of_body(text: bytes, sources: Sources, now_us: int) -> Source:
    """Return the source whose key is at the top of a body.

    Raises:
        Refusal: NO_KEY, UNKNOWN_KEY.
    """
    try:
        key = _read_key(text).write_key
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        key = None
    if key is None:
        raise no_key()
    return known(key, sources, now_us)


def known(key: str, sources: Sources, now_us: int) -> Source:
    """Return the source of a key.

    Raises:
        Refusal: UNKNOWN_KEY.
    """
    source = sources.by_key(key, now_us)
    if source is None:
        raise Refusal(Code.UNKNOWN_KEY, "no source has this write key, or its time is over", _CHALLENGE)
    return source


def check_origin(request: Request, source: Source) -> None:
    """Refuse a request from a page that may not use the source.

    Raises:
        Refusal: ORIGIN_NOT_ALLOWED.
    """
    origin = request.headers.get(b"origin")
    if origin is not None and not source.allows_origin(origin.decode("latin-1")):
        message = "this source may not be used from this origin; millrace.yaml lists those that may"
        raise Refusal(Code.ORIGIN_NOT_ALLOWED, message)


def check_public(source: Source) -> None:
    """Refuse a key that came in a URL and is a secret.

    Raises:
        Refusal: SECRET_KEY_IN_URL.
    """
    if not source.key_is_public:
        message = "the key of a server has no place in a URL, which proxies write down: take it out of use"
        raise Refusal(Code.SECRET_KEY_IN_URL, message, _CHALLENGE)


def no_key() -> Refusal:
    """Return the refusal of a request that shows no key."""
    return Refusal(Code.NO_KEY, f"no write key: {_WAYS}", _CHALLENGE)


def query_key(query: bytes) -> str | None:
    """Return the key in a query, or None.

    >>> query_key(b"v=1&writeKey=abc")
    'abc'
    """
    if b"writeKey=" not in query:
        return None
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, errors="replace")
    return next((value for name, value in pairs if name == "writeKey"), None)


def _authorized_key(authorization: bytes) -> str:
    """Return the key in an Authorization header; of one that holds none, what cannot be a key."""
    scheme, _, given = authorization.partition(b" ")
    match scheme.lower():
        case b"basic":
            try:
                return binascii.a2b_base64(given.strip(), strict_mode=True).partition(b":")[0].decode()
            except (binascii.Error, UnicodeDecodeError):
                return ""
        case b"bearer":
            return given.strip().decode("latin-1")
    return ""
