"""A receiver of webhooks for benchmarks: `python -m benchmarks.receiver PAUSE_S` answers 200 after a pause.

Prints its port. On uvloop and httptools, since it shares the cores with what is measured.
"""

import asyncio
import sys
from typing import Any

import httptools
import uvloop

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class _Connection(asyncio.Protocol):
    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self._pause_s:
            asyncio.get_running_loop().call_later(self._pause_s, self._transport.write, _ANSWER)
        else:
            self._transport.write(_ANSWER)


async def _serve(pause_s: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(pause_s), "127.0.0.1", 0, backlog=4_096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(float(sys.argv[1])))
