"""Where a subscription stands in its topic: the next message that was not looked at yet."""

from collections import deque
from collections.abc import Iterable

from millrace.broker.store import Store
from millrace.broker.wire import Batch


class Backlog:
    """Reads on from a message id, batch by batch, past what was acknowledged in an earlier run or before a seek."""

    def __init__(self, store: Store, floor: int, acked: Iterable[tuple[int, int]]) -> None:
        self._store = store
        self.cursor = floor  # the next id to look at
        self.skip = deque(sorted(acked))  # ranges (ends included) not to deliver
        self._batch: Batch | None = None

    def batch(self, end: int) -> Batch | None:
        """Return the batch that holds the cursor, moved on to the next message before end; None where there is none."""
        while True:
            while self.skip and self.skip[0][0] <= self.cursor:
                self.cursor = max(self.cursor, self.skip.popleft()[1] + 1)
            if self.cursor >= end:
                return None
            batch = self._batch
            if batch is None or not batch.first <= self.cursor < batch.end:
                batch = self._batch = self._store.batch_from(self.cursor, end)
            if batch is None:  # a failed publish or a trimmed batch leaves a gap at the end
                self.cursor = end
                return None
            if batch.first <= self.cursor:
                return batch
            self.cursor = batch.first  # over a gap, which may have ended among acknowledged ones
