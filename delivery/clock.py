"""The clock of delivery: one unit, one word."""

import time


def now_us() -> int:
    """Return the time, microseconds since the epoch."""
    return time.time_ns() // 1_000
