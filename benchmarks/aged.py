"""A sink around another: does what that does, and notes how long ago each event that arrived was published."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from millrace.delivery.make import make_sink
from millrace.delivery.settings import SinkSettings
from millrace.sinks.sink import Delivered, Delivery, Memory, Outcome, Sink


@dataclasses.dataclass(frozen=True)
class Aged(Sink):
    """Notes ages.

    Attributes:
        use, given: the sink inside.
        file: where to: pairs of int64: when it arrived, and how long after its publication, in microseconds.
    """

    use: str
    given: Mapping[str, Any]
    file: str
    _inner: Sink = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Make the sink inside, and pass for it."""
        inner = make_sink(SinkSettings("inner", self.use, self.given))
        object.__setattr__(self, "_inner", inner)
        for name in ("max_events", "max_bytes", "max_in_flight", "keeps_order", "keeps_ids"):
            object.__setattr__(self, name, getattr(inner, name))

    async def open(self, memory: Memory) -> None:
        """Open the sink inside."""
        await self._inner.open(memory)

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        """Deliver by the sink inside, and note what arrived."""
        outcomes = await self._inner.deliver(delivery)
        now_us = time.time_ns() // 1_000
        arrived = np.array([isinstance(each, Delivered) for each in outcomes])
        published = delivery.rows.column("published_at").cast(pa.int64()).to_numpy(zero_copy_only=False)[arrived]
        pairs = np.column_stack([np.full(len(published), now_us), now_us - published])
        with Path(self.file).open("ab") as file:
            file.write(pairs.astype(np.int64).tobytes())
        return outcomes

    async def close(self) -> None:
        """Close the sink inside."""
        await self._inner.close()
