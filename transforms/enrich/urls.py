"""URLs: the parts that several enrichments need; what browsers send and what attackers do."""

import functools
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlsplit

import idna
from tldextract import TLDExtract

MOST_PARAMETERS = 200
"""Of a query with more, none is read."""
_HOST_CHARACTERS = 253
"""No name in DNS is longer (RFC 1035)."""


def split(url: str | None) -> SplitResult | None:
    """Return an absolute URL's parts; None where it is none, or cannot be one.

    >>> split("https://shop.example/a?b#c").query
    'b'
    """
    if not url:
        return None
    try:
        parts = urlsplit(url.strip())
    except ValueError:  # such as http://[::1
        return None
    return parts if parts.scheme and (parts.netloc or parts.scheme == "file") else None


def host_of(parts: SplitResult) -> str | None:
    """Return the host in lower case, without user, port, brackets and last dot; in its ASCII form where it has one.

    >>> host_of(urlsplit("https://Bücher.example.:8443/"))
    'xn--bcher-kva.example'
    """
    try:
        host = (parts.hostname or "").rstrip(".")
    except ValueError:
        return None
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode()
        except (idna.IDNAError, UnicodeError):  # no browser would send it: kept as it came
            return host or None
    return host or None


def port_of(parts: SplitResult) -> int | None:
    """Return the port that is named; None where none is, or no port can be of that number."""
    try:
        return parts.port
    except ValueError:
        return None


def parameters(query: str) -> dict[str, str]:
    """Return a query's parameters; of a name that stands twice the first one counts, blank ones do not.

    >>> parameters("a=1&b=%C3%A4&a=2&c=")
    {'a': '1', 'b': 'ä'}
    """
    found: dict[str, str] = {}
    try:
        pairs = parse_qsl(query, errors="replace", max_num_fields=MOST_PARAMETERS)
    except ValueError:
        return found
    for name, value in pairs:
        found.setdefault(name, value)
    return found


def domain_of(host: str) -> str | None:
    """Return the registered domain: the public suffix and the label before it; None for addresses and bare suffixes.

    Private suffixes count, as for browsers: two shops on one platform are not one site. A top level that the list does
    not have is a suffix by itself, as the list's rules say.

    >>> domain_of("www.shop.example.co.uk"), domain_of("192.0.2.1"), domain_of("wiki.corp")
    ('example.co.uk', None, 'wiki.corp')
    """
    return _domain_of(host) if len(host) <= _HOST_CHARACTERS else None  # what is remembered has to stay small


@functools.lru_cache(maxsize=50_000)
def _domain_of(host: str) -> str | None:
    labels = host.split(".")
    if len(labels) < 2 or "" in labels or ":" in host or labels[-1].isdigit():
        return None
    found = _suffixes()(host)
    return found.top_domain_under_public_suffix or (None if found.suffix else ".".join(labels[-2:]))


class Own(NamedTuple):
    """A site's own hosts, each with what is below it."""

    hosts: frozenset[str]

    def has(self, host: str) -> bool:
        """Tell whether a host is one of them, or below one."""
        while host:
            if host in self.hosts:
                return True
            host = host.partition(".")[2]
        return False


@functools.cache
def _suffixes() -> TLDExtract:
    # The list that the package holds: no download, and no cache on the disk.
    return TLDExtract(cache_dir=None, suffix_list_urls=(), include_psl_private_domains=True)
