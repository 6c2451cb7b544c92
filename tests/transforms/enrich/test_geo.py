"""Geo: what MaxMind's test files say; shortened, private and broken addresses; files that change meanwhile."""

import ipaddress
import json
import logging
import os
from pathlib import Path
from typing import Any

import maxminddb
import mmdb_writer
import netaddr
import pytest

from millrace.transforms.counts import counted_here
from millrace.transforms.enrich import geo, mmdb
from millrace.transforms.enrich.enrichment import version_of
from millrace.transforms.enrich.geo import Geo, locate
from millrace.transforms.enrich.lineage import Lineage
from millrace.transforms.enrich.mmdb import MmdbError, Watched, open_files
from millrace.transforms.steps import CannotOpenError
from tests.support.batches import batch, event
from tests.support.enriching import added, enrich

DATA = Path(__file__).with_name("data")
CITY, ASN = str(DATA / "GeoLite2-City-Test.mmdb"), str(DATA / "GeoLite2-ASN-Test.mmdb")
SOURCE: dict[str, list[list[Any]]] = json.loads((DATA / "maxmind.json").read_text())
NOTHING = (None,) * 8


def rows(*addresses: str | None) -> list[dict[str, Any]]:
    return [{"context_ip": address} for address in addresses]


def ends(networks: list[list[Any]]) -> list[tuple[str, list[Any]]]:
    """Return first and last address of each public network that no other one of the list is inside of."""
    spans = [ipaddress.ip_network(case[0]) for case in networks]
    found = []
    for span, (_, *values) in zip(spans, networks, strict=True):
        inner = any(other != span and other.version == span.version and other.subnet_of(span) for other in spans)  # type: ignore[arg-type]
        if span.is_global and not inner:
            found += [(str(span[0]), values), (str(span[-1]), values)]
    return found


def test_places_are_those_of_the_published_test_database():
    cases = ends(SOURCE["city"])
    assert len(cases) > 300
    expected = [
        (*values[:5], *(None if degrees is None else round(degrees, 1) for degrees in values[5:]), None, None)
        for _, values in cases
    ]
    assert added(Geo((CITY,), postal=True), rows(*(address for address, _ in cases))) == expected


def test_networks_are_those_of_the_published_test_database():
    cases = ends(SOURCE["asn"])
    assert len(cases) > 100
    found = added(Geo((ASN,)), rows(*(address for address, _ in cases)))
    assert [row[-2:] for row in found] == [tuple(values) for _, values in cases]


def test_two_files_tell_of_one_address_what_each_knows():
    (row,) = added(Geo((CITY, ASN)), rows("89.160.20.112"))
    assert row == ("SE", "E", "Östergötland County", "Linköping", 58.4, 15.6, 29518, "Bredband2 AB")


def test_a_shortened_address_is_located_as_its_network():
    whole, short = added(Geo((CITY,)), rows("2001:218:1:2:3:4:5:6", "2001:218:1::"))
    assert whole == short != NOTHING
    whole, short = added(Geo((CITY,)), rows("67.43.156.77", "67.43.156.0"))
    assert whole == short != NOTHING
    assert added(Geo((CITY,)), rows("::ffff:67.43.156.77")) == [whole]


@pytest.mark.parametrize(
    "address",
    [
        None,
        "",
        "unknown",
        "10.0.0.1",
        "192.168.1.9",
        "127.0.0.1",
        "100.64.0.1",
        "169.254.0.1",
        "224.0.0.1",
        "fe80::1%eth0",
        "::1",
        "fd00::1",
        "ff02::1",
        "67.43.156.77:443",
        "067.43.156.77",
        "67.43.156",
        "300.1.1.1",
        "1" * 100_000,
        "8.8.8.8",
    ],
)
def test_what_is_no_public_address_or_in_no_network_has_no_place(address: str | None):
    assert added(Geo((CITY,)), rows(address)) == [NOTHING]


def test_an_ipv6_address_is_in_no_file_of_ipv4(tmp_path: Path):
    path = str(write(tmp_path / "v4.mmdb", {"8.8.8.0/24": {"country": {"iso_code": "US"}}}, ip_version=4))
    found = added(Geo((path,)), rows("2001:4860:4860::8888", "8.8.8.8"))
    assert [row[0] for row in found] == [None, "US"]


def test_a_database_that_is_broken_inside_makes_nulls_and_a_count_of_them(tmp_path: Path):
    content = bytearray(Path(CITY).read_bytes())
    content[6_000:15_000] = bytes([0xFF]) * 9_000  # what the search tree points to
    path = tmp_path / "broken.mmdb"
    path.write_bytes(content)
    before = counted_here().get("enrich/geo_failed_look_ups", 0)
    addresses = list(dict.fromkeys(address for address, _ in ends(SOURCE["city"])))
    found = added(Geo((str(path),)), rows(*addresses))
    failed = counted_here()["enrich/geo_failed_look_ups"] - before
    assert 0 < failed <= found.count(NOTHING) <= len(found)


def test_other_vendors_layouts():
    columns = ("geo_country", "geo_region_name", "geo_city", "geo_lat", "asn_number", "asn_org")
    flat = {
        "country_code": "DE",
        "region": "Hesse",
        "city": "Frankfurt",
        "lat": "50.1155",
        "asn": "AS3320",
        "as_name": "DT",
    }
    assert locate([flat], columns) == ("DE", "Hesse", "Frankfurt", 50.1, 3320, "DT")
    broken = {"country": {"iso_code": 7}, "city": [], "lat": "north", "asn": "ASx", "as_name": {}, "subdivisions": []}
    assert locate([broken], columns) == (None,) * 6


def write(path: Path, networks: dict[str, dict[str, Any]], *, ip_version: int = 6, kind: str = "Test-City") -> Path:
    """Write an MMDB file by renaming, as those who deliver such files do."""
    writer = mmdb_writer.MMDBWriter(ip_version, kind, ipv4_compatible=ip_version == 6)
    for network, record in networks.items():
        writer.insert_network(netaddr.IPSet([network]), record)
    fresh = path.with_suffix(".new")
    writer.to_db_file(str(fresh))
    return fresh.replace(path)


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def place(code: str) -> dict[str, dict[str, Any]]:
    return {"8.8.8.0/24": {"country": {"iso_code": code}}}


def country(watched: Watched) -> str:
    (record,) = watched.now().records("8.8.8.8")
    code: str = record["country"]["iso_code"]
    return code


def test_a_file_that_was_replaced_is_read_anew_within_seconds(tmp_path: Path):
    path, clock = tmp_path / "geo.mmdb", Clock()
    write(path, place("US"))
    watched = Watched([str(path)], clock=clock)
    write(path, place("DE"))
    assert country(watched) == "US"
    clock.now_s = mmdb.CHECK_S
    assert country(watched) == "DE"


def test_a_content_that_is_no_database_leaves_the_open_one_in_place(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path, clock = tmp_path / "geo.mmdb", Clock()
    write(path, place("US"))
    watched = Watched([str(path)], clock=clock)
    for content in (b"half a file", None, b""):
        path.unlink() if content is None else path.write_bytes(content)  # overwritten in place, under the reader
        for _ in range(3):
            clock.now_s += mmdb.CHECK_S
            assert country(watched) == "US"
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        f"geo: {path} is no MMDB file; the one that is open goes on"
    ] * 2  # once a content, not once a look
    write(path, place("DE"))
    clock.now_s += mmdb.CHECK_S
    assert country(watched) == "DE"


def test_columns_and_lineage_of_a_running_step_change_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mmdb, "CHECK_S", 0.0)
    path = tmp_path / "geo.mmdb"
    step = Geo((str(write(path, place("US"), kind="Old")),))
    given = batch([event(str(number), context_ip="8.8.8.8") for number in range(3)])

    def told() -> set[tuple[str, str]]:
        made = enrich([step, Lineage("0", (step,))], given)
        return set(zip(made.column("geo_country").to_pylist(), made.column("lineage").to_pylist(), strict=True))

    def lineage(kind: str) -> str:
        with maxminddb.open_database(str(path)) as reader:
            return f'{{"millrace":"{version_of("millrace")}","mmdb {kind}":"{reader.metadata().build_epoch}"}}'

    assert told() == {("US", lineage("Old"))}
    write(path, place("DE"), kind="New")
    assert told() == {("DE", lineage("New"))}


def test_two_files_of_one_type_are_both_told(tmp_path: Path):
    first, second = (write(tmp_path / name, place("US"), kind="Same") for name in ("a.mmdb", "b.mmdb"))
    versions = open_files([str(first), str(second)]).versions
    assert list(versions) == ["mmdb Same"]
    assert len(versions["mmdb Same"].split(", ")) == 2


def test_a_file_that_is_not_there_is_an_error_at_the_start(tmp_path: Path):
    missing, broken = tmp_path / "no.mmdb", tmp_path / "broken.mmdb"
    broken.write_bytes(b"MMDB?" * 1_000)
    with pytest.raises(CannotOpenError, match=r"^geo: .*no\.mmdb cannot be read: No such file"):
        Geo((str(missing),)).open()
    with pytest.raises(MmdbError, match=r"broken\.mmdb is no MMDB file$"):
        open_files([str(broken)])
    with pytest.raises(MmdbError, match=r"cannot be read: Is a directory$"):
        open_files([str(tmp_path)])


def test_the_copy_that_is_read_leaves_nothing_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert open_files([CITY]).records("89.160.20.112")
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_what_was_looked_up_in_an_old_content_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mmdb, "CHECK_S", 0.0)
    path = tmp_path / "geo.mmdb"
    for number in range(10):
        write(path, place(f"{number:02}"))
        os.utime(path, ns=(number, number))  # a fast disk may give two the same inode
        assert added(Geo((str(path),)), rows("8.8.8.8"))[0][0] == f"{number:02}"
    assert geo._memo.cache_info().currsize <= 4
