"""Protocol: of what it accepts decode makes rows, of what it rejects dead letters; nothing is lost between the two."""

import gzip
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from millrace.collector.limits import Limits
from millrace.collector.protocol import Outcome
from millrace.schemas.dead_letter import Rejected
from millrace.transforms.unpack import split_events
from tests.support.asking import decoded, post, told
from tests.support.decoding import event

LIMITS = Limits(event_bytes=4_000, event_bytes_soft=500, events=40)
FOUND_BY_DECODE_ONLY = {"number_out_of_range", "too_deep"}
"""In events without any other fault; see collector/glance.py and docs/http_api.md."""

CLEAN = [
    event(),
    event(type="page", name="Home", context={"page": {"url": "https://shop.example/"}, "library": {"version": "1.0"}}),
    event(userId=7, anonymousId="a", timestamp=1_700_000_000, traits={}, unknown=[1, {"a": None}]),
    event(userId=None, anonymousId="ü", properties={"text": 'a"b\\u0041 [{', "batch": [1]}),
    event(context={"screen": {"width": 1}, "traits": {"email": "a@b.example"}, "odd": 1}, integrations={"All": True}),
    event(messageId=None, originalTimestamp=None, properties=None),
]
ODD = [
    event(userId=0),
    event(properties=[], traits=None, context=[]),
    event(userId=1.5, context={"library": {"version": 2}, "device": {"model": 7, "id": 0}}),
    event(properties={"text": "\\u0000 is no NUL {"}),
]
BAD = [
    event(userId=None),
    event(userId="  ", anonymousId=""),
    event(type="click"),
    event(type=None),
    event(type=5),
    event(messageId="x" * 101),
    event(event={"a": 1}),
    event(timestamp=True),
    event(context="none"),
    event(context={"page": {"url": 5}}),
    event(context={"page": "none"}),
    event(properties="none"),
    event(properties={"a": "\x00"}),
    event(properties={"a": "\ud800"}),
    event(properties={"a": float("nan")}),
    event(properties={"a": "x" * 5_000}),
    event(batch=[event(), event()], type=None),
    5,
    None,
    "text",
    [],
    [event()],
    {},
]
DEEP: Any = event(properties=json.loads("[" * 70 + "]" * 70) or 1)
DEEP["properties"] = {"a": DEEP["properties"]}
BAD.append(DEEP)

SPLINTERS = [b"", b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\n", b"\x00", b"\xff"]
EVENTS = st.sampled_from(CLEAN) | st.sampled_from(ODD) | st.sampled_from(BAD)
SHARED = st.fixed_dictionaries(
    {},
    optional={
        "sentAt": st.sampled_from(["2026-11-23T10:00:00Z", 5, {}]),
        "writeKey": st.sampled_from(["k", 5]),
        "context": st.sampled_from([{"locale": "de"}, {"page": 5}, None, [], "none"]),
        "integrations": st.sampled_from([{"All": True}, None]),
        "type": st.sampled_from(["page", "click"]),
        "userId": st.just("shared"),
        "messageId": st.just("of the batch"),
        "odd": st.sampled_from([1, "\x00"]),
    },
)


def sizes_are_within_the_limits(outcome: Outcome) -> None:
    for message in outcome.messages:
        assert len(message.body) < 10_000_000
        for name, value in message.attributes.items():
            assert name
            assert len(value.encode()) <= 1_024
            assert value.isprintable() or "\n" not in value


def check(sent: bytes, path: str = "/v1/batch", *, packed: bool = False) -> None:
    """Send a body, decode what came of it, and compare."""
    outcome = post(
        path,
        gzip.compress(sent, 1, mtime=0) if packed else sent,
        limits=LIMITS,
        content_encoding=b"gzip" if packed else None,
    )
    status = outcome.answer.status
    assert status in (200, 400, 413)
    if status == 413:
        assert not outcome.messages
        return
    answer = told(outcome)
    rejected = sum(outcome.rejected.values()) if outcome.events else 0
    accepted = outcome.events - rejected
    assert sum(message.events for message in outcome.messages) == outcome.events
    assert status == (200 if accepted else 400)
    assert len(answer.get("rejected", ())) == max(rejected, status == 400)
    sizes_are_within_the_limits(outcome)

    decoding = decoded(outcome)
    letters = decoding.letters.to_pylist()
    collected = [letter for letter in letters if letter["stage"] == "collect"]
    later = [letter for letter in letters if letter["stage"] == "decode"]
    assert {letter["reason"] for letter in later} <= FOUND_BY_DECODE_ONLY
    assert decoding.batch.num_rows + len(later) == accepted
    assert len(collected) == rejected
    assert {letter["reason"] for letter in collected} == set(outcome.rejected) - {"empty"}

    if rejected and not packed:
        payloads = payloads_of(sent)
        by_place = {each["index"]: each["reason"] for each in answer["rejected"]} if "rejected" in answer else {}
        expected = sorted((reason, payloads[place]) for place, reason in by_place.items())
        assert sorted((letter["reason"], letter["payload"]) for letter in collected) == expected


def payloads_of(sent: bytes) -> list[bytes]:
    try:
        return split_events(sent.removeprefix(b"\xef\xbb\xbf")).events
    except Rejected:
        return [sent]


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENTS, max_size=6), SHARED, st.sampled_from(["batch", "array", "lines", "single"]), st.booleans())
@example([BAD[0], CLEAN[0], DEEP], {"context": {"locale": "de"}}, "batch", False)
@example([CLEAN[0]] * 41, {}, "array", True)
def test_accepted_events_become_rows_and_rejected_ones_dead_letters(
    events: list[Any], shared: dict[str, Any], form: str, packed: bool
) -> None:
    match form:
        case "batch":
            sent = json.dumps({"batch": events} | shared)
        case "array":
            sent = json.dumps(events)
        case "lines":
            sent = "\n".join(map(json.dumps, events))
        case _:
            sent = json.dumps(events[0] if events else {})
    check(sent.encode(), packed=packed)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(CLEAN + ODD + BAD), st.data())
def test_a_damaged_event_is_kept_as_it_came(value: Any, data: st.DataObject) -> None:
    """Bytes are cut out, put in and exchanged, as a broken client or an attacker would."""
    sent = bytearray(json.dumps({"batch": [event(), value]}).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(sent)))
        end = min(len(sent), start + data.draw(st.integers(0, 3)))
        sent[start:end] = data.draw(st.sampled_from(SPLINTERS))
    check(bytes(sent))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,\\nul0e9 \n', max_size=60).map(str.encode))
def test_any_bytes_are_answered_and_kept(sent: bytes) -> None:
    check(sent, "/v1/track")


@pytest.mark.parametrize("value", [*CLEAN, *ODD])
def test_good_events_are_taken_as_they_came(value: Any) -> None:
    sent = json.dumps(value).encode()
    outcome = post("/v1/batch", sent)
    assert (outcome.answer.status, outcome.messages[0].body) == (200, sent)
    check(sent)


@pytest.mark.parametrize("value", BAD)
def test_a_bad_event_is_rejected_alone_and_among_good_ones(value: Any) -> None:
    alone = post("/v1/batch", json.dumps([value]).encode(), limits=LIMITS)
    assert (alone.answer.status, len(alone.rejected)) == (400, 1)
    check(json.dumps([value]).encode())
    for sent in ([*CLEAN, value], {"batch": [value, *CLEAN], "sentAt": "2026-11-23T10:00:00Z"}):
        outcome = post("/v1/batch", sent, limits=LIMITS)
        assert (outcome.answer.status, sum(outcome.rejected.values())) == (200, 1)
        check(json.dumps(sent).encode())


@pytest.mark.parametrize(
    ("shared", "rejected"),
    [
        ({"type": "page"}, 0),
        ({"type": "click"}, 1),
        ({"userId": "u"}, 0),
        ({"odd": 1}, 0),
        ({"odd": "\x00"}, 2),
        ({"context": {"page": 5}}, 2),
        ({"context": json.loads('{"a":' + "[" * 62 + "]" * 62 + "}")}, 0),
        ({"context": json.loads('{"a":' + "[" * 63 + "]" * 63 + "}")}, 2),
        ({"sentAt": {}}, 2),
        ({"messageId": "m"}, 0),
        ({"properties": 5}, 2),
    ],
)
def test_what_a_batch_says_counts_for_each_of_its_events(shared: dict[str, Any], rejected: int) -> None:
    sent = {"batch": [event(type=None if "type" in shared else "track"), event(messageId="b")]} | shared
    outcome = post("/v1/batch", sent)
    assert sum(outcome.rejected.values()) == rejected
    check(json.dumps(sent).encode())


@pytest.mark.parametrize(
    "sent", [b'{"type":"track","userId":"u","properties":{"a":"\xff"}}', b'[{"type":"track","\xed\xa0\x80":1}]']
)
def test_what_is_not_utf8_is_rejected_wherever_it_stands(sent: bytes) -> None:
    assert post("/v1/batch", sent).rejected == {"not_utf8": 1}
    check(sent)


def test_lines_that_break_off_are_kept_one_by_one() -> None:
    """Put together they could not be told apart any more."""
    broken = b'{"type":"track","userId":'
    outcome = post("/v1/import", b"\n".join([broken, json.dumps(event()).encode(), broken]))
    assert [(message.events, message.body) for message in outcome.messages[1:]] == [(1, broken), (1, broken)]
    letters = decoded(outcome).letters.to_pylist()
    assert [(letter["stage"], letter["payload"]) for letter in letters] == [("collect", broken)] * 2


def test_a_batch_that_hides_its_name_behind_an_escape_is_still_one() -> None:
    sent = json.dumps({"batch": [event(), event()], "userId": "u", "type": "track"}).encode()
    outcome = post("/v1/batch", sent.replace(b'"batch"', b'"b\\u0061tch"'))
    assert (outcome.answer.status, outcome.events) == (200, 2)
    assert decoded(outcome).batch.num_rows == 2


def test_of_a_key_that_stands_twice_the_last_one_counts_for_both() -> None:
    check(
        b'{"batch":[{"userId":"u"}],"batch":[{"type":"track","userId":"u"},{"type":"track","userId":"v","userId":""}]}'
    )


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(
            b'{"type":"track","event":"e","userId":"u","properties":{"a":1e999}}', id="a number that no double holds"
        ),
        pytest.param(
            b'{"type":"track","event":"e","userId":"u","properties":{"a":'
            + b'{"b":"}","c":' * 70
            + b"1"
            + b',"d":"{"}' * 70
            + b"}}",
            id="levels hidden by brackets in strings",
        ),
    ],
)
def test_what_only_decode_finds_is_a_dead_letter_there(value: bytes) -> None:
    outcome = post("/v1/track", value)
    assert outcome.answer.status == 200
    decoding = decoded(outcome)
    assert decoding.batch.num_rows == 0
    assert [(letter["stage"], letter["payload"]) for letter in decoding.letters.to_pylist()] == [("decode", value)]
    assert decoding.letters["reason"][0].as_py() in FOUND_BY_DECODE_ONLY
    with_another_fault = value.replace(b'"event":"e"', b'"event":{}')
    assert post("/v1/track", with_another_fault).answer.status == 400
