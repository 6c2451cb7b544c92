"""Puller: what a lane without order has pulled of its subscription, up to its bounds, and has not read."""

import collections
import itertools
import math
import time
from typing import Any, NamedTuple

from millrace.delivery.own_subscription import lease_s
from millrace.transforms.pubsub import SubscriptionClient, open_channel
from millrace.transforms.receipts import Ledger as Receipts
from millrace.transforms.subscriber import Limits, Subscriber

_LOOK_S = 2.0
_PAUSE_S = 0.01  # so much later, for half of the processor: what is read together costs less
_QUEUED_MESSAGES, _QUEUED_BYTES = 10_000, 32 * 1024 * 1024


class Bounds(NamedTuple):
    """How much is in hand at most."""

    read_messages: int = 2_000
    read_bytes: int = 2 * 1024 * 1024
    """Read at once: what is in it waits for the last of it."""
    open_messages: int = 100_000
    """Pulled, not acknowledged."""
    open_bytes: int = 128 * 1024 * 1024


class Puller:
    """Pulls a subscription from the first `is_pulling` on that finds Pub/Sub; not for several threads at once.

    Args:
        subscription: projects/PROJECT/subscriptions/NAME.
        topic: where a missing subscription is to be created; empty: it is not.
        receipts: what is settled there is acknowledged.
        bounds: beyond them nothing is pulled.
    """

    def __init__(self, subscription: str, topic: str, receipts: Receipts, bounds: Bounds) -> None:
        self._client = SubscriptionClient(open_channel(), subscription)
        self._topic = topic
        self._receipts = receipts
        self._bounds = bounds
        self._subscriber: Subscriber | None = None
        self._looked_s = -math.inf
        self._taken: collections.deque[tuple[Any, int]] = collections.deque()

    def is_pulling(self) -> bool:
        """Say whether it pulls; while Pub/Sub does not answer it is asked again now and then.

        Raises:
            CannotReadError: there is no such subscription, or it may not be read.
        """
        if self._subscriber is None and time.monotonic() - self._looked_s >= _LOOK_S:
            ack_deadline_s = lease_s(self._client, self._topic)
            self._looked_s = time.monotonic()
            if ack_deadline_s is not None:
                self._start(ack_deadline_s)
        return self._subscriber is not None

    def _start(self, ack_deadline_s: int) -> None:
        most = self._bounds.open_messages, self._bounds.open_bytes
        limits = Limits(_QUEUED_MESSAGES, _QUEUED_BYTES, *most, stalled_after_s=math.inf)
        self._subscriber = Subscriber(
            self._client,
            self._receipts,
            pullers=1,
            limits=limits,
            ack_deadline_s=ack_deadline_s,
            pause_s=_PAUSE_S,
        )
        self._subscriber.start()

    def take(self, wait_s: float) -> list[tuple[Any, int]]:
        """Return (message, receipt) of what was pulled, up to the bounds of a read; wait_s where there is none."""
        found: list[tuple[Any, int]] = []
        size = 0
        while len(found) < self._bounds.read_messages and size < self._bounds.read_bytes:
            if not self._taken and not self._take_more(0.0 if found else wait_s):
                break
            found.append(self._taken.popleft())
            size += len(found[-1][0].message.data)
        return found

    def _take_more(self, wait_s: float) -> bool:
        assert self._subscriber is not None  # is_pulling said so
        pulled = self._subscriber.take()
        if pulled is None and wait_s:
            self._subscriber.wait(wait_s)
            pulled = self._subscriber.take()
        if pulled is not None:
            self._taken.extend(zip(pulled.messages, itertools.count(pulled.first_receipt), strict=False))
        return pulled is not None

    @property
    def queued_messages(self) -> int:
        """Messages that were pulled and not taken."""
        return len(self._taken) + (0 if self._subscriber is None else self._subscriber.queued_messages)

    def oldest_us(self, now_us: int) -> int:
        """Return about before when nothing was published that is not settled, µs; 0 where that is not known."""
        unread = 0 if self._subscriber is None else self._subscriber.oldest_unread_us(now_us)
        oldest = self._receipts.oldest_open_us()
        return unread if oldest is None else min(unread, oldest)

    def close(self) -> None:
        """Acknowledge what is settled, and give the rest back to Pub/Sub, for whoever reads next."""
        if self._subscriber is not None:
            self._subscriber.close(hand_back=True)
        self._client.close()
