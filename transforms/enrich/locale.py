"""Locale: language and region of the user, and their time of day.

Sources: RFC 5646 for locales; IANA's time zones through zoneinfo, from the system or the package tzdata.
"""

import dataclasses
import datetime as dt
import functools
import re
import zoneinfo
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from millrace.transforms.batches import int64s
from millrace.transforms.enrich.distinct import Memo
from millrace.transforms.enrich.enrichment import Enrichment, declared, version_of
from millrace.transforms.steps import Applied, Users, with_columns

_HOUR_US = 3_600_000_000
_DAY_US = 24 * _HOUR_US
_MINUTE_US = 60_000_000
_ZONE_CHARACTERS = 64  # the longest has 32

# language, then script, then region; what follows (variants, extensions, @currency, .UTF-8) tells nothing of these.
_LOCALE = re.compile(
    r"([a-z]{2,3})(?:[-_][a-z]{3}){0,3}(?:[-_]#?[a-z]{4})?(?:[-_]([a-z]{2}|[0-9]{3}))?(?:[-_.@][a-z0-9_.@=#;-]*)?",
    re.IGNORECASE,
)


def language_and_region(locale: str | None) -> tuple[str | None, str | None]:
    """Return the two parts of a locale; None where it names none, or is no locale.

    >>> [language_and_region(each) for each in ("de-DE", "zh_Hant_TW", "es-419", "en", "C")]
    [('de', 'DE'), ('zh', 'TW'), ('es', '419'), ('en', None), (None, None)]
    """
    found = _LOCALE.fullmatch(locale.strip()) if locale else None
    if found is None:
        return None, None
    language, region = found.groups()
    return language.lower(), region.upper() if region else None


def offset_min(zone: str, at_us: int) -> int | None:
    """Return the minutes that a zone's clocks are ahead of UTC at a time, µs since the epoch; None: no such zone.

    >>> offset_min("Asia/Kolkata", 1_795_608_000_000_000)
    330
    """
    found = _zone(zone) if len(zone) <= _ZONE_CHARACTERS else None
    if found is None:
        return None
    offset = (_EPOCH + dt.timedelta(microseconds=at_us)).astimezone(found).utcoffset()
    return None if offset is None else offset // dt.timedelta(minutes=1)


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9+_-]*(/[A-Za-z0-9+_-]+){0,2}")


@functools.lru_cache(maxsize=2_000)
def _zone(name: str) -> zoneinfo.ZoneInfo | None:
    if not _NAME.fullmatch(name):  # what a client sends becomes a path on this machine's disk
        return None
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return None


def _offsets_in_hour(zone: str | None, hour: int) -> tuple[int | None, int | None]:
    """Return the offsets at the beginning and the end of an hour since the epoch: mostly the same."""
    if zone is None:
        return None, None
    return offset_min(zone, hour * _HOUR_US), offset_min(zone, (hour + 1) * _HOUR_US - 1)


@dataclasses.dataclass(frozen=True)
class Locale(Enrichment):
    """Read `context_locale` and `context_timezone`.

    In:      any batch.  Out: the columns of schemas/added/locale.avsc.
    State:   none but a bounded cache.  Repeats: same row, same columns, for the zones' version in `lineage`.
    Errors:  none
    """

    name = "locale"
    adds = declared("locale")
    reads = ("context_locale",)

    def look_up(self, *values: Any) -> Sequence[Any]:
        """See language_and_region."""
        return language_and_region(*values)

    def apply(self, batch: pa.RecordBatch, users: Users) -> Applied:  # noqa: ARG002
        """Append the columns."""
        languages = _languages(self).columns(self.keys(batch))
        return Applied(with_columns(batch, self.adds, [*languages, *_local(batch)]))

    def versions(self) -> Mapping[str, str]:
        """Name the version of the zones."""
        return {"tzdata": version_of("tzdata")}


def _local(batch: pa.RecordBatch) -> list[pa.Array]:
    """Return offset, date and hour of each row, where its user is."""
    at_us = int64s(batch.column("occurred_at"))
    zones = batch.column("context_timezone")
    first, last = _offsets().columns([zones, pa.array(at_us // _HOUR_US)])
    known = first.is_valid().to_numpy(zero_copy_only=False)
    offset = first.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    for row in np.flatnonzero(offset != last.fill_null(0).to_numpy(zero_copy_only=False)).tolist():
        # The clocks are changed within this hour: the one time at which a row has to be looked at by itself.
        offset[row] = offset_min(zones[row].as_py(), int(at_us[row])) or 0
    local_us = at_us + offset * _MINUTE_US
    lacks = ~known
    return [
        pa.array(offset.astype(np.int32), mask=lacks),
        pa.array((local_us // _DAY_US).astype(np.int32), mask=lacks).cast(pa.date32()),
        pa.array((local_us % _DAY_US // _HOUR_US).astype(np.int32), mask=lacks),
    ]


@functools.cache
def _languages(step: Locale) -> Memo:
    return Memo(step.name, step.look_up, step.adds[:2])


@functools.cache
def _offsets() -> Memo:
    fields = [pa.field("first", pa.int32()), pa.field("last", pa.int32())]
    return Memo("locale", _offsets_in_hour, fields)
