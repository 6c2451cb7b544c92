"""Protocol: what each request is answered, and which messages it becomes."""

import gzip
import json

import pytest

from millrace.collector.limits import Limits
from millrace.collector.protocol import headers_of
from millrace.schemas.dead_letter import Reason
from tests.support.asking import (
    BROWSER_KEY,
    TRACKS_KEY,
    basic,
    decoded,
    post,
    told,
)
from tests.support.decoding import event, refusals, rows

TYPES = ("identify", "track", "page", "screen", "group", "alias")
LETTERS = {kind[0]: kind for kind in TYPES}
BATCHES = ("/v1/batch", "/v1/b", "/v1/import", "/beacon/v1/batch")
EVENT_ROUTES = {f"/v1/{kind}": kind for kind in TYPES} | {f"/v1/{letter}": kind for letter, kind in LETTERS.items()}
PIXELS = {"/pixel/v1/track": "track", "/pixel/v1/page": "page"} | {f"/v1/pixel/{kind}": kind for kind in TYPES}
BROWSER = basic(BROWSER_KEY)


@pytest.mark.parametrize(("path", "kind"), EVENT_ROUTES.items())
def test_an_event_is_taken_as_it_came_and_its_route_tells_its_type(path: str, kind: str) -> None:
    sent = b' {"userId" : "u1", "messageId":"m1", "odd":[1.0] }'
    outcome = post(path, sent)
    assert (outcome.answer.status, told(outcome)) == (200, {"success": True})
    assert [(message.body, message.attributes, message.events) for message in outcome.messages] == [
        (
            sent,
            {
                "source_id": "backend",
                "received_at": "2026-11-23T10:00:00.000000Z",
                "schema_version": "1",
                "request_id": "req-1",
                "ip": "192.0.2.0",
                "user_agent": "test/1",
                "event_type": kind,
            },
            1,
        )
    ]
    assert rows(decoded(outcome), "type", "user_id", "message_id", "rest") == [(kind, "u1", "m1", '{"odd":[1.0]}')]
    assert (outcome.source_id, outcome.route, outcome.events, outcome.rejected) == ("backend", path, 1, {})


@pytest.mark.parametrize("path", BATCHES)
def test_a_batch_in_any_form_is_one_message(path: str) -> None:
    events = [event(messageId="a", type="page"), event(messageId="b")]
    lines = b"\n".join(json.dumps(each).encode() for each in events) + b"\n"
    for sent in ({"batch": events, "sentAt": "2026-11-23T10:00:00Z", "writeKey": "k"}, events, lines):
        outcome = post(path, sent)
        assert outcome.answer.status == 200
        assert [message.events for message in outcome.messages] == [2]
        assert "event_type" not in outcome.messages[0].attributes
        assert rows(decoded(outcome), "message_id", "type") == [("a", "page"), ("b", "track")]


def test_a_packed_body_stays_packed() -> None:
    packed = gzip.compress(json.dumps({"batch": [event()]}).encode())
    outcome = post("/v1/batch", packed, content_encoding=b"GZIP")
    assert outcome.messages[0].body == packed
    assert outcome.messages[0].attributes["content-encoding"] == "gzip"
    assert rows(decoded(outcome), "user_id") == ["u1"]


def test_an_event_without_an_id_gets_that_of_its_request() -> None:
    outcome = post("/v1/batch", [event(messageId=None), event(messageId=" ")])
    assert rows(decoded(outcome), "message_id") == ["req-1-0", "req-1-1"]


@pytest.mark.parametrize("path", ["/v1/track/", "//v1//track", "/v1/track///"])
def test_slashes_too_many_mean_nothing(path: str) -> None:
    assert post(path, event()).route == "/v1/track"


def test_a_batch_with_bad_events_is_taken_without_them() -> None:
    """The verdicts name places in the body as it came; the good keep what the batch says of all its events."""
    events = [
        event(messageId="a"),
        event(userId=None),
        event(messageId="b", context={"locale": "de"}),
        event(type="click"),
        event(userId=None, odd=1),
        event(messageId="x" * 101),
    ]
    sent = {"context": {"timezone": "UTC"}, "batch": events, "sentAt": "2026-11-23T09:59:59Z"}
    outcome = post("/v1/batch", sent)
    no_user = {"reason": "no_user", "message": "neither userId nor anonymousId"}
    answer = told(outcome)
    message = answer["rejected"][1].pop("message")
    assert "click" in message
    assert outcome.answer.status == 200
    assert answer == {
        "success": True,
        "accepted": 2,
        "rejected": [
            {"index": 1, **no_user},
            {"index": 3, "reason": "not_an_event"},
            {"index": 4, **no_user},
            {"index": 5, "reason": "message_id_too_long", "message": "101 characters, at most 100 are taken"},
        ],
    }
    assert outcome.rejected == {"no_user": 2, "not_an_event": 1, "message_id_too_long": 1}
    assert (outcome.events, [each.events for each in outcome.messages]) == (6, [2, 2, 1, 1])
    decoding = decoded(outcome)
    assert rows(decoding, "message_id", "context_locale", "context_timezone", "sent_at") == [
        ("a", None, "UTC", rows(decoding, "sent_at")[0]),
        ("b", "de", "UTC", rows(decoding, "sent_at")[0]),
    ]
    assert sorted(
        (letter["reason"], letter["message"], letter["payload"], letter["stage"])
        for letter in decoding.letters.to_pylist()
    ) == sorted(
        [
            ("no_user", "neither userId nor anonymousId", json.dumps(events[1]).encode(), "collect"),
            ("not_an_event", message, json.dumps(events[3]).encode(), "collect"),
            ("no_user", "neither userId nor anonymousId", json.dumps(events[4]).encode(), "collect"),
            ("message_id_too_long", "101 characters, at most 100 are taken", json.dumps(events[5]).encode(), "collect"),
        ]
    )


def test_a_batch_of_bad_events_is_refused_and_kept() -> None:
    sent = json.dumps({"batch": [event(userId=None), event(userId=" ")]}).encode()
    packed = gzip.compress(sent)
    outcome = post("/v1/batch", packed, content_encoding=b"gzip")
    reason = {"reason": "no_user", "message": "neither userId nor anonymousId"}
    assert outcome.answer.status == 400
    assert told(outcome) == {
        "success": False,
        "code": "no_user",
        "message": reason["message"],
        "accepted": 0,
        "rejected": [{"index": 0, **reason}, {"index": 1, **reason}],
    }
    assert [(each.body, each.events, each.attributes["rejected"]) for each in outcome.messages] == [
        (packed, 2, "no_user")
    ]
    assert [letter[1:3] for letter in refusals(decoded(outcome))] == [(0, "no_user"), (1, "no_user")]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"{", Reason.NOT_JSON),
        (b"\xff", Reason.NOT_UTF8),
        (b"nothing", Reason.NOT_JSON),
        (b'"text"', Reason.NOT_AN_EVENT),
    ],
)
def test_a_body_that_is_no_event_is_refused_and_kept(sent: bytes, reason: Reason) -> None:
    outcome = post("/v1/track", sent)
    assert (outcome.answer.status, told(outcome)["code"], outcome.events) == (400, reason.value, 1)
    assert refusals(decoded(outcome)) == [("e0", -1 if reason is not Reason.NOT_AN_EVENT else 0, reason.value, sent)]


@pytest.mark.parametrize("sent", [b"", b" \r\n", b"[]", b'{"batch":[]}', b"\xef\xbb\xbf"])
def test_nothing_is_kept_of_nothing(sent: bytes) -> None:
    outcome = post("/v1/batch", sent)
    assert (outcome.answer.status, told(outcome)["code"], outcome.events, list(outcome.messages)) == (
        400,
        "empty",
        0,
        [],
    )


def test_a_source_may_send_only_the_types_that_it_is_allowed() -> None:
    outcome = post("/v1/batch", [event(), event(type="page")], authorization=basic(TRACKS_KEY))
    assert told(outcome)["rejected"] == [
        {"index": 1, "reason": "type_not_allowed", "message": "this source may not send events of type page"}
    ]
    assert rows(decoded(outcome), "type") == ["track"]


def test_the_lenient_answer_is_segments_and_hides_the_verdicts_only() -> None:
    sent = [event(), event(userId=None)]
    outcome = post("/v1/batch", sent, limits=Limits(lenient=True))
    assert (outcome.answer.status, told(outcome)) == (200, {"success": True})
    assert outcome.messages == post("/v1/batch", sent).messages
    assert post("/v1/batch", sent[1:], limits=Limits(lenient=True)).answer.status == 200
    assert post("/v1/batch", b"{", limits=Limits(lenient=True)).answer.status == 400


def test_a_large_event_is_counted_and_a_huge_one_rejected() -> None:
    large, huge = event(properties={"a": "x" * 40_000}), event(properties={"a": "x" * 1_100_000})
    outcome = post("/v1/batch", [event(), large, huge])
    assert (outcome.oversized, outcome.rejected) == (1, {"too_large": 1})
    assert post("/v1/batch", [event(), large]).oversized == 1
    assert post("/v1/batch", [event()] * 400).oversized == 0


def test_headers_that_stand_twice_are_one_list() -> None:
    pairs = [(b"X-Forwarded-For", b"192.0.2.1"), (b"Host", b"a"), (b"x-forwarded-for", b"192.0.2.2")]
    assert headers_of(pairs) == {b"x-forwarded-for": b"192.0.2.1, 192.0.2.2", b"host": b"a"}


@pytest.mark.parametrize(
    ("agent", "kept"),
    [
        (b"a\x00b\x7f\xc2\x80c", "abc"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"x" * 5_000, "x" * 1_024),
        ("ü".encode() * 2_000, "ü" * 512),
        (b"\xff" * 2_000, "\ufffd" * 341),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
    ],
)
def test_a_hostile_user_agent_is_cut_to_what_an_attribute_may_hold(agent: bytes, kept: str) -> None:
    assert post("/v1/track", event(), user_agent=agent).messages[0].attributes["user_agent"] == kept
