"""Bots: one verdict on whether a program sent an event, the OR of signals, with the signals that spoke.

A signal whose data is not there is silent. One's own servers are no bots: an HTTP library, or no user agent at all,
speaks only of an event that has a page, which a browser would have sent.
Sources: uap-core (Apache-2.0, package ua-parser); crawler-user-agents (MIT, package of that name).
"""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from ua_parser_rs import DeviceExtractor

from millrace.transforms.enrich import user_agent as ua
from millrace.transforms.enrich.enrichment import Enrichment, declared, version_of

SIGNALS = ("spider", "list", "no_user_agent", "http_library", "headless", "hosting", "webdriver")

_HEADLESS = re.compile(
    r"headless|phantomjs|slimerjs|puppeteer|playwright|selenium|webdriver|cypress|jsdom", re.IGNORECASE
)
_WEBDRIVER = r'"webdriver"\s*:\s*true'
_LIBRARY = "http-library"


def signals(user_agent: str | None, *, has_page: bool, hosting: bool, webdriver: bool) -> tuple[str, ...]:
    """Return the signals that speak, in the order of SIGNALS.

    >>> signals("Googlebot/2.1 (+http://www.google.com/bot.html)", has_page=True, hosting=False, webdriver=False)
    ('spider', 'list')
    """
    agent = user_agent.strip() if user_agent else ""
    listed = listed_as(agent) if agent else None
    spoken = {
        "spider": bool(agent) and ua.is_spider(agent),
        "list": listed is not None and listed != _LIBRARY,
        "no_user_agent": not agent and has_page,
        "http_library": listed == _LIBRARY and has_page,
        "headless": _HEADLESS.search(agent) is not None,
        "hosting": hosting,
        "webdriver": webdriver,
    }
    return tuple(name for name in SIGNALS if spoken[name])


def listed_as(user_agent: str) -> str | None:
    """Return what the list has a user agent for: its tag `http-library`, else `crawler`; None: it is not in it."""
    found = _crawlers().extract(user_agent)
    return None if found is None else str(found.family)


@dataclasses.dataclass(frozen=True)
class Bots(Enrichment):
    """Judge who sent an event.

    In:      any batch; `asn_number`, of the step geo before it, where hosting networks are set
    Out:     is_bot, bot_reasons
    State:   none but a bounded cache.  Repeats: same row, same verdict, for the versions in `lineage`.
    Errors:  none

    Args:
        signals: which ones count.
        hosting_asns: autonomous systems where programs live, not people.
    """

    name = "bots"
    adds = declared("bots")

    signals: tuple[str, ...] = SIGNALS
    hosting_asns: tuple[int, ...] = ()

    def open(self) -> None:
        """Compile the lists, once a process."""
        _crawlers()
        ua.is_spider("")

    def keys(self, batch: pa.RecordBatch) -> Sequence[pa.Array]:
        """Return user agent, whether there is a page, whether the network is a hoster's, and what the client says."""
        size = batch.num_rows
        no = pa.repeat(pa.scalar(value=False), size)
        hosting = no
        if self.hosting_asns and "asn_number" in batch.schema.names:
            hosting = pc.is_in(batch.column("asn_number"), value_set=pa.array(self.hosting_asns, pa.int64()))
        rest = batch.column("context_rest")
        says = pc.fill_null(pc.match_substring(rest, '"webdriver"'), fill_value=False)
        if pc.any(says).as_py():
            says = pc.fill_null(pc.match_substring_regex(rest, _WEBDRIVER), fill_value=False)
        has_page = pc.is_valid(batch.column("context_page_url"))
        return [batch.column("context_user_agent"), has_page, hosting, says]

    def look_up(self, *values: Any) -> Sequence[Any]:
        """See signals."""
        agent, has_page, hosting, webdriver = values
        spoken = signals(agent, has_page=has_page, hosting=hosting, webdriver=webdriver)
        counted = [name for name in spoken if name in self.signals]
        return bool(counted), ",".join(counted) or None

    def versions(self) -> Mapping[str, str]:
        """Name the lists' versions."""
        return {**ua.versions(), "crawler-user-agents": version_of("crawler-user-agents")}


@functools.cache
def _crawlers() -> DeviceExtractor:
    """Compile the list with ua-parser's core: 3 µs a user agent, where 1,500 patterns one by one take 100 µs (m)."""
    text = resources.files("crawleruseragents").joinpath("crawler-user-agents.json").read_text(encoding="utf-8")
    entries = sorted((_LIBRARY in entry.get("tags", ()), entry["pattern"]) for entry in json.loads(text))
    return DeviceExtractor(
        (pattern, None, _LIBRARY if library else "crawler", None, None) for library, pattern in entries
    )
