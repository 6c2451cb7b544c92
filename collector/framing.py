"""Framing: the pure parts of HTTP/1.1 that are not the parser's: request targets, heads, and answers as bytes."""

import http
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from millrace.collector.answers import Answer, Headers


class HttpLimits(NamedTuple):
    """What a connection may cost. Sizes in bytes, times in seconds."""

    target_bytes: int = 8 * 1024
    """Of a request's target (the URL): 414 past it. Pixels carry their events there."""
    head_bytes: int = 32 * 1024
    """Of a request's line and headers together: 431 past it."""
    headers: int = 100
    """In one request: 431 past it."""
    head_s: float = 10.0
    """From a head's first byte, or the connection's begin, to its end: 408 past it."""
    body_s: float = 30.0
    """From a head's end to its body's end: 408 past it."""
    answer_s: float = 30.0
    """From a body's end to its answer: 503 past it. Longer than a publish and an fsync can take: a last resort."""
    write_s: float = 10.0
    """How long a client may leave answers unread before it is cut off."""
    idle_s: float = 75.0
    """Of a connection between requests. More than the load balancer's own, or that meets closed ones."""
    connections: int = 4_000
    """Of one worker: 503 past it."""
    held_bytes: int = 256 * 1024 * 1024
    """Of all bodies that one worker holds, being received or being delivered: 503 past it."""

    def waits_s(self, *, begun: bool, has_head: bool) -> float:
        """Return how long to wait for more of a request, as much of it as is there."""
        return self.idle_s if not begun else self.body_s if has_head else self.head_s


def without_upgrade(method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    r"""Return a request's head without its wish for another protocol, which RFC 9110 (7.8) allows to ignore.

    Java's HttpClient asks for HTTP/2 so with each first request; the parser takes the body for the other protocol.

    >>> without_upgrade("GET", b"/", [(b"upgrade", b"h2c"), (b"host", b"shop")])
    b'GET / HTTP/1.1\r\nhost: shop\r\n\r\n'
    """
    lines = [b"%s %s HTTP/1.1" % (method.encode(), target)]
    lines += [b"%s: %s" % header for header in headers if header[0] != b"upgrade"]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def split_target(target: bytes) -> tuple[str, bytes]:
    """Split a request's target into its decoded path and its query as it came.

    >>> split_target(b"/v1/tr%61ck?a=%20b"), split_target(b"http://shop:80/v1/t"), split_target(b"*")
    (('/v1/track', b'a=%20b'), ('/v1/t', b''), ('*', b''))
    """
    target = target.partition(b"#")[0]
    if not target.startswith(b"/") and b"://" in target:  # absolute form, as proxies get it
        target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
    path, _, query = target.partition(b"?")
    if b"%" in path:
        path = unquote_to_bytes(path)
    return path.decode("latin-1" if _not_utf8(path) else "utf-8"), query


def problem_with_head(method: str, version: str, headers: Sequence[tuple[bytes, bytes]]) -> Answer | None:
    """Return the refusal of a head that no application should see; None where it is sound. Names are in lower case."""
    hosts = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
        elif name == b"expect" and value.lower() != b"100-continue":
            return plain(417, "The only expectation that can be met is 100-continue.")
    if version not in ("1.0", "1.1"):
        return plain(505, "This is an HTTP/1.1 server.")
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        return plain(400, "A request needs one Host header.")
    if method == "CONNECT":
        return plain(405, "This is no proxy.")
    return None


def plain(status: int, text: str, headers: Headers = ()) -> Answer:
    """Return an answer of the server's own, for people."""
    return Answer(status, [(b"content-type", b"text/plain; charset=utf-8"), *headers], text.encode() + b"\n")


def overloaded(text: str) -> Answer:
    """Return the 503 of a worker that has no room; CORS open, so that a browser's SDK sees it is told to come back."""
    return plain(503, text, [(b"retry-after", b"2"), (b"access-control-allow-origin", b"*")])


def written(answer: Answer, date: bytes, *, to_head: bool, close: bool) -> bytes:
    """Return an answer as it goes over the wire.

    Args:
        answer: content-length, date and connection are added.
        date: an HTTP date.
        to_head: it answers a HEAD: the body's length without the body.
        close: the connection ends with it.
    """
    lines = [_STATUS_LINES[answer.status], b"date: ", date, b"\r\n"]
    for name, value in answer.headers:
        lines += (name, b": ", value, b"\r\n")
    if answer.status >= 200 and answer.status not in (204, 304):
        lines.append(b"content-length: %d\r\n" % len(answer.body))
        body = b"" if to_head else answer.body
    else:
        body = b""
    lines.append(b"connection: close\r\n\r\n" if close else b"\r\n")
    lines.append(body)
    return b"".join(lines)


def _not_utf8(path: bytes) -> bool:
    if path.isascii():
        return False
    try:
        path.decode()
    except UnicodeDecodeError:
        return True
    return False


_STATUS_LINES = {each.value: b"HTTP/1.1 %d %s\r\n" % (each.value, each.phrase.encode()) for each in http.HTTPStatus}
