"""Failed: the events of a lane that failed and will be tried again, each at its time."""

import heapq
from collections import deque
from collections.abc import Callable

from millrace.delivery.pending import Blocked, Changes, Pending, Place
from millrace.delivery.retry import RetryPolicy
from millrace.sinks.sink import Fault, Retry


class Failed:
    """Events that failed and are not settled: paused, due, or under way again. Pure, as barrier.py is."""

    def __init__(self) -> None:
        self._all: set[Pending] = set()
        self._pauses: list[tuple[int, int, Pending]] = []  # a heap by next_us; entries of what went elsewhere are stale
        self._pushes = 0  # breaks ties in the heap
        self._due: dict[int, deque[Pending]] = {}  # by route
        self._changed: dict[int, Pending | None] = {}  # by position, since it was asked; None: settled
        self.fronts: dict[str, Pending] = {}
        """By user, the event that failed and that the others of that user wait for."""

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._all)

    def due(self) -> int:
        """Return how many are due."""
        return sum(map(len, self._due.values()))

    def pause(self, event: Pending) -> None:
        """Let an event wait for its `next_us`."""
        event.place = Place.PAUSED
        event.waiting = _behind(event)
        self._all.add(event)
        self._changed[event.position] = event
        if event.user_key is not None:
            self.fronts[event.user_key] = event
        self._pushes += 1
        heapq.heappush(self._pauses, (event.next_us, self._pushes, event))

    def wake(self, now_us: int) -> None:
        """Make due what is."""
        while (event := self._first_paused()) is not None and event.next_us <= now_us:
            heapq.heappop(self._pauses)
            event.place = Place.DUE
            self._due.setdefault(event.route, deque()).append(event)

    def next_us(self) -> int | None:
        """Return when the next pause ends."""
        event = self._first_paused()
        return None if event is None else event.next_us

    def _first_paused(self) -> Pending | None:
        while self._pauses:
            next_us, _, event = self._pauses[0]
            if event.place is Place.PAUSED and event.next_us == next_us:
                return event
            heapq.heappop(self._pauses)
        return None

    def route(self, accepts: Callable[[int], bool]) -> int | None:
        """Return the route with the event that has been due longest."""
        due = [(queue[0].next_us, route) for route, queue in self._due.items() if queue and accepts(route)]
        return min(due)[1] if due else None

    def take(self, route: int, max_events: int, max_bytes: int) -> tuple[list[Pending], int, int]:
        """Take due events of a route; return them with the events and the bytes for which their delivery has room."""
        taken: list[Pending] = []
        due = self._due.get(route)
        while due and len(taken) < max_events and (due[0].size <= max_bytes or not taken):
            company = due[0].company or max_events
            if len(taken) >= company:
                return taken, 0, 0
            event = due.popleft()
            event.place = Place.UNDER_WAY
            taken.append(event)
            max_events = min(max_events, company)
            max_bytes -= event.size
        return taken, max_events - len(taken), max_bytes

    def put_back(self, event: Pending) -> None:
        """Take back an event as the first one due."""
        event.place = Place.DUE
        self._due.setdefault(event.route, deque()).appendleft(event)

    def settle(self, event: Pending) -> None:
        """Forget an event, wherever it is."""
        if event.place is Place.DUE:
            self._due[event.route].remove(event)
        event.place = Place.ELSEWHERE
        if event in self._all:
            self._all.discard(event)
            self._changed[event.position] = None
            if event.user_key is not None:
                del self.fronts[event.user_key]

    def one_more(self, event: Pending) -> None:
        """Note that one more of its user waits behind an event."""
        event.waiting += 1
        self._changed[event.position] = event

    def changes(self) -> Changes:
        """Return what changed since the last call; at the first, all of them."""
        changed, self._changed = self._changed, {}
        blocked = [_blocked(event) for event in changed.values() if event is not None]
        return Changes(blocked, [position for position, event in changed.items() if event is None])

    def find(self, user_key: str | None, message_id: str | None) -> list[Pending]:
        """Return the events of a user, of an id, or (neither given) all, by position."""
        found = [
            event
            for event in self._all
            if (user_key is None or event.user_key == user_key)
            and (message_id is None or event.message_id == message_id)
        ]
        return sorted(found, key=lambda event: event.position)

    def blocked(self) -> list[Blocked]:
        """Return all of them, by position."""
        return [_blocked(event) for event in self.find(None, None)]


def blame(event: Pending, outcome: Retry, policy: RetryPolicy, chance: float, now_us: int) -> bool:
    """Count a failure against an event, and set its pause; say whether it is given up.

    Args:
        event: it failed.
        outcome: how.
        policy: the sink's.
        chance: see RetryPolicy.pause_s.
        now_us: the time.
    """
    event.attempts += 1
    event.first_us = event.first_us or now_us
    event.fault, event.detail = outcome.fault.value, outcome.detail
    event.next_us = now_us + round(policy.pause_s(event.attempts, chance, outcome.after_s) * 1_000_000)
    if outcome.fault is Fault.UNREACHABLE:  # no event is to blame: it waits for as long as it takes
        return False
    return policy.gives_up(event.attempts, (now_us - event.first_us) / 1_000_000)


def _blocked(event: Pending) -> Blocked:
    return Blocked(
        user_key=event.user_key,
        position=event.position,
        message_id=event.message_id,
        since_us=event.first_us,
        attempts=event.attempts,
        next_us=event.next_us,
        fault=event.fault,
        detail=event.detail,
        waiting=event.waiting,
    )


def _behind(event: Pending) -> int:
    count, behind = 0, event.behind
    while behind is not None:
        count, behind = count + 1, behind.behind
    return count
