"""HTTP connections: what every one can do, and HTTP/1.1, one request at a time, with llhttp (Node.js's parser).

Client libraries were measured first: docs/decisions/0012-http-client-of-webhooks.md. Nothing here follows a redirect,
keeps a cookie, asks a proxy, or reads more of an answer than http_answers.MAX_ANSWER_BYTES.
"""

import abc
import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import cast

import httptools

from millrace.sinks.http_answers import MAX_ANSWER_BYTES, Answer


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A request to the destination of a pool.

    Attributes:
        method: POST, PUT or PATCH.
        headers: (name in lower case, value), without host and content-length: checked by whoever made them.
        body: as it is sent.
    """

    method: bytes
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes


class NotTakenError(Exception):
    """No answer began, and likely nobody read the request: send it again at once, on another connection."""


class BrokenError(Exception):
    """No whole answer came: the request may have been worked on. One sentence."""


class Connection(asyncio.Protocol, abc.ABC):
    """A connection to a destination, for a pool."""

    def __init__(self, on_change: Callable[["Connection"], None]) -> None:
        self._on_change = on_change
        self._transport: asyncio.Transport | None = None
        self._taken = 0
        self.is_open = True
        """False: takes no request any more; those under way may still be answered."""
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.born_s = asyncio.get_running_loop().time()

    @property
    @abc.abstractmethod
    def room(self) -> int:
        """How many more requests it takes now."""

    def take(self) -> None:
        """Reserve room for a request."""
        self._taken += 1

    def give_back(self) -> None:
        """Free the room of a request, and say so."""
        self._taken -= 1
        if not self.is_open and not self._taken:
            self.abort()
        self._on_change(self)

    def retire(self) -> None:
        """Take no more requests, and close behind the last answer."""
        self.is_open = False
        if not self._taken:
            self.abort()

    def abort(self) -> None:
        """Close at once; what is under way is broken."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    async def ready(self) -> None:
        """Wait until requests can be sent: at once, with HTTP/1.1. Raises BrokenError: never."""

    @abc.abstractmethod
    async def exchange(self, request: Request, timeout_s: float) -> Answer:
        """Send a request and return its answer; room for it was reserved.

        Raises:
            NotTakenError, BrokenError: as they say.
            TimeoutError: no whole answer in time.
        """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one, but does not say so

    def connection_lost(self, _exc: Exception | None) -> None:
        self.is_open = False
        self._break()
        if not self.lost.done():
            self.lost.set_result(None)
        self._on_change(self)

    @abc.abstractmethod
    def _break(self) -> None:
        """Fail what is under way."""


class Http1(Connection):
    """A connection of HTTP/1.1; kept alive, one request at a time, no pipelining."""

    def __init__(self, start: bytes, on_change: Callable[[Connection], None]) -> None:
        """Make one.

        Args:
            start: what follows the method: path, version, and the header Host.
            on_change: called when there is room again, or the connection is gone.
        """
        super().__init__(on_change)
        self._start = start
        self._parser = httptools.HttpResponseParser(self)
        self._waiting: asyncio.Future[Answer] | None = None
        self._is_used = False
        self._clear()

    def _clear(self) -> None:
        self._read = 0
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._status = 0

    @property
    def room(self) -> int:
        return 1 if self.is_open and not self._taken else 0

    async def exchange(self, request: Request, timeout_s: float) -> Answer:
        if self._transport is None or self._transport.is_closing():
            raise NotTakenError
        self._clear()
        waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting = waiting
        head = b"".join([b"%b: %b\r\n" % each for each in request.headers])
        self._transport.write(
            b"%b %b%bcontent-length: %d\r\n\r\n%b"
            % (request.method, self._start, head, len(request.body), request.body)
        )
        try:
            async with asyncio.timeout(timeout_s):
                return await waiting
        finally:
            self._waiting = None
            self._is_used = True
            if (
                not waiting.done() or waiting.cancelled()
            ):  # timed out, or the caller was cancelled: no one may read the rest
                self.abort()

    def data_received(self, data: bytes) -> None:
        if self._waiting is None or self._waiting.done():
            self.abort()  # an answer that nobody asked for: it would pass for that to the next request
            return
        self._read += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(BrokenError("what the receiver answers is not HTTP"))
            return
        if self._read > MAX_ANSWER_BYTES and not self._waiting.done():
            if self._status >= 200:
                self._done(None)
                self.abort()
            else:
                self._fail(BrokenError("the receiver answers an endless head"))

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._waiting is not None and self._waiting.done():
            self.retire()  # a second answer right behind the first

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._status < 200:  # 100, 103: the answer itself follows
            self._headers.clear()
            return
        if not self._parser.should_keep_alive() or (self._transport and self._transport.get_write_buffer_size()):
            self.retire()  # also where it answers before it has read the body
        self._done(b"".join(self._body))

    def eof_received(self) -> bool:
        # A body without a length ends with the connection.
        ends = b"content-length" not in self._headers and b"transfer-encoding" not in self._headers
        if self._status >= 200 and ends:
            self._done(b"".join(self._body))
        return False

    def _done(self, body: bytes | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(Answer(self._status, self._headers, body))
            self._headers = {}

    def _fail(self, error: Exception) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)
        self.abort()

    def _break(self) -> None:
        if self._is_used and not self._read:
            # It was idle, and closed while the request was on its way, which every kept connection comes to one day.
            self._fail(NotTakenError())
        else:
            self._fail(BrokenError("the receiver closed the connection before it had answered"))
