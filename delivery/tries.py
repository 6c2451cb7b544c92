"""Tries: which events of a lane without order are being retried, in the ledger, and what an earlier run tried.

Each run gives events other positions, so they are known again by their ids, once their messages come again.
"""

import math
import time
from collections.abc import Iterable, Sequence

from millrace.delivery.ledger import Ledger, Trying
from millrace.delivery.pending import Pending

_KEPT_S = 3_600.0


class Tries:
    """Reads and writes them, for one lane.

    Args:
        ledger: the lane's, open for writing.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._before: dict[str, Trying] = {}
        self._over: list[int] = []  # of earlier runs: positions of which nothing is to be kept any more
        self._since_s = -math.inf
        self._is_written = False

    def recall(self) -> None:
        """Learn what an earlier run tried."""
        self._since_s = time.monotonic()
        self._before = {each.message_id: each for each in self._ledger.trying()}

    def count(self, events: Iterable[Pending]) -> None:
        """Count what an earlier run tried: an event that fails is given up as if there had been no restart."""
        if not self._before:
            return
        for event in events:
            tried = self._before.pop(event.message_id, None)
            if tried is not None:
                event.attempts, event.first_us, event.next_us = tried.attempts, tried.first_us, tried.next_us
                event.fault, event.detail = tried.fault, tried.detail
                self._over.append(tried.position)

    def write(self, trying: Sequence[Trying], over: Sequence[int]) -> None:
        """Write what changed (Feed.save), inside a transaction of the ledger's; then comes `written`."""
        if self._before and time.monotonic() - self._since_s >= _KEPT_S:
            self._over += (each.position for each in self._before.values())
            self._before.clear()
        if self._is_written:
            self._ledger.change_trying(trying, [*over, *self._over])
        else:
            self._ledger.set_trying([*trying, *self._before.values()])

    def written(self) -> None:
        """Forget what was written."""
        self._is_written = True
        self._over.clear()
