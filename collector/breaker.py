"""Breaker: after failures in a row stop asking a service that is away, and ask now and then whether it is back.

Time is an argument, seconds of a monotonic clock, so that a clock that is set cannot hold it open.
"""

import enum


class BreakerState(enum.Enum):
    """What a breaker lets through."""

    CLOSED = "closed"
    """Everything."""
    OPEN = "open"
    """Nothing, until its pause is over."""
    HALF_OPEN = "half_open"
    """One probe, which is under way."""


class Breaker:
    """A circuit breaker; its pauses double from the first to the longest while probes fail."""

    def __init__(self, failures_to_open: int = 3, first_pause_s: float = 0.25, longest_pause_s: float = 5.0) -> None:
        """Start closed.

        Args:
            failures_to_open: how many in a row; more keep callers waiting for an outage longer.
            first_pause_s: from the opening to the first probe.
            longest_pause_s: between probes; longer means back later, and more of the spool filled.

        Raises:
            ValueError: a count or a pause that is not positive, or pauses in the wrong order.
        """
        if failures_to_open < 1:
            raise ValueError(f"failures_to_open must be at least 1, got {failures_to_open}")
        if not 0 < first_pause_s <= longest_pause_s:
            raise ValueError(f"pauses must be 0 < first <= longest, got {first_pause_s} and {longest_pause_s} s")
        self.state = BreakerState.CLOSED
        self.openings = 0
        """How often it opened, failed probes not counted."""
        self._failures_to_open = failures_to_open
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._pause_s = first_pause_s
        self._failures = 0
        self._next_probe_s = 0.0

    @property
    def closed(self) -> bool:
        """Whether everything may pass."""
        return self.state is BreakerState.CLOSED

    def pause_left_s(self, now_s: float) -> float:
        """Seconds until a probe may be sent; 0.0 where it may be now, or nothing is in the way at all."""
        return 0.0 if self.closed else max(0.0, self._next_probe_s - now_s)

    def try_probe(self, now_s: float) -> bool:
        """Ask to send the probe; True for one caller a pause, who then reports `succeeded` or `failed`.

        A probe that nobody reports on is forgotten after the longest pause.
        """
        if self.closed or self.pause_left_s(now_s) > 0:
            return False
        self.state = BreakerState.HALF_OPEN
        self._next_probe_s = now_s + self._longest_pause_s
        return True

    def succeeded(self) -> None:
        """Close: the service answers."""
        self.state = BreakerState.CLOSED
        self._failures = 0
        self._pause_s = self._first_pause_s

    def failed(self, now_s: float, *, at_once: bool = False) -> None:
        """Count a failure; open where it is one too many, or a probe's, or says enough to open `at_once`."""
        if self.state is BreakerState.OPEN:  # sent before it opened: says nothing new
            return
        self._failures += 1
        if self.state is BreakerState.HALF_OPEN:
            self._pause_s = min(self._longest_pause_s, self._pause_s * 2)
        elif self._failures < self._failures_to_open and not at_once:
            return
        else:
            self.openings += 1
        self.state = BreakerState.OPEN
        self._next_probe_s = now_s + self._pause_s
