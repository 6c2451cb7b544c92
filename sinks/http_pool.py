"""HTTP pool: connections to one destination, opened as they are needed, to addresses that are judged each time."""

import asyncio
import os
import ssl
from collections import deque
from collections.abc import Callable
from typing import cast

from millrace.sinks.addresses import Destination, LookUp, NotAllowedError, addresses
from millrace.sinks.http2 import Http2
from millrace.sinks.http_answers import Answer
from millrace.sinks.http_connection import BrokenError, Connection, Http1, NotTakenError, Request

CONNECT_S = 10.0
"""For one connection, from the look-up to the end of the TLS handshake."""
MAX_AGE_S = 300.0
"""A connection takes requests for so long: a destination that moved in the DNS is followed after that."""
_KNOWN_S = 1.0  # an address that was judged is good for the connections that are opened at the same moment
_OPENING = 32  # connections at once: a server's queue of them is often 128 long
_TRIED = 4  # addresses of a name
_FULL_S = 5.0  # after it refused a connection beside those it has, it is asked for more only after so long


class NoConnectionError(Exception):
    """The destination cannot be connected to; one sentence."""


class Pool:
    """Connections to one destination; for one event loop."""

    def __init__(
        self,
        destination: Destination,
        look: LookUp,
        tls: ssl.SSLContext | None,
        *,
        allow_private: bool,
        max_connections: int,
    ) -> None:
        self._destination = destination
        self._look = look
        self._tls = tls
        self._allow_private = allow_private
        self._max = max_connections
        self._all: set[Connection] = set()
        self._free: dict[Connection, None] = {}  # those with room; the last one is used first, so that others may end
        self._waiting: deque[asyncio.Future[Connection]] = deque()
        self._opening: set[asyncio.Task[Connection]] = set()
        self._is_http1 = tls is None  # until a connection tells: one at a time, since one of HTTP/2 may be enough
        self._full_until_s = 0.0
        self._known: tuple[float, list[str]] = (0.0, [])
        self._looking = asyncio.Lock()
        self._is_closed = False

    async def request(self, request: Request, timeout_s: float) -> Answer:
        """Send a request and return its answer.

        Raises:
            NoConnectionError: it was not sent.
            BrokenError, TimeoutError: it may have arrived.
        """
        for _ in range(3):
            connection = await self._take()
            try:
                return await connection.exchange(request, timeout_s)
            except NotTakenError:
                continue
            finally:
                connection.give_back()
        raise BrokenError("the receiver turned the request away three times, without an answer")

    async def close(self) -> None:
        """Close all connections; what is under way is broken."""
        self._is_closed = True
        for task in self._opening:
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        lost = [each.lost for each in self._all]
        for connection in list(self._all):
            connection.abort()
        self._tell(NoConnectionError("this side is closing"))
        if lost:
            await asyncio.wait(lost, timeout=CONNECT_S)

    async def _take(self) -> Connection:
        """Return a connection with room reserved."""
        connection = self._with_room()
        if connection is not None:
            return connection
        waiting: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._grow()
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                waiting.result().give_back()
            raise

    def _with_room(self) -> Connection | None:
        oldest_s = asyncio.get_running_loop().time() - MAX_AGE_S
        while self._free:
            connection, _ = self._free.popitem()
            if connection.born_s < oldest_s:
                connection.retire()
            room = connection.room
            if room > 1:
                self._free[connection] = None
            if room:
                connection.take()
                return connection
        return None

    def _changed(self, connection: Connection) -> None:
        """A connection has room again, or is gone."""
        if connection.lost.done():
            self._all.discard(connection)
            self._free.pop(connection, None)
        elif connection in self._all and connection.room:
            self._free[connection] = None
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            if self._waiting[0].done():  # cancelled
                self._waiting.popleft()
                continue
            connection = self._with_room()
            if connection is None:
                self._grow()
                return
            self._waiting.popleft().set_result(connection)

    def _grow(self) -> None:
        """Open connections for those who wait."""
        now_s = asyncio.get_running_loop().time()
        if self._is_closed or (self._all and now_s < self._full_until_s):
            return
        room = min(self._max - len(self._all), _OPENING if self._is_http1 else 1, len(self._waiting))
        for _ in range(room - len(self._opening)):
            task = asyncio.create_task(self._connect())
            self._opening.add(task)
            task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[Connection]) -> None:
        """A connection is there; or it failed, and where there is no other, all who wait are told."""
        self._opening.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            connection = task.result()
            self._is_http1 = isinstance(connection, Http1)
            self._all.add(connection)
            self._changed(connection)
            return
        self._full_until_s = asyncio.get_running_loop().time() + _FULL_S
        if not self._all:
            self._tell(error)
        self._serve()

    def _tell(self, error: BaseException) -> None:
        """Tell all who wait that there is no connection."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_exception(error)

    async def _connect(self) -> Connection:
        found = (await self._look_up())[:_TRIED]
        failed, timeout_s = "", CONNECT_S / len(found)
        for address in found:
            try:
                async with asyncio.timeout(timeout_s):
                    return await self._connect_to(address)
            except TimeoutError:
                failed = f"no connection in {timeout_s:g} s"
            except ssl.SSLCertVerificationError as error:
                failed = f"its certificate is not valid for it: {error.verify_message}"
            except ssl.SSLError as error:
                failed = f"no TLS with it: {error.reason or 'the handshake failed'}"
            except (OSError, BrokenError) as error:
                number = getattr(error, "errno", None)
                failed = os.strerror(number) if number else str(error) or "it closed the connection"
        raise NoConnectionError(f"{self._destination.place} cannot be connected to: {failed}")

    async def _look_up(self) -> list[str]:
        loop = asyncio.get_running_loop()
        async with self._looking:
            at_s, found = self._known
            if found and loop.time() - at_s < _KNOWN_S:
                return found
            try:
                async with asyncio.timeout(CONNECT_S):
                    found = await addresses(self._destination, self._look, allow_private=self._allow_private)
            except NotAllowedError as error:
                raise NoConnectionError(str(error)) from None
            except (OSError, ValueError) as error:  # ValueError: a name or an answer that is none
                said = getattr(error, "strerror", None) or "no answer that is an address"
                raise NoConnectionError(f"the name {self._destination.host} cannot be looked up: {said}") from None
            self._known = loop.time(), found
            return found

    async def _connect_to(self, address: str) -> Connection:
        """Connect to an address that was judged: no name, so nobody is asked again. TLS is with the URL's name."""
        name = self._destination.host if self._tls is not None else None
        made, chosen = await asyncio.get_running_loop().create_connection(
            lambda: _Chooser(self._choose), address, self._destination.port, ssl=self._tls, server_hostname=name
        )
        try:
            connection = chosen.connection
            await connection.ready()
        except BaseException:
            made.abort()
            raise
        return connection

    def _choose(self, is_http2: bool) -> Connection:
        to = self._destination
        authority, path = to.authority.encode(), to.path.encode()
        if is_http2:
            return Http2(b"https", authority, path, self._changed)
        return Http1(b"%b HTTP/1.1\r\nhost: %b\r\n" % (path, authority), self._changed)


class _Chooser(asyncio.Protocol):
    """Makes the connection that TLS has agreed on (ALPN)."""

    connection: Connection

    def __init__(self, choose: Callable[[bool], Connection]) -> None:
        self._choose = choose

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        tls = transport.get_extra_info("ssl_object")
        self.connection = self._choose(tls is not None and tls.selected_alpn_protocol() == "h2")
        cast("asyncio.Transport", transport).set_protocol(self.connection)
        self.connection.connection_made(transport)
