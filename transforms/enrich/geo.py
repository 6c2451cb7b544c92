"""Geo: where an address is and whose network it belongs to, by MMDB files of your own.

Millrace brings no such file and fetches none: their licences differ. It reads the layouts of MaxMind (GeoLite2,
GeoIP2), DB-IP and IPinfo.
"""

import dataclasses
import functools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from millrace.transforms.enrich.distinct import Memo
from millrace.transforms.enrich.enrichment import declared
from millrace.transforms.enrich.mmdb import Database, MmdbError, Watched
from millrace.transforms.steps import Applied, CannotOpenError, Step, Users, with_columns

_PATHS: Mapping[str, Sequence[tuple[Any, ...]]] = {
    "geo_country": (("country", "iso_code"), ("country_code",), ("country",)),
    "geo_region": (("subdivisions", 0, "iso_code"), ("region_code",)),
    "geo_region_name": (("subdivisions", 0, "names", "en"), ("region",)),
    "geo_city": (("city", "names", "en"), ("city",)),
    "geo_postal": (("postal", "code"), ("postal_code",)),
    "geo_lat": (("location", "latitude"), ("latitude",), ("lat",)),
    "geo_lon": (("location", "longitude"), ("longitude",), ("lng",)),
    "asn_number": (("autonomous_system_number",), ("asn",)),
    "asn_org": (("autonomous_system_organization",), ("as_name",)),
}
"""Where a record may hold a column's value: MaxMind's place first, then IPinfo's."""

_COARSE_DIGITS = 1  # 0.1 degrees are 11 km: a town, not a street


def locate(records: Sequence[Any], columns: Sequence[str]) -> tuple[Any, ...]:
    """Return the columns' values: each from the first record that has one.

    >>> locate([{"country": {"iso_code": "SE"}}, {"autonomous_system_number": 29518}], ("geo_country", "asn_number"))
    ('SE', 29518)
    """
    return tuple(_value(records, column) for column in columns)


def _value(records: Sequence[Any], column: str) -> Any:
    for record in records:
        for path in _PATHS[column]:
            value = _read(column, _at(record, path))
            if value is not None:
                return value
    return None


def _at(value: Any, path: Sequence[Any]) -> Any:
    for part in path:
        if isinstance(part, int):
            value = value[part] if isinstance(value, list) and len(value) > part else None
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def _read(column: str, value: Any) -> Any:
    try:
        match column:
            case "geo_lat" | "geo_lon":
                return None if value is None else round(float(value), _COARSE_DIGITS)
            case "asn_number":
                return value if isinstance(value, int) else int(value.upper().removeprefix("AS"))
            case _:
                return value or None if isinstance(value, str) else None
    except (ValueError, TypeError, AttributeError):
        return None


@dataclasses.dataclass(frozen=True)
class Geo(Step):
    """Locate `context_ip`.

    In:      any batch; addresses may have been shortened (IPv4 /24, IPv6 /48) or removed
    Out:     the columns of schemas/added/geo.avsc (geo_postal only if wanted); null where the address is none, is not
             of the public Internet, or is in no file
    State:   none but a bounded cache, anew with each new content of a file.
    Repeats: same address, same columns, for the files' versions in `lineage`.
    Errors:  CannotOpenError where a file cannot be read at the start; later the content that is open goes on

    Args:
        files: MMDB files of any kinds: what the first does not know the next may.
        postal: add geo_postal, too.
    """

    name = "geo"

    files: tuple[str, ...]
    postal: bool = False

    @property
    def adds(self) -> tuple[pa.Field, ...]:  # type: ignore[override]  # it hangs on the settings
        """The columns."""
        return _fields(postal=self.postal)

    def open(self) -> None:
        """Open the files."""
        try:
            _watched(self.files)
        except MmdbError as error:
            raise CannotOpenError(f"geo: {error}: put the file there, or correct `file` in millrace.yaml.") from error

    def apply(self, batch: pa.RecordBatch, users: Users) -> Applied:  # noqa: ARG002
        """Append the columns."""
        database = _watched(self.files).now()
        _USED.versions = database.versions
        columns = _memo(self, _Same(database)).columns([batch.column("context_ip")])
        return Applied(with_columns(batch, self.adds, columns))

    def versions(self) -> Mapping[str, str]:
        """Name type and build of what this thread's latest batch was located with."""
        used: Mapping[str, str] = getattr(_USED, "versions", {})
        return used


_USED = threading.local()


@functools.cache
def _fields(*, postal: bool) -> tuple[pa.Field, ...]:
    return tuple(field for field in declared("geo") if postal or field.name != "geo_postal")


@functools.lru_cache(maxsize=8)
def _watched(files: tuple[str, ...]) -> Watched:
    return Watched(files)


class _Same:
    """A key that is one content of the files, not one that looks alike."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.database is other.database

    def __hash__(self) -> int:
        return id(self.database)


@functools.lru_cache(maxsize=4)  # an old content is let go of soon
def _memo(step: Geo, same: _Same) -> Memo:
    columns = [field.name for field in step.adds]

    def look_up(address: str | None) -> Sequence[Any]:
        return locate(same.database.records(address), columns)

    return Memo(step.name, look_up, step.adds)
