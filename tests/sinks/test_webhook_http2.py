"""The webhook against HTTP/2 that is out of order, frame by frame."""

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest

from millrace.sinks.sink import DELIVERED, Fault, Outcome, Retry
from tests.support.raw_http import (
    Handler,
    Tls,
    opened,
    serving,
    why_down,
)
from tests.support.webhooks import delivery


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(tmp_path)


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
def test_frames_of_every_kind_have_their_outcome(tls: Tls, frames: list[bytes], says: str | None):
    async def run() -> Sequence[Outcome]:
        async with serving(_h2_answering(*frames), tls.context("h2")) as port, opened(tls.hook(port)) as sink:
            return await sink.deliver(delivery(["m-1"]))

    (outcome,) = asyncio.run(run())
    if says is None:
        assert outcome == DELIVERED
    else:
        assert says in getattr(outcome, "detail", "")


def test_a_request_that_is_refused_before_it_was_read_is_sent_again_at_once(tls: Tls):
    """REFUSED_STREAM: one event of ten is told so, and from then on the connection carries nine."""
    refused, has_refused = 0, asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal refused
        waiting: set[int] = set()
        answers = []

        async def answer(stream: int) -> None:
            await has_refused.wait()
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
                    has_refused.set()
                    writer.write(bytes.fromhex("0000040300") + stream.to_bytes(4) + (7).to_bytes(4))
                    continue
                waiting.add(stream)
                answers.append(asyncio.create_task(answer(stream)))

    async def run() -> list[Sequence[Outcome]]:
        async with serving(handler, tls.context("h2")) as port, opened(tls.hook(port, single=True)) as sink:
            return [await sink.deliver(delivery([f"{part}-{n}" for n in range(10)])) for part in range(3)]

    assert asyncio.run(run()) == [[DELIVERED] * 10] * 3
    assert refused == 1


def test_a_receiver_that_agrees_on_http_2_and_speaks_something_else_is_down(tls: Tls):
    async def run() -> str:
        start = b"HTTP/1.1 400 Bad Request\r\n\r\n"
        async with serving(_h2_answering(start=start), tls.context("h2")) as port:
            return await why_down(tls.hook(port))

    assert "cannot be connected to: what the receiver answers is not HTTP/2" in asyncio.run(run())


def test_a_connection_on_which_nothing_comes_any_more_is_left(tls: Tls):
    """Half open: the receiver's machine is gone, and nobody says so. The next request goes over a new connection."""
    count = itertools.count(1)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _h2_answering(*([] if next(count) == 1 else [_headers(1, b"200", 5)]))(reader, writer)

    async def run() -> list[Sequence[Outcome]]:
        async with serving(handler, tls.context("h2")) as port, opened(tls.hook(port, timeout_s=1.0)) as sink:
            return [await sink.deliver(delivery(["m-1"])), await sink.deliver(delivery(["m-2"]))]

    assert asyncio.run(run()) == [[Retry(Fault.TIMED_OUT, "the receiver gave no whole answer in 1 s")], [DELIVERED]]
