"""HTTP/2 connections: many requests at once, with the library h2 for streams, windows and header compression.

Two things are done around it: GOAWAY is taken out of its way, since it closes with the first one, where RFC 9113 (6.8)
lets what is under way end (nginx sends it every 1,000 requests); and bodies wait for the receiver's windows.
"""

import asyncio
import dataclasses
from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
from h2.errors import ErrorCodes
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from millrace.sinks.http_answers import MAX_ANSWER_BYTES, Answer
from millrace.sinks.http_connection import BrokenError, Connection, NotTakenError, Request

MAX_STREAMS = 250
"""Requests at once on a connection, where the receiver would take more: a lost connection breaks only so many."""
_GOAWAY = 7
_MAX_FRAME_BYTES = 16_384  # RFC 9113, 4.2: we never allow more


@dataclasses.dataclass(slots=True)
class _Stream:
    waiting: asyncio.Future[Answer]
    unsent: memoryview
    status: int = 0
    headers: dict[bytes, bytes] = dataclasses.field(default_factory=dict)
    body: list[bytes] = dataclasses.field(default_factory=list)
    read: int = 0

    def done(self, body: bytes | None) -> None:
        if not self.waiting.done():
            self.waiting.set_result(Answer(self.status, self.headers, body))

    def fail(self, error: Exception) -> None:
        if not self.waiting.done():
            self.waiting.set_exception(error)


class Http2(Connection):
    """A connection of HTTP/2."""

    def __init__(self, scheme: bytes, authority: bytes, path: bytes, on_change: Callable[[Connection], None]) -> None:
        super().__init__(on_change)
        self._start = ((b":scheme", scheme), (b":authority", authority), (b":path", path))
        # Header names and values come checked and in lower case: validating them again costs 10 us a request.
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding=None,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self._h2 = h2.connection.H2Connection(config)
        self._h2.local_settings = Settings(
            client=True,
            initial_values={SettingCodes.ENABLE_PUSH: 0, SettingCodes.MAX_HEADER_LIST_SIZE: 65_536},
        )
        self._streams: dict[int, _Stream] = {}
        self._sending: list[int] = []  # streams whose bodies wait for a window
        self._frames = bytearray()
        self._max_streams = 0  # until the receiver's settings are there
        self._settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._received = 0
        self._is_flush_due = False

    @property
    def room(self) -> int:
        return max(self._max_streams - self._taken, 0) if self.is_open else 0

    async def ready(self) -> None:
        await self._settled

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._h2.initiate_connection()
        self._flush()

    async def exchange(self, request: Request, timeout_s: float) -> Answer:
        try:
            number = self._h2.get_next_available_stream_id()
            fields = [(b":method", request.method), *self._start, *request.headers]
            fields.append((b"content-length", b"%d" % len(request.body)))
            self._h2.send_headers(number, fields)
        except H2Error:  # no number is left, or it is closed
            self.retire()
            raise NotTakenError from None
        stream = self._streams[number] = _Stream(asyncio.get_running_loop().create_future(), memoryview(request.body))
        received = self._received
        try:
            self._sending.append(number)
            self._pump()
            async with asyncio.timeout(timeout_s):
                return await stream.waiting
        except TimeoutError:
            if self._received == received:
                self.retire()  # not a byte came in all the time: the other side may be gone
            raise
        finally:
            del self._streams[number]
            if not stream.waiting.done() or stream.waiting.cancelled():
                self._reset(number)

    def _reset(self, number: int) -> None:
        try:
            self._h2.reset_stream(number, ErrorCodes.CANCEL)
        except H2Error:
            return  # it is closed
        self._flush_soon()

    def _pump(self) -> None:
        """Send of the bodies what the receiver's windows let through, the oldest first."""
        waiting: list[int] = []
        for number in self._sending:
            stream = self._streams.get(number)
            if stream is None or stream.waiting.done():
                continue  # answered or given up before it was sent
            try:
                while True:
                    size = min(self._h2.local_flow_control_window(number), self._h2.max_outbound_frame_size)
                    part = stream.unsent[: max(size, 0)]
                    stream.unsent = stream.unsent[len(part) :]
                    if not part and stream.unsent:
                        waiting.append(number)
                        break
                    self._h2.send_data(number, bytes(part), end_stream=not stream.unsent)
                    if not stream.unsent:
                        break
            except H2Error:
                stream.fail(BrokenError("the receiver closed the request while it was being sent"))
        self._sending = waiting
        self._flush_soon()

    def _flush_soon(self) -> None:
        """Write once for all that is said in this turn of the loop."""
        if not self._is_flush_due:
            self._is_flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        data = self._h2.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        try:
            for event in self._h2.receive_data(self._without_goaway(data)):
                self._on_event(event)
        except (H2Error, ValueError, IndexError):  # the last two: frames that hyperframe cannot read
            self._flush()  # says why
            self._fail_all(BrokenError("what the receiver answers is not HTTP/2"))
            self.abort()
            return
        if self._sending:
            self._pump()
        self._flush()

    def _without_goaway(self, data: bytes) -> bytes:
        """Return the whole frames that are here, and see to GOAWAY."""
        frames = self._frames
        frames += data
        start, kept = 0, bytearray()
        while len(frames) - start >= 9:
            size = int.from_bytes(frames[start : start + 3])
            if size > _MAX_FRAME_BYTES:
                raise ValueError("frame too large")
            if len(frames) - start < 9 + size:
                break
            frame = frames[start : start + 9 + size]
            start += 9 + size
            if frame[3] == _GOAWAY:
                self._leave(int.from_bytes(frame[9:13]) & 0x7FFF_FFFF)
            else:
                kept += frame
        del frames[:start]
        return bytes(kept)

    def _leave(self, last: int) -> None:
        """The receiver takes no new requests; those above `last` it has not looked at."""
        self.retire()
        for number, stream in self._streams.items():
            if number > last:
                stream.fail(NotTakenError())

    def _on_event(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RemoteSettingsChanged):
            self._max_streams = min(self._h2.remote_settings.max_concurrent_streams, MAX_STREAMS)
            if not self._settled.done():
                self._settled.set_result(None)
            self._on_change(self)
            return
        stream = self._streams.get(getattr(event, "stream_id", 0) or 0)
        if isinstance(event, h2.events.DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if stream is None or stream.waiting.done():
            return
        if isinstance(event, h2.events.ResponseReceived):
            fields = dict(event.headers)
            stream.status = int(fields.pop(b":status"))
            stream.headers = fields
        elif isinstance(event, h2.events.DataReceived):
            stream.body.append(event.data)
            stream.read += len(event.data)
            if stream.read > MAX_ANSWER_BYTES:
                stream.done(None)
                self._reset(event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            stream.done(b"".join(stream.body))
        elif isinstance(event, h2.events.StreamReset):
            if event.error_code == ErrorCodes.REFUSED_STREAM:
                self._max_streams = max(len(self._streams) - 1, 1)  # it takes fewer than it said
                stream.fail(NotTakenError())
            elif stream.status and event.error_code == ErrorCodes.NO_ERROR:
                stream.done(b"".join(stream.body))  # RFC 9113, 8.1: it has answered, and needs no more of the body
            else:
                stream.fail(BrokenError("the receiver broke the request off"))

    def _fail_all(self, error: Exception) -> None:
        for stream in self._streams.values():
            stream.fail(error)
        if not self._settled.done():
            self._settled.set_exception(error)
            self._settled.exception()  # nobody may be waiting for it

    def _break(self) -> None:
        self._fail_all(BrokenError("the receiver closed the connection before it had answered"))
