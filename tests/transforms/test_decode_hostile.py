"""Decode: what cannot go on is a dead letter with its reason, and takes nothing with it."""

import gzip
import time
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.schemas.dead_letter import Reason
from millrace.transforms.decode import decode_envelopes
from millrace.transforms.pending import Limits
from tests.support.decoding import NOW_US, body, decode, decode_within, envelope, event, refusals, rows

GOOD = [event(messageId="before"), event(messageId="after")]


def with_properties(text: bytes) -> bytes:
    return b'{"type":"track","userId":"u","properties":' + text + b"}"


def nested(levels: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * levels + b"1" + closing * levels


BAD_EVENTS = {
    "NaN": (with_properties(b'{"a":NaN}'), Reason.NOT_JSON),
    "Infinity": (with_properties(b'{"a":[-Infinity]}'), Reason.NOT_JSON),
    "a bare word": (b"oops", Reason.NOT_JSON),
    "a bad escape": (with_properties(b'{"a":"\\x"}'), Reason.NOT_JSON),
    "a control character": (with_properties(b'{"a":"\x01"}'), Reason.NOT_JSON),
    "a leading zero": (with_properties(b'{"a":01}'), Reason.NOT_JSON),
    "1e999": (with_properties(b'{"a":1e999}'), Reason.NUMBER_OUT_OF_RANGE),
    "1e999 as an id": (b'{"type":"track","userId":1e999}', Reason.NUMBER_OUT_OF_RANGE),
    "1e999 in an unlisted field": (b'{"type":"track","userId":"u","odd":{"a":-1e999}}', Reason.NUMBER_OUT_OF_RANGE),
    "1e999 in a listed field": (b'{"type":"track","userId":"u","integrations":1e999}', Reason.NUMBER_OUT_OF_RANGE),
    "1e999 in a context field": (
        b'{"type":"track","userId":"u","context":{"screen":1e999}}',
        Reason.NUMBER_OUT_OF_RANGE,
    ),
    "400 digits": (with_properties(b'{"a":' + b"9" * 400 + b"}"), Reason.NUMBER_OUT_OF_RANGE),
    "10,000 digits": (with_properties(b'{"a":-' + b"9" * 10_000 + b"}"), Reason.NUMBER_OUT_OF_RANGE),
    "invalid UTF-8": (with_properties(b'{"a":"\xff"}'), Reason.NOT_UTF8),
    "invalid UTF-8 in a key": (with_properties(b'{"\xc0\x80":1}'), Reason.NOT_UTF8),
    "an encoded surrogate": (with_properties(b'{"a":"\xed\xa0\x80"}'), Reason.NOT_UTF8),
    "NUL": (with_properties(b'{"a":"\x00"}'), Reason.FORBIDDEN_CHARACTER),
    "escaped NUL": (with_properties(b'{"a":"\\u0000"}'), Reason.FORBIDDEN_CHARACTER),
    "escaped NUL in a key": (b'{"type":"track","userId":"u","\\u0000":1}', Reason.FORBIDDEN_CHARACTER),
    "escaped NUL in an id": (b'{"type":"track","userId":"a\\u0000"}', Reason.FORBIDDEN_CHARACTER),
    "half a pair": (with_properties(b'{"a":"\\ud83d"}'), Reason.FORBIDDEN_CHARACTER),
    "half a pair and a letter": (with_properties(b'{"a":"\\ud83d\\u0041"}'), Reason.FORBIDDEN_CHARACTER),
    "the other half": (with_properties(b'{"a":"\\uDE00"}'), Reason.FORBIDDEN_CHARACTER),
    "65 levels": (with_properties(nested(64)), Reason.TOO_DEEP),
    "65 levels in a context field": (
        b'{"type":"track","userId":"u","context":{"screen":' + nested(63) + b"}}",
        Reason.TOO_DEEP,
    ),
    "5,000 levels": (with_properties(nested(5_000)), Reason.TOO_DEEP),
    "100,000 objects": (with_properties(nested(100_000, b'{"a":', b"}")), Reason.TOO_DEEP),
    "an array": (b"[]", Reason.NOT_AN_EVENT),
    "a number": (b"7", Reason.NOT_AN_EVENT),
    "an empty object": (b"{}", Reason.NOT_AN_EVENT),
    "no type": (b'{"userId":"u"}', Reason.NOT_AN_EVENT),
    "an unknown type": (b'{"type":"Track","userId":"u"}', Reason.NOT_AN_EVENT),
    "nobody": (b'{"type":"track"}', Reason.NO_USER),
    "one event too large": (with_properties(b'{"a":"' + b"x" * 1_048_576 + b'"}'), Reason.TOO_LARGE),
}


@pytest.mark.parametrize("shape", ["array", "batch", "lines"])
@pytest.mark.parametrize("name", BAD_EVENTS)
def test_a_bad_event_leaves_its_neighbours_alone(name: str, shape: str) -> None:
    bad, reason = BAD_EVENTS[name]
    events = [body(GOOD[0]), bad, body(GOOD[1])]
    text = {
        "array": b"[" + b" ,".join(events) + b"]",
        "batch": b'{"sentAt":"2026-11-23T10:00:00Z","batch":[' + b",".join(events) + b"]}",
        "lines": b"\n".join(events),
    }[shape]
    decoding = decode(event(messageId="elsewhere"), text)
    assert rows(decoding, "message_id", "envelope_index") == [("elsewhere", 0), ("before", 0), ("after", 2)]
    assert refusals(decoding) == [("e1", 1, reason.value, bad)]
    assert decoding.counts.tolist() == [1, 3]


BAD_BODIES: dict[str, tuple[bytes, dict[str, str], Reason]] = {
    "empty": (b"", {}, Reason.EMPTY),
    "white space": (b" \r\n\t", {}, Reason.EMPTY),
    "no events": (b"[ ]", {}, Reason.EMPTY),
    "no events in a batch": (b'{"batch":[], "sentAt": "x"}', {}, Reason.EMPTY),
    "nothing, packed": (gzip.compress(b""), {"content_encoding": "gzip"}, Reason.EMPTY),
    "truncated event": (body(event())[:-1], {}, Reason.NOT_JSON),
    "truncated array": (body(GOOD)[:-1], {}, Reason.NOT_JSON),
    "truncated batch": (body({"batch": GOOD})[:-2], {}, Reason.NOT_JSON),
    "truncated in a string": (body(GOOD)[:20], {}, Reason.NOT_JSON),
    "an array and more": (body(GOOD) + b"x", {}, Reason.NOT_JSON),
    "unclosed levels": (b"[" * 100_000, {}, Reason.TOO_DEEP),
    "UTF-16": ('{"type":"track"}'.encode("utf-16"), {}, Reason.NOT_UTF8),
    "not gzip": (body(event()), {"content_encoding": "gzip"}, Reason.NOT_GZIP),
    "truncated gzip": (gzip.compress(body(event()))[:-9], {"content_encoding": "gzip"}, Reason.NOT_GZIP),
    "bytes after gzip": (gzip.compress(body(event())) + b"x", {"content_encoding": "gzip"}, Reason.NOT_GZIP),
    "a bad checksum": (gzip.compress(b"{}")[:-8] + b"\x01" * 8, {"content_encoding": "gzip"}, Reason.NOT_GZIP),
    "very many members": (gzip.compress(b"") * 100_000, {"content_encoding": "gzip"}, Reason.NOT_GZIP),
    "brotli": (body(event()), {"content_encoding": "br"}, Reason.UNKNOWN_ENCODING),
    "past the cap": (b" " * (10 * 1024 * 1024 + 1), {}, Reason.TOO_LARGE),
    "a bomb": (gzip.compress(b" " * 200_000_000, 9), {"content_encoding": "gzip"}, Reason.TOO_LARGE),
    "very many events": (b"[" + b"{}," * 60_000 + b"{}]", {}, Reason.TOO_LARGE),
    "half a pair for all events": (b'{"batch":[{}],"writeKey":"\\ud83d"}', {}, Reason.FORBIDDEN_CHARACTER),
    "1e999 for all events": (b'{"batch":[{}],"writeKey":1e999}', {}, Reason.NUMBER_OUT_OF_RANGE),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_body_that_cannot_be_split_is_one_dead_letter_as_it_came(name: str) -> None:
    text, attributes, reason = BAD_BODIES[name]
    decoding = decode(text, **attributes)
    assert decoding.batch.num_rows == 0
    assert refusals(decoding) == [("e0", -1, reason.value, text)]
    assert decoding.counts.tolist() == [1]


def test_the_content_encoding_may_be_spelled_as_an_identifier() -> None:
    bad = envelope(b"{}")._replace(attributes={"content_encoding": "zstd"})
    assert refusals(decode_envelopes([bad], NOW_US)) == [("e0", -1, "unknown_encoding", b"{}")]


@pytest.mark.parametrize(
    "attack", [b'["' + b'\\"' * 2_000_000, b'"[' * 2_000_000, b"[" + b'"{' * 2_000_000, b"{" * 4_000_000]
)
def test_a_broken_body_costs_no_more_than_its_length(attack: bytes) -> None:
    started = time.process_time()
    assert decode(attack).counts.tolist() == [1]
    assert time.process_time() - started < 10  # quadratic would be hours


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("type", 5, "$.type"), ("event", 5, "$.event"), ("name", [], "$.name"), ("userId", {}, "$.userId"),
        ("anonymousId", True, "$.anonymousId"), ("messageId", ["m"], "$.messageId"), ("sentAt", {}, "$.sentAt"),
        ("originalTimestamp", True, "$.originalTimestamp"), ("context", "c", "$.context"),
        ("properties", "p", "$.properties"),
        ("traits", [1], "$.traits"), ("context", {"page": 5}, "$.context.page"), ("context", {"ip": 5}, "$.context.ip"),
        ("context", {"page": {"url": 5}}, "$.context.page.url"),
        ("context", {"os": {"name": 1}, "x": 1}, "$.context.os.name"),
    ],
)  # fmt: skip
def test_a_field_of_the_wrong_type_is_named(field: str, value: Any, path: str) -> None:
    decoding = decode([event(messageId="good"), event() | {field: value}])
    assert rows(decoding, "message_id") == ["good"]
    assert [letter[2] for letter in refusals(decoding)] == ["not_an_event"]
    assert decoding.letters.column("message")[0].as_py().endswith(f"`{path}`")


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":"\\\\u0000 \\\\ud800 \\ud83d\\ude00"}',  # escaped backslashes, and a whole pair
        b'{"a":' + nested(62) + b"}",
        b'{"a":1e308,"b":1e-999,"c":0.' + b"1" * 400 + b',"d":"' + b"9" * 400 + b'"}',
        b'{"a":1' + b"0" * 308 + b"}",
        b'{"a":[' + b"{}," * 500 + b"{}]}",
    ],
)
def test_what_looks_hostile_and_is_not_goes_on(text: bytes) -> None:
    decoding = decode(with_properties(text))
    assert rows(decoding, "properties") == [text.decode()]


def test_the_caps_are_the_ones_that_were_set() -> None:
    limits = Limits(body_bytes=1_000, event_bytes=200, events=3)
    large = event(properties={"a": "x" * 200})
    decoding = decode_within(limits, [event()] * 4, [event(), large], [large] * 4)
    assert rows(decoding, "envelope_id") == ["e1"]
    assert [letter[:3] for letter in refusals(decoding)] == [
        ("e0", -1, "too_large"),
        ("e1", 1, "too_large"),
        ("e2", -1, "too_large"),
    ]


SEEDS = [
    body([event(context={"page": {"url": "s/☕", "tab_url": 1}, "os": {"name": "n"}}, odd=[1.5, "\U0001f600"])]),
    body({"batch": [event(), event(type="page", name="Home")], "sentAt": "2026-11-23T10:00:00Z"}),
    b"\n".join([body(event()), body(event(properties={"a": {"b": [1e5, "\\"]}}))]),
    gzip.compress(body([event(), event()])),
    zlib.compress(b"{}"),
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    text = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(text)))
        removed = draw(st.integers(0, 3) | st.integers(0, 60))
        inserted = draw(
            st.binary(max_size=4)
            | st.sampled_from(
                [b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\\u0000", b"\\ud800", b"\xff", b"1e999"]
            )
            | st.sampled_from([b"null", b'{"batch":[', b'"context":', b'"userId":1,', b"[" * 70, b"9" * 309])
        )
        text[at : at + removed] = inserted
    return bytes(text)


@given(st.lists(mutated(), min_size=1, max_size=4), st.sampled_from([{}, {"content_encoding": "gzip"}]))
def test_mutated_bytes_never_raise_and_every_record_is_counted(bodies: list[bytes], attributes: dict[str, str]) -> None:
    decoding = decode(*bodies, **attributes)
    decoding.batch.validate(full=True)
    decoding.letters.validate(full=True)
    records = decoding.batch.column("receipt").to_pylist() + decoding.letters.column("receipt").to_pylist()
    assert [records.count(number) for number in range(len(bodies))] == decoding.counts.tolist()
    assert min(decoding.counts) >= 1
