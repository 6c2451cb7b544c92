"""Calls: what the collector and decode make of the shop's requests is what the shop says they hold."""

import itertools
from collections import Counter
from pathlib import Path

import pytest

from millrace.collector.limits import Limits
from millrace.collector.protocol import Request, handle
from millrace.collector.sources import FILE, Sources
from millrace.local.calls import Answer, Call, ShopCalls, call_of, is_kept
from millrace.local.shop import Habits, Sent, Shop
from millrace.local.sources import APP, SERVER, WEB, make_sources
from millrace.schemas.envelope import IP, SOURCE_ID, USER_AGENT, Envelope
from millrace.transforms.decode import decode_envelopes

BY_SOURCE = {"web": WEB, "android": APP, "ios": APP, "tills": SERVER}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


@pytest.fixture(scope="module")
def keys(folder: Path) -> dict[str, str]:
    made = make_sources(folder)
    return {name: made[source] for name, source in BY_SOURCE.items()}


def request_of(call: Call) -> Request:
    path, _, query = call.path.partition("?")
    headers = {name.encode(): value.encode("latin-1") for name, value in call.headers.items()}
    headers[b"content-length"] = b"%d" % len(call.body)
    return Request("POST", path, query.encode(), headers, call.body, "127.0.0.1")


def test_what_is_kept_of_every_body_is_what_the_shop_says(folder: Path, keys: dict[str, str]) -> None:
    sources = Sources.load(folder / FILE)
    paths: Counter[str] = Counter()
    refused: Counter[tuple[int, str]] = Counter()
    now_us = 1_795_428_000_000_000
    for number, sent in enumerate(itertools.islice(Shop(5, 2_000, lambda: now_us / 1e6, Habits(broken=0.1)), 1_500)):
        call = call_of(sent, keys)
        outcome = handle(request_of(call), sources, now_us, f"r-{number}", Limits())
        answer = Answer(outcome.answer.status, outcome.answer.body)
        decoded = decode_envelopes(
            [Envelope(each.body, each.attributes, "e", now_us, now_us) for each in outcome.messages], now_us
        )
        rows = sorted(decoded.batch.to_pylist(), key=lambda row: int(row["envelope_index"]))
        letters = tuple(letter["payload"] for letter in decoded.letters.to_pylist())
        if is_kept(answer):
            assert tuple(row["message_id"] for row in rows) == sent.message_ids
            assert letters == sent.payloads
            assert {row["source_id"] for row in rows} <= {BY_SOURCE[sent.attributes[SOURCE_ID]]}
            ip, agent = sent.attributes[IP].rpartition(".")[0] + ".0", sent.attributes[USER_AGENT]
            assert {(each.attributes[IP], each.attributes[USER_AGENT]) for each in outcome.messages} == {(ip, agent)}
        else:
            assert (rows, letters, list(outcome.messages)) == ([], (), [])
            refused[answer.status, sent.reasons[0].value] += 1
            assert sent.message_ids == ()
        paths[call.path.partition("?")[0]] += 1
    assert set(refused) == {(400, "empty"), (415, "unknown_encoding")}
    assert {"/v1/track", "/v1/t", "/v1/page", "/v1/p", "/beacon/v1/batch", "/v1/batch", "/v1/import"} <= set(paths)


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (Answer(200, b'{"success":true}'), True),
        (Answer(200, b""), True),
        (Answer(400, b'{"rejected":[{"index":0,"reason":"no_user","message":"m"}]}'), True),
        (Answer(400, b'{"rejected":[{"index":0,"reason":"empty","message":"m"}]}'), False),
        (Answer(400, b'{"code":"bad_length","message":"m"}'), False),
        (Answer(400, b'{"rejected":7}'), False),
        (Answer(400, b"<html>"), False),
        (Answer(413, b'{"rejected":[{"index":0,"reason":"no_user","message":"m"}]}'), False),
    ],
)
def test_an_answer_says_whether_anything_is_kept(answer: Answer, kept: bool) -> None:
    assert is_kept(answer) is kept


def test_each_body_is_a_request_of_its_own(keys: dict[str, str]) -> None:
    sents = list(itertools.islice(Shop(1, 20, lambda: 1e9), 10))
    calls = ShopCalls(iter(sents), keys)
    requests = [calls.take(100) for _ in sents]
    assert [request.tag for request in requests] == sents
    assert [request.payload for request in requests] == [call_of(sent, keys) for sent in sents]
    assert [(request.messages, request.events) for request in requests] == [(1, sent.events) for sent in sents]


def test_a_beacon_has_its_key_in_the_address_and_nothing_else_has() -> None:
    attributes = {SOURCE_ID: "web", IP: "192.0.2.1", USER_AGENT: "A"}
    beacon = call_of(Sent(b"{}", attributes, 1, path="/beacon/v1/batch"), {"web": "k"})
    track = call_of(Sent(b"{}", attributes, 1, path="/v1/t"), {"web": "k"})
    common = {
        "content-type": "text/plain;charset=UTF-8", "user-agent": "A", "x-forwarded-for": "192.0.2.1",
        "origin": "https://shop.example",
    }  # fmt: skip
    assert beacon == Call("/beacon/v1/batch?writeKey=k", common, b"{}")
    assert track == Call("/v1/t", {**common, "authorization": "Basic azo="}, b"{}")
