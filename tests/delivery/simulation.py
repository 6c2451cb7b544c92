"""A lane in virtual time, with a destination that fails (destination.py) and a machine that may die at any moment.

The lane is what delivery/lane.py is, without its I/O: a barrier, the throttles, a ledger whose record lags behind. All
of it follows from a seed. What is promised is checked at every step, by a model that knows nothing of how it is done.
"""

import dataclasses
import heapq
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from millrace.delivery.barrier import DEATHS_IN_A_ROW, Barrier, Blocked, Pending
from millrace.delivery.ledger import Mark
from millrace.delivery.retry import RetryPolicy
from millrace.delivery.throttle import Breaker, Concurrency, Rate
from millrace.sinks.sink import Delivered, Fault, Outcome, Rejected, Retry, SinkDownError
from tests.delivery.destination import Destination, S, events

POLICY = RetryPolicy(first_s=1, longest_s=20, min_tries=3, min_s=60)
FAULTY_S = 400
"""So long the destination fails, the lane is killed, and events come."""
CALM_S = 900
"""So much later all must be settled."""
EVENTS = 800


@dataclasses.dataclass
class Recorded:
    """What is there after a crash."""

    marks: dict[int, Mark]
    trying: dict[int, tuple[int, int, int]]  # attempts, first_us, next_us
    read: int


class Simulation:
    """A lane's life, from a seed.

    Attributes:
        seen: how often what happened, that a caller may see that it did.
    """

    def __init__(
        self, seed: int, *, keeps_order: bool, barrier: type[Barrier] = Barrier, records_deaths: bool = True
    ) -> None:
        self.chance = random.Random(f"{seed} {keeps_order}")  # noqa: S311
        self.keeps_order, self.barrier_class, self.records_deaths = keeps_order, barrier, records_deaths
        self.now = 1_800_000_000 * S
        self.calm_us = self.now + FAULTY_S * S
        r = self.chance
        self.users = [f"u{i}" for i in range(r.choice((1, 3, 12, 60)))]
        self.burst = r.choice((3, 10, 30))  # at most so many come at once, and the rarer: some all the time
        self.events = events(r, self.users, EVENTS)
        self.max_events, self.max_bytes, self.most = r.randint(1, 60), r.choice((20, 500)), r.randint(1, 6)
        self.sink = Destination(r, self.events, self.calm_us, keeps_order=keeps_order)
        # What must not be forgotten, and what the model knows.
        self.recorded = Recorded({}, {}, 0)
        self.dead_letters: list[int] = []
        self.steps = 0
        self.seen: Counter[str] = Counter()  # that it happened at all
        self.killing, self.operating = r.choice((0.0, 0.001, 0.01)), r.choice((0.0, 0.005, 0.02))
        self._start()

    # The lane

    def _start(self) -> None:
        """Begin, or begin again, with what was recorded."""
        self.barrier = self.barrier_class(POLICY, keeps_order=self.keeps_order, chance=self.chance.random)
        self.breaker, self.concurrency = Breaker(chance=self.chance.random), Concurrency(self.most)
        self.rate = Rate(5.0, self.now)
        self.marks: dict[int, Mark] = {}
        self.counts: Counter[Mark] = Counter()
        self.waiting: dict[str | None, set[int]] = {user: set() for user in (None, *self.users)}
        self.after_dead: set[str] = set()
        for position, mark in self.recorded.marks.items():
            self._mark([position], mark)
        self.read = self.recorded.read
        self.kept: dict[int, Blocked] = {}  # what the barrier told of changes
        self.under_way: list[tuple[int, int, int, list[Pending]]] = []
        self.ids = itertools.count()
        # The model of this life of the lane.
        self.attempts = {position: attempts for position, (attempts, _, _) in self.recorded.trying.items()}
        self.not_before: dict[int, int] = {}
        self.deaths = 0
        for position, (attempts, first_us, next_us) in self.recorded.trying.items():
            event = self._pending(position)
            event.attempts, event.first_us, event.next_us = attempts, first_us, next_us
            self.barrier.restore(event)
        waiting = [p for p, mark in sorted(self.marks.items()) if mark is Mark.WAITING]
        self.barrier.offer(self._pending(p) for p in waiting if p not in self.recorded.trying)

    def _pending(self, position: int) -> Pending:
        e = self.events[position]
        return Pending(position, e.user, f"m{position}", e.route, e.size, None)

    def _record(self) -> None:
        changes = self.barrier.changes()
        for position in changes.over:
            self.kept.pop(position, None)
        self.kept |= {each.position: each for each in changes.blocked}
        assert [self.kept[position] for position in sorted(self.kept)] == self.barrier.blocked()
        assert self.barrier.count_blocked() == len(self.kept)
        for each in self.kept.values():  # it holds up all of its user
            assert each.waiting == (0 if each.user_key is None else len(self.waiting[each.user_key]) - 1)
        trying = {b.position: (b.attempts, b.since_us, b.next_us) for b in self.kept.values()}
        failed = {p: n for p, n in self.attempts.items() if n and self.marks[p] is Mark.WAITING}
        assert {p: n for p, (n, _, _) in trying.items() if n} == failed
        self.recorded = Recorded(dict(self.marks), trying, self.read)

    def run(self) -> None:
        """Run to the end, and check it."""
        while self.now < self.calm_us or len(self.barrier) or self.read < EVENTS:
            self.steps += 1
            assert self.now < self.calm_us + CALM_S * S, f"still waiting: {self.barrier.blocked()}"
            assert self.steps < 60_000, "the lane turns without getting on"
            self._happen()
            self._fill()
            self._wait()
            self._check_accounts()
        self._check_end()

    def _happen(self) -> None:
        r = self.chance
        if self.read < EVENTS and (r.random() < 1 / self.burst or self.now >= self.calm_us):
            count = min(r.randint(1, self.burst), EVENTS - self.read)
            self.barrier.offer([self._pending(p) for p in range(self.read, self.read + count)])
            self._mark(range(self.read, self.read + count), Mark.WAITING)
            self.read += count
        if r.random() < 0.05:
            self._record()
        if r.random() < self.operating:
            self._operate()
        if self.now < self.calm_us and r.random() < self.killing:
            self._kill()

    def _kill(self) -> None:
        """End the lane at once: of what is under way the sink has a part."""
        self.seen["kill"] += 1
        for _, _, _, taken in self.under_way:
            self.sink.receive(self.sink.part(taken))
        self._start()

    def _operate(self) -> None:
        r = self.chance
        verb, subject = r.choice(("skip", "park", "retry", "unpark")), {}
        if r.random() < 0.5:
            subject = {"user_key": r.choice(self.users)}
        elif r.random() < 0.9:
            subject = {"message_id": f"m{r.randrange(EVENTS)}"}
        parked = [p for p, mark in self.marks.items() if mark is Mark.PARKED]
        if verb == "unpark":
            if parked:
                position = r.choice(parked)
                self._mark([position], Mark.WAITING)
                self.seen[verb] += 1
                self.sink.out_of_order.add(position)
                self.attempts.pop(position, None)
                self.barrier.restore(self._pending(position))
                self._record()
            return
        found: list[Pending] = getattr(self.barrier, verb)(**subject)
        busy = {e.position for _, _, _, taken in self.under_way for e in taken}
        assert not busy & {e.position for e in found}
        self.seen[verb] += len(found)
        for event in found:
            self.not_before.pop(event.position, None)
            if verb != "retry":
                assert self.marks[event.position] is Mark.WAITING
                self._mark([event.position], Mark.SKIPPED if verb == "skip" else Mark.PARKED)
        self._record()

    def _fill(self) -> None:
        while len(self.under_way) < self.concurrency.limit and self.breaker.allows(self.now):
            taken = self.barrier.take(
                self.now,
                self.max_events,
                self.max_bytes,
                accepts=lambda route: not route or self.rate.room(self.now) > 0,
                at_most=lambda route: self.rate.room(self.now) if route else self.max_events,
            )
            if not taken:
                self.breaker.cancelled(self.now)
                return
            self._check_taken(taken)
            if taken[0].route:
                self.rate.spend(len(taken))
            latency_us = self.chance.randint(5_000, 800_000)
            heapq.heappush(self.under_way, (self.now + latency_us, next(self.ids), self.now, taken))

    def _wait(self) -> None:
        """Let time pass until something ends or is due, but not long."""
        ends = [self.now + self.chance.randint(1_000, 500_000)]
        ends += [end for end in (self.barrier.next_us(), self.breaker.next_us()) if end is not None and end > self.now]
        ends += [self.under_way[0][0]] if self.under_way else []
        self.now = max(self.now + 1, min(ends))
        while self.under_way and self.under_way[0][0] <= self.now:
            in_flight = len(self.under_way)
            _, _, began_us, taken = heapq.heappop(self.under_way)
            self.seen["after a break"] += self.breaker.since_us is not None
            outcomes = self.sink.answer(taken, self.now)
            if isinstance(outcomes, SinkDownError):
                self.barrier.put_back(taken)
                self.breaker.down(outcomes, began_us, self.now)
            elif outcomes is None:
                self.barrier.put_back(taken)
                self.breaker.cancelled(began_us)
            else:
                is_new = any(not event.attempts for event in taken)
                self.breaker.settled(outcomes, began_us, self.now, is_new=is_new)
                if any(isinstance(o, Retry) and o.fault is not Fault.FAILED for o in outcomes):
                    self.concurrency.congested(began_us, self.now)
                else:
                    self.concurrency.answered(began_us, self.now, in_flight, len(taken))
                self._settle(taken, outcomes)

    def _settle(self, taken: list[Pending], outcomes: Sequence[Outcome]) -> None:
        """Settle a delivery, and compare with what the rules say."""
        delivered, dead, retrying, blamed = (set[Any]() for _ in range(4))
        for event, outcome in zip(taken, outcomes, strict=True):
            key = event.user_key or event.message_id
            if isinstance(outcome, Delivered):
                delivered.add(event.position)
            elif isinstance(outcome, Rejected):
                dead.add(event.position)
            elif key not in blamed:
                blamed.add(key)
                self.attempts[event.position] = self.attempts.get(event.position, 0) + 1
                is_old = self.attempts[event.position] > 1 and self.now - event.first_us >= POLICY.min_s * S
                gives_up = self.attempts[event.position] >= POLICY.min_tries and is_old
                (dead if gives_up else retrying).add(event.position)
                self.seen["given up"] += gives_up
                least_s = POLICY.first_s / 2 if outcome.after_s is None else outcome.after_s
                self.not_before[event.position] = self.now + round(least_s * S)
            if event.position in dead and event.user_key:
                self.after_dead.add(key)
            elif event.position in delivered:
                self.after_dead.discard(key)
        settled = self.barrier.settle(list(zip(taken, outcomes, strict=True)), self.now)
        assert {e.position for e in settled.delivered} == delivered
        assert {e.position for e, _, _ in settled.dead} == dead
        assert {e.position for e in settled.retrying} == retrying
        assert all(e.attempts == self.attempts.get(e.position, 0) for e in taken)
        self.deaths = 0 if delivered else self.deaths + len(dead)
        self._mark(delivered, Mark.DELIVERED)
        self._mark(dead, Mark.DEAD)
        if dead and self.records_deaths:
            self._record()
            self.dead_letters += dead

    def _mark(self, positions: Iterable[int], mark: Mark) -> None:
        for position in positions:
            if position in self.marks:
                self.counts[self.marks[position]] -= 1
            self.marks[position] = mark
            self.counts[mark] += 1
            waiting = self.waiting[self.events[position].user]
            (waiting.add if mark is Mark.WAITING else waiting.discard)(position)
        self.after_dead = {user for user in self.after_dead if self.waiting[user]}  # of who is done nothing is known

    # What is promised

    def _check_taken(self, taken: list[Pending]) -> None:
        positions = {e.position for e in taken}
        users = Counter(e.user_key for e in taken if e.user_key is not None)
        assert len({e.route for e in taken}) == 1
        assert len(taken) <= self.max_events
        assert len(taken) == 1 or sum(e.size for e in taken) <= self.max_bytes
        assert all(self.marks[p] is Mark.WAITING for p in positions)
        for _, _, _, others in self.under_way:
            assert not positions & {e.position for e in others}
            assert not users.keys() & {e.user_key for e in others}
        if not self.keeps_order:
            assert max(users.values(), default=1) == 1
        assert all(users[user] <= 1 for user in self.after_dead)
        self.seen["user one at a time"] += bool(self.after_dead & users.keys())
        self.seen["more of a user"] += max(users.values(), default=1) > 1
        if self.deaths >= DEATHS_IN_A_ROW:
            self.seen["lane one at a time"] += 1
            assert (len(taken), len(self.under_way)) == (1, 0)
        last: dict[str, int] = {}
        for event in taken:
            assert self.now >= self.not_before.get(event.position, 0)
            user = event.user_key
            if user is None or event.position in self.sink.out_of_order:
                continue
            assert event.position > last.get(user, -1)
            last[user] = event.position
        for user, upto in last.items():
            earlier = {p for p in self.waiting[user] if p < upto}
            assert earlier <= positions | self.sink.out_of_order, "an earlier one of its user is not settled"

    def _check_accounts(self) -> None:
        assert len(self.marks) == self.read == sum(self.counts.values())
        assert self.counts[Mark.WAITING] == len(self.barrier)
        assert self.barrier.in_flight() == sum(len(taken) for _, _, _, taken in self.under_way)

    def _check_end(self) -> None:
        counts = Counter(self.marks.values())
        assert sum(counts[m] for m in (Mark.DELIVERED, Mark.DEAD, Mark.SKIPPED, Mark.PARKED)) == EVENTS
        assert all(self.sink.received[p] for p, mark in self.marks.items() if mark is Mark.DELIVERED)
        assert len(self.dead_letters) == len(set(self.dead_letters))
        if self.records_deaths:
            assert {p for p, mark in self.marks.items() if mark is Mark.DEAD} <= set(self.dead_letters)
        assert (self.barrier.blocked(), self.barrier.next_us(), self.barrier.ready()) == ([], None, 0)
