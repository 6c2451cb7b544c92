"""Accepted: what this collector made durable, message by message, so that `millrace verify` can close the accounts.

Each worker appends to files of its own, one an hour, `accepted-HOUR-WORKER.log`. A line is one of

    p SECONDS SOURCE ID*EVENTS,ID*EVENTS... - - .      Pub/Sub acknowledged these messages at once
    s SECONDS SOURCE *EVENTS KEY RECEIVED_AT .         the spool has this one, synced
    r SECONDS SOURCE ID*EVENTS KEY RECEIVED_AT .       Pub/Sub acknowledged one that had been spooled

with Unix seconds of the collector's clock. ID is Pub/Sub's message id, which the tables know as `envelope_id`; KEY
links a spooled message with its replay. Only a line that ends in its dot is whole: what a crash tore is passed over.

Lines are collected in memory and written once a second from a thread: a killed worker takes at most the last second of
them with it, a power cut what the system had not written back yet. Messages are in their queue all the same.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import xxhash

from millrace.collector.message import Message
from millrace.schemas import envelope

log = logging.getLogger(__name__)

PREFIX = "accepted-"
FLUSH_S = 1.0
KEEP_S = 8 * 86_400
"""How long files are kept: a day longer than Pub/Sub keeps what nobody acknowledges, by default."""

_MOST_BYTES = 64 << 20
"""Of lines that wait for a disk which does not answer; beyond, they are lost, and counted."""


class Accepted:
    """The record of one worker. Make it and use it on one event loop."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        """Open it; files are made when there is something to write.

        Args:
            folder: of all workers, and of all collectors that share a disk.
            clock: Unix seconds.

        Raises:
            OSError: the folder cannot be made.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.lost = 0
        """Messages whose line could not be written."""
        self._folder = folder
        self._clock = clock
        self._worker = secrets.token_hex(6)  # never a name that was there before: nothing is appended to a torn line
        self._lines: list[str] = []
        self._bytes = self._messages = 0
        self._failing = False
        self._pruned_hour = ""
        self._writing = asyncio.Lock()

    def published(self, messages: Iterable[Message], ids: Sequence[str]) -> None:
        """Note messages that Pub/Sub acknowledged at once, and under which ids."""
        by_source: dict[str, list[str]] = {}
        for message, id_ in zip(messages, ids, strict=False):  # Pub/Sub owes one each; clients wait behind this
            source = message.attributes.get(envelope.SOURCE_ID, "-")
            by_source.setdefault(source, []).append(f"{id_}*{message.events}")
        for source, items in by_source.items():
            self._add(f"p {int(self._clock())} {source} {','.join(items)} - - .\n", len(items))

    def spooled(self, message: Message) -> None:
        """Note a message that is in the spool."""
        self._add(f"s {self._one(message, '')}", 1)

    async def replayed(self, messages: Iterable[Message], ids: Sequence[str]) -> None:
        """Note messages of the spool that Pub/Sub has now; return when that is written, so that they may be deleted."""
        for message, id_ in zip(messages, ids, strict=False):
            self._add(f"r {self._one(message, id_)}", 1)
        await self.flush()

    async def run(self) -> None:
        """Write what has come, once a second, until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            await self.flush()

    async def flush(self) -> None:
        """Write what has come. A disk that refuses costs these lines, and nothing else."""
        async with self._writing:
            if not self._lines:
                return
            lines, messages = self._lines, self._messages
            self._lines, self._bytes, self._messages = [], 0, 0
            try:
                await asyncio.to_thread(self._write, "".join(lines).encode())
            except OSError as error:
                self._lose(messages, str(error))
            else:
                if self._failing:
                    log.warning("what is accepted is recorded again")
                self._failing = False

    def _one(self, message: Message, id_: str) -> str:
        source = message.attributes.get(envelope.SOURCE_ID, "-")
        received = message.attributes.get(envelope.RECEIVED_AT, "-")
        return f"{int(self._clock())} {source} {id_}*{message.events} {key_of(message)} {received} .\n"

    def _add(self, line: str, messages: int) -> None:
        if self._bytes + len(line) > _MOST_BYTES:
            self._lose(messages, "the disk does not answer")
            return
        self._lines.append(line)
        self._bytes += len(line)
        self._messages += messages

    def _lose(self, messages: int, why: str) -> None:
        self.lost += messages
        if not self._failing:  # said once, not every second
            log.error("what is accepted cannot be recorded, and will be missing in `millrace verify`: %s", why)
        self._failing = True

    def _write(self, data: bytes) -> None:
        hour = time.strftime("%Y-%m-%dT%H", time.gmtime(self._clock()))
        with (self._folder / f"{PREFIX}{hour}-{self._worker}.log").open("ab", buffering=0) as file:
            if self._failing:
                file.write(b"\n")  # behind what was torn when the disk was full
            while data:
                data = data[file.write(data) :]
        if hour != self._pruned_hour:
            self._pruned_hour = hour
            self._prune()

    def _prune(self) -> None:
        for path in self._folder.glob(f"{PREFIX}*.log"):
            with contextlib.suppress(FileNotFoundError):  # another worker was first
                if path.stat().st_mtime < self._clock() - KEEP_S:
                    path.unlink()


def key_of(message: Message) -> str:
    """Return what a spooled message is known by: its request, and which of the request's messages it is."""
    request = message.attributes.get(envelope.REQUEST_ID, "")
    return f"{request}/{xxhash.xxh3_64_hexdigest(message.body)}"
