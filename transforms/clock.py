"""Clock: the times of a batch of events, in columns: what the client says, corrected by when we received it.

Whatever a clock says, the event goes on: times that are missing, unreadable or impossible are replaced and flagged.
"""

import datetime as dt
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Micros = npt.NDArray[np.int64]

FUTURE_TOLERANCE_US = 60_000_000
"""How far past received_at an event may claim to have occurred before it is clamped.

Within it, such an event waits in the ordering stage for as long as its clock is ahead: a wider tolerance costs latency
and memory, a narrower one the order of users whose clock is a little fast."""

ANCIENT_US = 631_152_000_000_000
"""1990-01-01: no event of a customer is older; what claims to be comes from a clock that was never set."""

NO_TIME = np.iinfo(np.int64).min
FLAGS: tuple[str | None, ...] = (None, "missing", "unreadable", "future", "ancient")
_FINE, _MISSING, _UNREADABLE, _FUTURE, _ANCIENT = range(len(FLAGS))

_TIMESTAMP = pa.timestamp("us", tz="UTC")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_FIRST_US = -62_135_596_800_000_000  # 0001-01-01, the first and the last that Python and most warehouses can hold
_LAST_US = 253_402_300_799_999_999  # 9999-12-31
# What Arrow's parser takes; it refuses a whole column for one that it cannot read.
_PLAIN = r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:?\d\d)$"


class Times(NamedTuple):
    """The times of some events, µs since the epoch; NO_TIME where an event names none that can be read."""

    original: Micros
    sent: Micros
    received: Micros
    occurred: Micros
    flags: npt.NDArray[np.int8]
    """Indexes into FLAGS."""


def read_times(texts: pa.StringArray) -> Micros:
    """Return the times that `texts` name, µs since the epoch; NO_TIME where there is none or it cannot be read.

    >>> read_times(pa.array(["1970-01-01T00:00:01Z", "1970-01-01T02:00:01.5+02:00", "1000000000", None])).tolist()[:3]
    [1000000, 1500000, 1000000000000000]
    """
    if texts.null_count == len(texts):
        return np.full(len(texts), NO_TIME)
    try:
        times = _numbers(texts.cast(_TIMESTAMP))
    except pa.ArrowInvalid:
        plain = pc.match_substring_regex(texts, _PLAIN).fill_null(False)
        try:
            times = _numbers(pc.if_else(plain, texts, None).cast(_TIMESTAMP))
            odd = np.flatnonzero(~plain.to_numpy(zero_copy_only=False))
        except pa.ArrowInvalid:  # the 31st of February
            times, odd = np.full(len(texts), NO_TIME), np.arange(len(texts))
        times = times.copy()
        times[odd] = [_read_time(text) for text in texts.take(pa.array(odd)).to_pylist()]
    return np.where((times >= _FIRST_US) & (times <= _LAST_US), times, NO_TIME)


def _read_time(text: str | None) -> int:
    """Read what Arrow does not: epoch seconds and milliseconds, no zone (taken as UTC), days, nanoseconds (cut)."""
    if text is None:
        return NO_TIME
    text = text.strip()
    try:
        if text.isdecimal() and len(text) in (10, 13):
            return int(text) * (1_000_000 if len(text) == 10 else 1_000)
        time = dt.datetime.fromisoformat(text)
        return ((time if time.tzinfo else time.replace(tzinfo=dt.UTC)) - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        return NO_TIME


def tell_times(
    originals: pa.StringArray, sents: pa.StringArray, received: Sequence[Micros], published: Micros
) -> Times:
    """Return the times of events from the client's texts and the candidates for received_at, best first.

    received_at is the first candidate that is a time, not before 1990 and not after the publication (by more than the
    tolerance: two machines' clocks); else published_at. occurred_at is received_at - (sent_at - original); where
    sent_at is missing, the original; where that is no time, or the result is impossible, received_at, and flagged.
    """
    original, sent = read_times(originals), read_times(sents)
    base = published
    for candidate in reversed(received):
        base = np.where(is_plausible(candidate, published), candidate, base)
    has_original, has_sent = original != NO_TIME, sent != NO_TIME
    skew = np.where(has_original & has_sent, base - sent, 0)
    occurred = np.where(has_original, original + skew, base)
    flags = np.select(
        [
            ~has_original & ~originals.is_valid().to_numpy(zero_copy_only=False),
            ~has_original,
            occurred > base + FUTURE_TOLERANCE_US,
            occurred < ANCIENT_US,
        ],
        [_MISSING, _UNREADABLE, _FUTURE, _ANCIENT],
        default=_FINE,
    ).astype(np.int8)
    return Times(original, sent, base, np.where(flags == _FINE, occurred, base), flags)


def is_plausible(received: Micros, published: Micros) -> npt.NDArray[np.bool_]:
    """Say which times may be a collector's: not before 1990, not after Pub/Sub got the event."""
    plausible: npt.NDArray[np.bool_] = (received >= ANCIENT_US) & (received <= published + FUTURE_TOLERANCE_US)
    return plausible


def timestamps(times: Micros) -> pa.TimestampArray:
    """Return `times` as an Arrow column, null where there is NO_TIME."""
    absent = times == NO_TIME
    return pa.array(times, mask=absent if absent.any() else None).view(_TIMESTAMP)


def _numbers(times: pa.TimestampArray) -> Micros:
    numbers: Micros = times.view(pa.int64()).fill_null(NO_TIME).to_numpy()
    return numbers
