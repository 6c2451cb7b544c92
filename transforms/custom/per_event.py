"""Per event: users' functions of one event, and classes that see one user's events with a state of that user's own."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from millrace.transforms.batches import int64s
from millrace.transforms.custom.declare import EventTransform, UserTransform
from millrace.transforms.custom.event import Columns, Event
from millrace.transforms.custom.outcome import Changes, Failure, Outcome, WrongResultError, failure_of, of_events
from millrace.transforms.custom.timings import note
from millrace.transforms.steps import Users, user_runs

_LOG = logging.getLogger(__name__)

MOST_EVENTS = 1_000
"""One event may become so many."""

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.decode
_clock_ns = time.perf_counter_ns


class _Found(NamedTuple):
    """What has become of the rows so far."""

    kept: list[tuple[int, Changes]]
    failed: list[Failure]
    dropped: list[int]
    ns: list[int]

    def enter(self, columns: Columns, row: int, call: Callable[[Event], Any]) -> bool:
        """Give one row to the user's code; False where it has no result."""
        event = Event(columns, row)
        began_ns = _clock_ns()
        try:
            changes = _changes(call(event), columns, row)
        except BaseException as error:  # noqa: BLE001  a sys.exit() in a transform shall not end a worker
            self.failed.append(failure_of(row, error))
            return False
        finally:
            self.ns.append(_clock_ns() - began_ns)
        if not changes:
            self.dropped.append(row)
        self.kept.extend((row, each) for each in changes)
        return True

    def outcome(self, batch: pa.RecordBatch, adds: Sequence[pa.Field], name: str) -> Outcome:
        note(name, self.ns)
        rows, origin, misfits = of_events(batch, self.kept, adds, name)
        return Outcome(rows, origin, [*self.failed, *misfits], self.dropped)


def _changes(returned: Any, columns: Columns, row: int) -> list[Changes]:
    if returned is None:
        return []
    if isinstance(returned, Event) and returned.is_of(columns, row):
        return [returned.changes()]
    if isinstance(returned, Event):
        events = [returned]
    elif isinstance(returned, list | tuple | Iterator):
        events = list(itertools.islice(returned, MOST_EVENTS + 1))
        if len(events) > MOST_EVENTS:
            raise WrongResultError(f"more than {MOST_EVENTS:,} events of one")
    else:
        raise WrongResultError(f"return the event, a list of events, or None, not {type(returned).__name__}")
    for each in events:
        if not isinstance(each, Event):
            raise WrongResultError(f"a list of events is needed, and {type(each).__name__} is in it")
        if not each.is_of(columns, row):
            raise WrongResultError("another event was returned than the one given; use event.copy()")
    if len({id(each) for each in events}) < len(events):
        raise WrongResultError("the same event is in the list twice; use event.copy()")
    return [each.changes() for each in events]


def run_events(transform: EventTransform, batch: pa.RecordBatch, adds: Sequence[pa.Field], name: str) -> Outcome:
    """Give each row to a function of one event."""
    columns = Columns(batch, frozenset(field.name for field in adds))
    found = _Found([], [], [], [])
    for row in range(batch.num_rows):
        found.enter(columns, row, transform.each)
    return found.outcome(batch, adds, name)


class PerUser:
    """Gives each row to a class with a state for each user.

    A state is kept as bytes, and made anew for each event: whatever a batch holds, the class sees the same, and where
    it raises the state before is still there.

    Args:
        transform: the user's class.
        name: of the transform.
        keep_us: a user whose last event left longer ago than this, by release time, is new.
    """

    def __init__(self, transform: UserTransform, name: str, keep_us: int) -> None:
        self._transform = transform
        self._name = name
        self._keep_us = keep_us

    def run(self, batch: pa.RecordBatch, users: Users, adds: Sequence[pa.Field]) -> Outcome:
        """Give each row of an ordered batch to it."""
        return self._seen(batch, users, adds).outcome(batch, adds, self._name)

    def recall(self, batch: pa.RecordBatch, users: Users, adds: Sequence[pa.Field]) -> None:
        """Let it see archived rows, of whatever columns, for the sake of the state."""
        failed = self._seen(batch, users, adds).failed
        if failed:
            error, at = failed[0].error, failed[0].at
            _LOG.warning(
                "transform %s: %d archived events could not be recalled: %s (%s); see recalls",
                *(self._name, len(failed), error, at),
            )

    def _seen(self, batch: pa.RecordBatch, users: Users, adds: Sequence[pa.Field]) -> _Found:
        columns = Columns(batch, frozenset(field.name for field in adds))
        released = int64s(batch.column("released_at")).tolist()
        found = _Found([], [], [], [])
        for user, start, end in user_runs(batch):
            at_us, version, state = users.get(user) or (0, 0, b"")
            for row in range(start, end):
                now_us = released[row]
                if not state or now_us - at_us > self._keep_us:
                    version, state = self._transform.state_version, _NOTHING
                version, state = self._each(found, columns, row, version, state)
                at_us = now_us
            if state == _NOTHING:
                users.forget(user)
            else:
                users.put(user, (at_us, version, state), at_us)
        return found

    def _each(self, found: _Found, columns: Columns, row: int, version: int, state: bytes) -> tuple[int, bytes]:
        """Give it one event; return the user's state afterwards, which is the one before where it raised."""
        after = state

        def call(event: Event) -> Any:
            nonlocal after
            values = _unpack(state)
            if version != self._transform.state_version:
                migrated = self._transform.migrate(values, version)
                values = {} if migrated is None else migrated
            returned = self._transform.each(event, values)
            if isinstance(returned, Iterator):
                returned = list(itertools.islice(returned, MOST_EVENTS + 1))  # a generator changes the state as it runs
            if not isinstance(values, dict):
                raise WrongResultError("a state has to be a dict")
            after = _pack(values)
            return returned

        if found.enter(columns, row, call):
            return self._transform.state_version, after
        return version, state


_NOTHING = _pack({})


def state_bytes(users: Sequence[Users]) -> tuple[int, int]:
    """Return how many bytes of state there are, and of how many users."""
    sizes = [len(value[2]) for each in users for value in each.values()]
    return int(np.sum(sizes, dtype=np.int64)), len(sizes)
