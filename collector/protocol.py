"""Protocol: one HTTP request becomes messages to deliver and an answer, or a refusal. Pure: no I/O, no clock."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from millrace.collector.answers import Answer
from millrace.collector.limits import Limits
from millrace.collector.message import Message

if TYPE_CHECKING:
    from millrace.collector.sources import Sources

__all__ = ["Answer", "Limits", "Outcome", "Request", "admit", "handle", "headers_of"]


class Request(NamedTuple):
    """One HTTP request."""

    method: str
    path: str
    """Decoded, without the query."""
    query: bytes
    """As it came, without the question mark."""
    headers: Mapping[bytes, bytes]
    """By lower-case name (headers_of)."""
    body: bytes
    """As it came: compressed where content-encoding says so. Empty in what admit is given."""
    peer: str
    """The address of the other end of the connection, without the port."""


class Outcome(NamedTuple):
    """What became of a request."""

    answer: Answer
    """Send it once all messages are durable; at once where there are none."""
    messages: Sequence[Message] = ()
    source_id: str | None = None
    route: str = "other"
    """One of a closed set, for the metrics."""
    events: int = 0
    """Those in messages, rejected ones included: what the source's rate counts."""
    rejected: Mapping[str, int] = {}
    """Events by the value of their schemas.dead_letter.Reason."""
    oversized: int = 0
    """Accepted events over Limits.event_bytes_soft."""
    body_bytes: int = 0
    """Of the body, unpacked."""


def headers_of(pairs: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return headers by lower-case name; one that stands several times as one line, as RFC 9110 joins them."""
    raise NotImplementedError


def admit(head: Request, sources: "Sources", limits: Limits) -> Answer | None:
    """Return the refusal of a request that can be told from its head; None where the body should be read."""
    raise NotImplementedError


def handle(request: Request, sources: "Sources", now_us: int, request_id: str, limits: Limits) -> Outcome:
    """Return what becomes of a request; no content of one raises.

    Args:
        request: with its whole body.
        sources: who may send.
        now_us: the collector's clock, µs since the epoch.
        request_id: unlike any other, at most 64 characters of [0-9A-Za-z_-].
        limits: what a request may bring.
    """
    raise NotImplementedError
