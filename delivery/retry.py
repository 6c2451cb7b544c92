"""When an event that failed is tried again, and when it is given up."""

import dataclasses
import math

LONGEST_AFTER_S = 3_600.0
"""A Retry-After beyond this counts as this: destinations have been seen to name a day, or a date of next year."""


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
    """Exponential pauses with jitter; given up only after both so many tries and so much time.

    The defaults are what RudderStack's router does (10 s * 2^n up to 300 s, three tries and three hours), but for the
    shorter first pause and hour (https://github.com/rudderlabs/rudder-server, router/worker.go).

    Attributes:
        first_s: the pause after the first failure.
        longest_s: no pause is longer.
        min_tries: at least so many failures before an event is given up.
        min_s: at least so long from the first failure to the one that gives it up.
    """

    first_s: float = 1.0
    longest_s: float = 300.0
    min_tries: int = 3
    min_s: float = 3_600.0

    def __post_init__(self) -> None:
        for name in ("first_s", "longest_s", "min_s"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a number of seconds, got {getattr(self, name)}")
        if self.first_s <= 0:
            raise ValueError(f"the first pause must be above 0 s, got {self.first_s}")
        if self.longest_s < self.first_s:
            raise ValueError(f"the longest pause ({self.longest_s} s) is shorter than the first ({self.first_s} s)")
        if self.min_tries < 1:
            raise ValueError(f"an event is tried at least once, got {self.min_tries} tries")
        if self.min_s < 0:
            raise ValueError(f"the time to try must not be negative, got {self.min_s} s")

    def pause_s(self, attempts: int, chance: float, after_s: float | None = None) -> float:
        """Return how long to wait after so many failed attempts.

        Args:
            attempts: from 1.
            chance: at random, from 0 to 1: the pause is between half of the full one and all of it.
            after_s: what the destination said (Retry-After). It is obeyed instead, between half of `first_s` and
                LONGEST_AFTER_S, and up to a tenth longer: not all that were told the same come back at once.
        """
        if after_s is not None and not math.isnan(after_s):
            return min(max(after_s, self.first_s / 2), LONGEST_AFTER_S) * (1 + chance / 10)
        full = min(self.first_s * 2.0 ** min(attempts - 1, 60), self.longest_s)
        return full * (0.5 + chance / 2)

    def gives_up(self, attempts: int, age_s: float) -> bool:
        """Say whether an event is given up after so many failed attempts, the first of them so long ago."""
        return attempts >= self.min_tries and age_s >= self.min_s
