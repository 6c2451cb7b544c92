"""For tests of the sink `webhook`: servers that answer whatever a test says, byte by byte."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trustme

from millrace.sinks.addresses import LookUp
from millrace.sinks.sink import SinkDownError
from millrace.sinks.webhook import Webhook
from tests.support.webhooks import HOST, Hook, NoMemory, delivery

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CLOSING = OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")


@contextlib.asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator[int]:
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
async def opened(sink: Webhook) -> AsyncIterator[Webhook]:
    """Open a webhook, and close it in the end."""
    await sink.open(NoMemory())
    try:
        yield sink
    finally:
        await sink.close()


def plain_hook(port: int, sink: type[Webhook] = Hook, **settings: Any) -> Webhook:
    """Return a webhook to a server here, without TLS."""
    return sink(f"http://{HOST}:{port}/", allow_http=True, allow_private=True, **settings)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Read a request whole; its head."""
    head = await reader.readuntil(b"\r\n\r\n")
    size = next(int(line.partition(b":")[2]) for line in head.splitlines() if line.startswith(b"content-length"))
    await reader.readexactly(size)
    return head


def answering(*parts: bytes, closes: bool = False) -> Handler:
    """Return a handler that answers every request with these bytes."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            for part in parts:
                writer.write(part)
                await writer.drain()
            if closes:
                writer.close()
                return

    return handler


def named(answers: Callable[[], Sequence[str]]) -> type[Webhook]:
    """Return a webhook class that looks names up here."""

    class Named(Webhook):
        @property
        def look_up(self) -> LookUp:
            async def look(_host: str, _port: int) -> Sequence[str]:
                return answers()

            return look

    return Named


def fail_to_look_up() -> Sequence[str]:
    """Fail as a resolver does."""
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


async def why_down(sink: Webhook) -> str:
    """Return why nothing can be delivered."""
    async with opened(sink):
        with pytest.raises(SinkDownError) as told:
            await sink.deliver(delivery(["m-1", "m-2"]))
        return told.value.detail


class Tls:
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
