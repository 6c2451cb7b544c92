"""One subscription's queue: what is next, who has what until when, what comes back, what is done with.

Below `floor` everything is acknowledged; from `cursor` on nothing was looked at yet. Between the two stand the pending
messages, the only ones in memory. All of it runs on the event loop, and time is passed in (monotonic seconds).
"""

import heapq
import itertools
import secrets
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence

from millrace.broker.backlog import Backlog
from millrace.broker.chaos import Chaos
from millrace.broker.errors import invalid
from millrace.broker.ordering import WAITING_LIMIT, Flow, Lines, Pending
from millrace.broker.protocol import PubsubMessage
from millrace.broker.ranges import gaps, runs
from millrace.broker.response import Delivery
from millrace.broker.store import Store, Write
from millrace.broker.wire import Message

RESPONSE_BYTES = 10_000_000
SCAN_LIMIT = 5_000  # messages that one take reads past its filter, so that no client waits long for the event loop
LEASE_DIGITS = 16

# Leases of another run of the broker must not fit: the high half is drawn, the low half counts.
_leases = (f"{number:0{LEASE_DIGITS}x}" for number in itertools.count(secrets.randbits(31) << 32))


class Queue:
    """The delivery state of a subscription; knows nothing of names, calls and clients."""

    def __init__(self, store: Store, chaos: Chaos, floor: int, acked: Iterable[tuple[int, int]] = ()) -> None:
        self._store = store
        self._chaos = chaos
        self.end = floor  # ids below it are published; the topic moves it
        self.ordered = False
        self.wants: Callable[[Mapping[str, str]], bool] | None = None  # the filter
        self.max_attempts = 0  # 0: no dead-letter policy
        self.backoff_s = (0.0, 0.0)  # shortest and longest wait before a message is delivered again
        self.give_up: Callable[[Pending], None] = lambda _: None  # takes a message that used up its attempts
        self.pending: dict[int, Pending] = {}
        self.reset(floor, acked)

    def reset(self, floor: int, acked: Iterable[tuple[int, int]] = ()) -> None:
        """Forget all deliveries: below floor and in the ranges (ends included) is acknowledged, the rest is not."""
        for pending in self.pending.values():
            pending.free()
        self._backlog = Backlog(self._store, floor, acked)
        self.pending = {}  # in the order of ids: they enter it in that order, and leave it for good
        self._lines = Lines()
        self._ready: list[int] = []  # heap of ids to deliver again
        self._delayed: list[tuple[float, int]] = []  # heap of (when ready, id)
        self._expiries: list[tuple[float, int, Sequence[int]]] = []  # heap of (when, tie-break, ids)
        self._ties = itertools.count()
        self._echoes: list[Message] = []  # chaos: deliveries to repeat
        self._acked_since: list[int] = []  # acknowledged, and not saved
        self._saved_floor = -1

    @property
    def cursor(self) -> int:
        """The id from which on nothing was looked at yet."""
        return self._backlog.cursor

    def floor(self) -> int:
        """The id below which everything is acknowledged."""
        return next(iter(self.pending), self.cursor)

    def has_more(self) -> bool:
        """Whether a take may bring something now."""
        fresh = self.cursor < self.end and self._lines.waiting < WAITING_LIMIT
        return fresh or bool(self._ready) or bool(self._echoes)

    # Deliver

    def take(
        self, limit: int, max_bytes: int, now: float, deadline_s: float, flow: Flow | None = None
    ) -> tuple[str, list[Message]]:
        """Lease up to limit messages and max_bytes (but at least one message), oldest first, until now + deadline_s.

        Returns:
            What the ack ids start with (the message's id follows), and the messages.
        """
        lease = next(_leases)
        out, self._echoes = self._echoes[:limit], self._echoes[limit:]
        delivery = Delivery(lease, now + deadline_s, limit - len(out), min(max_bytes, RESPONSE_BYTES), flow)
        if self._take_again(delivery):
            self._take_fresh(delivery, now)
        if delivery.ids:
            self._expire_later(delivery.until, delivery.ids)
            counts = self.max_attempts > 0
            leased = [(one.id, view, one.attempt if counts else 0) for one, view in delivery.taken]
            if self._chaos.duplicate:
                self._echoes += [message for message in leased if self._chaos.happens(self._chaos.duplicate)]
            out += leased
            if self._chaos.reorder and not self.ordered:
                self._chaos.shuffle(out)
        return lease, out

    def _take_again(self, delivery: Delivery) -> bool:
        """Take what was delivered before; False where one did not fit, which no newer one may overtake."""
        while self._ready and delivery.limit > 0:
            pending = self.pending.get(self._ready[0])
            if pending is None or pending.lease or pending.held:
                heapq.heappop(self._ready)
                continue
            if pending.key and not self._lines.may_go(pending, delivery.lease):
                heapq.heappop(self._ready)  # the key is with another client: its front is queued when it is free
                continue
            view = self._view(pending)
            if view is None:  # its retention is over and the store has dropped it
                heapq.heappop(self._ready)
                self.forget(pending)
                continue
            if not delivery.fits(view):
                return False
            heapq.heappop(self._ready)
            self._lease(delivery, pending, view)
        return True

    def _take_fresh(self, delivery: Delivery, now: float) -> None:
        backlog = self._backlog
        stop = backlog.cursor + SCAN_LIMIT if self.wants is not None else self.end
        plain = self.wants is None and not self.ordered and not self._chaos.reorder
        while delivery.limit > 0 and backlog.cursor < min(stop, self.end) and self._lines.waiting < WAITING_LIMIT:
            batch = backlog.batch(self.end)
            if batch is None:
                return
            cursor = backlog.cursor
            view = batch.message(cursor)
            if plain:
                if not delivery.fits(view):
                    return
                self.pending[cursor] = pending = Pending(cursor, batch.first)
                backlog.cursor = cursor + 1
                self._lease(delivery, pending, view)
                continue
            message = PubsubMessage.FromString(view)
            if self.wants is not None and not self.wants(message.attributes):
                self._acked_since.append(cursor)
                backlog.cursor = cursor + 1
                continue
            if not delivery.fits(view):
                return
            self.pending[cursor] = pending = Pending(cursor, batch.first, message.ordering_key if self.ordered else "")
            backlog.cursor = cursor + 1
            if pending.key:
                self._lines.join(pending)
                if self._lines.may_go(pending, delivery.lease):
                    self._lease(delivery, pending, view)
            elif self._chaos.happens(self._chaos.reorder):
                pending.held = True
                heapq.heappush(self._delayed, (now + self._chaos.hold_s(), cursor))
            else:
                self._lease(delivery, pending, view)

    def _lease(self, delivery: Delivery, pending: Pending, view: memoryview) -> None:
        pending.lease = delivery.lease
        pending.deadline = delivery.until
        pending.attempt += 1
        delivery.add(pending, view)
        if pending.key:
            following = self._lines.go(pending, delivery.lease)
            if following is not None and not following.held:
                heapq.heappush(self._ready, following.id)

    def _view(self, pending: Pending) -> memoryview | None:
        batch = self._store.cached(pending.batch) or self._store.batch_of(pending.id)
        return batch.message(pending.id) if batch is not None else None

    def message(self, pending: Pending) -> bytes | None:
        """The serialized PubsubMessage of a pending message, None where the store has dropped it."""
        return None if (view := self._view(pending)) is None else bytes(view)

    # Settle

    def ack(self, ack_ids: Iterable[str]) -> None:
        """Acknowledge; ids whose lease is over are ignored, as Pub/Sub does.

        Raises:
            Refused: INVALID_ARGUMENT at the first one that this broker cannot have given; those before it count.
        """
        drop = self._chaos.drop_acks
        for pending in self._leased(ack_ids):
            if drop and self._chaos.happens(drop):
                continue
            pending.free()
            if pending.key:
                counted, front = self._lines.ack(pending)
                for one in counted:
                    del self.pending[one.id]
                    self._acked_since.append(one.id)
                self._offer(front)
            else:
                del self.pending[pending.id]
                self._acked_since.append(pending.id)

    def modify(self, ack_ids: Iterable[str], deadline_s: float, now: float) -> None:
        """Let the leases end deadline_s from now, at once where it is 0 (a nack). Errors as in ack."""
        if deadline_s == 0:
            for pending in self._leased(ack_ids):
                self._back(pending, now)
            return
        moved = array("q")
        try:
            for pending in self._leased(ack_ids):
                pending.deadline = now + deadline_s
                moved.append(pending.id)
        finally:
            if moved:
                self._expire_later(now + deadline_s, array("q", sorted(set(moved))))

    def _leased(self, ack_ids: Iterable[str]) -> Iterable[Pending]:
        pending = self.pending
        for ack_id in ack_ids:
            try:
                one = pending.get(int(ack_id[LEASE_DIGITS:]))
            except ValueError:
                raise invalid(f"Invalid ack id (ack_id={ack_id})") from None
            if one is not None and one.lease and one.lease == ack_id[:LEASE_DIGITS]:
                yield one

    def tick(self, now: float) -> None:
        """Bring back what is due: ended leases, and messages whose back-off is over."""
        while self._expiries and self._expiries[0][0] <= now:
            for message_id in heapq.heappop(self._expiries)[2]:
                pending = self.pending.get(message_id)
                if pending is not None and pending.lease and pending.deadline <= now:
                    self._back(pending, now)
        while self._delayed and self._delayed[0][0] <= now:
            pending = self.pending.get(heapq.heappop(self._delayed)[1])
            if pending is not None and pending.held:
                self.retry(pending)

    def _back(self, pending: Pending, now: float) -> None:
        pending.free()
        free = True
        if pending.key:
            later, free = self._lines.back(pending)
            for one in later:
                one.free()
        if self.max_attempts and pending.attempt >= self.max_attempts:
            pending.held = True
            self.give_up(pending)
            return
        wait_s = min(self.backoff_s[1], self.backoff_s[0] * 2.0 ** min(pending.attempt - 1, 30))
        if wait_s > 0:
            pending.held = True
            heapq.heappush(self._delayed, (now + wait_s, pending.id))
        elif free:
            heapq.heappush(self._ready, pending.id)

    def retry(self, pending: Pending) -> None:
        """Offer a message again that was held back."""
        if self.pending.get(pending.id) is pending:
            pending.held = False
            heapq.heappush(self._ready, pending.id)

    def forget(self, pending: Pending) -> None:
        """Be done with a message without its client: it went to the dead letters, or its time is over."""
        if self.pending.get(pending.id) is not pending:
            return
        pending.free()
        del self.pending[pending.id]
        self._acked_since.append(pending.id)
        if pending.key:
            self._offer(self._lines.leave(pending))

    def forget_before(self, message_id: int) -> None:
        """Be done with everything below this id."""
        for pending in [one for one in self.pending.values() if one.id < message_id]:
            self.forget(pending)
        self._backlog.cursor = max(self.cursor, min(message_id, self.end))

    def _offer(self, front: Pending | None) -> None:
        if front is not None and not front.held:
            heapq.heappush(self._ready, front.id)

    def _expire_later(self, when: float, ids: Sequence[int]) -> None:
        whole = range(ids[0], ids[-1] + 1)  # ids rise, and mostly without gaps: then two numbers do
        heapq.heappush(self._expiries, (when, next(self._ties), whole if len(whole) == len(ids) else ids))

    # Save

    def acked_ranges(self) -> list[tuple[int, int]]:
        """What is acknowledged above the floor, as ranges with both ends included."""
        return [*gaps((*self.pending, self.cursor)), *self._backlog.skip]

    def unsaved(self, row: int) -> list[Write]:
        """The writes that bring the stored state of the subscription with this row up to date; they count as done."""
        floor = self.floor()
        if floor == self._saved_floor and not self._acked_since:
            return []
        acked = runs(sorted(message_id for message_id in self._acked_since if message_id >= floor))
        self._acked_since = []
        self._saved_floor = floor
        return [
            *(("INSERT OR REPLACE INTO acked VALUES (?, ?, ?)", (row, first, last)) for first, last in acked),
            ("DELETE FROM acked WHERE subscription = ? AND first < ? AND last < ?", (row, floor, floor)),
            ("UPDATE subscriptions SET floor = ? WHERE id = ?", (floor, row)),
        ]
