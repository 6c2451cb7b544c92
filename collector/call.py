"""Call: a request on its way through the protocol, with what it is judged by."""

from typing import NamedTuple

from millrace.collector.answers import Headers
from millrace.collector.limits import Limits
from millrace.collector.request import Request
from millrace.collector.routes import Route
from millrace.collector.sources import Sources


class Call(NamedTuple):
    """One request."""

    request: Request
    route: Route
    sources: Sources
    now_us: int
    """The collector's clock, µs since the epoch."""
    request_id: str
    limits: Limits
    cors: Headers
    """Those that any answer to it has."""


class Sent(NamedTuple):
    """A body as it came."""

    body: bytes
    encoding: str | None
    """gzip, or None."""
