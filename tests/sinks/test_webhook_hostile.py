"""The webhook against receivers, names and networks that do what they should not."""

import asyncio
import contextlib
import ipaddress
import itertools
import socket
import ssl
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trustme

from millrace.sinks import addresses, http_pool
from millrace.sinks.addresses import LookUp
from millrace.sinks.sink import DELIVERED, Fault, Outcome, Retry, SinkDownError
from millrace.sinks.webhook import Webhook
from tests.support.node import UnavailableError
from tests.support.webhooks import HOST, Hook, NoMemory, Receiver, delivery, receiving

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
NO_HTTP = "what the receiver answers is not HTTP"
CLOSING = OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")


@contextlib.asynccontextmanager
async def _serving(handler: Handler, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Run a server that speaks what the handler writes; its port."""
    ends: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            await handler(reader, writer)

    server = await asyncio.start_server(serve, host, 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for each in ends:
            each.transport.abort()
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def _open(sink: Webhook) -> AsyncIterator[Webhook]:
    await sink.open(NoMemory())
    try:
        yield sink
    finally:
        await sink.close()


def _plain(port: int, sink: type[Webhook] = Hook, **settings: Any) -> Webhook:
    return sink(f"http://{HOST}:{port}/", allow_http=True, allow_private=True, **settings)


async def _head(reader: asyncio.StreamReader) -> bytes:
    """Read a request whole; its head."""
    head = await reader.readuntil(b"\r\n\r\n")
    size = next(int(line.partition(b":")[2]) for line in head.splitlines() if line.startswith(b"content-length"))
    await reader.readexactly(size)
    return head


def _answering(*parts: bytes, closes: bool = False) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await _head(reader)
            for part in parts:
                writer.write(part)
                await writer.drain()
            if closes:
                writer.close()
                return

    return handler


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", NO_HTTP),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", NO_HTTP),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok", NO_HTTP),
        (b"HTTP/1.1 200 OK\r\n x\x00y: 1\r\n\r\n", NO_HTTP),
        (b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n" + OK, NO_HTTP),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000, "the receiver answers an endless head"),
        (b"HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n" * 10_000, "the receiver answers an endless head"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nretry-after: 5\r\n\r\n" + OK, DELIVERED),
        (b"HTTP/1.0 200 OK\r\n\r\nno length", DELIVERED),
        (b"HTTP/1.1 204 No Content\r\n\r\n", DELIVERED),
        (b"HTTP/1.1 999 What\r\ncontent-length: 0\r\n\r\n", "the receiver answers 999"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_tried_again(answer: bytes, outcome: Outcome | str):
    async def run() -> Sequence[Outcome]:
        async with _serving(_answering(answer, closes=True)) as port, _open(_plain(port)) as sink:
            return await sink.deliver(delivery(["m-1", "m-2"]))

    expected = Retry(Fault.FAILED, outcome) if isinstance(outcome, str) else outcome
    assert asyncio.run(run()) == [expected] * 2


def test_an_answer_that_trickles_ends_at_the_timeout():
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        for _ in range(1_000):
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.02)

    async def run() -> Sequence[Outcome]:
        async with _serving(handler) as port, _open(_plain(port, timeout_s=0.3)) as sink:
            return await sink.deliver(delivery(["m-1"]))

    assert asyncio.run(run()) == [Retry(Fault.TIMED_OUT, "the receiver gave no whole answer in 0.3 s")]


def test_an_answer_too_many_is_never_taken_for_that_to_the_next_request():
    """A second answer behind the first, or one that comes while nothing was asked."""
    count = itertools.count(1)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = next(count)
        await _head(reader)
        writer.write(OK + (b"HTTP/1.1 400 Bad\r\ncontent-length: 0\r\n\r\n" if number == 1 else b""))
        await writer.drain()
        await _head(reader)
        writer.write(b"HTTP/1.1 500 Second request on one connection\r\ncontent-length: 0\r\n\r\n")

    async def run() -> list[Sequence[Outcome]]:
        async with _serving(handler) as port, _open(_plain(port)) as sink:
            return [await sink.deliver(delivery(["m-1"])), await sink.deliver(delivery(["m-2"]))]

    assert asyncio.run(run()) == [[DELIVERED], [DELIVERED]]


def test_a_kept_connection_that_was_closed_costs_no_event_a_try():
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await _head(reader))
        writer.write(OK)  # kept alive, as it says; and then closed when the next request has come
        seen.append(await _head(reader))
        writer.transport.abort()

    async def run() -> list[Sequence[Outcome]]:
        async with _serving(handler) as port, _open(_plain(port)) as sink:
            return [await sink.deliver(delivery([f"m-{n}"])) for n in range(3)]

    assert asyncio.run(run()) == [[DELIVERED]] * 3
    assert len(seen) == 5  # m-0, m-1 and again, m-2 and again


def test_what_goes_over_the_wire_is_what_was_asked_for_and_nothing_else():
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await _head(reader))
        writer.write(b'HTTP/1.1 200 OK\r\nset-cookie: a=b\r\nalt-svc: h3=":443"\r\ncontent-length: 0\r\n\r\n')
        seen.append(await _head(reader))
        writer.write(OK)

    async def run(port: int) -> None:
        async with _open(_plain(port)) as sink:
            for each in (["m-1"], ["m.2\r\nx-admin: 1"]):
                assert await sink.deliver(delivery(each)) == [DELIVERED]

    async def both() -> None:
        async with _serving(handler) as port:
            await run(port)

    asyncio.run(both())
    for head in seen:
        names = [line.partition(b":")[0] for line in head.split(b"\r\n")[1:-2]]
        assert b" ".join(names) == (
            b"host content-type user-agent webhook-id idempotency-key webhook-timestamp content-length"
        )


def test_no_proxy_of_the_environment_is_asked(monkeypatch):
    asked: list[str] = []

    async def proxy(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readline()).decode())

    async def run() -> Sequence[Outcome]:
        async with _serving(proxy) as proxy_port, _serving(_answering(OK)) as port:
            for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy_port}")
            async with _open(_plain(port)) as sink:
                return await sink.deliver(delivery(["m-1"]))

    assert asyncio.run(run()) == [DELIVERED]
    assert asked == []


# Names and addresses


def _named(answers: Callable[[], Sequence[str]]) -> type[Webhook]:
    class Named(Webhook):
        @property
        def look_up(self) -> LookUp:
            async def look(_host: str, _port: int) -> Sequence[str]:
                return answers()

            return look

    return Named


def _fail() -> Sequence[str]:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_a_name_that_leads_to_a_private_address_later_is_refused_at_that_moment(monkeypatch):
    """DNS rebinding: 127.0.0.1 stands for a public address here, and 127.0.0.2 for the private one it moves to."""
    networks = [each for each in addresses._NOT_PUBLIC_4 if str(each) != "127.0.0.0/8"]
    monkeypatch.setattr(addresses, "_NOT_PUBLIC_4", (*networks, ipaddress.IPv4Network("127.0.0.2/32")))
    monkeypatch.setattr(http_pool, "_KNOWN_S", 0.0)
    reached: list[str] = []
    answer = ["127.0.0.1"]

    def handler(name: str) -> Handler:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            reached.append(name)
            await _head(reader)
            writer.write(CLOSING)

        return serve

    async def run() -> str:
        async with _serving(handler("public")) as port:
            inside = await asyncio.start_server(handler("private"), "127.0.0.2", port)
            sink = _named(lambda: answer)(f"http://{HOST}:{port}/", allow_http=True)
            async with inside, _open(sink):
                assert await sink.deliver(delivery(["m-1"])) == [DELIVERED]
                answer[:] = ["127.0.0.1", "127.0.0.2"]
                with pytest.raises(SinkDownError):
                    await sink.deliver(delivery(["m-2"]))
                answer[:] = ["127.0.0.2"]
                with pytest.raises(SinkDownError) as told:
                    await sink.deliver(delivery(["m-3"]))
                answer[:] = ["127.0.0.1"]
                assert await sink.deliver(delivery(["m-4"])) == [DELIVERED]
        return told.value.detail

    assert asyncio.run(run()) == (
        "hooks.example leads to 127.0.0.2, which is no public address: nothing is sent there "
        "(allow_private: true allows it)"
    )
    assert reached == ["public", "public"]


@pytest.mark.parametrize(
    "answer", [["127.0.0.1"], ["::1"], ["169.254.169.254"], ["::ffff:127.0.0.1"], ["8.8.8.8", "127.0.0.1"]]
)
def test_without_leave_no_address_that_is_not_public_is_connected_to(answer: Sequence[str], monkeypatch):
    connected: list[str] = []

    async def connect(_pool: http_pool.Pool, address: str) -> None:
        connected.append(address)  # and no further: were the check broken, the test would leave this machine
        raise OSError

    monkeypatch.setattr(http_pool.Pool, "_connect_to", connect)
    said = asyncio.run(_down(_named(lambda: answer)(f"https://{HOST}/")))
    assert said.endswith("no public address: nothing is sent there (allow_private: true allows it)")
    assert connected == []


def test_while_a_name_cannot_be_looked_up_nothing_is_sent():
    failing = [True]

    def look() -> Sequence[str]:
        return _fail() if failing[0] else ["127.0.0.1"]

    async def run() -> Sequence[Outcome]:
        async with _serving(_answering(OK)) as port, _open(_plain(port, _named(look))) as sink:
            says = "the name hooks.example cannot be looked up: Name or service not known"
            with pytest.raises(SinkDownError, match=says):
                await sink.deliver(delivery(["m-1"]))
            failing[0] = False
            return await sink.deliver(delivery(["m-1"]))

    assert asyncio.run(run()) == [DELIVERED]


def test_a_destination_that_moves_is_followed_when_its_connections_are_old(monkeypatch):
    monkeypatch.setattr(http_pool, "_KNOWN_S", 0.0)
    answer, reached = ["127.0.0.1"], []

    def handler(name: str) -> Handler:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                await _head(reader)
                reached.append(name)
                writer.write(OK)

        return serve

    async def run() -> None:
        async with _serving(handler("old")) as port:
            new = await asyncio.start_server(handler("new"), "127.0.0.3", port)
            async with new, _open(_plain(port, _named(lambda: answer))) as sink:
                await sink.deliver(delivery(["m-1"]))
                answer[:] = ["127.0.0.3"]
                await sink.deliver(delivery(["m-2"]))
                for connection in sink._senders[0].pool._all:
                    connection.born_s -= http_pool.MAX_AGE_S
                await sink.deliver(delivery(["m-3"]))

    asyncio.run(run())
    assert reached == ["old", "old", "new"]


def test_the_second_address_is_tried_where_the_first_does_not_answer():
    async def run() -> Sequence[Outcome]:
        named = _named(lambda: ["127.0.0.9", "127.0.0.1"])
        async with _serving(_answering(OK)) as port, _open(_plain(port, named)) as sink:
            return await sink.deliver(delivery(["m-1"]))

    assert asyncio.run(run()) == [DELIVERED]


def test_a_receiver_that_takes_few_connections_gets_all_events_over_those(monkeypatch):
    monkeypatch.setattr(http_pool, "_KNOWN_S", 0.0)
    monkeypatch.setattr(http_pool, "_OPENING", 2)
    calls = itertools.count(1)

    def look() -> Sequence[str]:
        return ["127.0.0.1"] if next(calls) <= 2 else _fail()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await _head(reader)
            await asyncio.sleep(0.002)
            writer.write(OK)

    async def run() -> Sequence[Outcome]:
        async with _serving(handler) as port, _open(_plain(port, _named(look), single=True)) as sink:
            return await sink.deliver(delivery([f"m-{n}" for n in range(100)]))

    assert asyncio.run(run()) == [DELIVERED] * 100


def test_where_only_some_requests_found_a_connection_the_others_are_tried_again(monkeypatch):
    """One in all is delivered: the rest is not down with it, and not lost."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _head(reader)
        writer.write(CLOSING)

    calls = itertools.count(1)

    def look() -> Sequence[str]:
        return ["127.0.0.1"] if next(calls) == 1 else _fail()

    monkeypatch.setattr(http_pool, "_KNOWN_S", 0.0)
    monkeypatch.setattr(http_pool, "_OPENING", 1)

    async def run() -> Sequence[Outcome]:
        async with _serving(handler) as port, _open(_plain(port, _named(look), single=True)) as sink:
            return await sink.deliver(delivery(["m-1", "m-2", "m-3"]))

    down = Retry(Fault.UNREACHABLE, "the name hooks.example cannot be looked up: Name or service not known")
    assert asyncio.run(run()) == [DELIVERED, down, down]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def test_a_receiver_that_is_not_there_is_down():
    async def run() -> str:
        async with _open(_plain(_free_port(), single=True)) as sink:
            with pytest.raises(SinkDownError) as told:
                await sink.deliver(delivery([f"m-{n}" for n in range(50)]))
            return told.value.detail

    assert asyncio.run(run()).endswith("cannot be connected to: Connection refused")


# TLS


class _Tls:
    """A certificate for hooks.example, and who signed it."""

    def __init__(self, folder: Path) -> None:
        ca = trustme.CA()
        self.ca_file = str(folder / "ca.pem")
        ca.cert_pem.write_to_path(self.ca_file)
        self._certificate = ca.issue_cert(HOST)

    def context(self, *protocols: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._certificate.configure_cert(context)
        if protocols:
            context.set_alpn_protocols(protocols)
        return context

    def hook(self, port: int, host: str = HOST, **settings: Any) -> Webhook:
        return Hook(f"https://{host}:{port}/", allow_private=True, **{"ca_file": self.ca_file, **settings})


@pytest.fixture
def tls(tmp_path: Path) -> _Tls:
    return _Tls(tmp_path)


async def _down(sink: Webhook) -> str:
    async with _open(sink):
        with pytest.raises(SinkDownError) as told:
            await sink.deliver(delivery(["m-1", "m-2"]))
        return told.value.detail


def test_a_certificate_has_to_be_valid_for_the_name_in_the_url(tls: _Tls):
    async def run() -> list[str]:
        async with _serving(_answering(OK), tls.context()) as port:
            async with _open(tls.hook(port)) as sink:
                assert await sink.deliver(delivery(["m-1"])) == [DELIVERED]
            others = (tls.hook(port, "other.example"), tls.hook(port, ca_file=None), tls.hook(port, "127.0.0.1"))
            return [await _down(each) for each in others]

    other, unknown, literal = asyncio.run(run())
    assert "its certificate is not valid for it: Hostname mismatch" in other
    assert "its certificate is not valid for it: unable to get local issuer certificate" in unknown
    assert "its certificate is not valid for it: IP address mismatch" in literal


def test_tls_older_than_1_2_is_refused(tls: _Tls):
    context = tls.context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")

    async def run() -> tuple[str, str]:
        async with _serving(_answering(OK), context) as port:
            said = await _down(tls.hook(port))
            lenient = ssl.create_default_context(cafile=tls.ca_file)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                lenient.minimum_version = ssl.TLSVersion.TLSv1
            lenient.set_ciphers("ALL:@SECLEVEL=0")
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=lenient, server_hostname=HOST)
            version: str = writer.get_extra_info("ssl_object").version()
            writer.transport.abort()
            return said, version

    said, version = asyncio.run(run())
    assert version == "TLSv1.1"  # who does not mind gets through
    assert said.endswith(("it closed the connection", "no TLS with it: TLSV1_ALERT_PROTOCOL_VERSION"))


def test_a_receiver_that_takes_a_connection_and_says_nothing_is_down(tls: _Tls, monkeypatch):
    monkeypatch.setattr(http_pool, "CONNECT_S", 0.3)

    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def run() -> list[str]:
        async with _serving(silent) as plain, _serving(silent, tls.context("h2")) as h2:
            return [await _down(tls.hook(plain)), await _down(tls.hook(h2))]

    for said in asyncio.run(run()):
        assert "cannot be connected to: no connection in 0.3 s" in said


# HTTP/2, frame by frame

_SETTINGS = bytes.fromhex("000000040000000000")
_ACK = bytes.fromhex("000000040100000000")


def _goaway(last: int) -> bytes:
    return bytes.fromhex("000008070000000000") + last.to_bytes(4) + bytes(4)


def _h2_answering(*frames: bytes, start: bytes = _SETTINGS) -> Handler:
    """A server that says its settings, waits for a request, and then says these frames."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        await reader.readexactly(24)
        while True:
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[:3]))
            if head[3] == 4 and not head[4]:
                writer.write(_ACK)
            if head[3] == 0 and head[4] & 1:  # the body's end
                writer.writelines(frames)

    return handler


def _headers(stream: int, status: bytes, flags: int) -> bytes:
    block = b"\x08\x03" + status  # :status without index, as a literal
    return len(block).to_bytes(3) + b"\x01" + bytes([flags]) + stream.to_bytes(4) + block


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "what the receiver answers is not HTTP/2"),
        ([b"\xff\xff\xff\x00\x00\x00\x00\x00\x01"], "what the receiver answers is not HTTP/2"),
        ([bytes.fromhex("000001010400000001") + b"\xff"], "what the receiver answers is not HTTP/2"),  # no header block
        ([bytes.fromhex("000004030000000001") + (2).to_bytes(4)], "the receiver broke the request off"),
        ([_goaway(0)], "the receiver turned the request away three times"),
        ([_headers(1, b"200", 5)], None),
        ([_goaway(1), _headers(1, b"200", 5)], None),
        ([_goaway(2**31 - 1), _headers(1, b"200", 5), _goaway(1)], None),
        ([_headers(1, b"103", 4), _headers(1, b"200", 5)], None),
        ([_headers(1, b"413", 4), bytes.fromhex("000004030000000001") + bytes(4)], "413"),  # answered, body not needed
    ],
)  # fmt: skip
def test_frames_of_every_kind_have_their_outcome(tls: _Tls, frames: list[bytes], says: str | None):
    async def run() -> Sequence[Outcome]:
        async with _serving(_h2_answering(*frames), tls.context("h2")) as port, _open(tls.hook(port)) as sink:
            return await sink.deliver(delivery(["m-1"]))

    (outcome,) = asyncio.run(run())
    if says is None:
        assert outcome == DELIVERED
    else:
        assert says in getattr(outcome, "detail", "")


def test_a_request_that_is_refused_before_it_was_read_is_sent_again_at_once(tls: _Tls):
    """REFUSED_STREAM: one event of ten is told so, and from then on the connection carries nine."""
    refused = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal refused
        waiting: set[int] = set()
        answers = []

        async def answer(stream: int) -> None:
            await asyncio.sleep(0.02)
            waiting.discard(stream)
            writer.write(_headers(stream, b"200", 5))

        writer.write(_SETTINGS)
        await reader.readexactly(24)
        while True:
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[:3]))
            stream = int.from_bytes(head[5:])
            if head[3] == 0 and head[4] & 1:
                if len(waiting) == 9:
                    refused += 1
                    writer.write(bytes.fromhex("0000040300") + stream.to_bytes(4) + (7).to_bytes(4))
                    continue
                waiting.add(stream)
                answers.append(asyncio.create_task(answer(stream)))

    async def run() -> list[Sequence[Outcome]]:
        async with _serving(handler, tls.context("h2")) as port, _open(tls.hook(port, single=True)) as sink:
            return [await sink.deliver(delivery([f"{part}-{n}" for n in range(10)])) for part in range(3)]

    assert asyncio.run(run()) == [[DELIVERED] * 10] * 3
    assert refused == 1


def test_a_receiver_that_agrees_on_http_2_and_speaks_something_else_is_down(tls: _Tls):
    async def run() -> str:
        start = b"HTTP/1.1 400 Bad Request\r\n\r\n"
        async with _serving(_h2_answering(start=start), tls.context("h2")) as port:
            return await _down(tls.hook(port))

    assert "cannot be connected to: what the receiver answers is not HTTP/2" in asyncio.run(run())


def test_a_connection_on_which_nothing_comes_any_more_is_left(tls: _Tls):
    """Half open: the receiver's machine is gone, and nobody says so. The next request goes over a new connection."""
    count = itertools.count(1)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _h2_answering(*([] if next(count) == 1 else [_headers(1, b"200", 5)]))(reader, writer)

    async def run() -> list[Sequence[Outcome]]:
        async with _serving(handler, tls.context("h2")) as port, _open(tls.hook(port, timeout_s=0.3)) as sink:
            return [await sink.deliver(delivery(["m-1"])), await sink.deliver(delivery(["m-2"]))]

    assert asyncio.run(run()) == [[Retry(Fault.TIMED_OUT, "the receiver gave no whole answer in 0.3 s")], [DELIVERED]]


# A receiver that is killed, and comes again


@pytest.fixture(params=["h2", "h1", "plain"])
def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Receiver]:
    try:
        with receiving(tmp_path, request.param, streams=10) as found:
            yield found
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("single", [False, True])
def test_a_receiver_that_is_killed_and_started_again_gets_every_event(receiver: Receiver, single: bool):
    """Killed with kill -9 in the middle of a run; what was not delivered is sent until it is, as a lane does."""
    parts = [delivery([f"m-{part}-{n}" for n in range(20)]) for part in range(12)]
    faults: list[Fault] = []
    downs: list[str] = []

    async def until_delivered(sink: Webhook, part: int) -> None:
        left = list(parts[part].message_ids)
        while left:
            try:
                outcomes = await sink.deliver(delivery(left))
            except SinkDownError as error:
                downs.append(error.detail)
                if len(downs) == 1:
                    receiver.start()  # on the same port
                await asyncio.sleep(0.01)
                continue
            faults.extend(each.fault for each in outcomes if isinstance(each, Retry))
            left = [each for each, outcome in zip(left, outcomes, strict=True) if outcome != DELIVERED]

    async def run() -> None:
        async with _open(receiver.hook("/slow/30", single=single)) as sink:
            first = [asyncio.create_task(until_delivered(sink, part)) for part in range(6)]
            while not receiver.requests():
                await asyncio.sleep(0.002)
            receiver.kill()
            second = [asyncio.create_task(until_delivered(sink, part)) for part in range(6, 12)]
            async with asyncio.timeout(30):
                await asyncio.gather(*first, *second)

    asyncio.run(run())
    arrived = [each for request in receiver.requests() for each in request.ids]
    assert set(arrived) == {each for part in parts for each in part.message_ids}
    assert downs
    assert set(faults) <= {Fault.FAILED, Fault.UNREACHABLE}
