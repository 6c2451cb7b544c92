"""Decode: what the columns hold."""

import datetime as dt
import gzip
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from millrace.schemas import dead_letter
from millrace.schemas.event import BATCH
from tests.support.decoding import NOW, NOW_US, body, decode, event, refusals, rows

AT = dt.datetime(2026, 11, 23, 10, tzinfo=dt.UTC)

FULL: dict[str, Any] = {
    "type": "track", "event": "Order Completed", "messageId": "m-7", "userId": "u-1", "anonymousId": "a-1",
    "originalTimestamp": "2026-11-23T09:59:58.5Z", "sentAt": "2026-11-23T09:59:59Z", "channel": "web",
    "integrations": {"All": True}, "tenant": "north",
    "context": {
        "page": {"url": "https://s/p", "path": "/p", "referrer": "r", "search": "?q", "title": "T", "tab_url": "x",
                 "odd": 1},
        "campaign": {"name": "n", "source": "s", "medium": "m", "term": "t", "content": "c"},
        "library": {"name": "js", "version": "3.1"}, "locale": "en-GB", "timezone": "Europe/Berlin",
        "device": {"id": "d", "type": "Android", "manufacturer": "G", "model": "P", "name": "n"},
        "os": {"name": "Android", "version": "16"}, "app": {"name": "A", "version": "1", "build": "2",
                "namespace": "n.s"}, "ip": "203.0.113.7", "userAgent": "Mozilla", "screen": {"width": 1080},
    },
    "properties": {"total": 1.50, "é": "☕"}, "traits": {"plan": "pro"},
}  # fmt: skip


def test_every_field_has_its_column_and_the_others_are_kept() -> None:
    decoding = decode(FULL, source_id="web", received_at="2026-11-23T09:59:59.400Z")
    assert decoding.batch.schema.equals(BATCH)
    (row,) = rows(decoding)
    assert {key: json.loads(row.pop(key)) for key in ("properties", "traits", "context_rest", "rest")} == {
        "properties": FULL["properties"],
        "traits": FULL["traits"],
        "context_rest": {"screen": {"width": 1080}, "page": {"tab_url": "x", "odd": 1}},
        "rest": {"channel": "web", "integrations": {"All": True}, "tenant": "north"},
    }
    assert row == {
        "message_id": "m-7", "type": "track", "event": "Order Completed", "user_id": "u-1", "anonymous_id": "a-1",
        "user_key": "u-1", "source_id": "web", "original_timestamp": AT - dt.timedelta(seconds=1.5),
        "sent_at": AT - dt.timedelta(seconds=1), "received_at": AT - dt.timedelta(seconds=0.6), "published_at": AT,
        "occurred_at": AT - dt.timedelta(seconds=1.1), "context_page_url": "https://s/p", "context_page_path": "/p",
        "context_page_referrer": "r", "context_page_search": "?q", "context_page_title": "T",
        "context_campaign_name": "n",
        "context_campaign_source": "s", "context_campaign_medium": "m", "context_campaign_term": "t",
        "context_campaign_content": "c", "context_library_name": "js", "context_library_version": "3.1",
        "context_device_id": "d", "context_device_type": "Android", "context_device_manufacturer": "G",
        "context_device_model": "P", "context_device_name": "n", "context_os_name": "Android",
        "context_os_version": "16",
        "context_app_name": "A", "context_app_version": "1", "context_app_build": "2", "context_app_namespace": "n.s",
        "context_locale": "en-GB", "context_timezone": "Europe/Berlin", "context_ip": "203.0.113.7",
        "context_user_agent": "Mozilla", "envelope_id": "e0", "envelope_index": 0, "arrived_at": AT, "receipt": 0,
    }  # fmt: skip


def test_the_slow_path_gives_the_row_that_the_fast_path_gives() -> None:
    known = {key: value for key, value in FULL.items() if key != "tenant"}
    context: dict[str, Any] = FULL["context"]
    known["context"] = context | {"page": {"url": "https://s/p", "tab_url": "x"}}
    fast, slow = decode(known), decode(known | {"oddity": 1})
    assert rows(slow)[0].pop("rest") == '{"channel":"web","integrations":{"All": true},"oddity":1}'
    assert [row | {"rest": ""} for row in rows(slow)] == [row | {"rest": ""} for row in rows(fast)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        body,
        lambda events: body({"batch": events}),
        lambda events: body({"sentAt": NOW, "context": {}, "batch": events}),
        lambda events: b"\n".join(body(each) for each in events),
        lambda events: b"\r\n\r\n".join(body(each) for each in events) + b"\n",
        lambda events: b"\xef\xbb\xbf" + body(events),
        lambda events: b" \n" + body({"batch": events}),
    ],
)
def test_a_body_may_have_any_of_the_shapes(shape: Callable[[Any], bytes], packed: bool) -> None:
    text = shape([event(messageId="a"), event(messageId="b", odd=1), event(messageId="c")])
    decoding = decode(gzip.compress(text), content_encoding="gzip") if packed else decode(text)
    assert rows(decoding, "message_id", "envelope_index") == [("a", 0), ("b", 1), ("c", 2)]
    assert decoding.letters.num_rows == 0
    assert decoding.counts.tolist() == [3]


def test_gzip_members_in_a_row_are_one_body() -> None:
    text = body([event(messageId="a"), event(messageId="b")])
    packed = gzip.compress(text[:40]) + gzip.compress(b"") + gzip.compress(text[40:]) + b"\x00" * 8
    assert rows(decode(packed, content_encoding="GZIP "), "message_id") == ["a", "b"]


def test_what_a_batch_says_counts_for_its_events_and_their_own_word_wins() -> None:
    batch = {
        "batch": [event(context={"ip": "9", "locale": None}),
                  event(sentAt="2026-11-23T09:00:00Z", integrations={"A": 1})],
        "sentAt": NOW, "writeKey": "w", "integrations": {"B": 2}, "messageId": "of the batch",
        "context": {"ip": "1", "locale": "de", "library": {"name": "py"}},
    }  # fmt: skip
    decoding = decode(batch)
    columns = ("message_id", "sent_at", "context_ip", "context_locale", "context_library_name")
    assert rows(decoding, *columns) == [
        ("m1", AT, "9", None, "py"),
        ("m1", AT - dt.timedelta(hours=1), "1", "de", "py"),
    ]
    assert [json.loads(rest) for rest in rows(decoding, "rest")] == [
        {"writeKey": "w", "integrations": {"B": 2}, "batch": {"messageId": "of the batch"}},
        {"writeKey": "w", "integrations": {"A": 1}, "batch": {"messageId": "of the batch"}},
    ]


def test_a_plain_batch_passes_on_its_sending_time_and_write_key() -> None:
    batch = {"batch": [event(), event(writeKey="own")], "sentAt": NOW, "writeKey": "w"}
    assert rows(decode(batch), "sent_at", "rest") == [(AT, '{"writeKey":"w"}'), (AT, '{"writeKey":"own"}')]


@pytest.mark.parametrize("blank", [None, "", " \t"])
def test_a_blank_id_counts_as_missing(blank: str | None) -> None:
    decoding = decode(event(userId=blank, anonymousId="a1", messageId=blank), event(userId=blank))
    columns = ("message_id", "user_id", "anonymous_id", "user_key")
    assert rows(decoding, *columns) == [("e0/0", None, "a1", "a1")]
    assert [refused[:3] for refused in refusals(decoding)] == [("e1", 0, "no_user")]


def test_the_name_of_a_page_is_its_event() -> None:
    decoding = decode(
        event(type="page", event=None, name="Home"),
        event(type="screen", event=None, name=" ", properties={"name": "Cart"}),
        event(type="page", event="kept", properties={"name": 7}),
        event(name="kept"),
    )
    assert rows(decoding, "event", "rest") == [
        ("Home", None),
        ("Cart", None),
        (None, '{"event":"kept"}'),
        ("Viewed", '{"name":"kept"}'),
    ]


def test_numbers_are_taken_where_ids_and_versions_belong() -> None:
    given = event(userId=42, anonymousId=-1.5, messageId=7, context={"app": {"build": 12, "version": 1.0}})
    columns = ("user_id", "anonymous_id", "message_id", "context_app_build", "context_app_version")
    assert rows(decode(given), *columns) == [("42", "-1.5", "7", "12", "1.0")]


def test_an_empty_object_may_be_an_empty_array() -> None:
    given = event(properties=[], traits=[], context={"page": []})
    decoding = decode(given, event(context=[]))
    assert rows(decoding, "properties", "traits", "context_rest", "context_page_url") == [(None,) * 4] * 2


def test_the_envelope_fills_in_what_the_event_does_not_say() -> None:
    decoding = decode(event(), event(context={"ip": "1", "userAgent": "B"}), ip="9", user_agent="A", source_id="s")
    assert rows(decoding, "context_ip", "context_user_agent", "source_id") == [("9", "A", "s"), ("1", "B", "s")]


def test_of_a_key_that_stands_twice_the_last_one_counts() -> None:
    text = b'{"type":"page","type":"track","userId":"u","x":1,"x":2,"context":{"ip":"1","ip":"2","y":1,"y":2}}'
    assert rows(decode(text), "type", "context_ip", "rest", "context_rest") == [("track", "2", '{"x":2}', '{"y":2}')]


def test_json_values_are_kept_byte_for_byte() -> None:
    text = b'{"type":"track","userId":"u","properties":{"n": 1.50, "big":12345678901234567890123 },"odd":[ 1e2 ]}'
    assert rows(decode(text), "properties", "rest") == [
        ('{"n": 1.50, "big":12345678901234567890123 }', '{"odd":[ 1e2 ]}')
    ]


def test_a_dead_letter_says_what_where_and_when() -> None:
    decoding = decode([event(), event(userId=None)], source_id="web")
    assert decoding.letters.schema.equals(dead_letter.BATCH)
    assert decoding.letters.to_pylist() == [
        {
            "payload": body(event(userId=None)), "attributes": '{"source_id":"web"}', "stage": "decode",
            "reason": "no_user", "message": "neither userId nor anonymousId", "source_id": "web", "envelope_id": "e0",
            "envelope_index": 1, "published_at": AT, "refused_at": AT, "date": AT.date(), "receipt": 0,
        }
    ]  # fmt: skip


def test_every_envelope_becomes_as_many_records_as_it_counts() -> None:
    decoding = decode(event(), b"", [event(), {}, event(userId=None), event()], b"[]", [event()] * 3)
    records = decoding.batch.column("receipt").to_pylist() + decoding.letters.column("receipt").to_pylist()
    assert decoding.counts.tolist() == np.bincount(records).tolist() == [1, 1, 4, 1, 3]


def test_many_events_come_out_whole_whatever_the_chunks() -> None:
    bodies = [
        [event(messageId=f"{n}-{i}", userId="" if (n, i) == (11, 3) else "u") for i in range(300)] for n in range(20)
    ]
    decoding = decode(*bodies)
    expected = {f"{n}-{i}" for n in range(20) for i in range(300)} - {"11-3"}
    assert set(rows(decoding, "message_id")) == expected
    assert decoding.batch.num_rows == len(expected)
    assert decoding.counts.tolist() == [300] * 20
    assert NOW_US in decoding.batch.column("arrived_at").cast("int64").to_pylist()
