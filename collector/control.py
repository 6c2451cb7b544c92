"""Control: what the collector's main process and its workers tell each other, one JSON object a line."""

import asyncio
import socket
from typing import Any

import msgspec

_LONGEST_LINE = 16 * 1024 * 1024  # bytes: a worker's page of metrics


class Order(msgspec.Struct):
    """What a worker is told. The end of the stream means that the main process is gone: drain and end."""

    do: str
    """`reload`: read the sources again. `drain`: end. `report`: say how you are."""


class News(msgspec.Struct, omit_defaults=True):
    """What a worker tells; what is not said is None."""

    ready: bool | None = None
    """True: it accepts connections. In a report: whether it should get requests."""
    why: str | None = None
    """In a report: why it should not get any."""
    metrics: str | None = None
    """In a report: its page."""
    fatal: str | None = None
    """Why it cannot start, and no other could; for a person."""


class Control:
    """One side of it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> "Control":
        """Take over one end of a socket pair."""
        end.setblocking(False)
        return cls(*await asyncio.open_connection(sock=end, limit=_LONGEST_LINE))

    def tell(self, what: Order | News) -> None:
        """Send; a peer that is gone does not matter."""
        if not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(what) + b"\n")

    async def hear(self, kind: type[Any]) -> Any:
        """Return what came next, of the kind; None where the other side is gone."""
        try:
            line = await self._reader.readline()
        except OSError:
            return None
        return msgspec.json.decode(line, type=kind) if line else None

    def close(self) -> None:
        """End it."""
        self._writer.close()
