"""Counts: every stage says what went out of which door, to this process's progress line, and to Beam where it runs."""

import collections
import threading
from typing import Protocol

_LOCK = threading.Lock()
_HERE: collections.Counter[str] = collections.Counter()


class Listener(Protocol):
    """Is told all that is counted in this process."""

    def count(self, stage: str, name: str, amount: int) -> None:
        """Add to a counter."""

    def observe(self, stage: str, name: str, value: int) -> None:
        """Add a value to a distribution."""


_LISTENERS: list[Listener] = []


def listen(listener: Listener) -> None:
    """Tell a listener, too, from now on: Beam's metrics (transforms/in_beam.py)."""
    _LISTENERS.append(listener)


def count(stage: str, name: str, amount: int = 1) -> None:
    """Add to the counter `stage/name`; names are of a closed set, never message text."""
    if not amount:
        return
    for listener in _LISTENERS:
        listener.count(stage, name, amount)
    with _LOCK:
        _HERE[f"{stage}/{name}"] += amount


def observe(stage: str, name: str, value: int) -> None:
    """Tell the listeners a value of the distribution `stage/name`; it is kept nowhere else."""
    for listener in _LISTENERS:
        listener.observe(stage, name, value)


def counted_here() -> dict[str, int]:
    """Return what this process has counted so far, by `stage/name`; on one node that is the whole job."""
    with _LOCK:
        return dict(_HERE)
