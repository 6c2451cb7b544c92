"""URL: parts as browsers see them, domains by the Public Suffix List's own cases, and nothing breaks."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.transforms.enrich.url import Url, normal_path, parts_of
from millrace.transforms.enrich.urls import domain_of, host_of, split
from tests.support.enriching import added

NOTHING = (None,) * 8

# https://github.com/publicsuffix/list/blob/main/tests/test_psl.txt, public domain; in lower case, as hosts are here.
SUFFIXES = {
    "com": None,
    "example.com": "example.com",
    "b.example.com": "example.com",
    "a.b.example.com": "example.com",
    "example.example": "example.example",
    "b.example.example": "example.example",
    "biz": None,
    "domain.biz": "domain.biz",
    "b.domain.biz": "domain.biz",
    "uk.com": None,
    "example.uk.com": "example.uk.com",
    "a.b.example.uk.com": "example.uk.com",
    "test.ac": "test.ac",
    "mm": None,
    "c.mm": None,
    "b.c.mm": "b.c.mm",
    "a.b.c.mm": "b.c.mm",
    "jp": None,
    "test.jp": "test.jp",
    "www.test.jp": "test.jp",
    "ac.jp": None,
    "test.ac.jp": "test.ac.jp",
    "kyoto.jp": None,
    "test.kyoto.jp": "test.kyoto.jp",
    "ide.kyoto.jp": None,
    "b.ide.kyoto.jp": "b.ide.kyoto.jp",
    "c.kobe.jp": None,
    "b.c.kobe.jp": "b.c.kobe.jp",
    "city.kobe.jp": "city.kobe.jp",
    "www.city.kobe.jp": "city.kobe.jp",
    "ck": None,
    "test.ck": None,
    "b.test.ck": "b.test.ck",
    "www.ck": "www.ck",
    "www.www.ck": "www.ck",
    "us": None,
    "test.us": "test.us",
    "ak.us": None,
    "test.ak.us": "test.ak.us",
    "k12.ak.us": None,
    "test.k12.ak.us": "test.k12.ak.us",
    "xn--85x722f.com.cn": "xn--85x722f.com.cn",
    "www.xn--85x722f.xn--55qx5d.cn": "xn--85x722f.xn--55qx5d.cn",
    "xn--fiqs8s": None,
    "xn--85x722f.xn--fiqs8s": "xn--85x722f.xn--fiqs8s",
}


@pytest.mark.parametrize("host", SUFFIXES)
def test_the_published_cases_of_the_public_suffix_list(host: str):
    assert domain_of(host) == SUFFIXES[host]


def test_shops_on_one_platform_are_not_one_site():
    assert domain_of("ann.myshopify.com") == "ann.myshopify.com"


@pytest.mark.parametrize(
    "host", ["", "localhost", "192.0.2.1", "::1", "2001:db8::1", "a..b", ".com", "x" * 300 + ".com"]
)
def test_what_has_no_registered_domain(host: str):
    assert domain_of(host) is None


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://shop.example", ("https", "shop.example", None, "shop.example", None, "/", None, None)),
        ("http://u:p@WWW.Shop.Example.:080/", ("http", "www.shop.example", 80, "shop.example", "/", "/", None, None)),
        ("https://[2001:DB8::1]:8443/x", ("https", "2001:db8::1", 8443, None, "/x", "/x", None, None)),
        ("https://bücher.de/ä?ö#ü", ("https", "xn--bcher-kva.de", None, "xn--bcher-kva.de", "/ä", "/ä", "ö", "ü")),
        ("https://192.0.2.7/", ("https", "192.0.2.7", None, None, "/", "/", None, None)),
        ("https://shop.example:99999/", ("https", "shop.example", None, "shop.example", "/", "/", None, None)),
        ("app://screen/cart", ("app", "screen", None, None, "/cart", "/cart", None, None)),
        ("file:///tmp/a.html", ("file", None, None, None, "/tmp/a.html", "/tmp/a.html", None, None)),  # noqa: S108
    ],
)
def test_parts(url: str, parts: tuple[Any, ...]):
    assert added(Url(), [{"context_page_url": url}]) == [parts]


@pytest.mark.parametrize(
    "url",
    [
        None,
        "",
        " ",
        "/cart",
        "shop.example/cart",
        "https://",
        "http://[::1",
        "http://[x]/",
        "//shop.example",
        "?a=b",
        "javascript:alert(1)",
        "https://shop.example/" + "a" * (1 << 20),
    ],
)
def test_what_is_no_absolute_address_has_no_parts(url: str | None):
    assert added(Url(), [{"context_page_url": url}]) == [NOTHING]


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("", "/"),
        ("/", "/"),
        ("//", "/"),
        ("/a/", "/a"),
        ("/a//b", "/a/b"),
        ("/a/./b/../c", "/a/c"),
        ("/../a", "/a"),
        ("/%7euser", "/~user"),
        ("/%c3%a4", "/%C3%A4"),
        ("/a%2fb", "/a%2Fb"),
        ("/100%", "/100%"),
        ("/%zz%4", "/%zz%4"),
        ("/A", "/A"),
        ("/...", "/..."),
    ],
)
def test_normal_paths(path: str, normal: str):
    assert normal_path(path) == normal


@given(st.text(st.sampled_from("ab/.%2e7EF~ä"), max_size=30))
def test_the_normal_path_of_a_normal_path_is_itself(path: str):
    normal = normal_path(path)
    assert normal.startswith("/")
    # Undoing an escape may make another one or a dot segment; what comes out of that is at rest.
    assert normal_path(normal_path(normal)) == normal_path(normal_path(normal_path(normal)))


@given(st.text(max_size=100) | st.text(st.sampled_from("htps:/?#[]@%.é1\t\\"), max_size=40))
def test_no_text_breaks_it(text: str):
    parts = parts_of(text)
    assert len(parts) == 8
    found = split(text)
    assert (found is None) == (parts == NOTHING)
    if found is not None:
        assert parts[1] == host_of(found)
