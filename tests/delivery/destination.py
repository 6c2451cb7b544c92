"""A destination in virtual time that fails in every way, and what it received."""

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence

from millrace.delivery.barrier import Pending
from millrace.sinks.sink import DELIVERED, Fault, Outcome, Rejected, Retry, SinkDownError

S = 1_000_000
REJECTED = Rejected(Fault.REJECTED, "HTTP 400")


@dataclasses.dataclass(frozen=True)
class Event:
    """One of the queue."""

    position: int
    user: str | None
    route: int
    size: int
    is_rejected: bool
    is_failing: bool  # as long as the destination is faulty


def events(chance: random.Random, users: Sequence[str], count: int) -> list[Event]:
    """Return a queue, some of which the destination rejects, or fails on; now and then a stretch of it all rejected."""
    start = chance.randrange(count) if chance.random() < 0.4 else count
    wrong = range(start, start + chance.randint(20, 80))
    rejected, failing = chance.choice((0.01, 0.1)), chance.choice((0.01, 0.1))
    return [
        Event(
            position=i,
            user=None if chance.random() < 0.1 else chance.choice(users),
            route=int(chance.random() < 0.2),
            size=chance.randint(1, 10),
            is_rejected=i in wrong or chance.random() < rejected,
            is_failing=chance.random() < failing,
        )
        for i in range(count)
    ]


class Destination:
    """Fails until `calm_us`, then rejects only what it must.

    Attributes:
        style: how much of a delivery it takes where one event of it fails: all before it (prefix), nothing (whole), or
            all but later ones of its user (each).
        received: how often it has received each position.
        out_of_order: positions that an operator brought back: in nobody's order any more.
    """

    def __init__(self, chance: random.Random, events: Sequence[Event], calm_us: int, *, keeps_order: bool) -> None:
        self.chance, self.events, self.calm_us, self.keeps_order = chance, events, calm_us, keeps_order
        self.style = chance.choice(("prefix", "whole", "each")) if keeps_order else "each"
        self.received: Counter[int] = Counter()
        self.out_of_order: set[int] = set()
        self._last_first: dict[str, int] = {}
        self._down_us = 0
        self._works = chance.choice((7, 70))  # of 15, or of 78, deliveries

    def answer(self, taken: list[Pending], now: int) -> Sequence[Outcome] | SinkDownError | None:
        """Say what a delivery comes to, and receive what it brings; None: it was cancelled."""
        r = self.chance
        if now >= self.calm_us:
            self.receive([e for e in taken if not self._event(e).is_rejected])
            return [REJECTED if self._event(e).is_rejected else DELIVERED for e in taken]
        if now < self._down_us:
            return SinkDownError("connection refused")
        kind = r.choices(
            ("works", "half", "fails", "lost", "acks", "stalls", "throttled", "cancelled", "down"),
            (self._works, *[1] * 8),
        )[0]
        if kind == "down":
            self._down_us = now + r.randint(0, 60 * S)
            self.receive(self.part(taken))
            return SinkDownError("connection reset", r.choice((None, 5.0)))
        if kind in ("stalls", "cancelled"):
            self.receive(self.part(taken))
            return None if kind == "cancelled" else [Retry(Fault.TIMED_OUT, "no answer")] * len(taken)
        if kind == "throttled":
            return [Retry(Fault.THROTTLED, "HTTP 429", r.choice((None, 0.0, 30.0)))] * len(taken)
        if kind in ("lost", "acks"):  # all of it arrived, but nothing, or only some, is acknowledged
            self.receive(taken)
            lost = 1.0 if kind == "lost" else r.random()
            return [Retry(Fault.FAILED, "HTTP 502") if r.random() < lost else DELIVERED for _ in taken]
        fails = {e for e in taken if self._event(e).is_failing}
        if kind == "half":
            fails |= set(r.sample(taken, r.randint(1, len(taken))))
        if kind == "fails" or (fails and self.style == "whole"):
            fails = set(taken)
        return self._outcomes(taken, fails)

    def _outcomes(self, taken: list[Pending], fails: set[Pending]) -> list[Outcome]:
        """Fail on some: a sink that keeps order takes nothing after them, of anybody or of that user."""
        outcomes: list[Outcome] = []
        failed: set[str | None] = set()
        for event in taken:
            is_behind = event.user_key in failed or (bool(failed) and self.style == "prefix")
            is_late = is_behind and self.style != "whole"  # which looks at all before it sends any
            if self._event(event).is_rejected and not is_late:
                outcomes.append(REJECTED)
            elif event in fails or (is_behind and self.keeps_order):
                failed.add(event.user_key or event.message_id)
                outcomes.append(Retry(Fault.FAILED, "HTTP 500"))
            else:
                outcomes.append(DELIVERED)
        self.receive([e for e, outcome in zip(taken, outcomes, strict=True) if outcome is DELIVERED])
        return outcomes

    def _event(self, event: Pending) -> Event:
        return self.events[event.position]

    def part(self, taken: list[Pending]) -> list[Pending]:
        if self.keeps_order:
            return taken[: self.chance.randint(0, len(taken))]
        return self.chance.sample(taken, self.chance.randint(0, len(taken)))

    def receive(self, events: Sequence[Pending]) -> None:
        for event in events:
            position, user = event.position, event.user_key
            is_first = not self.received[position]
            self.received[position] += 1
            if user is not None and is_first and position not in self.out_of_order:
                assert position > self._last_first.get(user, -1), f"{position} of {user} after {self._last_first[user]}"
                self._last_first[user] = position
