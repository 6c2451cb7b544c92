"""Bodies: unpacked within the limits, and measured."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.collector.answers import Code, Refusal
from millrace.collector.bodies import check_length, event_sizes, unpack
from millrace.collector.limits import Limits
from millrace.collector.source import SourceLimits
from millrace.schemas.dead_letter import Reason, Rejected
from tests.support.decoding import event

LIMITS = Limits(body_bytes=2_000_000, gzip_ratio=10)
EVENTS = [event(), event(properties={"batch": '"batch"', "text": "ü"}), {}]


@pytest.mark.parametrize(
    ("said", "length"), [(None, None), (b"0", 0), (b"007", 7), (b"2000000", 2_000_000), (b"000000000000000001", 1)]
)
def test_a_length_within_the_limit_is_read(said: bytes | None, length: int | None) -> None:
    assert check_length({} if said is None else {b"content-length": said}, LIMITS) == length


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"2000001", Code.BODY_TOO_LARGE),
        (b"", Code.BAD_LENGTH),
        (b"-1", Code.BAD_LENGTH),
        (b"+1", Code.BAD_LENGTH),
        (b"1, 1", Code.BAD_LENGTH),
        (b"0x10", Code.BAD_LENGTH),
        (b"\xd9\xa1", Code.BAD_LENGTH),
        (b"9" * 5_000, Code.BAD_LENGTH),
    ],
)
def test_a_length_that_is_none_or_too_large_is_refused(said: bytes, code: Code) -> None:
    with pytest.raises(Refusal) as refusal:
        check_length({b"content-length": said}, LIMITS)
    assert refusal.value.code is code


@settings(max_examples=100, deadline=None)
@given(
    st.binary(min_size=1, max_size=300).filter(lambda text: not text.isspace() and not text.startswith(b"\xef\xbb\xbf"))
)
def test_what_was_packed_is_unpacked_again(text: bytes) -> None:
    assert unpack(text, None, LIMITS) == text
    assert unpack(gzip.compress(text), "gzip", LIMITS) == text
    assert unpack(gzip.compress(text[:1]) + gzip.compress(text[1:]), "gzip", LIMITS) == text


@pytest.mark.parametrize(
    ("body", "encoding", "message"),
    [
        (b"x" * 2_000_001, None, "2000001 bytes, at most 2000000 are taken"),
        (gzip.compress(b"x" * 1_100_000), "gzip", "unpacks to more than 10 times its size"),
        (gzip.compress(bytes(range(256)) * 8_000, 0), "gzip", "2048"),
        (gzip.compress(json.dumps(list(range(400_000))).encode()), "gzip", "unpacks to more than 2000000 bytes"),
    ],
)
def test_a_body_past_a_limit_is_refused(body: bytes, encoding: str | None, message: str) -> None:
    with pytest.raises(Refusal) as refusal:
        unpack(body, encoding, LIMITS)
    assert refusal.value.code is Code.BODY_TOO_LARGE
    assert message in refusal.value.message


def test_the_smaller_limit_counts_of_the_collectors_and_a_sources() -> None:
    assert Limits().within(SourceLimits()) == Limits()
    assert Limits().within(SourceLimits(event_bytes=10, request_bytes=9**9, request_events=7)) == Limits(
        event_bytes=10, events=7
    )


@pytest.mark.parametrize("body", [b"", b" ", gzip.compress(b"\n")])
def test_an_empty_body_is_rejected(body: bytes) -> None:
    with pytest.raises(Rejected) as rejected:
        unpack(body, "gzip" if body.startswith(b"\x1f") else None, LIMITS)
    assert rejected.value.reason is Reason.EMPTY


TEXTS = [json.dumps(each).encode() for each in EVENTS]
PLAIN = [TEXTS[0], TEXTS[2]]


@pytest.mark.parametrize(
    ("text", "events"),
    [
        (b"[" + b" , ".join(TEXTS) + b"]", TEXTS),
        (b'{"sentAt":1,"batch":[' + b",".join(TEXTS) + b"]}", TEXTS),
        (b"\n".join(PLAIN), PLAIN),
        (b"\n\n".join(PLAIN) + b"\n \n", PLAIN),
        (TEXTS[0], TEXTS[:1]),
    ],
)
def test_every_event_is_measured(text: bytes, events: list[bytes]) -> None:
    assert event_sizes(text, LIMITS) == [len(each) for each in events]


@pytest.mark.parametrize("text", [b"[1", b'{"batch":1}', b'{"batch":[NaN]}', b"[" * 100_000])
def test_events_that_cannot_be_told_apart_have_no_sizes(text: bytes) -> None:
    assert event_sizes(text, LIMITS) is None
