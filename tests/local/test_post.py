"""Posting: what was answered is what the collector kept, through refusals, silence, lost answers and restarts."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from millrace.collector.sources import FILE, Sources
from millrace.local.calls import Answer, ShopCalls
from millrace.local.pace import Paced
from millrace.local.post import Poster
from millrace.local.send import Counts, Request, SendError
from millrace.local.shop import Expected, Habits, Sent, Shop
from millrace.local.sources import APP, SERVER, WEB, make_sources
from tests.support.scripted import Fault, Scripted, scripted_collector

GONE = "http://127.0.0.1:1"


def until(condition: Callable[[], Any], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {timeout_s} s"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


@pytest.fixture(scope="module")
def calls(folder: Path) -> ShopCalls:
    keys = make_sources(folder)
    by_source = {"web": keys[WEB], "android": keys[APP], "ios": keys[APP], "tills": keys[SERVER]}
    return ShopCalls(Shop(3, users=50, habits=Habits(broken=0)), by_source)


@pytest.fixture
def collector(folder: Path, calls: ShopCalls) -> Iterator[Scripted]:  # after calls, which makes the sources
    with scripted_collector(Sources.load(folder / FILE)) as scripted:
        yield scripted


class Noted:
    """Posts, and notes what the hooks were told."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.answered: list[tuple[Request, Answer]] = []
        self.maybe: list[Request] = []
        self.given_up: list[Request] = []
        self.poster = Poster(
            url,
            on_answered=lambda request, answer: self.answered.append((request, answer)),
            on_maybe=lambda request, _: self.maybe.append(request),
            on_given_up=lambda request, _: self.given_up.append(request),
            **settings,
        )


def test_what_is_answered_is_what_the_collector_kept(collector: Scripted, calls: ShopCalls) -> None:
    noted = Noted(collector.url)
    running = Paced(calls, noted.poster, 2_000).start()
    until(lambda: running.counts().events > 1_500)
    counts = running.stop()
    expected = Expected()
    for request, answer in noted.answered:
        assert answer.status == 200
        expected.add(request.tag)
    found = collector.decoded().batch.column("message_id").to_pylist()
    assert (set(found), len(found)) == (expected.message_ids, expected.records)
    assert (counts.events, counts.messages) == (expected.records, len(collector.requests))
    assert (counts.maybe_events, counts.unsent_events, counts.retries) == (0, 0, 0)


@pytest.mark.parametrize(
    ("fault", "maybe"),
    [(503, True), (500, True), (429, False), (408, False), ("drop", True), ("lost", True), ("silent", True)],
)
def test_a_request_is_sent_until_it_is_answered(
    collector: Scripted, calls: ShopCalls, fault: Fault, maybe: bool
) -> None:
    collector.script = [fault, fault]
    noted = Noted(collector.url, in_flight=1, deadline_s=1.0 if fault == "silent" else 60.0)
    request = calls.take(1)
    assert noted.poster.submit(request)
    until(lambda: noted.poster.counts().messages == 1)
    assert noted.poster.close() == Counts(
        messages=1, events=request.events, bytes=len(request.payload.body), retries=2,
        maybe_events=2 * request.events * maybe,
    )  # fmt: skip
    assert noted.maybe == [request] * 2 * maybe
    assert [request for request, _ in noted.answered] == [request]
    assert {(each.path, each.body) for each in collector.requests} == {
        (request.payload.path.partition("?")[0], request.payload.body)
    }
    kept = collector.decoded().batch.column("message_id").to_pylist()
    assert Counter(kept) == Counter(request.tag.message_ids * (3 if fault == "lost" else 1))


def test_it_waits_as_long_as_it_is_asked_to(collector: Scripted, calls: ShopCalls, monkeypatch: Any) -> None:
    monkeypatch.setattr("millrace.local.post._seconds", lambda text: 0.5 if text == "0" else 0.0)
    collector.script = [429]
    noted = Noted(collector.url, in_flight=1)
    began_s = time.monotonic()
    noted.poster.submit(calls.take(1))
    until(lambda: noted.poster.counts().messages == 1)
    noted.poster.close()
    assert time.monotonic() - began_s >= 0.5


def test_no_connection_is_certainly_nothing_sent(calls: ShopCalls) -> None:
    noted = Noted(GONE, in_flight=1)
    request = calls.take(1)
    noted.poster.submit(request)
    until(lambda: noted.poster.counts().retries >= 2)
    counts = noted.poster.close(grace_s=0.1)
    assert (counts.events, counts.maybe_events, counts.unsent_events) == (0, 0, request.events)
    assert (noted.given_up, noted.maybe, noted.answered) == ([request], [], [])


def test_giving_up_on_a_silent_collector_is_as_prompt_as_its_deadline(collector: Scripted, calls: ShopCalls) -> None:
    collector.script = ["silent"]
    noted = Noted(collector.url, in_flight=1, deadline_s=1.0)
    request = calls.take(1)
    noted.poster.submit(request)
    until(lambda: len(collector.requests) == 1)
    assert noted.poster.close(grace_s=0.1) == Counts(
        maybe_events=request.events, unsent_events=request.events, retries=1
    )
    assert noted.given_up == noted.maybe == [request]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 415])
def test_good_events_that_are_refused_end_the_traffic(collector: Scripted, calls: ShopCalls, status: int) -> None:
    collector.script = [status]
    noted = Noted(collector.url, in_flight=1)
    running = Paced(calls, noted.poster, 1_000).start()
    assert running.wait(90)
    with pytest.raises(SendError, match=rf"^{collector.url}/\S+: {status}: .*as scripted"):
        running.stop()
    assert collector.outcomes == []


def test_a_broken_body_that_is_refused_is_answered(collector: Scripted, calls: ShopCalls) -> None:
    call = calls.take(1).payload
    headers = {name: value for name, value in call.headers.items() if name != "content-encoding"}
    broken = Request(call._replace(headers=headers, body=b""), 1, 1, Sent(b"", {}, 1, 1, payloads=(b"",)))
    noted = Noted(collector.url, in_flight=1)
    noted.poster.submit(broken)
    until(lambda: noted.poster.counts().messages == 1)
    noted.poster.close()
    ((request, answer),) = noted.answered
    assert (request, answer.status) == (broken, 400)
    assert list(itertools.chain.from_iterable(outcome.messages for outcome in collector.outcomes)) == []


def test_connections_stay_open(collector: Scripted, calls: ShopCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib3

    opened: list[int] = []
    connect = urllib3.connection.HTTPConnection.connect

    def counted(self: Any) -> None:
        opened.append(1)
        connect(self)

    monkeypatch.setattr(urllib3.connection.HTTPConnection, "connect", counted)
    noted = Noted(collector.url, in_flight=2)
    for number in range(40):
        until(lambda: noted.poster.submit(calls.take(1)))
        until(lambda number=number: noted.poster.counts().messages == number + 1)  # type: ignore[misc]
    noted.poster.close()
    assert 1 <= len(opened) <= 2
