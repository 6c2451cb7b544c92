"""CORS: a page's script may send, and read what became of it."""

import pytest

from millrace.collector.answers import Answer, too_many_requests, unavailable
from millrace.collector.limits import Limits
from millrace.collector.protocol import Outcome
from tests.support.asking import BROWSER_KEY, SHOP, ask, basic, header, post, request
from tests.support.decoding import event

ORIGIN = SHOP.encode()
READABLE = [
    (b"access-control-allow-origin", ORIGIN),
    (b"access-control-allow-credentials", b"true"),
    (b"access-control-expose-headers", b"retry-after"),
    (b"vary", b"origin"),
]


def preflight(path: str = "/v1/track", **headers: bytes) -> Outcome:
    named = {"origin": ORIGIN, "access_control_request_method": b"POST"} | headers
    return ask(request("OPTIONS", path, b"", authorization=None, content_type=None, **named))


def test_a_preflight_grants_what_the_page_asks_for() -> None:
    outcome = preflight(access_control_request_headers=b"authorization,content-type,x-shop")
    assert outcome.answer == Answer(
        204,
        (
            *READABLE,
            (b"allow", b"POST, OPTIONS"),
            (b"access-control-allow-methods", b"POST, OPTIONS"),
            (b"access-control-allow-headers", b"authorization,content-type,x-shop"),
            (b"access-control-max-age", b"86400"),
            (b"vary", b"access-control-request-headers, access-control-request-private-network"),
        ),
    )
    assert (outcome.messages, outcome.route) == ((), "/v1/track")


@pytest.mark.parametrize("path", ["/v1/batch", "/v1/t/", "/beacon/v1/batch"])
def test_a_preflight_needs_no_key_and_no_allowed_origin(path: str) -> None:
    """Whether the source may be used from there is told, readably, by the answer to the request itself."""
    outcome = preflight(path, origin=b"https://evil.example")
    assert (outcome.answer.status, header(outcome, b"access-control-allow-origin")) == (204, b"https://evil.example")


@pytest.mark.parametrize("path", ["/sourceConfig/", f"/v1/projects/{BROWSER_KEY}/settings", "/pixel/v1/page"])
def test_a_preflight_of_a_route_to_get(path: str) -> None:
    outcome = preflight(path, access_control_request_method=b"GET")
    assert header(outcome, b"access-control-allow-methods") == b"GET, HEAD, OPTIONS"


@pytest.mark.parametrize("asked", [b"x\r\nset-cookie: a", b"(", b"x" * 3_000, "ü".encode(), b""])
def test_names_that_are_none_are_not_repeated(asked: bytes) -> None:
    allowed = header(preflight(access_control_request_headers=asked), b"access-control-allow-headers")
    assert allowed is not None
    assert {b"authorization", b"anonymousid", b"x-retry-count"} <= set(allowed.split(b", "))


def test_a_page_elsewhere_may_reach_a_private_network() -> None:
    name = b"access-control-allow-private-network"
    assert header(preflight(access_control_request_private_network=b"true"), name) == b"true"
    assert header(preflight(), name) is None


def test_how_long_a_preflight_lasts_can_be_set() -> None:
    asked = request("OPTIONS", "/v1/t", b"", origin=ORIGIN, access_control_request_method=b"POST")
    assert header(ask(asked, Limits(preflight_max_age_s=5)), b"access-control-max-age") == b"5"


def test_options_without_a_page_is_told_the_methods() -> None:
    outcome = ask(request("OPTIONS", "/v1/track", b""))
    assert outcome.answer == Answer(204, ((b"vary", b"origin"), (b"allow", b"POST, OPTIONS")))


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [("/v1/track", BROWSER_KEY, 200), ("/v1/track", "mrb_wrong", 401), ("/nowhere", BROWSER_KEY, 404)],
)
def test_every_answer_can_be_read_by_the_page(path: str, key: str, status: int) -> None:
    outcome = post(path, event(), authorization=basic(key), origin=ORIGIN)
    assert outcome.answer.status == status
    assert set(READABLE) <= set(outcome.answer.headers)


def test_a_page_that_may_not_send_can_read_that_it_may_not() -> None:
    outcome = post("/v1/track", event(), authorization=basic(BROWSER_KEY), origin=b"https://evil.example")
    assert (outcome.answer.status, header(outcome, b"access-control-allow-origin")) == (403, b"https://evil.example")
    assert not outcome.messages


@pytest.mark.parametrize("origin", [b"", b"https://a.example, https://b.example", b"a\nb", "ü".encode(), b"x" * 600])
def test_what_is_no_origin_is_refused_and_not_repeated(origin: bytes) -> None:
    outcome = post("/v1/track", event(), authorization=basic(BROWSER_KEY), origin=origin)
    assert (outcome.answer.status, header(outcome, b"access-control-allow-origin")) == (403, None)


@pytest.mark.parametrize("instead", [too_many_requests, unavailable])
def test_who_has_to_wait_can_read_for_how_long(instead) -> None:
    told = post("/v1/track", event(), authorization=basic(BROWSER_KEY), origin=ORIGIN).answer
    later = instead(1.2, told)
    assert later.status == {too_many_requests: 429, unavailable: 503}[instead]
    assert later.headers == ((b"content-type", b"application/json"), (b"retry-after", b"2"), *READABLE)
    assert dict(instead(0.0, told).headers)[b"retry-after"] == b"1"


def test_a_pixel_that_has_to_wait_is_an_image() -> None:
    query = f"writeKey={BROWSER_KEY}&userId=u".encode()
    told = ask(request("GET", "/pixel/v1/page", b"", query, authorization=None)).answer
    later = unavailable(1, told)
    assert (later.status, later.body, dict(later.headers)[b"retry-after"]) == (503, told.body, b"1")
