"""Decode: what the collector says of a request, in the attributes of its envelope."""

import gzip
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.schemas.dead_letter import MESSAGE_CHARACTERS, Reason
from millrace.schemas.envelope import Envelope
from millrace.schemas.event import TYPES
from millrace.transforms.decode import decode_envelopes
from millrace.transforms.pending import Decoding, Limits
from tests.support.decoding import NOW_US, body, decode, decode_within, event, refusals, rows

Event = dict[str, Any]

SHAPES: dict[str, Callable[[list[Event]], bytes]] = {
    "array": body,
    "batch": lambda events: body({"batch": events}),
    "batch with defaults": lambda events: body({"sentAt": "2026-11-23T10:00:00Z", "context": {}, "batch": events}),
    "lines": lambda events: b"\n".join(map(body, events)) + b"\n",
}
TYPELESS = {"type": None}
ODD = st.sampled_from([{}, {"oddity": 1}, {"userId": None}, {"properties": 7}, {"event": None}])
"""What makes an event take the slow path, or refused whatever its type."""


def letters(decoding: Decoding) -> list[dict[str, Any]]:
    return sorted(decoding.letters.to_pylist(), key=lambda each: (each["envelope_id"], each["envelope_index"]))


def plain(decoding: Decoding) -> tuple[list[Any], list[Any], list[int]]:
    """All that an envelope became, but for what repeats the envelope itself."""
    kept = [{k: v for k, v in each.items() if k not in ("payload", "attributes")} for each in letters(decoding)]
    return rows(decoding), kept, decoding.counts.tolist()


# ---- event_type


@given(
    st.lists(st.tuples(st.sampled_from([None, *TYPES]), ODD), min_size=1, max_size=4),
    st.sampled_from(TYPES),
    st.sampled_from(sorted(SHAPES)),
)
def test_an_event_without_a_type_has_that_of_the_path(
    given_events: list[tuple[str | None, Event]], from_path: str, shape: str
) -> None:
    given, written = (
        SHAPES[shape]([event(**{"type": kind or default, "name": "N", "messageId": None} | odd)
                       for kind, odd in given_events])
        for default in (None, from_path)
    )  # fmt: skip
    assert plain(decode(given, event_type=from_path)) == plain(decode(written))


@pytest.mark.parametrize("attributes", [{}, {"event_type": ""}, {"event_type": "Track"}, {"event_type": 'x"\\\x00'}])
def test_without_a_known_type_from_anywhere_an_event_is_refused(attributes: Mapping[str, str]) -> None:
    decoding = decode([event(**TYPELESS), event(messageId="b")], **attributes)
    assert refusals(decoding) == [("e0", 0, "not_an_event", body(event(**TYPELESS)))]
    assert rows(decoding, "message_id", "type") == [("b", "track")]


def test_of_event_batch_and_path_the_nearest_names_the_type() -> None:
    batch = {"type": "page", "batch": [event(), event(**TYPELESS)]}
    decoding = decode(batch, {**event(**TYPELESS), "type": None}, event_type="group")
    assert rows(decoding, "envelope_id", "type") == [("e0", "track"), ("e0", "page"), ("e1", "group")]


# ---- request_id


@given(
    st.lists(st.tuples(st.sampled_from([None, "", " ", "own"]), ODD), min_size=1, max_size=4),
    st.sampled_from(sorted(SHAPES)),
)
def test_a_request_that_is_published_twice_has_the_same_message_ids(
    given_events: list[tuple[str | None, Event]], shape: str
) -> None:
    text = SHAPES[shape]([event(**{"messageId": own} | odd) for own, odd in given_events])
    decoding = decode(text, text, request_id="r-1")
    found = [(row["envelope_id"], row["envelope_index"], row["message_id"]) for row in rows(decoding)]
    gone = {(envelope_id, index) for envelope_id, index, _, _ in refusals(decoding)}
    assert found == [
        (envelope_id, index, own if own == "own" else f"r-1-{index}")
        for envelope_id in ("e0", "e1")
        for index, (own, _) in enumerate(given_events)
        if (envelope_id, index) not in gone
    ]
    assert decoding.counts.tolist() == [len(given_events)] * 2


def test_a_blank_request_id_counts_as_none() -> None:
    assert rows(decode(event(messageId=None), request_id=""), "message_id") == ["e0/0"]


# ---- rejected


@pytest.mark.parametrize("reason", Reason)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_the_collector_refused_is_a_dead_letter_for_its_reason(shape: str, reason: Reason) -> None:
    events = [event(), event(userId=None), event(writeKey="secret")]
    attributes = {"rejected": reason.value, "rejected_because": "so it is", "source_id": "web"}
    decoding = decode(SHAPES[shape](events), **attributes)
    at = decoding.letters["published_at"][0].as_py()
    assert rows(decoding) == []
    assert letters(decoding) == [
        {
            "payload": body(each), "attributes": json.dumps(attributes, separators=(",", ":")), "stage": "collect",
            "reason": reason.value, "message": "so it is", "source_id": "web", "envelope_id": "e0",
            "envelope_index": index, "published_at": at, "refused_at": at, "date": at.date(), "receipt": 0,
        }
        for index, each in enumerate(events)
    ]  # fmt: skip
    assert decoding.counts.tolist() == [3]


NOT_JSON = b'{"batch":[{"type":"track","userId":"u"}, {"type":'


@pytest.mark.parametrize(
    ("given_body", "encoding"),
    [
        (b"", ""),
        (b" \n", "identity"),
        (b"[]", ""),
        (NOT_JSON, ""),
        (b"\xff\xfe", ""),
        (gzip.compress(NOT_JSON), "gzip"),
        (gzip.compress(body([event()]))[:-9], "gzip"),
        (b"no gzip", "gzip"),
        (body(event()), "br"),
        (b"[" * 100_000, ""),
        (gzip.compress(b" " * 11_000_000), "gzip"),
    ],
)
def test_a_refused_body_that_cannot_be_split_is_one_dead_letter_as_it_came(given_body: bytes, encoding: str) -> None:
    decoding = decode(given_body, content_encoding=encoding, rejected="not_json", rejected_because="line 1")
    assert [(each["stage"], each["message"]) for each in letters(decoding)] == [("collect", "line 1")]
    assert refusals(decoding) == [("e0", -1, "not_json", given_body)]
    assert decoding.counts.tolist() == [1]


def test_more_refused_events_than_the_cap_are_one_dead_letter() -> None:
    decoding = decode_within(Limits(events=2), [event()] * 3, [event()] * 2, rejected="too_large")
    assert [(each["envelope_id"], each["envelope_index"]) for each in letters(decoding)] == [
        ("e0", -1), ("e1", 0), ("e1", 1),
    ]  # fmt: skip
    assert decoding.counts.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"rejected": "policy_of_2031", "rejected_because": "too new"}, "policy_of_2031: too new"),
        ({"rejected": "", "rejected_because": "no word"}, ": no word"),
        ({"rejected": "NO_USER"}, "NO_USER: "),
        ({"rejected": "x", "rejected_because": "y" * 2_000}, "x: " + "y" * (MESSAGE_CHARACTERS - 3)),
    ],
)
def test_a_reason_that_is_not_known_here_is_told_in_the_message(attributes: Mapping[str, str], message: str) -> None:
    decoding = decode(event(), **attributes)
    found = [(each["stage"], each["reason"], each["message"]) for each in letters(decoding)]
    assert found == [("collect", "other", message)]
    assert decoding.batch.num_rows == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, *(reason.value for reason in Reason), "unknown"]),
            st.lists(ODD, max_size=3) | st.binary(max_size=40),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_refused_and_accepted_envelopes_beside_each_other_are_each_what_they_are_alone(
    given_envelopes: list[tuple[str | None, list[Event] | bytes]],
) -> None:
    envelopes = [
        Envelope(
            body(content if isinstance(content, bytes) else [event(**odd) for odd in content]),
            {} if rejected is None else {"rejected": rejected},
            f"e{number}",
            NOW_US,
            NOW_US,
            number,
        )
        for number, (rejected, content) in enumerate(given_envelopes)
    ]
    together = decode_envelopes(envelopes, NOW_US)
    alone = [decode_envelopes([each], NOW_US) for each in envelopes]
    assert rows(together) == [row for each in alone for row in rows(each)]
    assert letters(together) == [letter for each in alone for letter in letters(each)]
    assert together.counts.tolist() == [count for each in alone for count in each.counts.tolist()]
    assert together.counts.sum() == together.batch.num_rows + together.letters.num_rows


# ---- the write key


@pytest.mark.parametrize("oddity", [{}, {"oddity": 1}])
@pytest.mark.parametrize("of_the_batch", [{}, {"writeKey": "secret"}, {"writeKey": "secret", "context": {}}])
def test_the_write_key_of_a_known_source_is_not_kept(of_the_batch: Event, oddity: Event) -> None:
    without = {key: value for key, value in of_the_batch.items() if key != "writeKey"}
    given, written = (
        decode({**members, "batch": [event(), event(**own, **oddity)]}, source_id="web")
        for members, own in ((of_the_batch, {"writeKey": "own"}), (without, {}))
    )
    assert plain(given) == plain(written)
    assert given.batch.num_rows == 2


def test_the_write_key_of_an_unknown_source_is_all_that_tells_it() -> None:
    keyed = event(writeKey="w")
    assert rows(decode(keyed), "rest") == rows(decode(keyed, source_id=""), "rest") == ['{"writeKey":"w"}']
    mixed = decode([keyed, event(writeKey="w", context={"writeKey": "kept"})], source_id="web")
    assert rows(mixed, "rest", "context_rest") == [(None, None), (None, '{"writeKey":"kept"}')]


@pytest.mark.parametrize("key", [b"1e999", b'"\\ud83d"', b"[" * 70 + b"]" * 70])
def test_a_write_key_that_no_reader_can_hold_refuses_its_event_alone_and_among_others(key: bytes) -> None:
    bad = b'{"type":"track","userId":"u","writeKey":' + key + b"}"
    for text in (bad, b"[" + bad + b"," + body(event(oddity=1)) + b"]"):
        assert [found[1:2] + found[3:] for found in refusals(decode(text, source_id="web"))] == [(0, bad)]
