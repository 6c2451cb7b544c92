"""Messages: what a lane without order has in hand of its subscription, and what becomes of each."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from millrace.delivery.clean import COPIES, REPEATS
from millrace.delivery.ledger import Ledger
from millrace.delivery.settled import NO_ENVELOPES, Envelopes, SettledRecord, envelope_key
from millrace.transforms.receipts import Ledger as Receipts
from millrace.transforms.recent_ids import BELONGING, RecentIds

ROUTED, FAILED = "routed", "failed"
"""Events that took a route; messages that could not be read."""

_AGAIN_S = 3_600.0
_AGAIN_MESSAGES = 1_000_000
_RECALL_S = 900


@dataclasses.dataclass(slots=True, eq=False)
class Message:
    """A message in hand: an envelope, and its deliveries.

    Attributes:
        envelope_id: Pub/Sub's id.
        key: 64 bits of it (settled.envelope_key).
        published_us: when it was published.
        receipts: of each time that it was delivered here: Pub/Sub may do so again before it is acknowledged.
        routed: events that take a route.
        left: those of them that are not settled.
        counts: what became of its events, by the names of the ledger's totals.
    """

    envelope_id: str
    key: int
    published_us: int
    receipts: list[int]
    routed: int = 0
    left: int = 0
    counts: dict[str, int] = dataclasses.field(default_factory=dict)

    def count(self, name: str, amount: int = 1) -> None:
        """Add to what became of its events."""
        self.counts[name] = self.counts.get(name, 0) + amount


class Messages:
    """The messages in hand, and those that were settled lately.

    Args:
        ledger: the lane's, open for writing.
        receipts: of the subscriber: what is settled there is acknowledged.
        record_s: how long settled envelopes are kept in the ledger.
        now_us: the time, µs since the epoch.
    """

    def __init__(self, ledger: Ledger, receipts: Receipts, record_s: float, now_us: int) -> None:
        self.open: dict[int, Message] = {}
        """By each message's first receipt."""
        self.counts: Counter[str] = Counter()
        """Of the ledger's totals, not written yet; those of messages come when all of a message is settled."""
        self._by_id: dict[tuple[str, int], Message] = {}
        self._done: list[Message] = []
        self._written = NO_ENVELOPES
        self._repeats: list[int] = []
        self._ledger = ledger
        self._receipts = receipts
        self._record = SettledRecord(ledger, record_s, now_us)
        self._settled = RecentIds(_AGAIN_S, run_ids=_AGAIN_MESSAGES // 8)

    def recall(self, now_us: int) -> None:
        """Remember what was settled shortly before this run: its acknowledgement may not have got through."""
        for envelopes in self._record.newest(_AGAIN_MESSAGES, now_us // 1_000_000 - _RECALL_S):
            self._remember(envelopes, now_us)

    def enter(self, delivered: Sequence[tuple[str, int, int]]) -> list[bool]:
        """Take in deliveries, as (envelope id, published, receipt); say which are messages that are new here.

        One that is in hand already gets one more receipt; one that was settled is acknowledged again.
        """
        keys = [envelope_key(envelope_id) for envelope_id, _, _ in delivered]
        times = np.array([published_us for _, published_us, _ in delivered], np.int64).view(np.uint64) & BELONGING
        found = self._settled.find(np.array(keys, np.uint64))
        is_settled = (found.known & (found.belongs == times)).tolist()
        is_new = []
        for (envelope_id, published_us, receipt), key, settled_before in zip(delivered, keys, is_settled, strict=True):
            there = self._by_id.get((envelope_id, published_us))
            is_new.append(there is None and not settled_before)
            if there is not None:
                there.receipts.append(receipt)
            elif settled_before:
                self._repeats.append(receipt)
            else:
                message = Message(envelope_id, key, published_us, [receipt])
                self.open[receipt] = self._by_id[envelope_id, published_us] = message
        return is_new

    def settle(self, message: Message, name: str) -> None:
        """Note what became of an event that took a route."""
        message.count(name)
        message.left -= 1
        if not message.left:
            self._done.append(message)

    def fail(self, receipt: int) -> None:
        """Note that a message could not be read at all; it is not entered among the settled ones."""
        message = self.open[receipt]
        message.count(FAILED)
        self._done.append(message)

    def close_unrouted(self, receipts: Iterable[int]) -> None:
        """Note that these messages were read: those of which no event takes a route are done."""
        self._done += [message for message in map(self.open.__getitem__, receipts) if not message.routed]

    @property
    def has_done(self) -> bool:
        """Whether there is something to write down."""
        return bool(self._done or self._repeats or self.counts)

    def write(self, until_us: int, now_us: int) -> None:
        """Write down what is settled, inside a transaction of the ledger's; then comes `acknowledge`."""
        counts = self.counts.copy()
        for message in self._done:
            counts[ROUTED] += message.routed
            for name, amount in message.counts.items():
                counts[name] += amount
        counts[REPEATS] += len(self._repeats)
        self._ledger.add_totals(counts, now_us)
        self._written = self._recorded()
        self._record.add(self._written, until_us, now_us)

    def acknowledge(self, now_us: int) -> None:
        """Let go of what was written down, and have it acknowledged."""
        self._remember(self._written, now_us)
        receipts = self._repeats
        for message in self._done:
            del self.open[message.receipts[0]], self._by_id[message.envelope_id, message.published_us]
            receipts += message.receipts
        ones = np.ones(len(receipts), np.int64)
        self._receipts.expect(np.array(receipts, np.int64), ones)
        self._receipts.settle(np.array(receipts, np.int64), ones)
        self._done, self._repeats = [], []
        self.counts.clear()

    def _recorded(self) -> Envelopes:
        events = [each.routed + each.counts.get(COPIES, 0) for each in self._done]
        if not any(events):
            return NO_ENVELOPES
        kept = np.array(events, np.uint32) > 0
        keys = np.array([each.key for each in self._done], np.uint64)
        published = np.array([each.published_us for each in self._done], np.int64)
        return Envelopes(keys[kept], published[kept], np.array(events, np.uint32)[kept])

    def _remember(self, envelopes: Envelopes, now_us: int) -> None:
        times = envelopes.published_us.view(np.uint64) & BELONGING
        self._settled.add(np.column_stack([envelopes.keys, times]), now_us)
        while len(self._settled) > _AGAIN_MESSAGES:
            self._settled.drop_oldest()
