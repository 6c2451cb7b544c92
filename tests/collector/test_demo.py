"""The demo's files: what is served and how, and that they are what they say."""

import re
from pathlib import Path

import pytest

from millrace.collector import demo

SHOP = Path(demo.__file__).parent / "shop"


def headers(path: str) -> dict[bytes, bytes]:
    found = demo.answer(path)
    assert found is not None
    return dict(found.headers)


@pytest.mark.parametrize("path", demo.PAGES)
def test_every_page_is_the_shop(path: str) -> None:
    found = demo.answer(path)
    assert found is not None
    assert (found.status, found.body) == (200, (SHOP / "index.html").read_bytes())
    assert headers(path)[b"content-type"] == b"text/html; charset=utf-8"


def test_each_file_is_served_with_its_type() -> None:
    files = sorted(file for file in SHOP.rglob("*") if file.is_file() and file.name != "README.md")
    types = {".js": b"text/javascript", ".css": b"text/css", ".svg": b"image/svg+xml", ".txt": b"text/plain"}
    for file in files:
        path = f"{demo.ROUTE}/{file.relative_to(SHOP).as_posix()}"
        found = demo.answer(path)
        assert found is not None, path
        assert found.body == file.read_bytes()
        assert headers(path)[b"content-type"].startswith(types.get(file.suffix, b"text/html"))


@pytest.mark.parametrize(
    "path",
    ["/", "/demos", "/demo/none.js", "/demo/../demo.py", "/demo/sdk", "/demo/sdk/../../keys.py", "/demo//etc/passwd"],
)
def test_nothing_else_is_served(path: str) -> None:
    assert demo.answer(path) is None


@pytest.mark.parametrize("path", [*demo.PAGES, "/demo/sdk/segment.js"])
def test_the_browser_is_told_to_speak_to_no_other_server(path: str) -> None:
    assert b"default-src 'self';" in headers(path)[b"content-security-policy"]
    assert b"unsafe" not in headers(path)[b"content-security-policy"]


def test_the_page_names_only_files_that_there_are() -> None:
    named = {
        name
        for file in ("index.html", "shop.css", "analytics.js", "shop.js", "sent.js")
        for name in re.findall(r"/demo[\w./-]*", (SHOP / file).read_text())
    }
    assert {"/demo/shop.css", "/demo/shop.js", "/demo/thanks"} <= named
    assert [name for name in sorted(named) if name != "/demo/sdk/" and demo.answer(name) is None] == []


@pytest.mark.parametrize("sdk", ["segment", "rudderstack"])
def test_each_bundle_comes_with_its_licence(sdk: str) -> None:
    licence = demo.answer(f"/demo/sdk/{sdk}.LICENSE.txt")
    assert licence is not None
    assert b"Permission is hereby granted, free of charge" in licence.body
