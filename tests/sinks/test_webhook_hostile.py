"""The webhook against answers that are none, too many, too long, or too late."""

import asyncio
import itertools
from collections.abc import Sequence

import pytest

from millrace.sinks.sink import DELIVERED, Fault, Outcome, Retry
from tests.support.raw_http import (
    OK,
    answering,
    opened,
    plain_hook,
    read_request,
    serving,
)
from tests.support.webhooks import delivery

NO_HTTP = "what the receiver answers is not HTTP"


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
        async with serving(answering(answer, closes=True)) as port, opened(plain_hook(port)) as sink:
            return await sink.deliver(delivery(["m-1", "m-2"]))

    expected = Retry(Fault.FAILED, outcome) if isinstance(outcome, str) else outcome
    assert asyncio.run(run()) == [expected] * 2


def test_an_answer_that_trickles_ends_at_the_timeout():
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        for _ in range(1_000):
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.02)

    async def run() -> Sequence[Outcome]:
        async with serving(handler) as port, opened(plain_hook(port, timeout_s=1.0)) as sink:
            return await sink.deliver(delivery(["m-1"]))

    assert asyncio.run(run()) == [Retry(Fault.TIMED_OUT, "the receiver gave no whole answer in 1 s")]


def test_an_answer_too_many_is_never_taken_for_that_to_the_next_request():
    """A second answer behind the first, or one that comes while nothing was asked."""
    count = itertools.count(1)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = next(count)
        await read_request(reader)
        writer.write(OK + (b"HTTP/1.1 400 Bad\r\ncontent-length: 0\r\n\r\n" if number == 1 else b""))
        await writer.drain()
        await read_request(reader)
        writer.write(b"HTTP/1.1 500 Second request on one connection\r\ncontent-length: 0\r\n\r\n")

    async def run() -> list[Sequence[Outcome]]:
        async with serving(handler) as port, opened(plain_hook(port)) as sink:
            return [await sink.deliver(delivery(["m-1"])), await sink.deliver(delivery(["m-2"]))]

    assert asyncio.run(run()) == [[DELIVERED], [DELIVERED]]


def test_a_kept_connection_that_was_closed_costs_no_event_a_try():
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(OK)  # kept alive, as it says; and then closed when the next request has come
        seen.append(await read_request(reader))
        writer.transport.abort()

    async def run() -> list[Sequence[Outcome]]:
        async with serving(handler) as port, opened(plain_hook(port)) as sink:
            return [await sink.deliver(delivery([f"m-{n}"])) for n in range(3)]

    assert asyncio.run(run()) == [[DELIVERED]] * 3
    assert len(seen) == 5  # m-0, m-1 and again, m-2 and again


def test_what_goes_over_the_wire_is_what_was_asked_for_and_nothing_else():
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(b'HTTP/1.1 200 OK\r\nset-cookie: a=b\r\nalt-svc: h3=":443"\r\ncontent-length: 0\r\n\r\n')
        seen.append(await read_request(reader))
        writer.write(OK)

    async def run(port: int) -> None:
        async with opened(plain_hook(port)) as sink:
            for each in (["m-1"], ["m.2\r\nx-admin: 1"]):
                assert await sink.deliver(delivery(each)) == [DELIVERED]

    async def both() -> None:
        async with serving(handler) as port:
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
        async with serving(proxy) as proxy_port, serving(answering(OK)) as port:
            for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy_port}")
            async with opened(plain_hook(port)) as sink:
                return await sink.deliver(delivery(["m-1"]))

    assert asyncio.run(run()) == [DELIVERED]
    assert asked == []
