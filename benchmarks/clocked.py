"""A sink for benchmarks, by itself: what a lane imports for it counts as the lane's memory."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from millrace.sinks.sink import DELIVERED, Delivery, Outcome, Sink


@dataclasses.dataclass(frozen=True)
class Clocked(Sink):
    """A sink that has everything at once, and notes how long ago it was published.

    Args:
        file: where to: microseconds, int64.
    """

    file: str

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        """Note each row's age."""
        published = delivery.rows.column("published_at").cast(pa.int64()).to_numpy(zero_copy_only=False)
        with Path(self.file).open("ab") as file:
            file.write((time.time_ns() // 1_000 - published).tobytes())
        return [DELIVERED] * len(delivery)
