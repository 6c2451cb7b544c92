"""The sink `console`: one JSON line an event on standard output, to see what a route gives."""

import dataclasses
import sys
from collections.abc import Sequence

from millrace.sinks.sink import DELIVERED, Delivery, Outcome, Sink


@dataclasses.dataclass(frozen=True)
class Console(Sink):
    """Prints events; delivered means printed."""

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        """Print a line for each row."""
        sys.stdout.buffer.write(b"".join(line + b"\n" for line in delivery.json()))
        sys.stdout.buffer.flush()
        return [DELIVERED] * len(delivery)
