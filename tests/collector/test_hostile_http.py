"""Hostile HTTP over real sockets: never a 500, never a crash, never a body that is not what was sent."""

import asyncio
import gzip
import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millrace.collector.framing import HttpLimits
from tests.support.door import PATIENT, QUICK, TRACK, Door, door, head, receive_all, replies, track
from tests.support.pubsub import wait_until

CHUNKED = head(b"Transfer-Encoding: chunked")
BIG = HttpLimits().head_bytes


@pytest.fixture(scope="module")
def shared() -> Iterator[Door]:
    with door(PATIENT) as opened:
        yield opened
        assert opened.count("failures_total") == 0


HOSTILE = {
    "content-length and chunked": (head(b"Transfer-Encoding: chunked", length=5) + b"0\r\n\r\n", 400),
    "smuggled behind chunks": (head(b"Transfer-Encoding: chunked", length=90) + b"0\r\n\r\n" + track(), 400),
    "two lengths": (head(b"Content-Length: 5", length=6) + b"hello!", 400),
    "the same length twice": (head(b"Content-Length: 5", length=5) + b"hello", 400),
    "a signed length": (head(b"Content-Length: +5") + b"hello", 400),
    "a length beyond all numbers": (head(b"Content-Length: " + b"9" * 40), 400),
    "a negative length": (head(b"Content-Length: -1"), 400),
    "a transfer-encoding that is not chunked": (head(b"Transfer-Encoding: gzip") + b"hello", 400),
    "chunked twice": (head(b"Transfer-Encoding: chunked, chunked") + b"0\r\n\r\n", 400),
    "almost chunked": (head(b"Transfer-Encoding: xchunked") + b"0\r\n\r\n", 400),
    "a chunk's size that is none": (CHUNKED + b"zz\r\nhello\r\n0\r\n\r\n", 400),
    "a chunk longer than it said": (CHUNKED + b"5\r\nhello, world\r\n0\r\n\r\n", 400),
    "a chunk of more than any memory": (CHUNKED + b"f" * 17 + b"\r\nhello\r\n0\r\n\r\n", 400),
    "trailers without end": (CHUNKED + b"5\r\nhello\r\n0\r\n" + b"a: b\r\n" * 100_000 + b"\r\n", 431),
    "a folded header": (head(b"X: a\r\n b"), 400),
    "lines ended by LF alone": (b"POST /v1/track HTTP/1.1\nHost: a\nContent-Length: 0\n\n", 400),
    "a space before the colon": (head(b"Content-Length : 0"), 400),
    "NUL in a header": (head(b"X: a\0b"), 400),
    "NUL in the target": (head(target=b"/v1/\0track"), 400),
    "no host": (b"POST /v1/track HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
    "two hosts": (head(b"Host: other.example", length=0), 400),
    "a header of a megabyte": (head(b"X: " + b"a" * 1_000_000), 431),
    "headers of more than may be": (head(*(b"X: " + b"a" * 5_000 for _ in range(BIG // 5_000 + 1))), 431),
    "10,000 headers": (head(*(b"X-%d: a" % number for number in range(10_000))), 431),
    "101 headers": (head(*(b"X-%d: a" % number for number in range(101))), 431),
    "a header without end": (head()[:-2] + b"X: " + b"a" * 1_000_000, 431),
    "a long URL": (head(target=b"/v1/track?" + b"a" * 10_000), 414),
    "a URL without end": (b"GET /" + b"a" * 1_000_000, 414),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20, 400),
    "an unknown method": (head(method=b"BREW"), 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/3.7": (b"POST /v1/track HTTP/3.7\r\nHost: a\r\n\r\n", 400),
    "CONNECT": (b"CONNECT collector.example:80 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    "an expectation that cannot be met": (head(b"Expect: 200-ok", length=5), 417),
    "a body larger than any may be, not sent": (head(length=100_000_000), 413),
    "a body larger than any may be, in chunks": (CHUNKED + b"500001\r\n" + b" " * 0x500001 + b"\r\n0\r\n\r\n", 413),
    "an unknown key, the body not sent": (head(b"Content-Length: 1000000").replace(b"Basic ", b"Basic YTo="), 401),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_is_refused_and_nobody_else_notices(shared, name):
    sent, status = HOSTILE[name]
    before = len(shared.delivery.messages)
    found = shared.send(sent)
    assert [reply.status for reply in found] == [status]
    assert [reply.status for reply in shared.send(track(b"Connection: close"))] == [200]
    assert shared.delivery.bodies[before:] == [TRACK]


SOUND = {
    "chunked": CHUNKED + b"5;ext=1\r\n" + TRACK[:5] + b"\r\n%x\r\n" % (len(TRACK) - 5) + TRACK[5:] + b"\r\n0\r\n\r\n",
    "chunks of one byte": CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in TRACK) + b"0\r\n\r\n",
    "a trailer": CHUNKED + b"%x\r\n" % len(TRACK) + TRACK + b"\r\n0\r\nAuthorization: Basic AAAA\r\n\r\n",
    "HTTP/1.0": track().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "an absolute URL": head(target=b"http://other.example/v1/track", length=len(TRACK)) + TRACK,
    "an escaped path": head(target=b"/v1/tr%61ck?a=b#c", length=len(TRACK)) + TRACK,
    "an upgrade to HTTP/2": track(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
    "gzip": track(b"Content-Encoding: gzip", body=gzip.compress(TRACK)),
    "empty lines before": b"\r\n\r\n" + track(),
}


@pytest.mark.parametrize("name", SOUND)
def test_an_unusual_and_sound_request_is_taken_as_it_is(shared, name):
    before = len(shared.delivery.messages)
    found = shared.send(SOUND[name], half_close=True)
    assert [reply.status for reply in found] == [200]
    body = shared.delivery.bodies[before:]
    assert [gzip.decompress(each) if name == "gzip" else each for each in body] == [TRACK]


def test_a_body_that_breaks_off_is_no_body(shared):
    before = len(shared.delivery.messages)
    cut = shared.count("http_refused_total", reason="cut")
    assert shared.send(track()[:-1], half_close=True) == []
    assert shared.send(CHUNKED + b"5\r\nhel", half_close=True) == []
    assert shared.delivery.bodies[before:] == []
    assert shared.count("http_refused_total", reason="cut") == cut + 2


@pytest.mark.parametrize(("body", "encoding"), [
    (b'{"batch":[' + b",".join([b'{"a":1}'] * 100_000) + b"]}", b"identity"),
    (gzip.compress(b" " * 100_000_000), b"gzip"),
    (gzip.compress(TRACK + b" " * 3_000_000), b"gzip"),
], ids=["100,000 tiny events", "a gzip bomb", "a small gzip bomb"])  # fmt: skip
def test_a_body_that_is_too_much_when_it_is_looked_into_is_refused(shared, body, encoding):
    found = shared.send(track(b"Content-Encoding: " + encoding, b"Connection: close", body=body))
    assert [reply.status for reply in found] == [413]


def test_the_length_is_refused_before_the_body_is_sent_and_expected_bodies_are_asked_for(shared):
    refused = shared.send(head(b"Expect: 100-continue", length=100_000_000))
    assert [reply.status for reply in refused] == [413]
    with shared.connect() as client:
        client.sendall(head(b"Expect: 100-continue", b"Connection: close", length=len(TRACK)))
        assert client.recv(1_000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(TRACK)
        assert [reply.status for reply in replies(receive_all(client))] == [200]


def test_a_small_refused_body_does_not_end_the_connection(shared):
    refused = head(length=5).replace(b"/v1/track", b"/nothing")
    with shared.connect() as client:
        client.sendall(refused)
        client.sendall(b"hello" + track(b"Connection: close"))
        assert [reply.status for reply in replies(receive_all(client))] == [404, 200]


@pytest.mark.parametrize(("sent", "statuses"), [
    (b"", []), (head()[:30], [408]), (head(length=9) + b"he", [408]), (CHUNKED + b"5\r\nhel", [408]),
    (track(), [200]),
], ids=["silent", "slow head", "slow body", "slow chunk", "idle"])  # fmt: skip
def test_who_is_too_slow_is_let_go(sent, statuses):
    with door(QUICK) as opened:
        started = time.monotonic()
        assert [reply.status for reply in opened.send(sent)] == statuses
        assert 0.3 < time.monotonic() - started < 30


def test_slow_clients_do_not_hold_up_others():
    with door(PATIENT) as opened:
        slow = [opened.connect() for _ in range(200)]
        for number, client in enumerate(slow):
            client.sendall(head()[: 10 + number % 50] if number % 2 else head(length=50) + b"hello")
        started = time.monotonic()
        for _ in range(20):
            assert [reply.status for reply in opened.send(track(b"Connection: close"))] == [200]
        assert time.monotonic() - started < 60  # and not 120 s, when the slow ones are let go
        for client in slow:
            client.close()


def test_pipelined_requests_are_answered_in_their_order():
    with door(PATIENT) as opened:
        waits = iter([0.05, 0.0, 0.02, 0.0])
        opened.delivery.before = lambda _: asyncio.sleep(next(waits))
        bodies = [b'{"type":"track","event":"%d","userId":"ann"}' % number for number in range(3)]
        found = opened.send(*(track(body=body) for body in bodies), head(method=b"GET"), track(b"Connection: close"))
        assert [reply.status for reply in found] == [200, 200, 200, 405, 200]
        assert opened.delivery.bodies == [*bodies, TRACK]


def test_a_client_that_reads_no_answers_is_cut_off_and_costs_no_memory():
    with door(PATIENT._replace(write_s=0.4)) as opened:
        with opened.connect() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            client.settimeout(60)
            endless = head(method=b"GET", target=b"/health/live") * 200_000
            with pytest.raises(ConnectionError):
                client.sendall(endless)
            wait_until(lambda: opened.listener.connections == 0)
        assert [reply.status for reply in opened.send(track(b"Connection: close"))] == [200]


def test_what_all_bodies_hold_is_bounded_and_told_with_503():
    with door(PATIENT._replace(held_bytes=1_000_000)) as opened:
        greedy = [opened.connect() for _ in range(2)]
        for client in greedy:
            client.sendall(head(length=600_000) + b" " * 550_000)
        (told,) = select.select(greedy, [], [], 60)[0]
        refused = replies(receive_all(told))
        assert [(reply.status, reply.headers[b"retry-after"]) for reply in refused] == [(503, b"2")]
        for client in greedy:
            client.close()
        wait_until(lambda: opened.listener.held_bytes == 0)
        assert [reply.status for reply in opened.send(track(b"Connection: close"))] == [200]


def test_connections_are_bounded_and_one_too_many_is_told_so():
    with door(PATIENT._replace(connections=10)) as opened:
        open_ones = [opened.connect() for _ in range(10)]
        wait_until(lambda: opened.listener.connections == 10)
        with opened.connect() as client:
            assert [reply.status for reply in replies(receive_all(client))] == [503]
        for client in open_ones:
            client.close()
        wait_until(lambda: opened.listener.connections == 0)
        assert [reply.status for reply in opened.send(track(b"Connection: close"))] == [200]


def test_an_answer_that_takes_too_long_is_503_and_the_events_go_on():
    with door(PATIENT._replace(answer_s=0.2)) as opened:
        release = threading.Event()
        opened.delivery.before = lambda _: asyncio.to_thread(release.wait, 60)
        found = opened.send(track())
        assert [reply.status for reply in found] == [503]
        release.set()
        wait_until(lambda: opened.delivery.bodies == [TRACK])
        wait_until(lambda: opened.listener.held_bytes == 0)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_it_does_not_matter_how_the_network_cuts_a_request(shared, data):
    sent = data.draw(st.sampled_from([track(b"Connection: close"), SOUND["chunked"], track() + SOUND["HTTP/1.0"]]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=6)))
    pieces = [sent[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    before = len(shared.delivery.messages)
    found = shared.send(*pieces, half_close=True)
    expected = 2 if sent.startswith(track()) else 1
    assert [reply.status for reply in found] == [200] * expected
    assert shared.delivery.bodies[before:] == [TRACK] * expected


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_no_bytes_whatever_bring_a_500_or_a_body_that_was_not_sent(shared, data):
    sent = bytearray(data.draw(st.sampled_from([*SOUND.values(), track() * 3, CHUNKED, b""])))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(sent)))
        junk = data.draw(st.one_of(st.binary(max_size=20), st.sampled_from(_PIECES)))
        sent[place : place + data.draw(st.integers(0, 10))] = junk
    before = shared.count("failures_total")
    statuses = [reply.status for reply in shared.send(bytes(sent), half_close=True) if reply.status != 100]
    assert all(status == 200 or 400 <= status < 500 or status == 505 for status in statuses), statuses
    assert shared.count("failures_total") == before


_PIECES = [
    b"\r\n", b"\r\n\r\n", b"\n", b"\0", b":", b"chunked", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 3\r\n",
    b"Expect: 100-continue\r\n", b"Content-Encoding: gzip\r\n", b"HTTP/1.0", b"0\r\n\r\n", b"ffffffff\r\n", b"\xff\xfe",
    b"Connection: close\r\n", b"GET / HTTP/1.1\r\n", b"{", b"[[[[[[", b'"', b"/pixel/v1/track?data=", b"%00", b"%zz",
]  # fmt: skip
