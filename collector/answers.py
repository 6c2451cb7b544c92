"""Answers: what a request is told, as status, headers and a JSON body.

Every refusal has `code`, of a closed set, and `message`, for a person. RudderStack's Python SDK looks for just these
two, and takes an answer without them for a broken network, to be tried again.
"""

import base64
import enum
import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from millrace.schemas.dead_letter import Reason

Headers = Sequence[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
GIF_TYPE = (b"content-type", b"image/gif")
GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAICRAEAOw==")
"""One transparent pixel."""
NO_STORE = (b"cache-control", b"no-store")

MESSAGE_CHARACTERS = 200
"""Of a message in an answer: it may quote the client's own words, for each of 2,500 events."""


class Code(enum.Enum):
    """Why a whole request was refused, with the status that says so. A closed set: metrics and clients hang on it.

    Where the events themselves are at fault the code is a schemas.dead_letter.Reason, and the status 400.
    """

    BAD_LENGTH = "bad_length", 400  # content-length is no number
    BAD_HOST = "bad_host", 400  # settings name the host to send to
    BAD_QUERY = "bad_query", 400  # a pixel's query holds no event
    NO_KEY = "no_key", 401
    UNKNOWN_KEY = "unknown_key", 401
    SECRET_KEY_IN_URL = "secret_key_in_url", 401
    ORIGIN_NOT_ALLOWED = "origin_not_allowed", 403
    UNKNOWN_ROUTE = "unknown_route", 404
    UNKNOWN_PROJECT = "unknown_project", 404  # the key in a settings route
    METHOD_NOT_ALLOWED = "method_not_allowed", 405
    LENGTH_REQUIRED = "length_required", 411
    BODY_TOO_LARGE = "body_too_large", 413  # as it came, or unpacked
    TOO_MANY_EVENTS = "too_many_events", 413
    UNKNOWN_MEDIA_TYPE = "unknown_media_type", 415
    UNKNOWN_CHARSET = "unknown_charset", 415
    UNKNOWN_ENCODING = "unknown_encoding", 415
    TOO_MANY_REQUESTS = "too_many_requests", 429
    UNAVAILABLE = "unavailable", 503

    def __init__(self, text: str, status: int) -> None:
        self.text = text
        self.status = status


class Answer(NamedTuple):
    """One HTTP response. It is the server's to add content-length, and to leave out the body where HEAD asked."""

    status: int
    headers: Headers = ()
    body: bytes = b""


class Verdict(NamedTuple):
    """One event that was refused, and why."""

    place: int
    """Its place in the request's body."""
    reason: Reason
    message: str


class Refusal(Exception):  # noqa: N818  it is an outcome, not a fault
    """A request that goes no further, and leaves nothing behind."""

    def __init__(self, code: Code, message: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.headers = headers


_encode = msgspec.json.Encoder().encode
_SUCCESS = b'{"success":true}'


def success(headers: Headers) -> Answer:
    """Return the answer to a request whose events are all good."""
    return Answer(200, (JSON, *headers), _SUCCESS)


def judged(accepted: int, refused: Sequence[Verdict], headers: Headers) -> Answer:
    """Return the answer to a request with refused events: 200 where any is good, else 400 with the first's reason."""
    told = [
        {"index": each.place, "reason": each.reason.value, "message": each.message[:MESSAGE_CHARACTERS]}
        for each in refused
    ]
    if accepted:
        return Answer(200, (JSON, *headers), _encode({"success": True, "accepted": accepted, "rejected": told}))
    first = told[0]
    body = {"success": False, "code": first["reason"], "message": first["message"], "accepted": 0, "rejected": told}
    return Answer(400, (JSON, *headers), _encode(body))


def refused(refusal: Refusal, headers: Headers) -> Answer:
    """Return the answer to a request that goes no further."""
    return _refused(refusal.code, refusal.message, (*refusal.headers, *headers))


def too_many_requests(wait_s: float, instead_of: Answer) -> Answer:
    """Return a 429: the source is past its rate.

    Args:
        wait_s: seconds until the same request would be taken, > 0.
        instead_of: what the request would have been told; a browser can read the status only with its CORS headers.
    """
    return _later(Code.TOO_MANY_REQUESTS, "this source sends faster than it may", wait_s, instead_of)


def unavailable(wait_s: float, instead_of: Answer) -> Answer:
    """Return a 503: nothing was kept, send the same again; arguments as of too_many_requests."""
    return _later(Code.UNAVAILABLE, "the events could not be stored; send them again", wait_s, instead_of)


def image(answer: Answer) -> Answer:
    """Return an answer with a transparent pixel for a body, which a browser shows whatever the status is."""
    kept = tuple(header for header in answer.headers if header[0] not in (b"content-type", b"cache-control"))
    return Answer(answer.status, (GIF_TYPE, NO_STORE, *kept), GIF)


def _later(code: Code, message: str, wait_s: float, instead_of: Answer) -> Answer:
    kept = tuple(header for header in instead_of.headers if header[0].startswith((b"access-control-", b"vary")))
    # Whole seconds (RFC 9110, 10.2.3), rounded up: who comes back too early is refused again.
    retry_after = (b"retry-after", b"%d" % max(1, math.ceil(wait_s)))
    answer = _refused(code, message, (retry_after, *kept))
    return image(answer) if GIF_TYPE in instead_of.headers else answer


def _refused(code: Code, message: str, headers: Headers) -> Answer:
    body = {"success": False, "code": code.text, "message": message[:MESSAGE_CHARACTERS]}
    return Answer(code.status, (JSON, *headers), _encode(body))
