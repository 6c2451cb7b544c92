"""One HTTP/1.1 connection: llhttp (by httptools) parses, this holds the limits, the times and the order of answers.

Requests of one connection are answered one after the other, in order. Nothing that a client does raises out of here.
Why not a ready-made server: docs/decisions/0008-http-server.md.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, cast

import httptools

from millrace.collector.answers import Answer
from millrace.collector.framing import overloaded, plain, problem_with_head, split_target, without_upgrade, written
from millrace.collector.request import Request, headers_of

if TYPE_CHECKING:
    from millrace.collector.listener import Listener

_SMALL_BODY = 64 * 1024  # bytes: rather read to its end than close the connection over
_LARGE = _SMALL_BODY + 1  # what comes in chunks is taken for
_LINGER_S = 2.0  # how long to read on after the last answer: closing on unread bytes makes the kernel reset, and the
_LINGER_BYTES = 8 * 1024 * 1024  # client may lose the answer


class _Stop(Exception):  # noqa: N818  no error: it ends the parser's run
    """No more is read from this connection."""


class _Waiting(NamedTuple):
    """A request whose turn comes, or the answer that it has already."""

    what: Request | Answer
    keep_alive: bool
    to_head: bool = False
    held: int = 0


class Connection(asyncio.Protocol):
    """One client. `deadline_s` and `expire` are for the listener, which looks at all connections once a second."""

    def __init__(self, listener: "Listener") -> None:
        self._listener = listener
        self._limits = listener.limits
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)  # until connection_made
        self._peer = ""
        self._waiting: deque[_Waiting] = deque()
        self._current: _Waiting | None = None
        self._writable = True
        self._ending = False  # nothing more is parsed
        self._lingering = False  # the last answer is written
        self._lingered = 0  # bytes read since nothing is parsed any more
        self.deadline_s = listener.now_s() + self._limits.head_s
        self._begin()

    def _begin(self) -> None:
        """Forget the last request."""
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0  # of the headers that are whole
        self._raw_bytes = 0  # received since the head began to come in parts
        self._head: Request | None = None  # once it is complete
        self._admitted = False
        self._begun = False
        self._refusal: Answer | None = None
        self._body: bytes | bytearray = b""
        self._body_bytes = 0

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        if not self._listener.add(self):
            self._refuse("connections", overloaded("Too many connections."))
            self._transport.close()

    def connection_lost(self, _error: Exception | None) -> None:
        self._ending = True
        self._listener.remove(self)
        self._drop_waiting()

    def data_received(self, data: bytes) -> None:
        if self._ending:
            self._lingered += len(data)
            if self._lingered > _LINGER_BYTES:
                self._transport.abort()
            return
        if self._begun:
            self._raw_bytes += 0 if self._head else len(data)
        else:
            self._begun = True
            if self._current is None:
                self._wait_for_client()
        self._parse(data)
        if not self._ending:
            if self._raw_bytes > self._limits.head_bytes and not self._head:
                self._refuse("head", plain(431, "The headers are too large."))
            elif self._head and not self._admitted:
                self._admit(self._head)
        if (self._waiting or self._ending) and not self._lingering and not self._transport.is_closing():
            self._transport.pause_reading()

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:  # taken as if it did not ask for another protocol
            assert self._head is not None
            head = without_upgrade(self._head.method, self._target, self._headers)
            self._begin()
            self._parser = httptools.HttpRequestParser(self)
            self._parse(head + data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, _Stop):
                self._listener.handler.failed(error)
                self._refuse("failed", overloaded("Something went wrong here."))
        except httptools.HttpParserError:
            self._refuse("malformed", plain(400, "This is no HTTP/1.1 request."))

    def eof_received(self) -> bool:
        """Go on answering a client that has ended its side, if a whole request is under way."""
        self._ending = True
        if self._begun and not self._lingering:
            self._listener.handler.count("cut", 0)
        return not self._lingering and (self._current is not None or bool(self._waiting))

    def pause_writing(self) -> None:
        self._writable = False
        self.deadline_s = self._listener.now_s() + self._limits.write_s

    def resume_writing(self) -> None:
        self._writable = True
        self._wait_for_client()
        self._next()

    # the parser's side

    def on_message_begin(self) -> None:
        """Begin with a request, unless the connection is to end."""
        if self._ending:
            raise _Stop
        self._begun = True

    def on_url(self, part: bytes) -> None:
        """Take a part of the target."""
        self._target += part
        if len(self._target) > self._limits.target_bytes:
            self._refuse("target", plain(414, "The URL is too long."))
            raise _Stop

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those after the body mean nothing here."""
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self._limits.head_bytes or len(self._headers) >= self._limits.headers:
            self._refuse("head", plain(431, "The headers are too many or too large."))
            raise _Stop
        if self._head is None:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Refuse what no application should see."""
        method, version = self._parser.get_method().decode("ascii"), self._parser.get_http_version()
        problem = problem_with_head(method, version, self._headers)
        if problem is not None:
            self._refuse("head", problem)
            raise _Stop
        path, query = split_target(self._target)
        self._head = Request(method, path, query, headers_of(self._headers), b"", self._peer, "http")
        if self._current is None:
            self._wait_for_client()

    def on_body(self, part: bytes) -> None:
        """Keep a part of the body, while there is room."""
        if self._refusal is not None:
            return
        self._body_bytes += len(part)
        if not self._listener.hold(len(part)):
            self._refuse("memory", overloaded("Too much under way."))
            raise _Stop
        if self._body_bytes > self._listener.handler.body_bytes:
            assert self._head is not None
            self._refuse(None, self._listener.handler.too_large(self._head))
            raise _Stop
        if not self._body:
            self._body = part  # of most requests the only one: not copied
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += part  # and not a list: a chunk of one byte would cost forty

    def on_message_complete(self) -> None:
        """Queue the request; or, where it was refused before, its answer."""
        if self._parser.should_upgrade():
            return  # its body is still to come
        head = self._head
        assert head is not None
        what = self._refusal or (head._replace(body=bytes(self._body)) if self._body else head)
        keep_alive = self._parser.should_keep_alive()
        self._waiting.append(_Waiting(what, keep_alive, head.method == "HEAD", self._body_bytes))
        if not keep_alive:
            self._ending = True
        self._begin()
        self._next()
        if not keep_alive:
            raise _Stop

    # ours

    def expire(self) -> None:
        """Do what the time that has passed asks for; called once deadline_s is over."""
        if self._lingering or not self._writable:
            self._transport.abort()
        elif self._current is not None:
            self._current = None  # its task goes on
            self._drop_waiting()
            self._refuse("answer", overloaded("This took too long."))
        elif self._begun:
            self._refuse("slow", plain(408, "The request took too long to arrive."))
        else:
            self._transport.close()

    def close(self) -> None:
        """End the connection once what is written has left."""
        self._transport.close()

    def abort(self) -> None:
        """End the connection now."""
        self._transport.abort()

    @property
    def is_idle(self) -> bool:
        """Nothing has come since the last answer."""
        return not self._begun and self._current is None and not self._waiting and not self._lingering

    def _admit(self, head: Request) -> None:
        """Refuse what can be refused before its body is here; a small one is still read, and the connection goes on."""
        self._admitted = True
        self._refusal = self._listener.handler.admit(head)
        if self._refusal is None:
            if b"expect" in head.headers and self._current is None and not self._waiting:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif int(head.headers.get(b"content-length", _LARGE)) > _SMALL_BODY:
            self._refuse(None, self._refusal)

    def _refuse(self, reason: str | None, answer: Answer) -> None:
        """Answer once it is this request's turn, and end the connection with that."""
        if reason is not None:
            self._listener.handler.count(reason, answer.status)
        self._ending = True
        self._waiting.append(_Waiting(answer, keep_alive=False, held=self._body_bytes))
        self._begin()
        self._next()

    def _next(self) -> None:
        """Turn to the next request, if the last is answered and the client reads its answers."""
        while self._waiting and self._current is None and self._writable and not self._lingering:
            self._current = one = self._waiting.popleft()
            if isinstance(one.what, Answer):
                self._write(one, one.what)
                continue
            self.deadline_s = self._listener.now_s() + self._limits.answer_s
            task = self._listener.handler.answer(one.what)
            self._listener.run(task, lambda answer, one=one: self._answered(one, answer))  # type: ignore[misc]

    def _answered(self, one: _Waiting, answer: Answer) -> None:
        if self._current is one and not self._transport.is_closing():
            self._write(one, answer)
            self._next()
        else:  # the client has gone, or was told 503 in the meantime
            self._listener.release(one.held)

    def _write(self, one: _Waiting, answer: Answer) -> None:
        listener = self._listener
        listener.release(one.held)
        self._current = None
        close = not one.keep_alive or ((listener.draining or self._ending) and not self._waiting)
        self._transport.write(written(answer, listener.date, to_head=one.to_head, close=close))
        if close:
            self._linger()
            return
        if not self._waiting and not self._ending:
            self._transport.resume_reading()
        self._wait_for_client()

    def _wait_for_client(self) -> None:
        """Give it the time for what comes next; whoever leaves answers unread gets none by sending more."""
        if self._writable and not self._lingering:
            waits_s = self._limits.waits_s(begun=self._begun, has_head=self._head is not None)
            self.deadline_s = self._listener.now_s() + waits_s

    def _drop_waiting(self) -> None:
        self._listener.release(self._body_bytes + sum(each.held for each in self._waiting))
        self._waiting.clear()
        self._begin()

    def _linger(self) -> None:
        self._ending = True
        self._lingering = True
        self.deadline_s = self._listener.now_s() + _LINGER_S
        self._drop_waiting()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._transport.resume_reading()
