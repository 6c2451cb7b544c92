"""Timings: what each transform takes for an event, kept in this process as a histogram; p50 and p99 to 9 %."""

import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from millrace.transforms.counts import counted_here, observe

STAGE = "transform"

_STEPS = 8  # buckets for each doubling
_BUCKETS = 40 * _STEPS  # up to 2**40 ns, 18 minutes

_LOCK = threading.Lock()
_HERE: dict[str, "Timings"] = {}


class Timings:
    """How long events took, in ns."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BUCKETS, np.int64)
        self.state: Callable[[], tuple[int, int]] | None = None
        """Returns bytes and number of the users remembered."""

    def add(self, ns: Sequence[int] | npt.NDArray[np.int64], times: int = 1) -> None:
        """Add durations, each so many times."""
        buckets = (np.log2(np.maximum(np.asarray(ns, np.float64), 1.0)) * _STEPS).astype(np.int64)
        with _LOCK:
            self._counts += times * np.bincount(np.minimum(buckets, _BUCKETS - 1), minlength=_BUCKETS)

    @property
    def events(self) -> int:
        return int(self._counts.sum())

    def quantile_ns(self, share: float) -> float:
        """Return the duration that a share of the events did not exceed; 0 before the first."""
        if not self.events:
            return 0.0
        bucket = int(np.searchsorted(np.cumsum(self._counts), share * self.events))
        return float(2 ** ((bucket + 1) / _STEPS))


def timings(transform: str) -> Timings:
    """Return the timings of a transform in this process."""
    with _LOCK:
        return _HERE.setdefault(transform, Timings())


def note(transform: str, ns: Sequence[int], times: int = 1) -> None:
    """Add a batch's durations, in this process; Beam's metrics, where it runs, get the batch's own p50 and p99."""
    if not len(ns):
        return
    timings(transform).add(ns, times)
    for share in (50, 99):
        observe(STAGE, f"{transform}_p{share}_ns", int(np.percentile(ns, share)))


def summary() -> list[str]:
    """Return a line for each transform that ran in this process."""
    with _LOCK:
        found = dict(_HERE)
    counts = counted_here()
    lines = []
    for name, of in found.items():
        parts = [f"{of.events:,} events", *(f"p{share} {_us(of.quantile_ns(share / 100))}" for share in (50, 99))]
        parts += [
            f"{word} {counts[key]:,}"
            for word in ("refused", "passed", "dropped")
            if (key := f"{STAGE}/{name}_{word}") in counts
        ]
        if of.state is not None:
            size, users = of.state()
            parts.append(f"state {size:,} bytes of {users:,} users")
        lines.append(f"transform {name}: {'  '.join(parts)}")
    return lines


def forget_timings() -> None:
    """Forget all that was noted in this process."""
    with _LOCK:
        _HERE.clear()


def _us(ns: float) -> str:
    return f"{ns / 1_000:,.1f} µs"
