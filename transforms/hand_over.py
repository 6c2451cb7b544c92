"""Hand over: on one node a batch passes from one stage to the next by a number, while it stays where it is.

Between two stages with a group in between, a batch would be encoded, carried to the runner and back, and decoded: as
much work as the first group, for rows that do not wait. The runner groups the numbers instead. A process that ends
takes the batches along, as it does the runner's state on one node; nothing of them was acknowledged.
"""

import itertools
import threading

import pyarrow as pa

from millrace.transforms.batches import RecordBatchCoder

OPEN_BYTES = 256 * 1024 * 1024
"""What waits as it is; past that, batches are packed: while a backlog is caught up with, many windows leave at once."""

_CODER = RecordBatchCoder()


class HandOver:
    """Batches on their way from stage to stage in this process. Safe to share between threads."""

    def __init__(self, open_bytes: int = OPEN_BYTES) -> None:
        self._open_bytes = open_bytes
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._batches: dict[int, pa.RecordBatch | bytes] = {}
        self._held_bytes = 0

    def give(self, batch: pa.RecordBatch) -> int:
        """Keep a batch; return the number that `take` gives it for."""
        size = batch.nbytes
        with self._lock:
            number = next(self._numbers)
            packs = self._held_bytes + size > self._open_bytes
            if not packs:
                self._held_bytes += size
        kept = _CODER.encode(batch) if packs else batch
        with self._lock:
            self._batches[number] = kept
        return number

    def take(self, number: int) -> pa.RecordBatch:
        """Return a batch, once.

        Raises:
            KeyError: it was never given here, or was taken already.
        """
        with self._lock:
            kept = self._batches.pop(number)
            if not isinstance(kept, bytes):
                self._held_bytes -= kept.nbytes
        return _CODER.decode(kept) if isinstance(kept, bytes) else kept

    def __len__(self) -> int:
        return len(self._batches)


HERE = HandOver()
"""This process's: whoever gives and whoever takes are built anew wherever Beam likes, in the one process they share."""
