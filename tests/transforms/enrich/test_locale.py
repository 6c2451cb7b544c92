"""Locale: languages and regions as SDKs write them; local time as Python's own, also where clocks are changed."""

import datetime as dt
import zoneinfo
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.transforms.enrich.locale import Locale, language_and_region
from tests.support.batches import NOON_US
from tests.support.enriching import added


@pytest.mark.parametrize(
    ("locale", "parts"),
    [
        ("de-DE", ("de", "DE")),
        ("en_US", ("en", "US")),
        ("EN-gb", ("en", "GB")),
        ("fr", ("fr", None)),
        ("zh-Hant-TW", ("zh", "TW")),
        ("zh_TW_#Hant", ("zh", "TW")),
        ("sr-Latn", ("sr", None)),
        ("es-419", ("es", "419")),
        ("de_DE.UTF-8", ("de", "DE")),
        ("ca_ES@valencia", ("ca", "ES")),
        ("de-CH-1996", ("de", "CH")),
        ("en-US-u-hc-h12", ("en", "US")),
        ("zh-yue-HK", ("zh", "HK")),
        (" pt-BR ", ("pt", "BR")),
        ("fil-PH", ("fil", "PH")),
        (None, (None, None)),
        ("", (None, None)),
        ("C", (None, None)),
        ("en-US,en;q=0.9", (None, None)),
        ("english", (None, None)),
        ("x" * 10_000, (None, None)),
        ("-" * 10_000, (None, None)),
        ("de\nDE", (None, None)),
    ],
)
def test_languages_and_regions(locale: str | None, parts: tuple[str | None, str | None]):
    assert language_and_region(locale) == parts


def local(zone: str | None, at_us: int) -> tuple[Any, ...]:
    (row,) = added(Locale(), [{"context_timezone": zone, "at_s": (at_us - NOON_US) / 1e6}])
    return row[2:]


@pytest.mark.parametrize(
    "zone", [None, "", "Nowhere/City", "../../etc/passwd", "/etc/passwd", "Europe", "a" * 1_000_000, "\0"]
)
def test_what_is_no_zone_has_no_local_time(zone: str | None):
    assert local(zone, NOON_US) == (None, None, None)


ZONES = [
    "Europe/Berlin",
    "America/St_Johns",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Asia/Gaza",
    "UTC",
    "Etc/GMT+5",
    "America/Argentina/Buenos_Aires",
    "Africa/Casablanca",
]
TIMES = st.integers(631_152_000_000_000, 2_208_988_800_000_000)  # 1990 to 2040, in µs


@given(st.lists(st.tuples(st.sampled_from(ZONES), TIMES), max_size=5))
def test_local_times_are_python_s(cases: list[tuple[str, int]]):
    rows = [{"context_timezone": zone, "at_s": (at_us - NOON_US) / 1e6} for zone, at_us in cases]
    for (zone, at_us), row in zip(cases, added(Locale(), rows), strict=True):
        assert row[2:] == pythons(zone, NOON_US + round((at_us - NOON_US) / 1e6 * 1e6))


def pythons(zone: str, at_us: int) -> tuple[Any, ...]:
    at = (dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=at_us)).astimezone(zoneinfo.ZoneInfo(zone))
    offset = at.utcoffset()
    assert offset is not None
    return offset // dt.timedelta(minutes=1), at.date(), at.hour


@pytest.mark.parametrize(
    ("zone", "change"),
    [
        ("Europe/Berlin", dt.datetime(2026, 3, 29, 1, tzinfo=dt.UTC)),
        ("Europe/Berlin", dt.datetime(2026, 10, 25, 1, tzinfo=dt.UTC)),
        ("America/St_Johns", dt.datetime(2006, 4, 2, 3, 31, tzinfo=dt.UTC)),  # at 00:01, in the midst of an hour of UTC
        ("Australia/Lord_Howe", dt.datetime(2026, 4, 4, 15, tzinfo=dt.UTC)),  # by half an hour
        ("Pacific/Apia", dt.datetime(2011, 12, 30, 10, tzinfo=dt.UTC)),  # by a day
    ],
)
def test_the_hour_in_which_clocks_are_changed(zone: str, change: dt.datetime):
    change_us = round(change.timestamp()) * 1_000_000
    times = [change_us + seconds * 1_000_000 for seconds in (-3_600, -1_800, -1, 0, 1, 1_800, 3_600)]
    rows = [{"context_timezone": zone, "at_s": (at_us - NOON_US) / 1e6} for at_us in times]
    found = [row[2:] for row in added(Locale(), rows)]
    assert found == [pythons(zone, at_us) for at_us in times]
    assert found[2][0] != found[3][0]
