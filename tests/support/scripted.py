"""A collector as the sample traffic sees it: the real protocol over plain HTTP, in memory, with faults by script."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from millrace.collector.limits import Limits
from millrace.collector.protocol import Outcome, Request, handle, headers_of
from millrace.collector.sources import Sources
from millrace.schemas.envelope import Envelope
from millrace.transforms.decode import decode_envelopes
from millrace.transforms.pending import Decoding

Fault = int | str
"""What is done instead of an answer: a status, `drop` (take it, say nothing, hang up), `silent`, or `lost` (keep it,
and hang up)."""


class Scripted:
    """What came in, and what is to go wrong next."""

    def __init__(self, sources: Sources) -> None:
        self.url = ""
        self.script: list[Fault] = []
        self.outcomes: list[Outcome] = []
        """Of the requests that were kept, in order."""
        self.requests: list[Request] = []
        """All of them."""
        self._sources = sources
        self._lock = threading.Lock()
        self.over = threading.Event()

    def take(self, request: Request) -> tuple[Fault | None, Outcome | None]:
        """Return what to do, and the answer."""
        with self._lock:
            self.requests.append(request)
            fault = self.script.pop(0) if self.script else None
            if fault not in (None, "lost"):
                return fault, None
            outcome = handle(request, self._sources, time.time_ns() // 1_000, f"r-{len(self.requests)}", Limits())
            self.outcomes.append(outcome)
            return fault, outcome

    def decoded(self) -> Decoding:
        """Return what decode makes of all that was kept."""
        now_us = time.time_ns() // 1_000
        messages = [message for outcome in self.outcomes for message in outcome.messages]
        return decode_envelopes(
            [
                Envelope(message.body, message.attributes, str(n), now_us, now_us, n)
                for n, message in enumerate(messages)
            ],
            now_us,
        )


@contextmanager
def scripted_collector(sources: Sources) -> Iterator[Scripted]:
    """Serve on a free port of this machine."""
    scripted = Scripted(sources)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            path, _, query = self.path.partition("?")
            headers = headers_of((name.encode(), value.encode("latin-1")) for name, value in self.headers.items())
            fault, outcome = scripted.take(Request("POST", path, query.encode(), headers, body, self.client_address[0]))
            if fault == "silent":
                scripted.over.wait(120)
            if isinstance(fault, str):
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            answer = outcome.answer if outcome is not None else None
            told = answer.body if answer is not None else b'{"success":false,"code":"x","message":"as scripted"}'
            self.send_response(answer.status if answer is not None else int(fault or 500))
            for name, value in answer.headers if answer is not None else ((b"retry-after", b"0"),):
                self.send_header(name.decode(), value.decode())
            self.send_header("content-length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    scripted.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield scripted
    finally:
        scripted.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
