"""The collector's door in this process: a real socket, the real application, and a delivery that a test steers."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import uvloop

from millrace.collector import listener as listener_module
from millrace.collector.app import App
from millrace.collector.delivery import Delivered, How
from millrace.collector.framing import HttpLimits
from millrace.collector.health import Health
from millrace.collector.limits import Limits
from millrace.collector.listener import Listener
from millrace.collector.message import Message
from millrace.collector.metrics import Metrics
from millrace.collector.sources import Sources
from tests.support.asking import SERVER_KEY, SOURCES, basic

QUICK = HttpLimits(head_s=0.4, body_s=0.4, answer_s=5.0, write_s=0.4, idle_s=0.4)
"""Times that a test can wait for."""
PATIENT = HttpLimits(head_s=120, body_s=120, answer_s=120, write_s=120, idle_s=120)
"""Times that no test reaches, however slow the machine is just then."""
DEFAULT = Limits()
TRACK = b'{"type":"track","event":"Hello","userId":"ann"}'


class Reply(NamedTuple):
    """One answer as it came over the wire."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class MemoryDelivery:
    """Keeps what it is given; `before` may wait, or raise."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.before: Callable[[Sequence[Message]], Any] | None = None

    async def deliver(self, messages: Sequence[Message]) -> Delivered:
        """Keep messages."""
        if self.before is not None and (waits := self.before(messages)) is not None:
            await waits
        self.messages += messages
        return Delivered(How.PUBLISHED)

    @property
    def bodies(self) -> list[bytes]:
        """The bodies of all messages, in the order in which they became durable."""
        return [message.body for message in self.messages]


class Door:
    """A listener on a thread of its own."""

    def __init__(self, http: HttpLimits, limits: Limits, sources: Sources, *, with_demo: bool) -> None:
        self.delivery = MemoryDelivery()
        self.metrics = Metrics()
        self.health = Health(ready=True)
        self.app = App(sources, self.delivery, limits, self.metrics, lambda: self.health, with_demo=with_demo)
        self.listener = Listener(self.app, http)
        self.loop = uvloop.new_event_loop()
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()

    def call(self, coroutine: Any) -> Any:
        """Run a coroutine on the door's own thread, and return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def connect(self, timeout_s: float = 60.0) -> socket.socket:
        """Open a connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout_s)

    def send(self, *pieces: bytes, half_close: bool = False) -> list[Reply]:
        """Send pieces over a connection of its own, and return all answers until the server closes it."""
        with self.connect() as client:
            with contextlib.suppress(OSError):  # it may have answered and closed before the end
                for piece in pieces:
                    client.sendall(piece)
                if half_close:
                    client.shutdown(socket.SHUT_WR)
            return replies(receive_all(client))

    def count(self, name: str, **labels: str) -> float:
        """Return a metric's value, 0.0 where there is none."""
        return self.metrics.registry.get_sample_value(f"millrace_collector_{name}", labels) or 0.0


@contextlib.contextmanager
def door(
    http: HttpLimits = QUICK,
    limits: Limits = DEFAULT,
    sources: Sources = SOURCES,
    *,
    with_demo: bool = False,
) -> Iterator[Door]:
    """Open a door; at its end no connection and no byte of a body may be left."""
    looked, listener_module._LOOK_EVERY_S = listener_module._LOOK_EVERY_S, 0.02
    opened = Door(http, limits, sources, with_demo=with_demo)
    opened.thread.start()
    try:
        opened.call(opened.listener.start([opened.socket]))
        try:
            yield opened
        finally:  # after a failure, too: an event loop with an open server does not end
            opened.call(opened.listener.drain(30.0))
        assert opened.listener.connections == 0
        assert opened.listener.held_bytes == 0
    finally:
        opened.loop.call_soon_threadsafe(opened.loop.stop)
        opened.thread.join()
        opened.socket.close()
        listener_module._LOOK_EVERY_S = looked


def head(*lines: bytes, method: bytes = b"POST", target: bytes = b"/v1/track", length: int | None = None) -> bytes:
    """Return a sound head, with more lines."""
    all_lines = [
        b"%s %s HTTP/1.1" % (method, target),
        b"Host: collector.example",
        b"Authorization: " + basic(SERVER_KEY),
    ]
    all_lines += [b"Content-Type: application/json", *lines]
    if length is not None:
        all_lines.append(b"Content-Length: %d" % length)
    return b"\r\n".join(all_lines) + b"\r\n\r\n"


def track(*lines: bytes, body: bytes = TRACK) -> bytes:
    """Return a sound request."""
    return head(*lines, length=len(body)) + body


def receive_all(client: socket.socket) -> bytes:
    """Return what comes until the server closes the connection."""
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65_536):
            received += part
    return bytes(received)


def replies(received: bytes) -> list[Reply]:
    """Split what a server sent into its answers; AssertionError where it is no HTTP."""
    found = []
    while received:
        top, end, rest = received.partition(b"\r\n\r\n")
        assert end, f"half an answer: {received[:200]!r}"
        lines = top.split(b"\r\n")
        version, status, _ = lines[0].split(b" ", 2)
        assert version == b"HTTP/1.1"
        headers = dict(line.split(b": ", 1) for line in lines[1:])
        length = int(headers.get(b"content-length", b"0"))
        assert len(rest) >= length, f"half a body: {received[:200]!r}"
        found.append(Reply(int(status), headers, rest[:length]))
        received = rest[length:]
    return found
