"""The watermark that the readers of one subscription share: before it nothing will arrive any more.

Beam has a watermark for each reader and takes the least. Prism 2.77 keeps one estimate for the stage, that of
the bundle that ended last (`elementmanager.go`, `stage.estimatedOutput`): the report of one reader makes late, and
drops, what another has read and not yet handed over. So no reader reports past what another may still have on its way.
"""

import threading

END = 2**62
"""µs: no reader has anything on its way, nor will it."""


class SharedWatermark:
    """Times in µs since the epoch; never goes back. Every method may be called from any thread."""

    def __init__(self, slack_us: int) -> None:
        self._slack_us = slack_us
        self._lock = threading.Lock()
        self._reached_us = 0
        # For each reader: what its last bundle cannot go below. It holds until its next one begins, which shows that
        # the runner has taken the last.
        self._floors: dict[int, int] = {}

    def begin(self, reader: int, unread_us: int, *, ended: bool) -> None:
        """Say that a reader's bundle begins; with `ended`, that it will emit nothing, nor will any after it.

        Args:
            reader: which.
            unread_us: about the oldest publish time of what nobody has taken.
            ended: the subscription has given its last message.
        """
        with self._lock:
            self._floors[reader] = END if ended else self._reach(unread_us)

    def arrival_floor(self, unread_us: int) -> int:
        """Return what no message that is taken now may be stamped before."""
        with self._lock:
            return self._reach(unread_us)

    def report(self, reader: int, unread_us: int, *, ended: bool) -> int:
        """Return the watermark that a reader may report: END once all have ended."""
        with self._lock:
            mine = END if ended else self._reach(unread_us)
            return min([mine, *(floor for other, floor in self._floors.items() if other != reader)])

    def _reach(self, unread_us: int) -> int:
        self._reached_us = max(self._reached_us, unread_us - self._slack_us)
        return self._reached_us
