"""How the lanes are, read from their ledgers: for `millrace sinks` and for metrics."""

import contextlib
import dataclasses
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import msgspec

from millrace.delivery.ledger import Ledger
from millrace.delivery.records import Order, Parked, Status, Trying

STALE_S = 10.0
"""A lane says how it is every second; one that has not for so long does not run, whatever it said last."""


@dataclasses.dataclass(frozen=True)
class LaneView:
    """A lane as its ledger shows it.

    Attributes:
        name: of the lane.
        status: what it said last; None: it never ran.
        said_us: when that was, microseconds since the epoch.
        trying: the events that are being retried: each blocks its user, where there is an order.
        parked: the events that an operator put aside.
        orders: what operators told it.
        fault: why its ledger cannot be read; empty: it can.
    """

    name: str
    status: Status | None
    said_us: int
    trying: Sequence[Trying]
    parked: Sequence[Parked]
    orders: Sequence[Order]
    fault: str = ""

    def state(self, now_us: int) -> str:
        """Return running, down, failed or stopped, as it said, or silent, unreadable, never ran."""
        if self.fault:
            return "unreadable"
        if self.status is None:
            return "never ran"
        if self.status.state not in {"stopped", "failed"} and now_us - self.said_us > STALE_S * 1_000_000:
            return "silent"
        return self.status.state

    def is_well(self, now_us: int) -> bool:
        """Say whether nobody has to look at it: it delivers, or was told to end."""
        return self.state(now_us) in {"running", "stopped"}

    def detail(self) -> str:
        """Return why it does not deliver, as far as it is known; empty where it does."""
        return self.fault or ("" if self.status is None else self.status.detail)

    def total(self, name: str) -> int:
        """Return how many events of a kind there were: routed, delivered, dead, skipped ..."""
        return 0 if self.status is None else self.status.totals.get(name, 0)

    @property
    def waiting(self) -> int:
        """How many routed events are not settled, as the lane said last."""
        return 0 if self.status is None else self.status.waiting

    def lag_s(self, now_us: int) -> float:
        """Return how long the oldest unsettled event has been in the queue; it grows while the lane is away."""
        if self.status is None:
            return 0.0
        grown_s = (now_us - self.said_us) / 1_000_000 if self.status.lag_s else 0.0
        return self.status.lag_s + max(0.0, grown_s)


class NoLaneError(Exception):
    """There is no such lane, or no ledger at all; one sentence that says what to do."""


def look(state: Path, names: Sequence[str] = ()) -> list[LaneView]:
    """Return the lanes of a folder of ledgers, by name.

    Args:
        state: the folder.
        names: of lanes, or of sinks: all their lanes; none: all.

    Raises:
        NoLaneError: there are none.
    """
    found = sorted(state.glob("*.sqlite"))
    if not found:
        raise NoLaneError(f"{state} holds no ledger: give the --state of `millrace deliver`, or start it first")
    there = [path.stem for path in found]
    for name in names:
        if not any(_is(each, name) for each in there):
            raise NoLaneError(f"there is no {name} in {state}; there are: {', '.join(there)}")
    return [_look(path) for path in found if not names or any(_is(path.stem, name) for name in names)]


def ledger_paths(state: Path, name: str) -> list[Path]:
    """Return the ledgers of a lane, or of a sink.

    Raises:
        NoLaneError: there are none.
    """
    return [state / f"{view.name}.sqlite" for view in look(state, [name])]


def _is(lane: str, name: str) -> bool:
    return lane == name or lane.removesuffix(".unordered") == name


def _look(path: Path) -> LaneView:
    try:
        with contextlib.closing(Ledger(path, read_only=True)) as ledger:
            return _view(path.stem, ledger) if ledger.is_made() else LaneView(path.stem, None, 0, (), (), ())
    except (sqlite3.Error, msgspec.MsgspecError) as error:
        return LaneView(path.stem, None, 0, (), (), (), fault=f"{path} cannot be read: {error}")


def _view(name: str, ledger: Ledger) -> LaneView:
    said = ledger.status()
    return LaneView(
        name=name,
        status=None if said is None else said[1],
        said_us=0 if said is None else said[0],
        trying=ledger.trying(),
        parked=ledger.parked(),
        orders=ledger.orders(),
    )
