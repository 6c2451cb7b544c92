"""HTTP answers: what a status, a Retry-After and verdicts in the body say about the events of a request. Pure."""

import datetime as dt
import email.utils
from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec

from millrace.sinks.sink import DELIVERED, Fault, Outcome, Rejected, Retry, SinkDownError

MAX_ANSWER_BYTES = 256 * 1024
"""So much of an answer is read, head and body: verdicts on 500 events with long ids take some 50 KB."""
LONGEST_PAUSE_S = 3_600.0
"""A Retry-After beyond this counts as this: a mistyped date must not stop a lane for a year."""


class Answer(NamedTuple):
    """What a receiver answered.

    Attributes:
        status: of HTTP.
        headers: names in lower case; of several with one name, the last.
        body: None: there was more than is read. It is the receiver's: never logged.
    """

    status: int
    headers: dict[bytes, bytes]
    body: bytes | None


class _Verdict(msgspec.Struct):
    id: str
    status: int
    retry_after: float | None = None


class _Verdicts(msgspec.Struct):
    results: list[_Verdict]


_read_verdicts = msgspec.json.Decoder(_Verdicts).decode


def outcomes_of(
    answer: Answer, message_ids: Sequence[str], now_s: float, down_on: Collection[int] = ()
) -> list[Outcome]:
    """Return what became of each event of a request.

    Args:
        answer: to the request.
        message_ids: of its events.
        now_s: Unix time, for a Retry-After that is a date.
        down_on: statuses that say that the receiver as a whole does not work.

    Raises:
        SinkDownError: a redirect, or a status of `down_on`: no event is to blame.
    """
    status = answer.status
    after_s = retry_after_s(answer.headers.get(b"retry-after"), now_s)
    if status in down_on:
        raise SinkDownError(f"the receiver answers {status}, which down_on takes for a receiver out of order", after_s)
    if 300 <= status < 400:
        raise SinkDownError(
            f"the receiver answers {status}, a redirect: redirects are never followed, since they could lead anywhere; "
            "set url to the address that takes the events"
        )
    if not 200 <= status < 300:
        return [_outcome(status, after_s)] * len(message_ids)
    verdicts = _verdicts(answer)
    if verdicts is None and status != 207:
        return [DELIVERED] * len(message_ids)
    # Whoever answers 207 has a verdict on every event; whoever answers 200 with some, on those that differ.
    other = DELIVERED if status != 207 else Retry(Fault.FAILED, "the receiver answers 207 without a verdict on it")
    return [(verdicts or {}).get(each, other) for each in message_ids]


def _outcome(status: int, after_s: float | None) -> Outcome:
    said = f"the receiver answers {status}"
    if 200 <= status < 300:
        return DELIVERED
    if status == 429:
        return Retry(Fault.THROTTLED, said, after_s)
    if status == 408:
        return Retry(Fault.TIMED_OUT, said, after_s)
    if 400 <= status < 500:
        return Rejected(Fault.REJECTED, said)
    return Retry(Fault.FAILED, said, after_s)  # 5xx, and what is no status of HTTP


def _verdicts(answer: Answer) -> dict[str, Outcome] | None:
    """Return the verdict on each event by its id; None where the body has none (it is free to be anything)."""
    if not answer.body or b"json" not in answer.headers.get(b"content-type", b""):
        return None
    try:
        results = _read_verdicts(answer.body).results
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return {each.id: _outcome(each.status, _bounded(each.retry_after)) for each in results}


def retry_after_s(value: bytes | None, now_s: float) -> float | None:
    """Return how many seconds a Retry-After asks for; None where there is none that can be read.

    >>> retry_after_s(b"120", 0.0), retry_after_s(b"Thu, 01 Jan 1970 00:01:00 GMT", 0.0)
    (120.0, 60.0)
    """
    if value is None or len(value) > 64:
        return None
    text = value.decode("latin-1").strip()
    if text.isascii() and text.isdecimal():
        return _bounded(float(text))
    try:
        at = email.utils.parsedate_to_datetime(text)
        if at.tzinfo is None:  # "-0000", or no zone: HTTP dates are in UTC
            at = at.replace(tzinfo=dt.UTC)
        return _bounded(at.timestamp() - now_s)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _bounded(seconds: float | None) -> float | None:
    if seconds is None or seconds != seconds:  # noqa: PLR0124  NaN
        return None
    return min(max(seconds, 0.0), LONGEST_PAUSE_S)
