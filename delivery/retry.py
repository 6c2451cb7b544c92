"""When an event that failed is tried again, and when it is given up."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
    """Exponential pauses with jitter; given up only after both so many tries and so much time.

    The defaults are what RudderStack's router does, but for the shorter hour
    (https://github.com/rudderlabs/rudder-server, router/worker.go).
    """

    first_s: float = 1.0
    longest_s: float = 300.0
    min_tries: int = 3
    min_s: float = 3_600.0

    def pause_s(self, attempts: int, chance: float) -> float:
        """Return how long to wait after so many failed attempts.

        Args:
            attempts: from 1.
            chance: at random, from 0 to 1: the pause is between half of the full one and all of it.
        """
        full = min(self.first_s * 2.0 ** min(attempts - 1, 60), self.longest_s)
        return full * (0.5 + chance / 2)

    def gives_up(self, attempts: int, age_s: float) -> bool:
        """Say whether an event is given up after so many failed attempts, the first of them so long ago."""
        return attempts >= self.min_tries and age_s >= self.min_s
