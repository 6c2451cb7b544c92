"""The broker in this process: its own event loop in its own thread, for tests and small tools."""

import asyncio
import errno
import os
import socket
import threading
from types import TracebackType
from typing import Self

import grpc.aio

from millrace.broker.chaos import Chaos
from millrace.broker.errors import CannotStart
from millrace.broker.hub import Hub
from millrace.broker.publisher import Publisher
from millrace.broker.service import Handlers
from millrace.broker.store import MEMORY, Store
from millrace.broker.subscriber import Subscriber

OPTIONS = [
    ("grpc.so_reuseport", 0),  # or two brokers would share a port, and each see half of the calls
    ("grpc.max_receive_message_length", 64 << 20),  # Publish checks its own limit, to answer as Google does
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 10_000),
]


class Running:
    """A broker that serves on the current event loop."""

    def __init__(self, hub: Hub, server: grpc.aio.Server, port: int) -> None:
        self.hub = hub
        self._server = server
        self.port = port

    @classmethod
    async def start(cls, store: Store, host: str, port: int, chaos: Chaos) -> "Running":
        """Serve on host:port, 0: any free one.

        Raises:
            CannotStart: the port is taken, or the host is none of this machine's.
        """
        server = grpc.aio.server(options=OPTIONS)
        try:
            _probe(host, port)  # gRPC itself would print a line of its own where this fails
            bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except (OSError, RuntimeError) as error:
            store.close()
            why = "it is in use" if getattr(error, "errno", None) == errno.EADDRINUSE else str(error)
            raise CannotStart(f"cannot listen on {host}:{port}: {why}; give another --port or --host") from error
        hub = Hub(store, chaos)
        server.add_generic_rpc_handlers((Handlers(Publisher(hub), Subscriber(hub)),))
        await server.start()
        return cls(hub, server, bound)

    async def stop(self) -> None:
        """Let calls in progress end for a moment, then save and close."""
        await self._server.stop(grace=0.3)
        await self.hub.close()


def _probe(host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


class Broker:
    """A context manager: `with Broker() as broker: ... broker.address ...`; `broker.chaos` may be set meanwhile."""

    def __init__(
        self, data: str | os.PathLike[str] = MEMORY, host: str = "127.0.0.1", port: int = 0, chaos: Chaos | None = None
    ) -> None:
        """Prepare a broker.

        Args:
            data: directory of its file, or ":memory:", which ends with it.
            host: where to listen.
            port: 0 for any free one; `address` tells which.
            chaos: trouble on purpose.
        """
        self.chaos = chaos or Chaos()
        self.address = ""
        self._data = data
        self._host = host
        self._port = port
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._hub: Hub | None = None

    def start(self) -> Self:
        """Start serving and return when ready. Raises CannotStart."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="broker", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self

    def stop(self) -> None:
        """Stop serving and close the file; calling it again does nothing."""
        if self._loop is not None and self._stop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._loop = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def _serve(self) -> None:
        try:
            store = Store(self._data)
            running = await Running.start(store, self._host, self._port, self.chaos)
        except BaseException as error:  # noqa: BLE001  (start() raises it where it was called)
            self._failure = error
            self._started.set()
            return
        self.address = f"{self._host}:{running.port}"
        self._hub = running.hub
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._started.set()
        await self._stop.wait()
        await running.stop()
