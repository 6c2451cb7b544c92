"""The reader's hands: threads that pull, keep leases alive and acknowledge, so that `advance` never waits."""

import collections
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import grpc

from millrace.transforms.pubsub import SubscriptionClient
from millrace.transforms.receipts import Ledger

_LOG = logging.getLogger(__name__)

SHORTEST_LEASE_S = 10
"""The least ack deadline that Pub/Sub gives a subscription."""

_PULL_MESSAGES = 1_000  # the most that Pub/Sub gives in one pull; on Google's emulator also the quickest
_PULL_BYTES = 8 * 1024 * 1024  # aimed at, so that one pull never holds a hundred megabytes
_PULL_WAIT_S = 5.0
_FULL_WAIT_S = 0.02
_CANCEL_S = 1.0
_IDLE_AFTER_S = 0.2  # a pull that waits longer than this found the subscription empty
_BEHIND_US = 5_000_000
_IDLE_BEHIND_S = 2.0
"""In a backlog a pull may be slow (8 MB over a thin line): taken for an empty subscription, it would make all that is
left of the backlog late."""
_KEEPER_PERIOD_S = 0.1
_BACKOFF_S = (0.1, 0.2, 0.5, 1.0)
_COMPLAIN_EVERY_S = 30.0


class Limits(NamedTuple):
    """How much may be under way: the bound on the reader's memory."""

    queued_messages: int = 20_000
    """Pulled, not yet taken by the graph."""
    queued_bytes: int = 64 * 1024 * 1024
    open_messages: int = 2_000_000
    """Delivered, not yet committed. An order wait's worth of events must fit, or nothing could ever leave."""
    open_bytes: int = 4 * 1024**3
    stalled_after_s: float = 30.0
    """Past an open limit, reading goes on all the same once nothing was committed for so long: order needs it."""


class Pulled(NamedTuple):
    """The messages of one pull."""

    messages: Sequence[Any]
    first_receipt: int
    size: int
    oldest_us: int
    newest_us: int


class Subscriber:
    """Pulls one subscription into a bounded queue and looks after its deliveries until they are settled.

    Failures of Pub/Sub are waited out, for ever, with a line in the log: nothing is lost by waiting.
    """

    def __init__(
        self,
        client: SubscriptionClient,
        ledger: Ledger,
        *,
        pullers: int,
        limits: Limits,
        ack_deadline_s: int,
        pause_s: float = 0.0,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            client: of the subscription.
            ledger: where deliveries are entered, and settled.
            pullers: how many pulls are under way at once.
            limits: how much may be.
            ack_deadline_s: the subscription's.
            pause_s: after a pull that was not full, so that the next one brings more.
        """
        self._client = client
        self._ledger = ledger
        self._limits = limits
        self._pause_s = pause_s
        self._lease_s = max(SHORTEST_LEASE_S, ack_deadline_s)
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._queue: collections.deque[Pulled] = collections.deque()
        self._queued_messages = self._queued_bytes = 0
        self._newest_taken_us = 0
        self._message_bytes = 1_000.0
        self._full_since: tuple[int, float] | None = None
        self._acks: list[str] = []
        self._extensions: list[str] = []
        self._complained_s = -_COMPLAIN_EVERY_S
        self._no_more_pulls = threading.Event()
        self._no_more_acks = threading.Event()
        self._waiting_since_s: list[float | None] = [None] * pullers
        self._pullers = [
            threading.Thread(target=self._pull_forever, args=(index,), name=f"millrace-pull-{index}", daemon=True)
            for index in range(pullers)
        ]
        self._keeper = threading.Thread(target=self._keep_forever, name="millrace-leases", daemon=True)

    def start(self) -> None:
        """Start pulling."""
        for thread in (*self._pullers, self._keeper):
            thread.start()

    def take(self) -> Pulled | None:
        """Return the next pull's messages, or None where none wait; never blocks."""
        with self._lock:
            if not self._queue:
                return None
            pulled = self._queue.popleft()
            self._queued_messages -= len(pulled.messages)
            self._queued_bytes -= pulled.size
            self._newest_taken_us = max(self._newest_taken_us, pulled.newest_us)
            return pulled

    def wait(self, timeout_s: float) -> None:
        """Wait until there is something to take, or for so long."""
        with self._arrived:
            if not self._queue:
                self._arrived.wait(timeout_s)

    @property
    def queued_messages(self) -> int:
        """Messages that were pulled and not taken."""
        return self._queued_messages

    def oldest_unread_us(self, now_us: int) -> int:
        """Estimate the publish time, in µs, before which nothing unread was published.

        It is the oldest that waits in the queue; now, where a pull found the subscription empty; else the newest
        taken so far, since Pub/Sub gives a backlog roughly in the order in which it was published.
        """
        with self._lock:
            if self._queue:
                return min(pulled.oldest_us for pulled in self._queue)
            is_behind = now_us - self._newest_taken_us > _BEHIND_US
            is_empty = self.idle_for_s() >= (_IDLE_BEHIND_S if is_behind else _IDLE_AFTER_S)
            return now_us if is_empty else self._newest_taken_us

    def idle_for_s(self) -> float:
        """Return for how long every pull has waited for a message, past the time that an answer takes; else 0."""
        if self._queue or None in self._waiting_since_s:
            return 0.0
        waited = time.monotonic() - max(since for since in self._waiting_since_s if since is not None)
        return waited if waited >= _IDLE_AFTER_S else 0.0

    def stop_pulling(self) -> None:
        """Pull no more; what is queued may still be taken, and deliveries are still looked after."""
        self._no_more_pulls.set()

    def stopped_and_empty(self) -> bool:
        """Say whether nothing more will ever be there to take."""
        # The threads first: the last thing that one does may be to enqueue.
        return self._no_more_pulls.is_set() and not any(t.is_alive() for t in self._pullers) and not self._queue

    def close(self, *, hand_back: bool) -> None:
        """Stop; acknowledge what is settled; with hand_back, return all that is open for another reader."""
        self._no_more_pulls.set()
        self._no_more_acks.set()
        # What is handed back must not be given at once to a pull of ours that still waits.
        self._client.cancel_pulls()
        for puller in self._pullers:
            if puller.is_alive():
                puller.join(timeout=_CANCEL_S)
        if self._keeper.is_alive():
            self._keeper.join(timeout=_PULL_WAIT_S)
        self._acknowledge_settled()
        if hand_back:
            returned = self._ledger.hand_back(self._ledger.all_open())
            try:
                self._client.extend(returned, 0)
            except grpc.RpcError as error:
                _LOG.info("could not hand back %d messages (%s): their leases lapse", len(returned), error.code())

    def _pull_forever(self, puller: int) -> None:
        complaint = _Complaint("pull from")
        while not self._no_more_pulls.is_set():
            if not self._has_room():
                self._waiting_since_s[puller] = None
                self._no_more_pulls.wait(_FULL_WAIT_S)
                continue
            asked_s = time.monotonic()
            if self._waiting_since_s[puller] is None:
                self._waiting_since_s[puller] = asked_s
            try:
                received = self._client.pull(self._pull_size(), _PULL_WAIT_S)
            except grpc.RpcError as error:
                if self._no_more_pulls.is_set():
                    return
                self._waiting_since_s[puller] = None  # a broken line is no sign of an empty subscription
                complaint.say(self._client.subscription, error)
                self._no_more_pulls.wait(complaint.backoff_s)
                continue
            complaint.over()
            if received:
                self._enqueue(received, asked_s)
                self._waiting_since_s[puller] = None
                if self._pause_s and len(received) < _PULL_MESSAGES // 2:
                    self._no_more_pulls.wait(self._pause_s)

    def _pull_size(self) -> int:
        return min(_PULL_MESSAGES, max(1, int(_PULL_BYTES / self._message_bytes)))

    def _enqueue(self, received: Sequence[Any], asked_s: float) -> None:
        sizes = [len(each.message.data) for each in received]
        times = [micros(each.message.publish_time) for each in received]
        size = sum(sizes)
        self._message_bytes += 0.2 * (size / len(sizes) - self._message_bytes)
        first = self._ledger.open([each.ack_id for each in received], sizes, asked_s + self._lease_s, min(times))
        with self._arrived:
            self._queue.append(Pulled(received, first, size, min(times), max(times)))
            self._queued_messages += len(sizes)
            self._queued_bytes += size
            self._arrived.notify_all()

    def _has_room(self) -> bool:
        limits, ledger = self._limits, self._ledger
        if self._queued_messages >= limits.queued_messages or self._queued_bytes >= limits.queued_bytes:
            return False
        if ledger.open_messages < limits.open_messages and ledger.open_bytes < limits.open_bytes:
            self._full_since = None
            return True
        # Full of events that wait for their release. Time moves on only with what is read, so after a while without
        # any commit read on: a bound that stops the pipeline for good would be worse than one that is passed.
        settled, now = ledger.settled, time.monotonic()
        if self._full_since is None or self._full_since[0] != settled:
            self._full_since = (settled, now)
        return now - self._full_since[1] > limits.stalled_after_s

    def _keep_forever(self) -> None:
        while not self._no_more_acks.wait(_KEEPER_PERIOD_S):
            self._acknowledge_settled()
            self._extend_leases()

    def _extend_leases(self) -> None:
        now = time.monotonic()
        # Those that failed are tried again at once: half a lease is left for it.
        self._extensions += self._ledger.take_expiring(now + self._lease_s / 2, now + self._lease_s)
        if not self._extensions:
            return
        try:
            self._client.extend(self._extensions, self._lease_s)
        except grpc.RpcError as error:
            # If it never succeeds they are delivered again, and the copies are dropped at the commit.
            if now - self._complained_s > _COMPLAIN_EVERY_S:
                self._complained_s = now
                _LOG.warning(
                    "cannot extend %d leases yet, will go on trying: %s", len(self._extensions), error.code().name
                )
        else:
            self._extensions = []

    def _acknowledge_settled(self) -> None:
        self._acks += self._ledger.take_ready()
        if not self._acks:
            return
        try:
            self._client.acknowledge(self._acks)
        except grpc.RpcError as error:
            # Committed, but Pub/Sub does not know yet. If the lease ends first, the copy that comes is dropped.
            _LOG.info("could not acknowledge %d messages yet: %s", len(self._acks), error.code().name)
        else:
            self._acks = []


def micros(time_: Any) -> int:
    """Return a protobuf Timestamp in µs since the epoch."""
    total: int = time_.seconds * 1_000_000 + time_.nanos // 1_000
    return total


class _Complaint:
    """Says once, then now and then, that a call keeps failing; and that it works again."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._failures = 0
        self._said_s = 0.0

    @property
    def backoff_s(self) -> float:
        return _BACKOFF_S[min(self._failures, len(_BACKOFF_S)) - 1]

    def say(self, subscription: str, error: grpc.RpcError) -> None:
        self._failures += 1
        if self._failures == 1 or time.monotonic() - self._said_s > _COMPLAIN_EVERY_S:
            self._said_s = time.monotonic()
            _LOG.warning("cannot %s %s, will go on trying: %s", self._doing, subscription, error.code().name)

    def over(self) -> None:
        if self._failures:
            _LOG.warning("reading again after %d failed calls", self._failures)
            self._failures = 0
