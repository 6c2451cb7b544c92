"""Sinks as users would write them, good ones and odd ones, for tests to name in a configuration."""

import dataclasses
from collections.abc import Sequence

from millrace.sinks.sink import DELIVERED, Delivery, Outcome, Sink


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


class Unfinished(Sink):
    """Has no deliver."""


def not_a_sink() -> None:
    """Nothing."""
