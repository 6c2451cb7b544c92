"""URL: the page's address in parts."""

import dataclasses
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

from millrace.transforms.enrich.enrichment import Enrichment, declared, version_of
from millrace.transforms.enrich.urls import domain_of, host_of, port_of, split

_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")


def parts_of(url: str | None) -> tuple[Any, ...]:
    """Return scheme, host, port, registered domain, path, normal path, query and fragment of an absolute URL.

    >>> parts_of("HTTPS://www.Shop.example:8443/a//b/../%7Ec/?q=1#top")
    ('https', 'www.shop.example', 8443, 'shop.example', '/a//b/../%7Ec/', '/a/~c', 'q=1', 'top')
    """
    parts = split(url)
    if parts is None:
        return (None,) * 8
    host = host_of(parts)
    return (
        parts.scheme,
        host,
        port_of(parts),
        domain_of(host) if host else None,
        parts.path or None,
        normal_path(parts.path),
        parts.query or None,
        parts.fragment or None,
    )


def normal_path(path: str) -> str:
    """Return a path so that equal pages are equal (RFC 3986, 6.2.2), and without doubled or trailing slashes.

    Escapes of what needs none are undone, others are in upper case; a broken escape stays as it is.
    """
    path = _ESCAPE.sub(_escape, path) if "%" in path else path
    if not path.startswith("/"):
        path = f"/{path}"
    if "//" in path or "/." in path:
        path = posixpath.normpath(path).replace("//", "/", 1)
    return path.rstrip("/") or "/"


def _escape(found: re.Match[str]) -> str:
    byte = int(found[1], 16)
    return chr(byte) if byte in _UNRESERVED else found[0].upper()


@dataclasses.dataclass(frozen=True)
class Url(Enrichment):
    """Take `context_page_url` apart.

    In:      any batch.  Out: the columns of schemas/added/url.avsc; all null where it is no absolute URL.
    State:   none but a bounded cache.  Repeats: same address, same parts.
    Errors:  none
    """

    name = "url"
    adds = declared("url")
    reads = ("context_page_url",)

    def open(self) -> None:
        """Load the Public Suffix List, once a process."""
        domain_of("example.com")

    def look_up(self, *values: Any) -> Sequence[Any]:
        """See parts_of."""
        return parts_of(*values)

    def versions(self) -> Mapping[str, str]:
        """Name the version of the suffix list's package."""
        return {"tldextract": version_of("tldextract")}
