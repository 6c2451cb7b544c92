"""The barrier, the retries and the throttles together, against a destination that fails in every way: simulation.py."""

from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from millrace.delivery import barrier, failed
from millrace.delivery.barrier import Barrier
from millrace.delivery.pending import Place
from tests.delivery.simulation import Simulation

SEEDS = range(60)


@pytest.mark.parametrize("keeps_order", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_fails_nothing_is_lost_or_turned_around_and_nobody_waits_for_ever(seed, keeps_order):
    """At each step: accounts that close, deliveries as they may be, each user's order. At the end: all settled."""
    Simulation(seed, keeps_order=keeps_order).run()


def test_all_of_it_happens():
    """A simulation in which nothing goes wrong shows nothing."""
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        simulation = Simulation(seed, keeps_order=True)
        simulation.run()
        seen += simulation.seen
    assert {what for what, count in seen.items() if count >= 10} == {
        *("kill", "given up", "after a break", "lane one at a time", "user one at a time", "more of a user"),
        *("skip", "park", "retry", "unpark"),
    }


def test_a_death_that_is_recorded_late_turns_the_order_round():
    """The caller's part of the bargain: after a crash the dead event would live again, and come after later ones."""
    with pytest.raises(AssertionError, match=r"\d+ of u\d+ after \d+"):
        _run(range(300), records_deaths=False)


MUTANTS = {
    "what failed blocks nobody": (
        barrier,
        "            self._failed.pause(kept[0])\n        else:\n",
        """            self._failed.pause(kept[0])
            kept[0].behind = None
            self._go_on(key, rest)
        else:
""",
    ),
    "all of a user are blamed for a failure": (barrier, "(is_blamed or not self._fail", "(not self._fail"),
    "what goes back is turned round": (
        barrier,
        "for event, behind in zip(kept",
        "kept.reverse()\n        for event, behind in zip(kept",
    ),
    "the last of a user is forgotten": (barrier, "self._last[key] = kept[-1]", "pass"),
    "a user who is done is not forgotten": (barrier, "del last[key]", "pass"),
    "put back one by one": (barrier, "if index and events[index - 1].behind is event:", "if False:"),
    "put back twice": (barrier, "self._in_flight -= len(events)", "pass"),
    "a dead one changes nothing for its user": (barrier, "self._careful.add(key)", "pass"),
    "many dead ones change nothing for the lane": (barrier, "DEATHS_IN_A_ROW = 20", "DEATHS_IN_A_ROW = 10**9"),
    "the lane waits for nothing under way": (
        barrier,
        "            if self._in_flight:\n                return []\n",
        "",
    ),
    "what is restored blocks nobody": (
        barrier,
        "            self._last[key] = event\n        self._len",
        "            pass\n        self._len",
    ),
    "a user is not let go on": (barrier, "            self._go_on(event.user_key, front)\n", ""),
    "a sink without order gets more of a user": (barrier, "behind is None or not keeps_order or", "behind is None or"),
    "a delivery of two routes": (barrier, "behind.route == event.route and ", ""),
    "too many bytes": (barrier, " and behind.size <= room", ""),
    "no pause": (failed, "event.next_us <= now_us", "True"),
    "a pause without an end": (failed, "event.next_us <= now_us", "False"),
    "what is tried again is not recorded": (
        failed,
        "for event in self._all\n",
        "for event in self._all - self._busy()\n",
    ),
    "what is settled stays among what failed": (failed, "self._all.discard(event)", "pass"),
}


def broken(module: ModuleType, old: str, new: str) -> type[Barrier]:
    """Return the barrier with a piece of its source changed."""
    assert module.__file__
    source = Path(module.__file__).read_text()
    assert source.count(old) == 1, old
    names: dict[str, Any] = {"__name__": "broken"}
    exec(compile(source.replace(old, new), module.__file__, "exec"), names)  # noqa: S102
    if module is barrier:
        found: type[Barrier] = names["Barrier"]
        return found
    names["Failed"]._busy = lambda self: {e for e in self._all if e.place is Place.UNDER_WAY}

    class Broken(Barrier):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._failed = names["Failed"]()

    return Broken


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_barrier_is_noticed(mutant):
    """The proof that the simulation can fail: a rule without a mutant here is not known to be checked."""
    with pytest.raises((AssertionError, KeyError, ValueError)):
        _run(range(300), barrier=broken(*MUTANTS[mutant]))


def _run(seeds: range, **given: Any) -> None:
    for seed in seeds:
        for keeps_order in (True, False):
            Simulation(seed, keeps_order=keeps_order, **given).run()
