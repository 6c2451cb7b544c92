"""The connections of one worker: how many, what they hold, whose time is over, and how they end."""

import asyncio
import email.utils
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from millrace.collector.answers import Answer
from millrace.collector.connection import Connection
from millrace.collector.framing import HttpLimits
from millrace.collector.request import Request

_LOOK_EVERY_S = 0.5
_IDLE_WHILE_DRAINING_S = 3.0
"""A client may have sent a request on an idle connection just now, and no server can tell: so wait for it a while."""


class Handler(Protocol):
    """What answers requests."""

    body_bytes: int
    """The largest body that any request may have, as it comes."""

    def admit(self, head: Request) -> Answer | None:
        """Refuse a request by its head, or let its body come."""

    def too_large(self, head: Request) -> Answer:
        """Return the refusal of a body that turned out to be larger than body_bytes."""

    async def answer(self, request: Request) -> Answer:
        """Answer a request; never raises."""

    def count(self, reason: str, status: int) -> None:
        """Count a request that the server ended by itself; status 0: without an answer."""

    def failed(self, error: BaseException) -> None:
        """Record an exception that should not have been."""


class Listener:
    """Accepts connections from sockets that listen already."""

    def __init__(self, handler: Handler, limits: HttpLimits) -> None:
        self.handler = handler
        self.limits = limits
        self.draining = False
        self.date = b""
        self.held_bytes = 0
        """Of bodies being received or delivered."""
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._look: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._connections)

    async def start(self, sockets: list[socket.socket]) -> None:
        """Accept connections from now on; the sockets listen, and closing them is the caller's."""
        loop = asyncio.get_running_loop()
        self._look_around()
        for each in sockets:
            # A copy: the event loop closes what it listened to, and this socket may be shared with another process.
            server = await loop.create_server(lambda: Connection(self), sock=each.dup(), backlog=1024)
            self._servers.append(server)

    async def drain(self, deadline_s: float) -> int:
        """Accept no more, answer what is under way, and end all connections.

        Args:
            deadline_s: how long it may take, in seconds.

        Returns:
            How many connections had to be cut off with a request under way.
        """
        self.draining = True
        for server in self._servers:
            server.close()
        started_s = self.now_s()
        while self._connections and self.now_s() - started_s < deadline_s:
            if self.now_s() - started_s > min(_IDLE_WHILE_DRAINING_S, deadline_s):
                for each in list(self._connections):
                    if each.is_idle:
                        each.close()
            await asyncio.sleep(0.02)
        cut_off = sum(not each.is_idle for each in self._connections)
        for each in list(self._connections):
            each.abort()
        if self._look is not None:
            self._look.cancel()
        return cut_off

    # for the connections

    @staticmethod
    def now_s() -> float:
        """Return the event loop's clock, or one like it."""
        return time.monotonic()

    def add(self, connection: Connection) -> bool:
        """Take note of a connection; False where it is one too many."""
        self._connections.add(connection)
        return len(self._connections) <= self.limits.connections

    def remove(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)

    def hold(self, size: int) -> bool:
        """Count bytes of a body; False where they are too many."""
        self.held_bytes += size
        return self.held_bytes <= self.limits.held_bytes

    def release(self, size: int) -> None:
        """Count bytes of a body that is gone."""
        self.held_bytes -= size

    def run(self, answering: Coroutine[Any, Any, Answer], then: Callable[[Answer], None]) -> None:
        """Run what answers a request, and hand on its answer."""
        task = asyncio.get_running_loop().create_task(_answer(answering, then))
        self._tasks.add(task)  # the event loop itself keeps only weak references
        task.add_done_callback(self._tasks.discard)

    def _look_around(self) -> None:
        self.date = email.utils.formatdate(usegmt=True).encode()
        now_s = self.now_s()
        for connection in [each for each in self._connections if each.deadline_s < now_s]:
            connection.expire()
        self._look = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look_around)


async def _answer(answering: Coroutine[Any, Any, Answer], then: Callable[[Answer], None]) -> None:
    then(await answering)  # and not a callback of the task: that would wait for another turn of the event loop
