"""Rates: a token bucket per source and worker, with the clock as an argument.

The workers of one collector share nothing, so each has its part: rate and burst divided by their number. The kernel
spreads connections over the workers; a source whose requests all come over one connection meets one worker, and so gets
one worker's part. That errs to the strict side: a source never gets more than its rate.
"""

import dataclasses

from millrace.collector.source import Source

_ROUNDING = 1e-6  # of an event: whoever waited as long as told must not be sent away for the last bit of a double


@dataclasses.dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


class Buckets:
    """One worker's buckets, filled at first sight.

    In any t seconds a source gets at most `burst + rate * t` events in, and what its largest request has beyond the
    burst: a request larger than the burst is let in when the bucket is full, and the rest is owed, so what follows
    pays for it. Without that it could never get in.

    Raises:
        ValueError: workers is less than 1.
    """

    def __init__(self, workers: int = 1) -> None:
        if workers < 1:
            raise ValueError(f"workers must be 1 or more, got {workers}")
        self._workers = workers
        self._buckets: dict[str, _Bucket] = {}

    def take(self, source: Source, events: int, now_s: float) -> float:
        """Take what one request needs.

        Args:
            source: as loaded last; a changed rate counts from now on.
            events: how many events the request has.
            now_s: any clock's seconds, best a monotonic one. One that went back gives nothing and takes nothing.

        Returns:
            0.0: taken. Else nothing was taken, and these many seconds, > 0, are to be waited before it can be.
        """
        if source.rate is None:
            return 0.0
        rate, burst = source.rate / self._workers, source.burst / self._workers
        bucket = self._buckets.get(source.id)
        if bucket is None:
            bucket = self._buckets[source.id] = _Bucket(burst, now_s)
        bucket.tokens = min(burst, bucket.tokens + max(0.0, now_s - bucket.at_s) * rate)
        bucket.at_s = now_s
        missing = min(float(events), burst) - bucket.tokens
        if missing > _ROUNDING:
            return missing / rate
        bucket.tokens -= events
        return 0.0
