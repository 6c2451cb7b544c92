"""Protocol: requests that go no further, and leave nothing behind."""

from typing import Any

import pytest

from millrace.collector.answers import Code
from millrace.collector.limits import Limits
from millrace.collector.protocol import Request, admit
from millrace.schemas.dead_letter import Reason
from tests.support.asking import (
    BROWSER_KEY,
    SERVER_KEY,
    SHOP,
    SOURCES,
    TRACKS_KEY,
    ask,
    basic,
    header,
    post,
    request,
    told,
)
from tests.support.decoding import NOW_US, event

TYPES = ("identify", "track", "page", "screen", "group", "alias")
POSTS = [f"/v1/{name}" for kind in TYPES for name in (kind, kind[0])]
POSTS += ["/v1/batch", "/v1/b", "/v1/import", "/beacon/v1/batch"]
GETS = ["/pixel/v1/track", "/pixel/v1/page", *(f"/v1/pixel/{kind}" for kind in TYPES)]
GETS += ["/sourceConfig", f"/v1/projects/{BROWSER_KEY}/settings"]


def _methods() -> list[tuple[str, str, bytes]]:
    verbs = ("GET", "HEAD", "PUT", "DELETE", "PATCH", "TRACE", "get", "")
    return [(verb, path, b"POST, OPTIONS") for path in POSTS for verb in verbs] + [
        (verb, path, b"GET, HEAD, OPTIONS") for path in GETS for verb in ("POST", "PUT", "DELETE", "post")
    ]


@pytest.mark.parametrize(("method", "path", "allowed"), _methods())
def test_a_wrong_method_is_told_the_right_ones(method: str, path: str, allowed: bytes) -> None:
    outcome = ask(request(method, path, event()))
    assert (outcome.answer.status, told(outcome)["code"]) == (405, "method_not_allowed")
    assert header(outcome, b"allow") == allowed
    assert not outcome.messages


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/v1",
        "/v1/",
        "/v1/m",
        "/v1/tracks",
        "/V1/track",
        "/v2/track",
        "/v1/projects//settings",
        "/pixel/v1/alias",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD"])
def test_there_is_nothing_elsewhere(method: str, path: str) -> None:
    outcome = ask(request(method, path, event()))
    assert (outcome.answer.status, told(outcome)["code"], outcome.route) == (404, "unknown_route", "other")
    assert not outcome.messages


REFUSED: dict[str, tuple[Request, int, str]] = {
    "no key": (request("POST", "/v1/track", event(), authorization=None), 401, "no_key"),
    "no key in a body that is no JSON": (request("POST", "/v1/track", b"{", authorization=None), 401, "no_key"),
    "an unknown key": (request("POST", "/v1/track", event(), authorization=basic("mrs_nobody")), 401, "unknown_key"),
    "no base64": (request("POST", "/v1/track", event(), authorization=b"Basic %%%"), 401, "unknown_key"),
    "another scheme": (request("POST", "/v1/track", event(), authorization=b"Digest a"), 401, "unknown_key"),
    "a server's key in a URL": (
        request("POST", "/beacon/v1/batch", [event()], f"writeKey={SERVER_KEY}".encode(), authorization=None),
        401,
        "secret_key_in_url",
    ),
    "another origin": (
        request("POST", "/v1/track", event(), authorization=basic(BROWSER_KEY), origin=b"https://evil.example"),
        403,
        "origin_not_allowed",
    ),
    "a server's key in a page": (
        request("POST", "/v1/track", event(), origin=SHOP.encode()),
        403,
        "origin_not_allowed",
    ),
    "no length": (request("POST", "/v1/track", b"", content_length=None), 411, "length_required"),
    "a length that is none": (request("POST", "/v1/track", b"", content_length=b"-1"), 400, "bad_length"),
    "a form with files": (
        request("POST", "/v1/track", event(), content_type=b"multipart/form-data; boundary=x"),
        415,
        "unknown_media_type",
    ),
    "UTF-16": (
        request("POST", "/v1/track", event(), content_type=b"text/plain; charset=utf-16"),
        415,
        "unknown_charset",
    ),
    "brotli": (request("POST", "/v1/track", event(), content_encoding=b"br"), 415, "unknown_encoding"),
    "gzip twice": (request("POST", "/v1/track", event(), content_encoding=b"gzip, gzip"), 415, "unknown_encoding"),
    "too many bytes": (request("POST", "/v1/track", b" " * (4 * 1024 * 1024 + 1)), 413, "body_too_large"),
    "too many events": (request("POST", "/v1/batch", [event()] * 2_501), 413, "too_many_events"),
    "too many small events": (request("POST", "/v1/batch", b"[" + b"{}," * 100_000 + b"{}]"), 413, "too_many_events"),
    "too many lines": (request("POST", "/v1/import", b"{}\n" * 100_000), 413, "too_many_events"),
}


@pytest.mark.parametrize(("asked", "status", "code"), REFUSED.values(), ids=REFUSED)
def test_a_refused_request_leaves_nothing(asked: Request, status: int, code: str) -> None:
    outcome = ask(asked)
    answer = told(outcome)
    assert (outcome.answer.status, answer["code"], answer["success"]) == (status, code, False)
    assert answer["message"]
    assert (header(outcome, b"www-authenticate") is not None) is (status == 401)
    assert (outcome.messages, outcome.events) == ((), 0)


IN_THE_BODY = (
    "no key",
    "no key in a body that is no JSON",
    "no length",
    "too many events",
    "too many small events",
    "too many lines",
)


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_head_tells_is_refused_before_the_body_is_read(name: str) -> None:
    asked, status, _ = REFUSED[name]
    refusal = admit(asked._replace(body=b""), SOURCES, NOW_US, Limits())
    assert refusal == (None if name in IN_THE_BODY else ask(asked).answer)
    assert refusal is None or refusal.status == status


@pytest.mark.parametrize(
    "sent", [[event()] * 4, [event(userId=None)] * 4, [5] * 4, b"{}\n{}\n{}\n{", b"[{},{},{},NaN]"]
)
def test_good_or_bad_events_past_the_limit_are_too_many(sent: Any) -> None:
    outcome = post("/v1/batch", sent, limits=Limits(events=3))
    assert (outcome.answer.status, told(outcome)["code"]) == (413, "too_many_events")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/t", None),
        ("OPTIONS", "/v1/t", None),
        ("GET", "/sourceConfig", None),
        ("GET", "/v1/t", 405),
        ("POST", "/", 404),
    ],
)
def test_a_head_is_refused_for_its_own_faults_only(method: str, path: str, status: int | None) -> None:
    refusal = admit(request(method, path, event()), SOURCES, NOW_US, Limits())
    assert (refusal and refusal.status) == status


KEYS: dict[str, dict[str, Any]] = {
    "basic": {"authorization": basic(TRACKS_KEY)},
    "basic in small letters": {"authorization": basic(TRACKS_KEY).replace(b"Basic", b"basic")},
    "bearer": {"authorization": b"Bearer " + TRACKS_KEY.encode()},
    "query": {"query": f"v=1&writeKey={TRACKS_KEY}".encode(), "authorization": None},
    "body": {"sent": {"batch": [event()], "writeKey": TRACKS_KEY}, "authorization": None},
    "one event's body": {"sent": event(writeKey=TRACKS_KEY), "authorization": None},
    "header before query and body": {
        "sent": event(writeKey=SERVER_KEY),
        "query": f"writeKey={BROWSER_KEY}".encode(),
        "authorization": basic(TRACKS_KEY),
    },
    "query before body": {
        "sent": event(writeKey=SERVER_KEY),
        "query": f"writeKey={TRACKS_KEY}".encode(),
        "authorization": None,
    },
}


@pytest.mark.parametrize("name", KEYS)
def test_the_key_is_found_where_sdks_put_it(name: str) -> None:
    parts = {"sent": event(), "query": b""} | KEYS[name]
    outcome = ask(request("POST", "/v1/batch", parts.pop("sent"), parts.pop("query"), **parts))
    assert (outcome.answer.status, outcome.source_id) == (200, "app")


def test_a_wrong_key_is_not_passed_over_for_another() -> None:
    outcome = post("/v1/track", event(writeKey=SERVER_KEY), authorization=basic("mrs_wrong"))
    assert outcome.answer.status == 401


def test_a_code_is_no_reason_but_for_the_encoding_which_both_sides_may_find_unknown() -> None:
    assert {code.text for code in Code} & {reason.value for reason in Reason} == {"unknown_encoding"}
