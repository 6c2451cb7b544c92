"""Clock: whatever a clock says, the event gets a time, and a flag where it is not the client's word."""

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.transforms import clock
from tests.support.decoding import NOW_US, decode, event, rows

AT = dt.datetime(2026, 11, 23, 10, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)


def tell(*events: dict[str, Any], **attributes: str) -> list[Any]:
    return rows(decode(*events, **attributes), "occurred_at", "clock_flag", "rest")


def test_a_wrong_clock_is_corrected_by_its_own_sending_time() -> None:
    wrong = event(originalTimestamp="1971-01-01T00:00:00Z", sentAt="1971-01-01T00:00:09Z")
    fast = event(originalTimestamp="2036-11-23T10:00:00Z", sentAt="2036-11-23T10:00:02Z")
    assert tell(wrong, fast, received_at="2026-11-23T09:59:59Z") == [
        (AT - 10 * SECOND, None, None),
        (AT - 3 * SECOND, None, None),
    ]


def test_without_a_sending_time_the_original_stands() -> None:
    unreadable = event(originalTimestamp="2026-11-23T09:00:00Z", sentAt="soon")
    assert tell(event(originalTimestamp="2026-11-23T08:00:00Z"), unreadable) == [
        (AT - dt.timedelta(hours=2), None, None),
        (AT - dt.timedelta(hours=1), None, '{"sentAt":"soon"}'),
    ]


@pytest.mark.parametrize(
    ("original", "flag", "rest"),
    [
        (None, "missing", None),
        ("", "unreadable", '{"originalTimestamp":""}'),
        ("yesterday", "unreadable", '{"originalTimestamp":"yesterday"}'),
        ("2026-02-30T00:00:00Z", "unreadable", '{"originalTimestamp":"2026-02-30T00:00:00Z"}'),
        ("0001-01-01T00:00:00+14:00", "unreadable", '{"originalTimestamp":"0001-01-01T00:00:00+14:00"}'),
        ("2026-11-23T10:01:00.000001Z", "future", None),
        ("9999-12-31T23:59:59Z", "future", None),
        ("1989-12-31T23:59:59.999999Z", "ancient", None),
        ("0001-01-01T00:00:00Z", "ancient", None),
    ],
)
def test_an_impossible_time_becomes_the_receiving_time_and_is_flagged(
    original: str | None, flag: str, rest: str | None
) -> None:
    fine = event(originalTimestamp="2026-11-23T10:01:00Z")
    assert tell(event(originalTimestamp=original), fine) == [(AT, flag, rest), (AT + 60 * SECOND, None, None)]


def test_the_timestamp_stands_in_for_the_original_and_is_kept_beside_it() -> None:
    alone = event(originalTimestamp=None, timestamp="2026-11-23T09:59:50Z")
    assert tell(alone, event(timestamp="2026-11-23T09:59:50Z")) == [
        (AT - 10 * SECOND, None, None),
        (AT, None, '{"timestamp":"2026-11-23T09:59:50Z"}'),
    ]


@pytest.mark.parametrize(
    ("attribute", "own", "received", "rest"),
    [
        ("2026-11-23T09:00:00Z", "2026-11-23T08:00:00Z", AT - 3600 * SECOND, '{"receivedAt":"2026-11-23T08:00:00Z"}'),
        ("", "2026-11-23T08:00:00Z", AT - 7200 * SECOND, None),
        ("2026-11-23T10:02:00Z", "2026-11-23T10:01:00Z", AT + 60 * SECOND, None),
        ("1970-01-01T00:00:00Z", "2036-01-01T00:00:00Z", AT, '{"receivedAt":"2036-01-01T00:00:00Z"}'),
        ("", "now", AT, '{"receivedAt":"now"}'),
        ("", None, AT, None),
    ],
)
def test_the_receiving_time_is_the_first_that_can_be_true(
    attribute: str, own: str | None, received: dt.datetime, rest: str | None
) -> None:
    decoding = decode(event(receivedAt=own), received_at=attribute)
    assert rows(decoding, "received_at", "rest") == [(received, rest)]


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("2026-11-23T10:00:00Z", NOW_US),
        ("2026-11-23 10:00:00.5Z", NOW_US + 500_000),
        ("2026-11-23T12:00:00+02:00", NOW_US),
        ("2026-11-23T12:00:00.000001+0200", NOW_US + 1),
        ("2026-11-23T10:00:00.123456789Z", NOW_US + 123_456),
        ("2026-11-23T10:00:00", NOW_US),
        ("2026-11-23T10:00Z", NOW_US),
        (" 2026-11-23T10:00:00Z ", NOW_US),
        ("2026-11-23", NOW_US - 36_000_000_000),
        ("1795428000", NOW_US),
        ("1795428000123", NOW_US + 123_000),
        ("179542800012", clock.NO_TIME),
        ("²²²²²²²²²²", clock.NO_TIME),
        ("2026-11-23T10:00:60Z", clock.NO_TIME),
    ],
)
def test_a_time_reads_the_same_alone_and_among_others(text: str, micros: int) -> None:
    others = ["2026-11-23T10:00:00Z", None, "junk", "2026-02-30T00:00:00Z"]
    assert clock.read_times(pa.array([text])).tolist() == [micros]
    assert clock.read_times(pa.array([text, *others])).tolist() == [micros, NOW_US] + [clock.NO_TIME] * 3


def test_epoch_numbers_are_times() -> None:
    assert tell(event(originalTimestamp=1795427999000)) == [(AT - SECOND, None, None)]


TEXTS = st.none() | st.text(max_size=12) | st.datetimes().map(lambda time: time.isoformat() + "Z")


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=5))
def test_any_clock_gives_a_time_that_can_be_true(texts: list[tuple[str | None, str | None, str | None]]) -> None:
    originals, sents, owns = (pa.array(column, pa.string()) for column in zip(*texts, strict=True))
    published = np.full(len(texts), NOW_US)
    times = clock.tell_times(originals, sents, [clock.read_times(owns)], published)
    assert np.all(clock.is_plausible(times.received, published))
    assert np.all((times.occurred >= clock.ANCIENT_US) & (times.occurred <= times.received + clock.FUTURE_TOLERANCE_US))
    assert np.all(times.occurred[times.flags != 0] == times.received[times.flags != 0])
