"""Sources: what a file means, whose key is whose, which origins may send."""

import dataclasses
import datetime as dt
import hashlib
import ipaddress
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.collector.check import main, summary
from millrace.collector.client_ip import IpPolicy
from millrace.collector.keys import Kind, StoredKey
from millrace.collector.origins import Origins
from millrace.collector.source import Source, SourceLimits
from millrace.collector.source_file import SOURCE_MEMBERS
from millrace.collector.sources import Sources, SourcesError

EXAMPLE = Path(__file__).parents[2] / "examples" / "millrace.yaml"
FIRST = "mrb_first0123456789abcdefghijklmnopqrst"
SECOND = "mrb_second123456789abcdefghijklmnopqrst"
NOON = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
NOON_US = int(NOON.timestamp()) * 1_000_000


def kept(key: str, until: dt.datetime | None = None) -> StoredKey:
    return StoredKey(key[:8], hashlib.sha256(key.encode()).digest(), until)


def test_the_example_means_what_its_comments_say():
    sources = Sources.load(EXAMPLE)
    assert sources.trusted_proxies == (ipaddress.ip_network("10.0.0.0/8"),)
    keyless = [dataclasses.replace(source, keys=()) for source in sources.all]
    assert keyless == [
        Source(
            id="shop",
            name="Web shop",
            kind=Kind.BROWSER,
            origins=Origins(["https://shop.example", "https://*.shop.example"]),
            rate=500.0,
            burst=5_000.0,
            limits=SourceLimits(event_bytes=32_768, request_bytes=524_288, request_events=500),
            ip_policy=IpPolicy.TRUNCATE,
            allowed_types=frozenset({"identify", "track", "page"}),
        ),
        Source(id="app", name="app", kind=Kind.MOBILE),
        Source(id="billing", name="billing", kind=Kind.SERVER, ip_policy=IpPolicy.DROP),
    ]
    assert [[(key.begins, key.until) for key in source.keys] for source in sources.all] == [
        [("mrb_4fQx", dt.datetime(2026, 12, 31, 18, tzinfo=dt.UTC)), ("mrb_Zk81", None)],
        [("mrm_9sLw", None)],
        [("mrs_c70P", None)],
    ]


def test_what_is_not_said_has_its_default():
    assert Sources.parse("sources: {shop: {kind: server}}").all == (
        Source(
            id="shop",
            name="shop",
            kind=Kind.SERVER,
            keys=(),
            origins=Origins(),
            rate=None,
            burst=0.0,
            limits=SourceLimits(None, None, None),
            ip_policy=IpPolicy.TRUNCATE,
            allowed_types=frozenset({"identify", "track", "page", "screen", "group", "alias"}),
        ),
    )


@pytest.mark.parametrize(("rate", "burst"), [("500", 5_000.0), ("0.05", 1.0), ("1_000", 10_000.0)])
def test_without_a_burst_ten_seconds_of_the_rate_may_come_at_once(rate, burst):
    (source,) = Sources.parse(f"sources: {{shop: {{kind: server, events_per_s: {rate}}}}}").all
    assert (source.rate, source.burst) == (float(rate), burst)


def test_each_key_finds_its_source_and_nothing_else_does():
    shop = Source("shop", "shop", Kind.BROWSER, (kept(FIRST), kept(SECOND)))
    app = Source("app", "app", Kind.MOBILE, (kept(FIRST + "x"),))  # begins as another does
    sources = Sources((shop, app))
    found = [
        sources.by_key(key, NOON_US) for key in (FIRST, SECOND, FIRST + "x", FIRST + "y", FIRST[:8], "", "x" * 10_000)
    ]
    assert found == [shop, shop, app, None, None, None, None]


@given(st.text())
def test_no_text_is_a_key_by_chance_or_makes_the_search_fail(text):
    assert Sources((Source("shop", "shop", Kind.SERVER, (kept(FIRST),)),)).by_key(text, NOON_US) is None


def test_a_key_ends_when_it_was_said_to_and_the_other_goes_on():
    shop = Source("shop", "shop", Kind.BROWSER, (kept(FIRST, NOON), kept(SECOND)))
    sources = Sources((shop,))
    assert [sources.by_key(FIRST, NOON_US - 1), sources.by_key(FIRST, NOON_US)] == [shop, None]
    assert [sources.by_key(SECOND, NOON_US - 1), sources.by_key(SECOND, NOON_US)] == [shop, shop]


def test_without_a_moment_the_machines_clock_decides():
    past, future = NOON.replace(year=2000), NOON.replace(year=2200)
    shop = Source("shop", "shop", Kind.BROWSER, (kept(FIRST, past), kept(SECOND, future)))
    assert [Sources((shop,)).by_key(key) for key in (FIRST, SECOND)] == [None, shop]


@pytest.mark.parametrize(
    ("pattern", "origin", "allowed"),
    [
        ("https://shop.example", "https://shop.example", True),
        ("https://shop.example", "https://SHOP.example", True),
        ("HTTPS://Shop.Example:443", "https://shop.example", True),
        ("https://shop.example", "https://shop.example:443", True),
        ("https://shop.example", "http://shop.example", False),
        ("https://shop.example", "https://shop.example:8443", False),
        ("https://shop.example", "https://www.shop.example", False),
        ("https://shop.example", "https://shop.example.evil.example", False),
        ("https://shop.example", "https://shop.example/", False),
        ("http://localhost:3000", "http://localhost:3000", True),
        ("http://[::1]:3000", "http://[::1]:3000", True),
        ("capacitor://localhost", "capacitor://localhost", True),
        ("https://*.shop.example", "https://www.shop.example", True),
        ("https://*.shop.example", "https://a.b.shop.example", True),
        ("https://*.shop.example", "https://shop.example", False),
        ("https://*.shop.example", "https://evilshop.example", False),
        ("https://*.shop.example", "https://.shop.example", False),
        ("https://*.shop.example", "https://*.shop.example", False),
        ("https://*.shop.example", "http://www.shop.example", False),
        ("https://*.shop.example", "https://www.shop.example:444", False),
        ("https://*.shop.example:444", "https://www.shop.example:444", True),
        ("null", "null", True),
        ("https://shop.example", "null", False),
        ("*", "https://anything.example", True),
        ("*", "null", True),
        ("*", "\x00 nonsense", True),
        ("https://shop.example", "\x00 nonsense", False),
    ],
)
def test_an_origin_is_allowed_by_a_pattern(pattern, origin, allowed):
    assert Origins([pattern]).allow(origin) is allowed


@given(st.text())
def test_no_origin_header_makes_the_check_fail(origin):
    assert Origins(["https://shop.example", "https://*.shop.example"]).allow(origin) in (True, False)
    assert not Origins().allow(origin)


@pytest.mark.parametrize(("kind", "own_page"), [(Kind.BROWSER, True), (Kind.MOBILE, False), (Kind.SERVER, False)])
def test_only_a_browser_source_may_be_used_from_a_page(kind, own_page):
    source = Source("shop", "shop", kind, origins=Origins(["https://shop.example"]))
    assert [source.allows_origin(origin) for origin in (None, "https://shop.example", "https://evil.example")] == [
        True,
        own_page,
        False,
    ]
    assert source.key_is_public is (kind is not Kind.SERVER)


def test_a_preflight_is_for_any_source():
    shop = Source("shop", "shop", Kind.BROWSER, origins=Origins(["https://shop.example"]))
    blog = Source("blog", "blog", Kind.BROWSER, origins=Origins(["https://blog.example"]))
    sources = Sources((shop, blog, Source("billing", "billing", Kind.SERVER)))
    origins = ["https://shop.example", "https://blog.example", "https://evil.example"]
    assert [sources.allow_origin(origin) for origin in origins] == [True, True, False]


def test_the_files_proxies_say_who_the_client_is():
    sources = Sources.parse("trusted_proxies: [127.0.0.1]\nsources: {shop: {kind: server}}")
    assert str(sources.client_ip("127.0.0.1", "192.0.2.7")) == "192.0.2.7"
    assert str(sources.client_ip("192.0.2.1", "192.0.2.7")) == "192.0.2.1"


def test_check_says_in_one_line_what_a_file_holds(capsys):
    assert main([str(EXAMPLE)]) == 0
    assert capsys.readouterr().out == (
        f"{EXAMPLE}: 3 sources (1 browser, 1 mobile, 1 server); trusted proxies: 10.0.0.0/8\n"
    )


def test_check_points_at_what_may_not_be_meant():
    shop = Source("shop", "shop", Kind.BROWSER, (kept(FIRST, NOON),), Origins(["*"]))
    assert summary(Sources((shop,)), NOON_US) == (
        "1 source (1 browser); any page of any site may use shop; no valid key, so nothing can be sent: shop"
    )


def test_check_names_the_line_of_a_mistake(capsys, tmp_path):
    file = tmp_path / "millrace.yaml"
    file.write_text("sources:\n  shop:\n    kind: web\n    ip: keep\n")
    assert main([str(file)]) == 2
    assert capsys.readouterr().out == (
        f"{file}:3: shop: kind: 'web' is not one of its values; there are: browser, mobile, server\n"
    )


def test_a_bad_file_leaves_the_sources_that_were_loaded_as_they_are(tmp_path):
    file = tmp_path / "millrace.yaml"
    file.write_bytes(EXAMPLE.read_bytes())
    loaded, before = Sources.load(file), Sources.load(file)
    file.write_text("sources: [")
    with pytest.raises(SourcesError):
        Sources.load(file)
    assert loaded == before


def test_the_documentation_lists_what_a_file_may_hold():
    text = (Path(__file__).parents[2] / "docs" / "sources.md").read_text(encoding="utf-8")
    part = text.partition("## What stands in the file")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE) == ["trusted_proxies", "sources", *SOURCE_MEMBERS]
