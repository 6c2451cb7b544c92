"""Pixel: an event in an image's address."""

import base64
import json

import pytest

from millrace.collector.answers import GIF
from millrace.collector.pixel import event_of_query
from tests.support.asking import BROWSER_KEY, SERVER_KEY, SHOP, ask, decoded, header, request
from tests.support.decoding import event, rows

TYPES = ("identify", "track", "page", "screen", "group", "alias")
PIXELS = {"/pixel/v1/track": "track", "/pixel/v1/page": "page"} | {f"/v1/pixel/{kind}": kind for kind in TYPES}


@pytest.mark.parametrize(("path", "kind"), PIXELS.items())
def test_a_pixel_is_an_event(path: str, kind: str) -> None:
    query = f"writeKey={BROWSER_KEY}&userId=u&event=Opened&properties.size=M&context.page.path=%2Fa+b".encode()
    outcome = ask(request("GET", path, b"", query, authorization=None))
    assert (outcome.answer.status, outcome.answer.body, header(outcome, b"content-type")) == (200, GIF, b"image/gif")
    assert rows(decoded(outcome), "type", "user_id", "properties", "context_page_path", "message_id") == [
        (kind, "u", '{"size":"M"}', "/a b", "req-1-0")
    ]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        (b"", 401),
        (b"userId=u", 401),
        (f"writeKey={BROWSER_KEY}".encode(), 400),
        (b"writeKey=no&userId=u", 401),
        (b"data=%25", 400),
    ],
)
def test_a_pixel_that_fails_is_an_image_all_the_same(query: bytes, status: int) -> None:
    outcome = ask(request("GET", "/pixel/v1/track", b"", query, authorization=None))
    assert (outcome.answer.status, outcome.answer.body) == (status, GIF)


def test_head_of_a_pixel_sends_nothing() -> None:
    outcome = ask(request("HEAD", "/pixel/v1/track", b"", f"writeKey={BROWSER_KEY}&userId=u".encode()))
    assert (outcome.answer.status, outcome.answer.body, outcome.messages) == (200, GIF, ())


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode, lambda text: text])
@pytest.mark.parametrize("padded", [True, False])
def test_data_is_segments_way_to_send_an_event(encode, padded: bool) -> None:
    sent = event(writeKey=BROWSER_KEY, properties={"text": "ÿþ~~??>>"})
    text = json.dumps(sent, ensure_ascii=False).encode()
    data = encode(text)
    data = data if padded else data.rstrip(b"=")
    outcome = ask(request("GET", "/v1/pixel/track", b"", b"data=" + _quoted(data), authorization=None))
    assert outcome.answer.status == 200
    assert outcome.messages[0].body == text
    assert rows(decoded(outcome), "source_id", "rest") == [("shop", None)]


def _quoted(data: bytes) -> bytes:
    return b"".join(b"%%%02x" % byte if byte in b'%&#;+ "{}' or byte > 126 else bytes([byte]) for byte in data)


def test_a_plus_sign_that_was_not_escaped_is_part_of_the_base64() -> None:
    text = b'{"userId":"\xc3\xbb\xc3\xbe>>>"}'
    data = base64.b64encode(text)
    assert b"+" in data
    assert event_of_query(b"data=" + data) == text


def test_of_fields_that_contradict_each_other_the_later_one_counts() -> None:
    assert json.loads(event_of_query(b"a=1&a.b=2&c.d=3&c=4&writeKey=k&=5&e.=6")) == {
        "a": {"b": "2"},
        "c": "4",
        "": "5",
        "e": {"": "6"},
    }


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("&".join(["a=1"] * 1_001), 400),
        (f"writeKey={SERVER_KEY}&userId=u", 401),
        (f"writeKey={BROWSER_KEY}&userId=u&" + ".a" * 70 + "=1", 400),
        (f"writeKey={BROWSER_KEY}&userId=u&type=click", 400),
    ],
)
def test_a_query_that_holds_no_good_event_is_refused(query: str, status: int) -> None:
    outcome = ask(request("GET", "/v1/pixel/page", b"", query.encode(), authorization=None))
    assert (outcome.answer.status, outcome.answer.body) == (status, GIF)


@pytest.mark.parametrize(("origin", "status"), [(SHOP, 200), ("https://evil.example", 403)])
def test_an_image_that_a_script_asks_for_names_its_origin(origin: str, status: int) -> None:
    query = f"writeKey={BROWSER_KEY}&userId=u".encode()
    outcome = ask(request("GET", "/pixel/v1/page", b"", query, authorization=None, origin=origin.encode()))
    assert (outcome.answer.status, header(outcome, b"access-control-allow-origin")) == (status, origin.encode())
