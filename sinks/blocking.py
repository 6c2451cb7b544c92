"""A base for sinks of your own whose client library blocks: written as plain functions, run in threads."""

import abc
import asyncio
from collections.abc import Sequence

from millrace.sinks.sink import Delivery, Memory, Outcome, Sink


class BlockingSink(Sink):
    """A destination whose calls block. Derive a frozen dataclass from it, and write `deliver_now`.

    Each delivery has a thread while it lasts, up to `max_in_flight` of them at once: one, unless you say more, so that
    a client need not be safe for threads. A delivery that is cancelled (its deadline is over) cannot be stopped in its
    thread: what it still does comes beside the next try of its events, so give your client a timeout below
    the sink's `deadline`.
    """

    max_in_flight = 1

    def open_now(self) -> None:
        """Connect. As `Sink.open`; SinkDownError: not now; CannotOpenSinkError: never, as configured."""

    @abc.abstractmethod
    def deliver_now(self, delivery: Delivery) -> Sequence[Outcome]:
        """Deliver a batch; return one outcome for each row. As `Sink.deliver`."""

    def close_now(self) -> None:
        """Hand over what is buffered, and disconnect."""

    async def open(self, memory: Memory) -> None:  # noqa: ARG002  for one that needs it: derive from Sink
        """Connect, in a thread."""
        await asyncio.to_thread(self.open_now)

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        """Deliver, in a thread."""
        return await asyncio.to_thread(self.deliver_now, delivery)

    async def close(self) -> None:
        """Disconnect, in a thread."""
        await asyncio.to_thread(self.close_now)
