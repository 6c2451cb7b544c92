"""The two browser SDKs, unmodified, in Chromium: clicks in the demo, offline and back, leaving while they send."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

import pytest
from playwright.sync_api import Browser, BrowserContext, Route

from tests.sdks.stand import Row, Stand, told
from tests.sdks.visitor import Visitor, name_of, row_of

SEGMENT = ("segment", "segment-batches")
SAME_CLOCK = timedelta(milliseconds=1)  # a browser's is cut to milliseconds
MODES = (*SEGMENT, "rudderstack", "rudderstack-beacon")


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """How the demo sends: an SDK, and one of its ways."""
    return str(request.param)


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser without a past."""
    with browser.new_context(locale="de-DE", timezone_id="Europe/Berlin") as fresh:
        yield fresh


def test_every_click_becomes_its_row(stand: Stand, context: BrowserContext, mode: str) -> None:
    visitor = Visitor(context, stand, mode)
    visitor.click("[data-product=beans-01] .plain")
    visitor.click("#product [value=yes]")
    visitor.click("[data-product=cup-01] .add")
    visitor.click("#club")
    visitor.click("#account")
    visitor.click("#sign-in [value=yes]")
    names = ["page Shelf", "track Product Viewed", "track Product Added", "track Product Added", "group", "alias"]
    names += ["identify"]
    if mode in SEGMENT:
        visitor.click("#kiosk")
        names += ["screen Kiosk"]
    visitor.wait_until_listed(len(names))
    visitor.follow("#basket", "/demo/checkout")
    visitor.follow("#pay", "/demo/thanks")
    names += ["page Basket", "track Order Completed", "page Thanks"]
    rows = visitor.rows_until(names)
    assert Counter(map(name_of, rows)) == Counter(names)
    _check_against_what_was_sent(visitor, rows, mode)
    _check_against_what_was_done(visitor, {name_of(row): told(row) for row in rows}, mode)
    assert visitor.faults == []


def _check_against_what_was_sent(visitor: Visitor, rows: Sequence[Row], mode: str) -> None:
    sent = visitor.sent()
    unseen = {name_of(row) for row in rows if row["message_id"] not in sent}
    assert unseen <= ({"page Basket", "track Order Completed"} if mode == "rudderstack-beacon" else set())
    for row in rows:
        copies = [row_of(event) for event in sent.get(row["message_id"], [])]
        assert told(row) in copies or not copies, name_of(row)
        assert row["clock_flag"] is None
        assert row["original_timestamp"] <= row["sent_at"] <= row["received_at"] + SAME_CLOCK


def _check_against_what_was_done(visitor: Visitor, rows: Mapping[str, Row], mode: str) -> None:
    beans = {"product_id": "beans-01", "name": "Harbour Blend", "category": "beans", "price": 12.5}
    cup = {"product_id": "cup-01", "name": "Enamel Cup", "category": "cup", "price": 9.9}
    assert rows["track Product Viewed"]["properties"] == beans
    assert rows["track Product Added"]["properties"] == {**cup, "quantity": 1, "basket_size": 2}
    order = {"order_id": visitor.page.inner_text("#order"), "total": 22.4, "currency": "EUR", "products": [beans, cup]}
    assert rows["track Order Completed"]["properties"] == order
    assert rows["group"]["rest"]["groupId"] == "club-early-shift"
    assert rows["group"]["traits"] == {"name": "Early Shift", "plan": "monthly"}
    assert (rows["alias"]["user_id"], rows["alias"]["rest"]["previousId"]) == ("u-ann", visitor.anonymous_id)
    ann = {"name": "Ann Quay", "email": "ann@quay.example"}
    assert (
        rows["identify"]["traits" if mode in SEGMENT else "context_rest"].items()
        >= (ann if mode in SEGMENT else {"traits": ann}).items()
    )
    paths = {"page Shelf": "/demo", "page Basket": "/demo/checkout", "page Thanks": "/demo/thanks"}
    for name, path in paths.items():
        assert rows[name]["context_page_url"] == visitor.stand.url + path  # the key is not in it
        assert rows[name]["context_locale"] == "de-DE"
    known = {name: row["user_key"] for name, row in rows.items()}
    before = ("page Shelf", "track Product Viewed", "track Product Added", "group")
    assert known == {name: visitor.anonymous_id if name in before else "u-ann" for name in known}


@pytest.mark.parametrize("mode", [*SEGMENT, "rudderstack"])
def test_what_is_done_offline_arrives_once_the_network_is_back(
    stand: Stand, context: BrowserContext, mode: str
) -> None:
    # Not by beacon: that SDK sends it once, and without a network it is lost (docs/http_api.md).
    visitor = Visitor(context, stand, mode)
    visitor.rows_until(["page Shelf"])
    context.set_offline(True)
    visitor.page.wait_for_selector("#network.bad")
    visitor.click("[data-product=cup-01] .add")
    visitor.click("[data-product=pot-01] .add")
    visitor.click("#club")
    assert visitor.page.inner_text("#count") == "2"
    context.set_offline(False)
    rows = visitor.rows_until(["track Product Added", "track Product Added", "group"])
    assert Counter(map(name_of, rows)) == {"track Product Added": 2, "group": 1}
    assert visitor.faults == []


def test_a_key_that_nobody_knows_is_said_to_be_so(stand: Stand, context: BrowserContext) -> None:
    context.set_default_timeout(90_000)
    page = context.new_page()
    page.goto(f"{stand.url}/demo")
    page.wait_for_selector("#ask-key[open]")
    assert not page.is_visible("#unknown")
    page.fill("#ask-key input", "mrb_" + "x" * 36)
    page.click("#ask-key button")
    page.wait_for_selector("#ask-key[open] #unknown:visible")
    page.fill("#ask-key input", stand.keys["web"])
    page.click("#ask-key button")
    page.wait_for_selector("#products li")
    assert page.url == f"{stand.url}/demo"


@pytest.mark.parametrize("mode", ["segment-batches", "rudderstack-beacon"])
def test_what_waits_for_the_next_request_goes_out_when_the_page_is_left(
    stand: Stand, context: BrowserContext, mode: str
) -> None:
    visitor = Visitor(context, stand, mode)
    visitor.click("[data-product=cup-01] .add")
    visitor.wait_until_listed(2)
    visitor.follow("#basket", "/demo/checkout")
    visitor.click("#pay")  # the page is left as soon as the SDK has the event, which it would send a second later
    visitor.page.wait_for_url("**/demo/thanks")
    visitor.page.goto("about:blank")  # and no page of the shop is there any more to send it again
    names = ["page Shelf", "track Product Added", "page Basket", "track Order Completed"]
    found = Counter(map(name_of, visitor.rows_until(names)))
    del found["page Thanks"]  # which came as far as it came
    assert found == Counter(names)


@pytest.mark.parametrize("mode", ["segment", "rudderstack"])
def test_a_request_that_leaving_the_page_cut_off_is_sent_again(
    stand: Stand, context: BrowserContext, mode: str
) -> None:
    visitor = Visitor(context, stand, mode)
    visitor.rows_until(["page Shelf"])
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)  # and goes no further than the browser

    context.route(re.compile(r"/v1/t"), hold)
    visitor.click("[data-product=cup-01] .add")
    visitor.wait_until_listed(2)
    visitor.follow("#basket", "/demo/checkout")
    context.unroute_all()
    assert len(held) == 1
    rows = visitor.rows_until(["track Product Added", "page Basket"])
    assert Counter(map(name_of, rows)) == {"track Product Added": 1, "page Basket": 1}
    assert {row["message_id"] for row in rows} <= visitor.sent().keys()
