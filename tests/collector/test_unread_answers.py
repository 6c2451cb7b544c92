"""A client that leaves its answers unread: it has `write_s`, whatever it sends meanwhile."""

import asyncio
from typing import Any

import pytest

from millrace.collector.connection import Connection
from millrace.collector.framing import HttpLimits
from millrace.collector.listener import Listener
from tests.collector.test_app import Rig
from tests.support.door import head, track

LIMITS = HttpLimits(head_s=100, body_s=200, answer_s=300, write_s=1, idle_s=400)


class Unread(asyncio.Transport):
    """Nobody takes what is written: it says so at once, as a transport does whose buffer is full."""

    def __init__(self) -> None:
        super().__init__()
        self.connection: Connection
        self.is_full = True
        self.aborted = False

    def write(self, data: Any) -> None:  # noqa: ARG002
        if self.is_full:
            self.connection.pause_writing()

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


def story(monkeypatch: pytest.MonkeyPatch, then: Any) -> None:
    """Ask and be answered at 0 s, leave the answer unread, and go on at 0.5 s."""
    now_s = 0.0
    monkeypatch.setattr(Listener, "now_s", staticmethod(lambda: now_s))

    async def main() -> None:
        nonlocal now_s
        transport = Unread()
        connection = transport.connection = Connection(Listener(Rig().app, LIMITS))
        connection.connection_made(transport)
        connection.data_received(head(method=b"GET", target=b"/health/live"))
        while connection.deadline_s != LIMITS.write_s:
            await asyncio.sleep(0)
        now_s = 0.5
        then(connection, transport)

    asyncio.run(main())


@pytest.mark.parametrize(
    "sent",
    [head()[:30], head(length=9) + b"he", track(), track() * 2],
    ids=["half a head", "half a body", "a request", "two"],
)
def test_what_it_sends_brings_it_no_more_time(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    def send(connection: Connection, transport: Unread) -> None:
        connection.data_received(sent)
        assert connection.deadline_s == LIMITS.write_s
        connection.expire()
        assert transport.aborted

    story(monkeypatch, send)


@pytest.mark.parametrize(
    ("sent", "has_s"),
    [(b"", LIMITS.idle_s), (head()[:30], LIMITS.head_s), (head(length=9) + b"he", LIMITS.body_s)],
    ids=["nothing", "half a head", "half a body"],
)
def test_once_it_has_read_them_it_has_the_time_of_what_comes_next(
    monkeypatch: pytest.MonkeyPatch, sent: bytes, has_s: float
) -> None:
    def read(connection: Connection, transport: Unread) -> None:
        if sent:
            connection.data_received(sent)
        transport.is_full = False
        connection.resume_writing()
        assert connection.deadline_s == 0.5 + has_s

    story(monkeypatch, read)
