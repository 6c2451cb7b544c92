"""Counts: every stage says what went out of which door, to Beam's metrics and to this process's progress line."""

import collections
import threading

from apache_beam.metrics import Metrics

_LOCK = threading.Lock()
_HERE: collections.Counter[str] = collections.Counter()


def count(stage: str, name: str, amount: int = 1) -> None:
    """Add to the counter `stage/name`; names are of a closed set, never message text."""
    if not amount:
        return
    Metrics.counter(stage, name).inc(amount)
    with _LOCK:
        _HERE[f"{stage}/{name}"] += amount


def counted_here() -> dict[str, int]:
    """Return what this process has counted so far, by `stage/name`; on one node that is the whole job."""
    with _LOCK:
        return dict(_HERE)
