"""Receipts: which deliveries are on their way, so that each is acknowledged only when all it brought is safe.

On one node the reader, the stages and the committer share a process. The reader opens a receipt per delivered
message; decode says how many records the message became; the committers settle records once a commit holds them
(or shows that they are copies of committed ones). A receipt with nothing outstanding is ready to acknowledge.
A record that went astray leaves its receipt open: its lease lapses with the process, and Pub/Sub sends it again.
"""

import collections
import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


class Ledger:
    """The open receipts of this process. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = 0
        # Plain dicts of plain values: a hundred thousand small objects here would keep the garbage collector busy.
        self._ack_ids: dict[int, str] = {}
        self._sizes: dict[int, int] = {}
        self._outstanding: dict[int, int] = {}
        self._leases: collections.deque[tuple[int, int, float]] = collections.deque()  # first, end, leased until
        self._pulls: collections.deque[tuple[int, int, int]] = collections.deque()  # first, end, oldest publish time
        self._ready: list[str] = []
        self._settled = 0
        self._open_bytes = 0

    def __reduce__(self) -> tuple[Callable[[], "Ledger"], tuple[()]]:
        # Beam pickles what a DoFn of __main__ refers to: a copy of the ledger would settle nothing.
        return _this_process_s, ()

    def open(self, ack_ids: Sequence[str], sizes: Sequence[int], leased_until_s: float, oldest_us: int) -> int:
        """Enter the messages of one pull; return the first receipt, the others follow it.

        Args:
            ack_ids: one for each message.
            sizes: bytes of each message.
            leased_until_s: when their leases end, on the caller's clock.
            oldest_us: when the first of them was published, µs since the epoch.
        """
        with self._lock:
            first = self._next
            self._next += len(ack_ids)
            receipts = range(first, self._next)
            self._ack_ids.update(zip(receipts, ack_ids, strict=True))
            self._sizes.update(zip(receipts, sizes, strict=True))
            self._leases.append((first, self._next, leased_until_s))
            self._pulls.append((first, self._next, oldest_us))
            self._open_bytes += sum(sizes)
            return first

    def expect(self, receipts: Counts, counts: Counts) -> None:
        """Say how many records (events and dead letters, at least 1) each message became. Before they are emitted."""
        with self._lock:
            for receipt, count in zip(receipts.tolist(), counts.tolist(), strict=True):
                if receipt in self._ack_ids:
                    self._outstanding[receipt] = count

    def expect_more(self, receipts: Counts, counts: Counts) -> None:
        """Say how many records were made of a message's records. Before any of those can be settled."""
        with self._lock:
            for receipt, count in zip(receipts.tolist(), counts.tolist(), strict=True):
                if receipt in self._outstanding:
                    self._outstanding[receipt] += count

    def settle(self, receipts: Counts, counts: Counts) -> None:
        """Say how many records of each message are safe: in a commit, or copies of what is in one."""
        with self._lock:
            for receipt, count in zip(receipts.tolist(), counts.tolist(), strict=True):
                left = self._outstanding.get(receipt)
                if left is None:
                    continue
                if left > count:
                    self._outstanding[receipt] = left - count
                else:
                    del self._outstanding[receipt]
                    self._ready.append(self._close(receipt))
                    self._settled += 1

    def hand_back(self, receipts: Sequence[int]) -> list[str]:
        """Close receipts whose messages were not decoded; return their ack ids, for a nack."""
        with self._lock:
            returned = [self._close(receipt) for receipt in receipts if receipt in self._ack_ids]
            for receipt in receipts:
                self._outstanding.pop(receipt, None)
            return returned

    def take_ready(self) -> list[str]:
        """Return the ack ids that may be acknowledged now, once."""
        with self._lock:
            ready, self._ready = self._ready, []
            return ready

    def take_expiring(self, before_s: float, leased_until_s: float) -> list[str]:
        """Return the ack ids whose leases end before `before_s`, and enter their new end."""
        expiring: list[str] = []
        with self._lock:
            while self._leases and self._leases[0][2] < before_s:
                first, end, _ = self._leases.popleft()
                still = [self._ack_ids[receipt] for receipt in range(first, end) if receipt in self._ack_ids]
                if still:
                    expiring.extend(still)
                    self._leases.append((first, end, leased_until_s))
        return expiring

    def oldest_open_us(self) -> int | None:
        """Return the publish time, in µs, of about the oldest message that is not yet settled; None where all are."""
        with self._lock:
            while self._pulls and not any(map(self._ack_ids.__contains__, range(*self._pulls[0][:2]))):
                self._pulls.popleft()
            return self._pulls[0][2] if self._pulls else None

    def all_open(self) -> list[int]:
        """Return every open receipt."""
        with self._lock:
            return list(self._ack_ids)

    @property
    def open_messages(self) -> int:
        """Messages delivered and not yet settled."""
        return len(self._ack_ids)

    @property
    def open_bytes(self) -> int:
        """Bytes of the messages delivered and not yet settled."""
        return self._open_bytes

    @property
    def settled(self) -> int:
        """Messages settled so far: a number that stands still is a pipeline that stands still."""
        return self._settled

    def _close(self, receipt: int) -> str:
        self._open_bytes -= self._sizes.pop(receipt)
        return self._ack_ids.pop(receipt)


LEDGER = Ledger()
"""This process's ledger. A module's own: Beam builds DoFns anew wherever it likes, in the one process they share."""


def _this_process_s() -> Ledger:
    return LEDGER
