"""Answers: what a request is told, as status, headers and a JSON body."""

from collections.abc import Sequence
from typing import NamedTuple

Headers = Sequence[tuple[bytes, bytes]]


class Answer(NamedTuple):
    """One HTTP response; content-length is the server's to add."""

    status: int
    headers: Headers = ()
    body: bytes = b""


def too_many_requests(retry_after_s: float, instead_of: Answer) -> Answer:
    """Return a 429; `instead_of` is what the request would have been told: its CORS headers stay."""
    raise NotImplementedError


def unavailable(retry_after_s: float, instead_of: Answer) -> Answer:
    """Return a 503: nothing was kept, send it again."""
    raise NotImplementedError
