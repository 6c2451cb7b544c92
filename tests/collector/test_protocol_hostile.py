"""Protocol: any request at all is answered with one of the documented statuses, and nothing raises."""

import re
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from millrace.collector.limits import Limits
from millrace.collector.protocol import Request, admit, handle
from millrace.collector.routes import NAMES
from tests.support.asking import BROWSER_KEY, SERVER_KEY, SOURCES, TRACKS_KEY, basic
from tests.support.decoding import NOW_US

DOCUMENT = Path(__file__).parents[2] / "docs" / "http_api.md"
STATUSES = {int(status) for status in re.findall(r"^\| (\d{3}) \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)}
LIMITS = Limits(body_bytes=200, events=3, event_bytes=100)

METHODS = st.sampled_from(["POST", "GET", "HEAD", "OPTIONS"]) | st.text(max_size=8)
PATHS = (
    st.sampled_from([name.replace("{key}", BROWSER_KEY) for name in NAMES])
    | st.text(max_size=20)
    | st.builds("/v1/projects/{}/settings".format, st.text(max_size=210))
)
KEYS = st.sampled_from([BROWSER_KEY, SERVER_KEY, TRACKS_KEY, "mrb_none"])
QUERIES = (
    st.binary(max_size=60)
    | st.builds("writeKey={}&userId=u".format, KEYS).map(str.encode)
    | st.builds(lambda key, rest: b"writeKey=" + key.encode() + b"&" + rest, KEYS, st.binary(max_size=40))
)
VALUES = {
    b"authorization": KEYS.map(basic) | st.builds(lambda key: b"Bearer " + key.encode(), KEYS) | st.just(b"Basic"),
    b"content-type": st.sampled_from(
        [b"application/json", b"text/plain;charset=utf-8", b";;=", b"text/plain; charset="]
    ),
    b"content-length": st.sampled_from([b"0", b"10", b"999999999999999999999", b"1e3", "\u0661".encode(), b""]),
    b"content-encoding": st.sampled_from([b"gzip", b"identity", b"br", b""]),
    b"origin": st.sampled_from([b"https://shop.example", b"null", b"https://*.shop.example", b"*"]),
    b"x-forwarded-for": st.sampled_from([b"192.0.2.1", b",,", b"unknown, ::1%eth0"]),
    b"user-agent": st.just(b"test"),
    b"host": st.just(b"collector.example"),
    b"access-control-request-method": st.just(b"POST"),
    b"access-control-request-headers": st.just(b"content-type"),
}
HEADERS = st.fixed_dictionaries({}, optional={name: good | st.binary(max_size=20) for name, good in VALUES.items()})
BODIES = st.binary(max_size=210) | st.sampled_from(
    [b'{"userId":"u"}', b'[{"type":"page","userId":"u"},{}]', b"[1,2,3,4]", f'{{"writeKey":"{TRACKS_KEY}"}}'.encode()]
)
REQUESTS = st.builds(
    Request, METHODS, PATHS, QUERIES, HEADERS, BODIES, st.sampled_from(["192.0.2.1", "::1", "", "unix:"])
)


@settings(max_examples=1_000, deadline=None)
@given(REQUESTS)
def test_any_request_gets_a_documented_answer(request: Request) -> None:
    outcome = handle(request, SOURCES, NOW_US, "req-1", LIMITS)
    assert outcome.answer.status in STATUSES
    assert outcome.route in {*NAMES, "other"}
    for name, value in outcome.answer.headers:
        assert re.fullmatch(rb"[a-z-]+", name)
        assert re.fullmatch(rb"[ -~]*", value)
    assert sum(message.events for message in outcome.messages) == outcome.events
    assert not outcome.messages or outcome.source is not None


@settings(max_examples=300, deadline=None)
@given(REQUESTS)
@example(
    Request("POST", "/v1/batch", b"", {b"authorization": basic(BROWSER_KEY), b"origin": b"null"}, b"", "192.0.2.1")
)
def test_whoever_is_not_admitted_would_have_been_refused_with_the_same_answer(request: Request) -> None:
    refusal = admit(request, SOURCES, NOW_US, LIMITS)
    if refusal is not None:
        assert refusal.status in STATUSES
        whole = handle(request, SOURCES, NOW_US, "req-1", LIMITS)
        # A wrong content-length is seen in the head; by then the body is read, and its own size counts.
        assert whole.answer == refusal or refusal.status in (400, 413)
