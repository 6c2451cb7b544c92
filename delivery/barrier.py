"""Barrier: which event may go now. The order of each user, with failures.

Pure: no I/O, no clock, no event loop; times are integers that the caller passes in, microseconds since the epoch.

An event waits while an earlier one of its user is not settled, unless both go in one delivery of a sink that keeps
order. One that failed blocks its user only. The rule is that of RudderStack's router (rudderlabs/rudder-server on
GitHub, router/internal/eventorder), where a key with over 200 jobs goes without order for a while; here none does.

What the caller owes, so that a crash cannot turn the order around: before the next `take` it records what `settle` gave
as dead and what `skip` and `park` gave, for their users go on with that `take`. Deliveries may be recorded later: what
a crash forgets is sent once more, in order.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from millrace.delivery.failed import Failed, blame
from millrace.delivery.pending import Blocked, Changes, Pending, Place, Settled
from millrace.delivery.retry import RetryPolicy
from millrace.sinks.sink import Delivered, Fault, Outcome, Retry

__all__ = ["Barrier", "Blocked", "Pending", "Settled"]

DEATHS_IN_A_ROW = 20
"""After so many dead without a delivery (a wrong key, a renamed field) the lane goes one event at a time."""


def _any_route(_route: int) -> bool:
    return True


class Barrier:
    """The events in a lane's hands, in order; a few hundred nanoseconds an event for each of offer, take and settle."""

    def __init__(self, policy: RetryPolicy, *, keeps_order: bool, chance: Callable[[], float] = random.random) -> None:
        self._policy = policy
        self._keeps_order = keeps_order
        self._chance = chance
        self._last: dict[str, Pending] = {}  # of each user with events here, the last of them
        # Each user's front is in one of three: among these (by route), among what failed, or under way.
        self._fresh: dict[int, deque[Pending]] = {}
        self._failed = Failed()
        self._careful: set[str] = set()  # users whose last settled event is dead
        self._deaths = 0  # since the last delivery
        self._in_flight = 0
        self._len = 0

    def __len__(self) -> int:
        """Return how many events are not settled, those under way included."""
        return self._len

    def ready(self) -> int:
        """Return how many users, and events in nobody's order, could go now: at least so many events."""
        return sum(map(len, self._fresh.values())) + self._failed.due()

    def in_flight(self) -> int:
        """Return how many events are under way."""
        return self._in_flight

    def offer(self, events: Iterable[Pending]) -> None:
        """Add new events, in the order of the queue."""
        last, fresh, fronts, count = self._last, self._fresh, self._failed.fronts, 0
        for event in events:
            count += 1
            key = event.user_key
            if key is not None:
                before = last.setdefault(key, event)
                if before is not event:
                    before.behind = last[key] = event
                    if fronts and key in fronts:
                        self._failed.one_more(fronts[key])
                    continue
            try:
                fresh[event.route].append(event)
            except KeyError:
                fresh[event.route] = deque((event,))
        self._len += count

    def restore(self, event: Pending) -> None:
        """Add, after a restart, an event that was being retried, before any other of its user is offered.

        One that comes later goes behind what is here of its user.
        """
        key = event.user_key
        if key is not None and key in self._last:
            self.offer((event,))
            return
        if key is not None:
            self._last[key] = event
        self._len += 1
        self._failed.pause(event)

    def take(
        self,
        now_us: int,
        max_events: int,
        max_bytes: int,
        accepts: Callable[[int], bool] = _any_route,
        at_most: Callable[[int], int] | None = None,
    ) -> list[Pending]:
        """Return the next delivery, to be given to `settle` or `put_back`; empty where nothing may go now.

        Its events are of one route: that with the retry due longest, else that with the oldest event. Events of a user
        stand together, in order; what failed before comes without the next ones of its user.

        Args:
            now_us: the time.
            max_events: of the delivery.
            max_bytes: of the delivery; a larger event goes alone.
            accepts: false for a route that is not to be taken now (it has no rate left).
            at_most: the most events of a route, where that is less than `max_events`.
        """
        if self._deaths >= DEATHS_IN_A_ROW:
            if self._in_flight:
                return []
            max_events = 1
        self._failed.wake(now_us)
        route = self._failed.route(accepts)
        if route is None:
            # The oldest first: a route of few events gathers some before it takes a delivery.
            heads = [(queue[0].position, route) for route, queue in self._fresh.items() if queue and accepts(route)]
            if not heads:
                return []
            route = min(heads)[1]
        if at_most is not None:
            max_events = min(max_events, at_most(route))
        taken, more, room = self._failed.take(route, max_events, max_bytes)
        self._fill(taken, self._fresh.get(route), len(taken) + more, room)
        self._in_flight += len(taken)
        return taken

    def _fill(self, taken: list[Pending], fresh: deque[Pending] | None, max_events: int, room: int) -> None:
        """Take events that never failed."""
        add, count, keeps_order, careful = taken.append, len(taken), self._keeps_order, self._careful
        while fresh and count < max_events:
            event = fresh[0]
            room -= event.size
            if room < 0 and count:
                return
            fresh.popleft()
            add(event)
            count += 1
            behind = event.behind
            if behind is None or not keeps_order or event.user_key in careful:
                continue
            while behind is not None and behind.route == event.route and count < max_events and behind.size <= room:
                add(behind)
                count += 1
                room -= behind.size
                behind = behind.behind

    def settle(self, event_outcomes: Sequence[tuple[Pending, Outcome]], now_us: int) -> Settled:
        """Take in what became of a delivery: all of its events, in the order in which `take` gave them.

        Of a user's events in it the first that is to be retried blocks the user; later ones of them go back behind it,
        uncounted. What is delivered or rejected among them is so.
        """
        settled = Settled([], [], [])
        delivered, count = settled.delivered, len(event_outcomes)
        last, fresh, careful, elsewhere = self._last, self._fresh, self._careful, Place.ELSEWHERE
        index = 0
        while index < count:
            event, outcome = event_outcomes[index]
            index += 1
            behind = event.behind
            if behind is not None and index < count and event_outcomes[index][0] is behind:
                start = index - 1
                while index < count and event_outcomes[index][0] is event_outcomes[index - 1][0].behind:
                    index += 1
                self._settle_user(event_outcomes[start:index], now_us, settled)
            elif isinstance(outcome, Delivered) and event.place is elsewhere:  # nearly all: as in _settle_user
                delivered.append(event)
                key = event.user_key
                if careful and key is not None:
                    careful.discard(key)
                if behind is not None:
                    event.behind = None
                    try:
                        fresh[behind.route].append(behind)
                    except KeyError:
                        fresh[behind.route] = deque((behind,))
                elif key is not None:
                    del last[key]
            else:
                self._settle_user(((event, outcome),), now_us, settled)
        self._in_flight -= count
        self._len -= len(delivered) + len(settled.dead)
        if not self._len:
            last.clear()  # an empty dict keeps the room that it once needed
        self._deaths = 0 if delivered else self._deaths + len(settled.dead)
        # A sink that takes a batch whole cannot say which event it failed on: those come again in ever smaller company,
        # so that one bad event drags its company down for half a minute, not until all of it is given up.
        company = 0 if delivered else max(1, count // 4)
        for event in settled.retrying:
            if event.fault != Fault.THROTTLED.value:
                event.company = company
        return settled

    def _settle_user(self, event_outcomes: Sequence[tuple[Pending, Outcome]], now_us: int, settled: Settled) -> None:
        """Settle the events of one user in a delivery, or one event in nobody's order."""
        key = event_outcomes[0][0].user_key
        rest = event_outcomes[-1][0].behind
        kept: list[Pending] = []
        is_blamed = False
        for event, outcome in event_outcomes:
            event.behind = None
            self._failed.settle(event)
            if isinstance(outcome, Delivered):
                settled.delivered.append(event)
                self._careful.discard(key or "")
            elif isinstance(outcome, Retry) and (is_blamed or not self._fail(event, outcome, now_us)):
                if not is_blamed:
                    settled.retrying.append(event)
                is_blamed = True
                kept.append(event)
            else:
                is_blamed = is_blamed or isinstance(outcome, Retry)
                settled.dead.append((event, outcome.fault, outcome.detail))
                if key is not None:
                    self._careful.add(key)
        for event, behind in zip(kept, [*kept[1:], rest], strict=False):
            event.behind = behind
        if key is not None and rest is None and kept:
            self._last[key] = kept[-1]
        if kept and settled.retrying and settled.retrying[-1] is kept[0]:
            self._failed.pause(kept[0])
        else:
            self._go_on(key, kept[0] if kept else rest)

    def _fail(self, event: Pending, outcome: Retry, now_us: int) -> bool:
        return blame(event, outcome, self._policy, self._chance(), now_us)

    def _go_on(self, key: str | None, front: Pending | None) -> None:
        """Let a user go on with an event; None: it has no more, and is forgotten."""
        if front is not None:
            self._fresh.setdefault(front.route, deque()).append(front)
        elif key is not None:
            del self._last[key]
            self._careful.discard(key)

    def put_back(self, events: Sequence[Pending]) -> None:
        """Take back a delivery that came to nothing (the sink is down, it was cancelled): as if never taken."""
        for index in range(len(events) - 1, -1, -1):
            event = events[index]
            if index and events[index - 1].behind is event:
                continue
            if event.place is Place.UNDER_WAY:
                self._failed.put_back(event)
            else:
                self._fresh.setdefault(event.route, deque()).appendleft(event)
        self._in_flight -= len(events)

    def next_us(self) -> int | None:
        """Return when the next retry falls due that was not when `take` was called last; None: there is none."""
        return self._failed.next_us()

    def blocked(self) -> list[Blocked]:
        """Return what failed and is not settled, by position: all that must be kept to `restore` it after a restart."""
        return self._failed.blocked()

    def count_blocked(self) -> int:
        """Return how many `blocked` would tell of."""
        return len(self._failed)

    def changes(self) -> Changes:
        """Return what changed in `blocked` since the last call; at the first, all of it."""
        return self._failed.changes()

    # What the operator says: of a user, of an event, or (neither) of all. What is under way is left alone: ask again.

    def skip(self, *, user_key: str | None = None, message_id: str | None = None) -> list[Pending]:
        """Take out what failed, so that its users go on; return it."""
        found = [e for e in self._failed.find(user_key, message_id) if e.place is not Place.UNDER_WAY]
        for event in found:
            self._failed.settle(event)
            front, event.behind = event.behind, None
            self._go_on(event.user_key, front)
        self._len -= len(found)
        return found

    park = skip
    """The same here; it is the ledger that remembers what was put aside."""

    def retry(self, *, user_key: str | None = None, message_id: str | None = None) -> list[Pending]:
        """Make what failed due now; return it, with what was due already. Its attempts stay counted."""
        found = [e for e in self._failed.find(user_key, message_id) if e.place is not Place.UNDER_WAY]
        for event in found:
            if event.place is Place.PAUSED:
                event.next_us = 0
                self._failed.pause(event)
        return found

    def is_under_way(self, *, user_key: str | None = None, message_id: str | None = None) -> bool:
        """Say whether something that failed is being tried just now, so that an order about it must wait."""
        return any(e.place is Place.UNDER_WAY for e in self._failed.find(user_key, message_id))
