"""Sinks as users would write them, good ones and odd ones, for tests to name in a configuration."""

import asyncio
import dataclasses
import threading
from collections.abc import Mapping, Sequence

from millrace.sinks.sink import DELIVERED, CannotOpenSinkError, Delivery, Memory, Outcome, Sink


@dataclasses.dataclass(frozen=True)
class Auth:
    """A nested setting."""

    user: str
    realm: str = "shop"


@dataclasses.dataclass(frozen=True)
class Kept(Sink):
    """Keeps nothing; takes settings of several types."""

    url: str
    timeout_s: float = 5.0
    topics: tuple[str, ...] = ()
    auth: Auth | None = None

    def __post_init__(self) -> None:
        if not self.url.startswith("https://"):
            raise ValueError(f"url has to begin with https://, not {self.url!r}")
        if self.timeout_s > 60:
            raise KeyError(self.timeout_s)

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        return [DELIVERED] * len(delivery)

    def check_target(self, target: str) -> None:
        """Take any."""


@dataclasses.dataclass(frozen=True)
class Picky(Sink):
    """Needs a column; its code fails at every target."""

    def check_columns(self, columns: Mapping[str, str]) -> None:
        if "user_id" not in columns:
            raise ValueError("it needs user_id: add it")

    def check_target(self, target: str) -> None:
        raise KeyError(target)

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        return [DELIVERED] * len(delivery)


class Unfinished(Sink):
    """Has no deliver."""


def not_a_sink() -> None:
    """Nothing."""


@dataclasses.dataclass(frozen=True)
class Stuck(Sink):
    """Hangs in a thread that nothing ends."""

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        await asyncio.to_thread(threading.Event().wait)
        return [DELIVERED] * len(delivery)


@dataclasses.dataclass(frozen=True)
class Hopeless(Sink):
    """Can never work."""

    async def open(self, memory: Memory) -> None:  # noqa: ARG002  it needs none
        raise CannotOpenSinkError("there is no database shop: create it")

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        raise AssertionError(delivery)
