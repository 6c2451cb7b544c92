"""The parts of the webhook that need no network: signatures, ids, answers, settings."""

import asyncio
import datetime as dt
import doctest
import email.utils
import hashlib
import math
from typing import Any

import msgspec
import pytest
import standardwebhooks
from hypothesis import example, given, settings
from hypothesis import strategies as st

from millrace.sinks import http_answers, signature
from millrace.sinks.http_answers import LONGEST_PAUSE_S, Answer, outcomes_of, retry_after_s
from millrace.sinks.signature import key_of, request_id, signatures
from millrace.sinks.sink import (
    DELIVERED,
    CannotOpenSinkError,
    Delivered,
    Fault,
    Rejected,
    Retry,
    SinkDownError,
)
from millrace.sinks.webhook import Webhook
from tests.support.webhooks import SECRET, NoMemory

URL = "https://crm.example/hook"
NOW_S = 1_700_000_000.0


@pytest.mark.parametrize("module", [http_answers, signature])
def test_the_examples_in_docstrings_hold(module: Any):
    assert doctest.testmod(module).failed == 0


def test_the_signature_of_the_published_example():
    """The example of the specification: its secret, id, timestamp, payload and signature."""
    key = key_of(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    found = signatures([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}')
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@settings(deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=4), st.binary(min_size=16, max_size=64))
def test_the_published_library_takes_every_signature(ids: list[str], secret: bytes):
    name, now_s = request_id(ids), int(dt.datetime.now(dt.UTC).timestamp())
    body = msgspec.json.encode(ids).decode().encode()
    header = signatures([b"another key of ours", secret], name, now_s, body)
    headers = {"webhook-id": name, "webhook-timestamp": str(now_s), "webhook-signature": header}
    standardwebhooks.Webhook(secret).verify(body, headers)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(secret).verify(body + b" ", headers)


@settings(deadline=None)
@given(st.lists(st.text(max_size=300), min_size=1, max_size=4))
@example(["a.1700000000.{}"])
@example(["a\r\nx-admin: 1"])
@example([""])
@example(["\ud800"])
def test_an_id_is_always_a_plain_word_without_a_full_stop(ids: list[str]):
    found = request_id(ids)
    assert 0 < len(found) <= 255
    assert all("!" <= each <= "~" and each != "." for each in found)
    assert found == request_id(list(ids))


ids = st.lists(st.text(alphabet=st.sampled_from("ab.-:1"), max_size=6), min_size=1, max_size=3)


@settings(deadline=None)
@given(ids, ids)
@example(["ab"], ["a", "b"])
@example([f"sha256-{hashlib.sha256(b'a.b').hexdigest()}"], ["a.b"])
def test_other_events_have_another_id(some: list[str], others: list[str]):
    assert (request_id(some) == request_id(others)) == (some == others)


@pytest.mark.parametrize("secret", [b"whsec_", b"whsec_hush, no base64", b"whsec_aHVzaA==", b"hush"])
def test_a_secret_that_signs_nothing_is_refused_and_not_repeated(secret: bytes):
    with pytest.raises(ValueError, match=r"base64 has to follow|too short") as told:
        key_of(secret)
    assert "hush" not in str(told.value)
    assert "aHVzaA" not in str(told.value)


@settings(deadline=None)
@given(st.floats(-1e9, 1e9))
def test_a_retry_after_that_is_a_date_counts_from_now(seconds: float):
    at = dt.datetime.fromtimestamp(NOW_S + seconds, dt.UTC)
    found = retry_after_s(email.utils.format_datetime(at, usegmt=True).encode(), NOW_S)
    assert found is not None
    assert abs(found - min(max(seconds, 0), LONGEST_PAUSE_S)) <= 1


@settings(deadline=None)
@given(st.binary(max_size=80))
@example(b"9" * 400)
@example(b"-1")
@example(b"1e9")
@example("²".encode("latin-1"))
@example(b"Mon, 99 Foo 2026 00:00:00 GMT")
@example(b"Sun, 06 Nov 1994 08:49:37 -0000")
@example(b"Fri, 31 Dec 99999 23:59:59 GMT")
def test_any_retry_after_is_bounded_or_none(value: bytes):
    found = retry_after_s(value, NOW_S)
    assert found is None or 0 <= found <= LONGEST_PAUSE_S


JSON = {b"content-type": b"application/json"}


@settings(deadline=None)
@given(st.integers(100, 999), st.binary() | st.just(b'{"results":[{"id":"a","status":500}]}'))
def test_every_answer_gives_each_event_one_outcome(status: int, body: bytes):
    try:
        found = outcomes_of(Answer(status, JSON, body), ["a", "b"], NOW_S)
    except SinkDownError:
        assert 300 <= status < 400
        return
    assert len(found) == 2
    if not 200 <= status < 300:
        kind = Rejected if 400 <= status < 500 and status not in (408, 429) else Retry
        assert [type(each) for each in found] == [kind, kind]
    elif status != 207:
        assert isinstance(found[1], Delivered)


@pytest.mark.parametrize(
    "body",
    [None, b"", b"{}", b"[]", b'{"results":"ok"}', b'{"results":[{"id":1,"status":500}]}',
     b'{"results":[{"id":"a","status":"no"}]}', b"\xff\xfe", b"[" * 100_000,
     b'{"results":[{"id":"other","status":500}]}'],
)  # fmt: skip
def test_a_body_without_verdicts_says_nothing(body: bytes | None):
    assert outcomes_of(Answer(200, JSON, body), ["a"], NOW_S) == [DELIVERED]
    assert outcomes_of(Answer(207, JSON, body), ["a"], NOW_S) == [
        Retry(Fault.FAILED, "the receiver answers 207 without a verdict on it")
    ]


@pytest.mark.parametrize("after", [-1, 5, 1e12, math.inf])
def test_a_verdict_can_say_when_but_within_bounds(after: float):
    body = msgspec.json.encode({"results": [{"id": "a", "status": 429, "retry_after": min(after, 1e300)}]})
    (found,) = outcomes_of(Answer(200, JSON, body), ["a"], NOW_S)
    assert isinstance(found, Retry)
    assert found.after_s == min(max(after, 0), LONGEST_PAUSE_S)


def test_verdicts_are_read_from_json_only():
    body = b'{"results":[{"id":"a","status":500}]}'
    assert outcomes_of(Answer(200, {b"content-type": b"text/plain"}, body), ["a"], NOW_S) == [DELIVERED]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"url": "http://crm.example/"}, "url has to be https://"),
        ({"url": "https://10.0.0.1/"}, "url: 10.0.0.1 is no public address"),
        ({"url": "env:"}, "url has to say where the secret is"),
        ({"secret": "whsec_c2VjcmV0"}, "secret has to say where the secret is, never the secret itself"),
        ({"old_secret": "env:OLD"}, "old_secret needs secret"),
        ({"headers": {"authorization": "Bearer c2VjcmV0"}}, "headers: authorization has to be a reference"),
        ({"headers": {"X-Api-Key": "c2VjcmV0"}}, "headers: X-Api-Key has to be a reference"),
        ({"headers": {"x-a": "b\r\nx-c2VjcmV0: d"}}, "headers: the value of x-a has to be one line of visible ASCII"),
        ({"headers": {"x-a": "b\nd"}}, "one line of visible ASCII"),
        ({"headers": {"x-a": "b\x00d"}}, "one line of visible ASCII"),
        ({"headers": {"x-a": "größe"}}, "one line of visible ASCII"),
        ({"headers": {"x-a": " b"}}, "one line of visible ASCII"),
        ({"headers": {"x-a": ""}}, "one line of visible ASCII"),
        ({"headers": {"x-a: b\r\nx": "d"}}, "headers: a name has to be letters, digits and hyphens"),
        ({"headers": {":path": "/"}}, "headers: a name has to be letters, digits and hyphens"),
        ({"headers": {"Host": "other"}}, "headers: host is set by the sink itself"),
        ({"headers": {"Transfer-Encoding": "chunked"}}, "headers: transfer-encoding is set by the sink itself"),
        ({"headers": {"webhook-id": "m"}}, "headers: webhook-id is set by the sink itself"),
        ({"headers": {"x-a": "1", "X-A": "2"}}, "headers may name each header once"),
        ({"timeout_s": 0}, "timeout_s has to be from 0.1 to 600"),
        ({"max_connections": 0}, "max_connections has to be from 1 to 10000"),
        ({"down_on": (302,)}, "down_on has to list statuses from 400 to 599"),
        ({"method": "GET"}, "method has to be POST, PUT or PATCH"),
        ({"format": "xml"}, "format has to be array or ndjson"),
        ({"single": True, "verdicts": True}, "verdicts and format are for batches"),
    ],
)
def test_a_mistake_in_the_settings_is_one_sentence_without_secrets(settings: dict[str, Any], says: str):
    with pytest.raises(ValueError, match="^" + says.replace("(", r"\(") if says[0] != "o" else says) as told:
        Webhook(**{"url": URL, **settings})
    assert "c2VjcmV0" not in str(told.value)
    assert "\n" not in str(told.value)


def test_only_a_batch_that_is_taken_whole_may_hold_a_user_twice():
    assert Webhook(URL).keeps_order
    assert not Webhook(URL, single=True).keeps_order
    assert not Webhook(URL, verdicts=True).keeps_order


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"secret": "env:HOOK_MISSING"}, "webhook: the secret env:HOOK_MISSING is missing"),
        ({"secret": "env:HOOK_SHORT"}, "webhook: secret is too short to sign with"),
        ({"headers": {"x-a": "env:HOOK_TWO_LINES"}}, "webhook: headers: the value of x-a has to be one line"),
        ({"url": "env:HOOK_PRIVATE"}, "webhook: url: 127.0.0.1 is no public address"),
        ({"ca_file": "/nowhere/ca.pem"}, "webhook: ca_file: ca.pem cannot be read as certificates"),
        ({"ca_file": __file__}, "webhook: ca_file: test_webhook_parts.py cannot be read as certificates"),
    ],
)  # fmt: skip
def test_what_cannot_be_opened_says_why_without_secrets(monkeypatch, settings: dict[str, Any], says: str):
    monkeypatch.setenv("HOOK_SHORT", "hush")
    monkeypatch.setenv("HOOK_TWO_LINES", "hush\r\nx-admin: hush")
    monkeypatch.setenv("HOOK_PRIVATE", "https://127.0.0.1/hush")
    sink = Webhook(**{"url": URL, **settings})
    with pytest.raises(CannotOpenSinkError, match="^" + says) as told:
        asyncio.run(sink.open(NoMemory()))
    assert "hush" not in str(told.value)


def test_nothing_shows_what_is_secret(monkeypatch):
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    monkeypatch.setenv("HOOK_TOKEN", "Bearer hush")
    monkeypatch.setenv("HOOK_URL", "https://crm.example/hush?hush")
    given: dict[str, Any] = {"secret": "env:HOOK_SECRET", "headers": {"Authorization": "env:HOOK_TOKEN"}}
    for url in ("https://crm.example/hush?hush", "env:HOOK_URL"):
        sink = Webhook(url, **given)

        async def shown(sink: Webhook = sink) -> list[str]:
            await sink.open(NoMemory())
            try:
                sender = sink._senders[0]
                return [repr(sink), str(sink), repr(sender), repr(sender.pool), repr(sender.pool._destination)]
            finally:
                await sink.close()

        for text in asyncio.run(shown()):
            assert "hush" not in text
            assert SECRET not in text
            assert "twenty-four" not in text
