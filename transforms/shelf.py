"""The shelf: on one node batches stay in this process, and the runner carries tickets for them.

Prism keeps what waits between two stages as bytes, in buffers that it copies and doubles: written out and read in
again, an event cost 8 to 11 µs there (docs/decisions/0007). Where one process runs all stages, it can stay where it is.

Nothing becomes less safe: Prism's own memory does not outlive this process either, and no message is acknowledged
before the commit that holds its events.
"""

import itertools
import struct
import threading

import pyarrow as pa

_TICKET = struct.Struct(">8sQ")
_MARK = b"\x00MILLRC\x00"
"""No Arrow stream begins so: its first four bytes are 0xff."""


class LostTicketError(Exception):
    """A ticket came back for which there is no batch."""


class Shelf:
    """Batches by ticket, each handed out once. Threads may share it."""

    def __init__(self) -> None:
        self.is_open = False
        """Whether batches are kept here at all: only where all stages run in this process."""
        self._numbers = itertools.count()
        self._batches: dict[int, pa.RecordBatch] = {}
        self._lock = threading.Lock()

    def open(self) -> None:
        """Keep batches from now on."""
        self.is_open = True

    def close(self) -> None:
        """Keep no more, and forget those that are here."""
        self.is_open = False
        with self._lock:
            self._batches.clear()

    def put(self, batch: pa.RecordBatch) -> bytes:
        """Keep a batch; return its ticket."""
        with self._lock:
            number = next(self._numbers)
            self._batches[number] = batch
        return _TICKET.pack(_MARK, number)

    def take(self, ticket: bytes) -> pa.RecordBatch:
        """Give out a ticket's batch, and forget it.

        Raises:
            LostTicketError: it is not here: handed out before, or another process has it.
        """
        _, number = _TICKET.unpack(ticket)
        with self._lock:
            batch = self._batches.pop(number, None)
        if batch is None:
            raise LostTicketError(
                f"batch {number} is not in this process: the runner gave it to another worker, or twice. Nothing is "
                "lost: its messages are not acknowledged, and come again when the job is started again."
            )
        return batch

    def __len__(self) -> int:
        return len(self._batches)


def is_ticket(encoded: bytes) -> bool:
    """Say whether these are not a batch's bytes but a ticket for it."""
    return len(encoded) == _TICKET.size and encoded.startswith(_MARK)


SHELF = Shelf()
"""This process's."""
