"""HTTP servers in front of the collector's application, one process each: the measurement of decision 8.

    python -m benchmarks.http_servers [--seconds 5]

Every server gets the same application, with a delivery that takes all at once: what differs is the server. Needs wrk,
and `pip install granian aiohttp` beside what `.[test]` has.
"""

import argparse
import asyncio
import contextlib
import importlib
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.broker import cpu_seconds, resident_mb
from benchmarks.collector import load, milliseconds, number, script
from millrace.collector.app import App
from millrace.collector.delivery import Delivered, How
from millrace.collector.framing import HttpLimits
from millrace.collector.health import Health
from millrace.collector.limits import Limits
from millrace.collector.listener import Listener
from millrace.collector.message import Message
from millrace.collector.metrics import Metrics
from millrace.collector.request import Request, headers_of
from millrace.collector.sources import Sources
from tests.support.pubsub import wait_until
from tests.support.serving import write_sources

LOADS = (("one event", 1, 128), ("20 events", 20, 64))
PATIENCE_S = 45.0


class _AtOnce:
    async def deliver(self, _messages: Sequence[Message]) -> Delivered:
        return Delivered(How.PUBLISHED)


def _app() -> App:
    sources = Sources.load(os.environ["MILLRACE_SOURCES"])
    return App(sources, _AtOnce(), Limits(), Metrics(), lambda: Health(ready=True))


Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


class Asgi:
    """The application for servers that speak ASGI."""

    def __init__(self) -> None:
        self._app = _app()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        part = await receive()
        body = part.get("body", b"")
        while part.get("more_body"):
            part = await receive()
            body += part.get("body", b"")
        headers = headers_of([(bytes(name), bytes(value)) for name, value in scope["headers"]])
        asked = Request(
            scope["method"], scope["path"], scope["query_string"], headers, body, scope["client"][0], "http"
        )
        answer = await self._app.answer(asked)
        await send({"type": "http.response.start", "status": answer.status, "headers": list(answer.headers)})
        await send({"type": "http.response.body", "body": answer.body})


def make_asgi() -> Asgi:
    """Make the application, in the process that serves it."""
    return Asgi()


def _millrace(listening: socket.socket) -> None:
    async def run() -> None:
        listening.setblocking(False)
        await Listener(_app(), HttpLimits()).start([listening])
        await asyncio.Event().wait()

    uvloop.run(run())


def _uvicorn(listening: socket.socket) -> None:
    uvicorn = importlib.import_module("uvicorn")
    config = uvicorn.Config(
        make_asgi, factory=True, http="httptools", loop="uvloop", log_level="error", access_log=False
    )
    uvicorn.Server(config).run(sockets=[listening])


def _granian(listening: socket.socket) -> None:
    port = listening.getsockname()[1]
    listening.close()
    server = importlib.import_module("granian").Granian
    loops = importlib.import_module("granian.constants").Loops
    server(
        "benchmarks.http_servers:make_asgi", factory=True, address="127.0.0.1", port=port, interface="asgi", workers=1,
        loop=loops.uvloop, log_enabled=False, websockets=False,
    ).serve()  # fmt: skip


def _aiohttp(listening: socket.socket) -> None:
    web = importlib.import_module("aiohttp.web")
    app = _app()

    async def take(got: Any) -> Any:
        body = await got.read()
        headers = headers_of([(name.lower(), value) for name, value in got.raw_headers])
        answer = await app.answer(
            Request(got.method, got.path, got.query_string.encode(), headers, body, got.remote, "http")
        )
        told = {name.decode(): value.decode() for name, value in answer.headers}
        return web.Response(status=answer.status, headers=told, body=answer.body)

    async def run() -> None:
        runner = web.ServerRunner(web.Server(take))
        await runner.setup()
        await web.SockSite(runner, listening).start()
        await asyncio.Event().wait()

    uvloop.run(run())


SERVERS = {"millrace": _millrace, "uvicorn": _uvicorn, "granian": _granian, "aiohttp": _aiohttp}


@contextlib.contextmanager
def _serving(name: str, folder: Path) -> Iterator[tuple[int, list[int]]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.http_servers", "--serve", name, "--port", str(port)]
    environment = {**os.environ, "MILLRACE_SOURCES": str(write_sources(folder))}
    with subprocess.Popen(command, env=environment) as process:

        def listens() -> bool:
            assert process.poll() is None, f"{name} did not start"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
            return False

        try:
            wait_until(listens, 60, f"{name} listens")
            time.sleep(1)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            yield port, [process.pid, *map(int, children)]
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


def _let_go_s(port: int, sent: bytes) -> float | None:
    """Return how long a client is kept that sends this and then nothing; None: longer than PATIENCE_S."""
    started_s = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client:
        client.sendall(sent)
        try:
            while client.recv(4_096):
                pass
        except TimeoutError:
            return None
        except OSError:
            pass
    return time.monotonic() - started_s


def _patience(name: str) -> str:
    """Say what becomes of half a head, and of half a body."""
    half_a_head = b"POST /v1/track HTTP/1.1\r\nHost: a\r\nX"
    half_a_body = b"POST /v1/track HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello"
    with tempfile.TemporaryDirectory() as folder, _serving(name, Path(folder)) as (port, _):
        kept = [_let_go_s(port, sent) for sent in (half_a_head, half_a_body)]
    return " | ".join("kept" if each is None else f"{each:.0f} s" for each in kept)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of which the best counts (%(default)s)")
    parser.add_argument("--patience", action="store_true", help="measure how long slow clients are kept, instead")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        listening = socket.create_server(("127.0.0.1", options.port), backlog=2_048)
        SERVERS[options.serve](listening)
        return 0
    versions = ", ".join(f"{each} {version(each)}" for each in ("httptools", "uvloop", "uvicorn", "granian", "aiohttp"))
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}; {versions}")
    if options.patience:
        print("| server | half a head | half a body |\n| --- | --- | --- |")
        for name in SERVERS:
            print(f"| {name} | {_patience(name)} |", flush=True)
        return 0
    print("| load | server | requests/s | p50 ms | p99 ms | µs of CPU a request | MiB |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for title, events, connections in LOADS:
        best: dict[str, tuple[float, str]] = {}
        for _ in range(options.rounds):
            for name in SERVERS:
                measured = _measure(name, events, connections, options.seconds)
                best[name] = max(best.get(name, measured), measured)
        for name, (_, row) in best.items():
            print(f"| {title}, {connections} connections | {name} | {row} |", flush=True)
    return 0


def _measure(name: str, events: int, connections: int, seconds: float) -> tuple[float, str]:
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        with _serving(name, folder) as (port, pids):
            lua = script(folder, events)
            load(port, lua, 1, connections)
            before_s = sum(map(cpu_seconds, pids))
            said, _ = load(port, lua, seconds, connections)
            used_s = sum(map(cpu_seconds, pids)) - before_s
            mb = sum(map(resident_mb, pids))
    refused = re.search(r"Non-2xx.*", said)
    assert refused is None, f"{name}: {refused}"
    rate = number(r"Requests/sec:\s+([\d.]+)", said)
    cost_us = used_s / number(r"(\d+) requests in", said) * 1e6
    p50, p99 = milliseconds("50%", said), milliseconds("99%", said)
    return rate, f"{rate:,.0f} | {p50:.1f} | {p99:.1f} | {cost_us:.0f} | {mb:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
