"""Requests: one HTTP request, read, as the protocol sees it."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Request(NamedTuple):
    """One HTTP request."""

    method: str
    path: str
    """Decoded, without the query."""
    query: bytes
    """As it came, without the question mark."""
    headers: Mapping[bytes, bytes]
    """By lower-case name; see headers_of."""
    body: bytes
    """As it came: compressed where content-encoding says so. Empty in what admit is given."""
    peer: str
    """The address of the other end of the connection, without the port."""
    scheme: str = "https"
    """http or https, as the client used it: a trusted proxy's word counts."""


def headers_of(pairs: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return headers by lower-case name; one that stands several times as one list, as RFC 9110 (5.3) joins them.

    >>> headers_of([(b"X-Forwarded-For", b"192.0.2.1"), (b"x-forwarded-for", b"192.0.2.2")])
    {b'x-forwarded-for': b'192.0.2.1, 192.0.2.2'}
    """
    headers: dict[bytes, bytes] = {}
    for name, value in pairs:
        key = name.lower()
        headers[key] = headers[key] + b", " + value if key in headers else value
    return headers
