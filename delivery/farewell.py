"""Farewell: what a run of `millrace deliver` says of its lanes once they have ended; their ledgers know."""

import contextlib
import sqlite3
from collections.abc import Mapping
from pathlib import Path

from millrace.delivery.ledger import Ledger
from millrace.delivery.records import Status

_MORE = ("dead", "skipped", "parked", "unreadable", "failed")


def totals_of(ledger: Path) -> dict[str, int]:
    """Return what a lane has counted so far, by name; nothing where it never ran, or its ledger cannot be read."""
    if not ledger.exists():
        return {}
    try:
        with contextlib.closing(Ledger(ledger, read_only=True)) as opened:
            return opened.totals() if opened.is_made() else {}
    except sqlite3.Error:
        return {}


def farewell(ledger: Path, before: Mapping[str, int]) -> str:
    """Say in a line what a lane did in a run, and what waits for the next.

    Args:
        ledger: the lane's.
        before: its totals_of before the run.
    """
    now, status = _found(ledger)
    done = {name: now.get(name, 0) - before.get(name, 0) for name in ("delivered", *_MORE)}
    parts = [f"delivered {done['delivered']:,} in this run"]
    parts += [f"{name} {done[name]:,}" for name in _MORE if done[name] > 0]
    return f"{ledger.stem}: {', '.join(parts)}; {_left(status)}."


def _found(path: Path) -> tuple[Mapping[str, int], Status | None]:
    if not path.exists():
        return {}, None
    try:
        # Its lane has ended. As a writer: whoever only reads leaves SQLite's other two files behind.
        with contextlib.closing(Ledger(path)) as ledger:
            said = ledger.status()
            return ledger.totals(), None if said is None else said[1]
    except sqlite3.Error:
        return {}, None


def _left(status: Status | None) -> str:
    if status is None:
        return "what waits is not known"
    if not status.is_ordered:
        return "what it has not acknowledged waits in its subscription"
    left = [f"{status.waiting:,} wait"] if status.waiting else []
    left += [f"{status.behind:,} rows of the archive are yet to be read"] if status.behind else []
    text = ", and ".join(left) or "nothing waits"
    return text if status.state == "stopped" else f"{text}, as it said last"
