"""Decode processes: on one node, decoding goes on beside the job's own process, whose one lock it would hold.

Half of the job's work in Python is decoding (docs/decisions/0007), and only one thread of a process runs Python at a
time. So each of a few processes is given envelopes and gives back columns: the bodies and the columns travel in memory
that both have mapped, all else over a socket. A process ends when its socket does: it cannot outlive the job.
"""

import atexit
import concurrent.futures
import logging
import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from millrace.schemas.envelope import Envelope
from millrace.transforms.contexts import Contexts
from millrace.transforms.pending import Decoding, Limits, Pending, decode_all

_LOG = logging.getLogger(__name__)

_LENGTH_BYTES = 4
_AT_FIRST_BYTES = 1 << 20


class _Sent(NamedTuple):
    """An envelope but for its body, whose length stands for it."""

    body_bytes: int
    attributes: dict[str, str]
    envelope_id: str
    published_us: int
    arrived_us: int
    receipt: int


class _Request(NamedTuple):
    memory_bytes: int
    """How large the shared memory is, now that the bodies are in it."""
    limits: Limits
    now_us: int
    envelopes: list[_Sent]


class _Answer(NamedTuple):
    memory_bytes: int
    batch_bytes: int
    """The shared memory begins with the events, as one Arrow stream, then come the dead letters, as another."""
    letters_bytes: int
    counts: list[int]


_read_request = msgspec.msgpack.Decoder(_Request).decode
_read_answer = msgspec.msgpack.Decoder(_Answer).decode


class ProcessGoneError(Exception):
    """A decode process ended before it had answered."""


class _Memory:
    """Memory that two processes have mapped; either may make it larger, and tells the other."""

    def __init__(self, file: int) -> None:
        self._file = file
        self.view = mmap.mmap(file, os.fstat(file).st_size)

    def make_room(self, size: int) -> int:
        """Make it at least so many bytes; return how many it is."""
        if size > len(self.view):
            larger = max(size, 2 * len(self.view))
            os.ftruncate(self._file, larger)
            self.follow(larger)
        return len(self.view)

    def follow(self, size: int) -> None:
        """Map what the other has made larger."""
        if size != len(self.view):
            self.view.close()
            self.view = mmap.mmap(self._file, size)

    def close(self) -> None:
        self.view.close()
        os.close(self._file)


class DecodeProcess:
    """One process that decodes; one request at a time."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        file = _shared_file()
        self._memory = _Memory(file)
        self._socket = ours
        command = [sys.executable, "-m", __name__, str(theirs.fileno()), str(file)]
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  our own command
                command, pass_fds=(theirs.fileno(), file), stdin=subprocess.DEVNULL, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def decode(self, envelopes: Sequence[Envelope], limits: Limits) -> Decoding:
        """Decode envelopes, as decode_envelopes does.

        Raises:
            ProcessGoneError: it ended; the envelopes are as they were.
        """
        bodies = [each.body for each in envelopes]
        sent = [_Sent(len(each.body), dict(each.attributes), *each[2:]) for each in envelopes]
        size = self._memory.make_room(sum(map(len, bodies)))
        self._memory.view.seek(0)
        for body in bodies:
            self._memory.view.write(body)
        try:
            _send(self._socket, msgspec.msgpack.encode(_Request(size, limits, time.time_ns() // 1_000, sent)))
            answer = _read_answer(_receive(self._socket))
        except (OSError, EOFError) as error:
            raise ProcessGoneError(f"decode process {self.pid} ended (exit code {self._process.poll()})") from error
        self._memory.follow(answer.memory_bytes)
        # One copy, so that the memory is free for the next request; the batches' buffers are views of it.
        copied = pa.py_buffer(self._memory.view[: answer.batch_bytes + answer.letters_bytes])
        return Decoding(
            _read_batch(copied.slice(0, answer.batch_bytes)),
            _read_batch(copied.slice(answer.batch_bytes)),
            np.array(answer.counts, np.int64),
            envelopes,
        )

    def close(self) -> None:
        """End it."""
        self._socket.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._memory.close()


class DecodePool:
    """A few decode processes, started when first used and again when one has died. Threads may share it."""

    PATIENCE = 5
    """Deaths in a row after which no more are started: something is wrong with all of them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._deaths = 0
        self._idle: queue.SimpleQueue[DecodeProcess | None] = queue.SimpleQueue()
        for _ in range(size):
            self._idle.put(None)  # to be started
        self._threads = concurrent.futures.ThreadPoolExecutor(size, "millrace-decode")

    def submit(self, envelopes: Sequence[Envelope], limits: Limits) -> concurrent.futures.Future[Decoding]:
        """Have envelopes decoded."""
        return self._threads.submit(self._decode, envelopes, limits)

    def _decode(self, envelopes: Sequence[Envelope], limits: Limits) -> Decoding:
        if self._deaths >= self.PATIENCE:
            return decode_all(envelopes, time.time_ns() // 1_000, limits)
        process = self._idle.get()
        try:
            process = process or DecodeProcess()
            decoding = process.decode(envelopes, limits)
        except ProcessGoneError as error:
            # Whatever ended it, the job's own process does the work: no worse than without the others.
            assert process is not None
            process.close()
            process = None
            self._deaths += 1
            then = "another takes its place" if self._deaths < self.PATIENCE else "so are all from now on"
            _LOG.warning("%s; its envelopes are decoded in the job's own process, %s", error, then)
            return decode_all(envelopes, time.time_ns() // 1_000, limits)
        else:
            self._deaths = 0
            return decoding
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End its processes, once what was submitted is done."""
        self._threads.shutdown()
        for _ in range(self.size):
            process = self._idle.get()
            if process is not None:
                process.close()
            self._idle.put(None)


_POOLS: dict[int, DecodePool] = {}
_POOLS_LOCK = threading.Lock()


def decode_pool(size: int) -> DecodePool:
    """Return this process's pool of so many processes."""
    with _POOLS_LOCK:
        if size not in _POOLS:
            if not _POOLS:
                atexit.register(close_pools)
            _POOLS[size] = DecodePool(size)
        return _POOLS[size]


def close_pools() -> None:
    """End this process's pools."""
    with _POOLS_LOCK:
        while _POOLS:
            _POOLS.popitem()[1].close()


def _shared_file() -> int:
    """Return an open file that is nowhere in the file system: in memory where there is such a thing."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("millrace-decode")
    else:
        file, path = tempfile.mkstemp(prefix="millrace-decode-")
        os.unlink(path)  # noqa: PTH108  of a name that only we know
    os.ftruncate(file, _AT_FIRST_BYTES)
    return file


def _send(to: socket.socket, message: bytes) -> None:
    to.sendall(len(message).to_bytes(_LENGTH_BYTES, "big") + message)


def _receive(source: socket.socket) -> bytes:
    length = int.from_bytes(_receive_exactly(source, _LENGTH_BYTES), "big")
    return _receive_exactly(source, length)


def _receive_exactly(source: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = source.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def _read_batch(stream: pa.Buffer) -> pa.RecordBatch:
    with pa.ipc.open_stream(stream) as reader:
        return reader.read_next_batch()


def _stream_bytes(batch: pa.RecordBatch) -> int:
    sink = pa.MockOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return int(sink.size())


def _write_batch(batch: pa.RecordBatch, view: mmap.mmap, start: int, length: int) -> None:
    # Names end with the function: memory that is looked at cannot be mapped anew.
    with memoryview(view) as whole, whole[start : start + length] as place:
        sink = pa.FixedSizeBufferWriter(pa.py_buffer(place))
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        sink.close()
        del sink, writer


def _serve(connection: socket.socket, memory: _Memory) -> None:
    """Answer requests until the other side is gone."""
    contexts = Contexts()
    while True:
        try:
            request = _read_request(_receive(connection))
        except EOFError:
            return
        memory.follow(request.memory_bytes)
        pending = Pending(request.limits, contexts)
        end = 0
        for each in request.envelopes:
            start, end = end, end + each.body_bytes
            pending.add(Envelope(memory.view[start:end], *each[1:]))
        batch, letters, counts, _ = pending.take(request.now_us)
        sizes = [_stream_bytes(each) for each in (batch, letters)]
        size = memory.make_room(sum(sizes))
        at = 0
        for each, length in zip((batch, letters), sizes, strict=True):
            _write_batch(each, memory.view, at, length)
            at += length
        _send(connection, msgspec.msgpack.encode(_Answer(size, sizes[0], sizes[1], counts.tolist())))


def main() -> None:
    """Serve the socket and the memory whose descriptors are given."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the job, which ends us when it has drained
    connection, memory = socket.socket(fileno=int(sys.argv[1])), _Memory(int(sys.argv[2]))
    with connection:
        _serve(connection, memory)


if __name__ == "__main__":
    main()
