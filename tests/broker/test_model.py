"""The store and its queues against a model: any sequence of publish, pull, ack, nack, expiry, seek and restart.

The model is a list of messages and, for each, whether its ack was given and whether it was saved. Time is passed in.
"""

import tempfile

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from millrace.broker import protocol as pb
from millrace.broker.chaos import Chaos
from millrace.broker.delivery import Queue
from millrace.broker.store import TOPIC_SPAN, Store
from millrace.broker.wire import encode_batch

DEADLINE_S = 10.0
FIRST = TOPIC_SPAN + 1
OFTEN = {"publish": 3, "pull": 6, "ack": 7, "nack": 3, "extend": 1, "wait": 2}
RARELY = ("restart", "save", "seek_forward", "snapshot_and_back")
STEPS = [*(name for name, weight in OFTEN.items() for _ in range(weight)), *RARELY]


class Deliveries(RuleBasedStateMachine):
    """One topic, one subscription, with or without ordering keys."""

    @initialize(ordered=st.booleans(), cache=st.sampled_from([0, 1 << 20]))
    def start(self, ordered: bool, cache: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.cache = cache
        self.store = Store(self.folder.name, cache)
        self.ordered = ordered
        self.now = 0.0
        self.given: list[str] = []
        self.next_id = FIRST
        self.body: dict[int, bytes] = {}
        self.key: dict[int, str] = {}
        self.acked: set[int] = set()  # as the clients know
        self.leased: dict[int, tuple[str, float]] = {}  # id -> ack id and end of its lease
        self.columns = (1, "s", 1, b"", FIRST, FIRST)
        self.store.apply([("INSERT INTO subscriptions VALUES (?, ?, ?, ?, ?, ?)", self.columns)])
        self.queue = self._queue(FIRST, [])

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()

    def _queue(self, floor: int, acked: list[tuple[int, int]]) -> Queue:
        queue = Queue(self.store, Chaos(), floor, acked)
        queue.ordered = self.ordered
        queue.end = self.next_id
        return queue

    # One rule that chooses, so that the common things are common: a rule each made one ack in forty steps.
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        getattr(self, data.draw(st.sampled_from(STEPS)))(data)

    def publish(self, data: st.DataObject) -> None:
        keys = data.draw(st.lists(st.sampled_from(["", "a", "a", "b"]), min_size=1, max_size=6))
        size = data.draw(st.sampled_from([1, 20, 300]))
        first = self.next_id
        messages = []
        for place, key in enumerate(keys):
            self.body[first + place] = b"%d" % (first + place) * size
            self.key[first + place] = key
            messages.append(pb.PubsubMessage(data=self.body[first + place], ordering_key=key))
        batch = encode_batch(messages, first, first)
        row = (batch.first, batch.count, batch.published_us, batch.stored)
        self.store.apply([("INSERT INTO batches VALUES (?, ?, ?, ?)", row)])
        self.store.remember(batch)
        self.next_id = self.queue.end = batch.end

    def pull(self, data: st.DataObject) -> None:
        limit, size = data.draw(st.integers(1, 8)), data.draw(st.sampled_from([1, 500, 1 << 20, 1 << 20]))
        self._expire()
        lease, messages = self.queue.take(limit, size, self.now, DEADLINE_S)
        ids = [message_id for message_id, _, _ in messages]
        assert len(ids) == len(set(ids)) <= limit
        for message_id, view, attempt in messages:
            message = pb.PubsubMessage.FromString(view)
            assert (message.data, message.message_id) == (self.body[message_id], str(message_id))
            assert attempt == 0
            assert message_id not in self.leased
            if not (self.ordered and self.key[message_id]):
                assert message_id not in self.acked
        if self.ordered:
            self._check_keys(ids, full=len(ids) == limit or size < 1 << 20)
        elif messages:
            assert ids == sorted(ids)
            waiting = sorted(self.body.keys() - self.acked - self.leased.keys())
            assert ids == waiting[: len(ids)]  # the oldest first, none passed over
        elif not messages:
            assert self.body.keys() <= self.acked | self.leased.keys()
        for message_id in ids:
            self.leased[message_id] = (f"{lease}{message_id}", self.now + DEADLINE_S)
            self.acked.discard(message_id)  # a later message of a key that came back
        self.given += [f"{lease}{message_id}" for message_id in ids]

    def _check_keys(self, ids: list[int], *, full: bool) -> None:
        held = {self.key[message_id] for message_id in self.leased} - {""}
        free = {
            one for one in self.body if self.key[one] not in held and one not in self.acked and one not in self.leased
        }
        assert full or free <= set(ids), "what may go, goes"
        for key in {self.key[message_id] for message_id in ids} - {""}:
            of_key = [message_id for message_id in ids if self.key[message_id] == key]
            assert not [held for held in self.leased if self.key[held] == key], "a key is with one client at a time"
            unsettled = [one for one in self.body if self.key[one] == key and one not in self.acked]
            assert of_key == sorted(of_key)
            assert of_key[0] <= min(unsettled, default=of_key[0]), "nothing of a key is passed over"
            everything = [one for one in sorted(self.body) if self.key[one] == key and one >= of_key[0]]
            assert of_key == everything[: len(of_key)]

    def _some(self, data: st.DataObject) -> list[str]:
        """Ack ids, mostly of leases that stand, now and then of one that is over."""
        live = [ack_id for ack_id, _ in self.leased.values()]
        stale = self.given[-20:] if not live or data.draw(st.integers(0, 9)) == 0 else []
        return data.draw(st.lists(st.sampled_from(stale or live), min_size=1, max_size=4, unique=True))

    def _standing(self, ack_ids: list[str]) -> list[int]:
        ids = [int(ack_id[16:]) for ack_id in ack_ids]
        return [one for one, ack_id in zip(ids, ack_ids, strict=True) if self.leased.get(one, ("",))[0] == ack_id]

    def ack(self, data: st.DataObject) -> None:
        if not self.given:
            return
        ack_ids = self._some(data)
        self.queue.ack(ack_ids)
        for message_id in self._standing(ack_ids):
            del self.leased[message_id]
            self.acked.add(message_id)

    def nack(self, data: st.DataObject) -> None:
        if not self.given:
            return
        ack_ids = self._some(data)
        self.queue.modify(ack_ids, 0, self.now)
        for ack_id in ack_ids:
            for message_id in self._standing([ack_id]):
                self._back(message_id)

    def extend(self, data: st.DataObject) -> None:
        if not self.given:
            return
        deadline_s = data.draw(st.integers(1, 30))
        ack_ids = self._some(data)
        self.queue.modify(ack_ids, deadline_s, self.now)
        for message_id in self._standing(ack_ids):
            self.leased[message_id] = (self.leased[message_id][0], self.now + deadline_s)

    def wait(self, data: st.DataObject) -> None:
        self.now += data.draw(st.floats(0.1, 15))
        self._expire()

    def _expire(self) -> None:
        self.queue.tick(self.now)
        for message_id in [one for one, (_, end) in self.leased.items() if end <= self.now]:
            if message_id in self.leased:
                self._back(message_id)

    def _back(self, message_id: int) -> None:
        del self.leased[message_id]
        key = self.key[message_id]
        if self.ordered and key:  # the later ones of its delivery come back with it
            for later in [one for one in self.leased if self.key[one] == key and one > message_id]:
                del self.leased[later]
            self.acked -= {one for one in self.acked if self.key[one] == key and one > message_id}

    def restart(self, data: st.DataObject) -> None:
        """Stop (acks are saved) or kill (they may be forgotten, nothing else)."""
        saved = data.draw(st.booleans())
        if saved:
            self.store.apply(self.queue.unsaved(1))
        self.store.close()
        self.store = Store(self.folder.name, self.cache)
        [row] = self.store.subscriptions()
        stored = {one for one in self.body if one < row.floor or any(a <= one <= b for a, b in row.acked)}
        assert stored <= self.acked, "nothing counts as acknowledged that was not"
        if saved and not self.ordered:
            assert stored == self.acked
        self.acked = stored
        self.leased.clear()
        self.queue = self._queue(row.floor, row.acked)

    def save(self, _: st.DataObject) -> None:
        self.store.apply(self.queue.unsaved(1))

    def seek_forward(self, data: st.DataObject) -> None:
        """Be done with everything before a message."""
        if self.ordered:
            return
        boundary = data.draw(st.integers(FIRST, self.next_id))
        assert self.store.first_at(boundary, FIRST, self.next_id) >= boundary or boundary in self.body
        self.queue.forget_before(boundary)
        for message_id in self.body:
            if message_id < boundary:
                self.acked.add(message_id)
                self.leased.pop(message_id, None)

    def snapshot_and_back(self, _: st.DataObject) -> None:
        """A snapshot holds what is acknowledged, whatever is with clients."""
        if self.ordered:  # where an ack behind an unacknowledged one does not count yet
            return
        queue = self._queue(self.queue.floor(), self.queue.acked_ranges())
        self.store.apply([("DELETE FROM acked", ())])
        writes = [("INSERT INTO acked VALUES (1, ?, ?)", one) for one in self.queue.acked_ranges()]
        self.store.apply([*writes, ("UPDATE subscriptions SET floor = ?", (queue.floor(),))])
        self.queue = queue
        self.leased.clear()

    @invariant()
    def the_floor_is_below_all_that_is_not_done(self) -> None:
        if hasattr(self, "queue"):
            undone = self.body.keys() - self.acked
            assert self.queue.floor() <= min(undone, default=self.next_id)


TestDeliveries = Deliveries.TestCase
TestDeliveries.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
