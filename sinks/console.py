"""The sink `console`: one JSON line an event on standard output, to see what a route gives."""

import asyncio
import dataclasses
import sys
from collections.abc import Sequence

from millrace.sinks.sink import DELIVERED, Delivery, Outcome, Sink, SinkDownError


@dataclasses.dataclass(frozen=True)
class Console(Sink):
    """Prints events; delivered means that whatever reads standard output was given the line.

    Attributes:
        names_route: whether each line begins with the route's name and a tab.
    """

    names_route: bool = False

    max_in_flight = 1  # lines of two deliveries would come between each other

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        """Print a line for each row; one that reads slowly holds up this lane, and nothing else."""
        start = f"{delivery.route}\t".encode() if self.names_route else b""
        await asyncio.to_thread(_print, b"".join(start + line + b"\n" for line in delivery.json()))
        return [DELIVERED] * len(delivery)


def _print(lines: bytes) -> None:
    try:
        sys.stdout.buffer.write(lines)
        sys.stdout.buffer.flush()
    except BrokenPipeError as error:
        raise SinkDownError("nobody reads standard output any more: start it again with a reader") from error
    except OSError as error:
        raise SinkDownError(f"standard output cannot be written to: {error.strerror}") from error
