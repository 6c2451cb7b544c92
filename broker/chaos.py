"""Trouble on purpose: what a real Pub/Sub may do to its clients, seeded, so that tests can ask for it."""

import asyncio
import dataclasses
import random

import grpc

from millrace.broker.errors import Refused


@dataclasses.dataclass
class Chaos:
    """Shares are 0..1, times milliseconds; all may be set while the broker runs, from any thread.

    No promise of Pub/Sub is broken: what was accepted is delivered at least once, and a key keeps its order.
    """

    seed: int = 0
    drop_acks: float = 0.0
    """Share of acknowledged messages whose ack is answered and forgotten: they come again after their deadline."""
    duplicate: float = 0.0
    """Share of deliveries repeated in the next pull, acknowledged or not."""
    reorder: float = 0.0
    """Share of first deliveries held back for up to reorder_ms; the rest of a response is shuffled."""
    reorder_ms: int = 500
    fail_publish: float = 0.0
    """Share of Publish calls answered UNAVAILABLE; of every second one the messages are stored all the same."""
    delay_publish_ms: int = 0
    delay_pull_ms: int = 0
    stall: bool = False
    """While true, no Publish, Pull, Acknowledge or ModifyAckDeadline is answered, nor a stream fed."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311  (repeatable, not secret)
        self._failures = 0

    def happens(self, share: float) -> bool:
        """Draw once."""
        return share > 0 and self._random.random() < share

    def shuffle(self, items: list[tuple[int, memoryview, int]]) -> None:
        """Shuffle in place."""
        self._random.shuffle(items)

    def hold_s(self) -> float:
        """Seconds to hold a reordered message back."""
        return self._random.random() * self.reorder_ms / 1000

    def loses_before_storing(self) -> bool:
        """For a failed Publish: whether its messages are lost (first, third ...) or only its answer (second ...)."""
        self._failures += 1
        return self._failures % 2 == 1

    async def pause(self, delay_ms: int) -> None:
        """Wait for the delay, then for the end of a stall."""
        if delay_ms:
            await asyncio.sleep(delay_ms / 1000)
        while self.stall:
            await asyncio.sleep(0.01)

    @classmethod
    def parse(cls, text: str) -> "Chaos":
        """Read `drop_acks=0.1,delay_pull_ms=20,seed=7`.

        Raises:
            ValueError: unknown name, or a value out of its range.
        """
        fields = {field.name: type(getattr(cls, field.name)) for field in dataclasses.fields(cls)}
        values: dict[str, float | int | bool] = {}
        for pair in filter(None, text.split(",")):
            name, _, value = pair.partition("=")
            if name not in fields:
                raise ValueError(f"unknown chaos switch {name!r}; there are {', '.join(fields)}")
            kind = fields[name]
            values[name] = value.lower() in ("1", "true", "yes") if kind is bool else kind(value)
            if kind is float and not 0 <= values[name] <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, got {value}")
        return cls(**values)  # type: ignore[arg-type]


def unavailable() -> Refused:
    """The answer to a Publish that chaos lets fail."""
    return Refused(
        grpc.StatusCode.UNAVAILABLE, "The service was unable to fulfill your request. Please try again. (chaos)"
    )
