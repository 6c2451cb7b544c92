"""Bots: the list's own examples are bots, people are not, and one's own servers are not."""

import json
from importlib import resources
from typing import Any

import pyarrow as pa
import pytest
from crawleruseragents import is_crawler

from millrace.local import catalogue
from millrace.transforms.enrich.bots import SIGNALS, Bots, listed_as
from tests.support.batches import batch, event
from tests.support.enriching import added, enrich

ENTRIES: list[dict[str, Any]] = json.loads(
    resources.files("crawleruseragents").joinpath("crawler-user-agents.json").read_text()
)
PAGE = {"context_page_url": "https://shop.example/"}
CHROME = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"
)


def test_every_example_of_the_list_is_a_bot_on_a_page():
    agents = [agent for entry in ENTRIES for agent in entry["instances"]]
    assert len(agents) > 2_000
    verdicts = added(Bots(), [{"context_user_agent": agent, **PAGE} for agent in agents])
    assert [agent for agent, verdict in zip(agents, verdicts, strict=True) if not verdict[0]] == []


def test_the_list_compiled_as_one_says_what_its_package_says():
    agents = [entry["instances"][0] for entry in ENTRIES[::10] if entry["instances"]]
    agents += [browser.user_agent for browser in catalogue.BROWSERS]
    assert [listed_as(agent) is not None for agent in agents] == [is_crawler(agent) for agent in agents]


def test_the_shop_s_browsers_are_people():
    rows = [{"context_user_agent": browser.user_agent, **PAGE} for browser in catalogue.BROWSERS]
    assert added(Bots(), rows) == [(False, None)] * len(rows)


@pytest.mark.parametrize(
    ("row", "reasons"),
    [
        ({"context_user_agent": "Googlebot/2.1 (+http://www.google.com/bot.html)", **PAGE}, "spider,list"),
        ({**PAGE}, "no_user_agent"),
        ({"context_user_agent": "  ", **PAGE}, "no_user_agent"),
        ({}, None),  # a server's event: no browser, no user agent
        ({"context_user_agent": "python-requests/2.32", **PAGE}, "http_library"),
        ({"context_user_agent": "python-requests/2.32"}, None),
        ({"context_user_agent": CHROME.replace("Chrome", "HeadlessChrome"), **PAGE}, "list,headless"),
        ({"context_user_agent": CHROME, "context_rest": '{"webdriver": true}'}, "webdriver"),
        ({"context_user_agent": CHROME, "context_rest": '{"navigator":{"webdriver":true}}'}, "webdriver"),
        ({"context_user_agent": CHROME, "context_rest": '{"webdriver":false}'}, None),
        ({"context_user_agent": CHROME, "context_rest": "{}"}, None),
    ],
)
def test_reasons(row: dict[str, Any], reasons: str | None):
    assert added(Bots(), [row]) == [(reasons is not None, reasons)]


def test_a_hoster_s_network_speaks_where_geo_ran_and_a_list_is_given():
    given = batch([event(str(number), context_user_agent=CHROME) for number in range(3)])
    located = given.append_column("asn_number", pa.array([16509, 3320, None], pa.int64()))
    bots = Bots(hosting_asns=(14061, 16509))
    assert enrich([bots], located).column("bot_reasons").to_pylist() == ["hosting", None, None]
    assert enrich([bots], given).column("is_bot").to_pylist() == [False] * 3
    assert enrich([Bots()], located).column("is_bot").to_pylist() == [False] * 3


def test_a_signal_that_is_not_counted_is_silent():
    only = Bots(signals=tuple(name for name in SIGNALS if name != "no_user_agent"))
    assert added(only, [{**PAGE}]) == [(False, None)]
