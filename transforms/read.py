"""Read: a Pub/Sub subscription becomes lists of envelopes, each stamped with its arrival."""

import dataclasses
import itertools
import os
import threading
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import apache_beam as beam
import grpc
import numpy as np
from apache_beam import coders
from apache_beam.io import unbounded_source
from apache_beam.io.gcp.pubsub import PubsubMessage, ReadFromPubSub
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp

from millrace.schemas.envelope import Envelope
from millrace.transforms import beam_fixes as _beam_fixes  # noqa: F401  wherever the source is read
from millrace.transforms import pubsub
from millrace.transforms.receipts import LEDGER
from millrace.transforms.subscriber import SHORTEST_LEASE_S, Limits, Pulled, Subscriber, micros
from millrace.transforms.watermark import END, SharedWatermark

STAGE = "read"

_AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
_POLL_INTERVAL_S = 0.1
_BUNDLE_S = 0.5
"""A bundle's events move on when it ends, so its length is latency."""


@dataclasses.dataclass(eq=False)
class ReadEnvelopes(beam.PTransform):
    """Read a subscription.

    Out:     list[Envelope], one list per pull (Dataflow: one per message); stamped with the oldest arrival in it
    Window:  global.  Order: a backlog keeps its own, roughly.  Repeats: at least once, as Pub/Sub delivers.
    Memory:  bounded by `limits`, in messages and bytes.

    Args:
        subscription: projects/PROJECT/subscriptions/NAME.
        native: let the runner read (Dataflow), instead of `PubSubSource`.
        ack_after: "commit", where the graph runs in this process and settles receipts; "checkpoint", where the
            runner keeps elements safe once it finalizes a checkpoint.
        readers: how many feed the graph side by side, from what the pulls bring.
        pulls: how many are under way at once. More help against Google's service, fewer against its emulator.
        slack_s: how far out of publish order messages may come without counting as late; adds to the latency.
    """

    subscription: str
    native: bool = False
    ack_after: str = "commit"
    readers: int = 2
    pulls: int = 1
    slack_s: float = 0.5
    limits: Limits = Limits()  # noqa: RUF009  it is immutable

    def __post_init__(self) -> None:
        for name, value in (("readers", self.readers), ("pulls", self.pulls)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.ack_after not in {"commit", "checkpoint"}:
            raise ValueError(f"ack_after must be commit or checkpoint, got {self.ack_after!r}")

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[list[Envelope]]:
        if self.native:
            return (
                pipeline
                | "ReadFromPubSub" >> ReadFromPubSub(subscription=self.subscription, with_attributes=True)
                | "Wrap" >> beam.ParDo(_WrapFn()).with_output_types(list[Envelope])
            )
        source = PubSubSource(
            subscription=self.subscription,
            ack_after=self.ack_after,
            readers=self.readers,
            pulls=self.pulls,
            slack_us=round(self.slack_s * 1_000_000),
            limits=self.limits,
        )
        return pipeline | "PubSubSource" >> unbounded_source.ReadFromUnboundedSource(
            source, poll_interval=_POLL_INTERVAL_S, max_read_time_seconds=_BUNDLE_S
        ).with_output_types(list[Envelope])


class _WrapFn(beam.DoFn):
    """Dataflow's native read gives the publish time as the element's timestamp, and holds the watermark by it."""

    def process(self, message: PubsubMessage, arrived: Any = beam.DoFn.TimestampParam) -> Iterable[list[Envelope]]:
        published = message.publish_time
        published_us = arrived.micros if published is None else round(published.timestamp() * 1_000_000)
        yield [
            Envelope(message.data, message.attributes or {}, message.message_id or "", published_us,
                     max(published_us, arrived.micros))
        ]  # fmt: skip


class Mark(unbounded_source.CheckpointMark):
    """A reader's checkpoint: only a name, since what it stands for lives in this process or not at all.

    With another process the leases of what this one read lapse, and Pub/Sub delivers it again.
    """

    def __init__(self, reader: str, number: int) -> None:
        self.reader = reader
        self.number = number

    def finalize_checkpoint(self) -> None:
        """Settle what the marks before this one covered.

        One round late on purpose: Flink finalizes every bundle that has ended when a checkpoint completes, the
        ones after its barrier too, and these are in no checkpoint yet.
        """
        covered = _COVERED.get(self.reader)
        if covered is None:
            return
        for number in [number for number in list(covered) if number < self.number]:
            receipts = covered.pop(number, np.empty(0, np.int64))
            ones = np.ones_like(receipts)
            LEDGER.expect(receipts, ones)
            LEDGER.settle(receipts, ones)


_COVERED: dict[str, dict[int, Any]] = {}


@dataclasses.dataclass(kw_only=True, eq=False)
class PubSubSource(unbounded_source.UnboundedSource):
    """A Pub/Sub subscription, for the runners that have no reader of their own (Prism, Flink)."""

    subscription: str
    ack_after: str
    readers: int
    pulls: int
    slack_us: int
    limits: Limits
    index: int = -1
    """Which of the readers; what tells one's checkpoints from another's."""

    def split(self, desired_num_splits: int, options: Any = None) -> list["PubSubSource"]:  # noqa: ARG002
        """Return one source per reader: they share the subscription, Pub/Sub shares out the messages."""
        count = min(self.readers, max(1, desired_num_splits))
        return [dataclasses.replace(self, index=index) for index in range(count)]

    def create_reader(self, options: Any, checkpoint_mark: Any) -> "PubSubReader":  # noqa: ARG002
        """Return a reader of what is not yet delivered; Pub/Sub keeps the position, not the mark."""
        return PubSubReader(self, shared_subscriber(self))

    def get_checkpoint_mark_coder(self) -> coders.Coder:
        """Marks are two plain values."""
        return coders.PickleCoder()


class PubSubReader(unbounded_source.UnboundedReader):
    """Hands over what the subscriber's threads have pulled; never waits, never calls Pub/Sub itself."""

    _numbers = itertools.count()

    def __init__(self, source: PubSubSource, shared: "Shared") -> None:
        self._source = source
        self._subscriber, self._watermark = shared
        self._name = f"{os.getpid()}-{next(self._numbers)}"
        self._marks = itertools.count()
        self._in_bundle = False
        self._current: list[Envelope] = []
        self._current_us = 0
        self._emitted: list[Any] = []

    def start(self) -> bool:
        """Like advance: the subscription may well be empty."""
        return self.advance()

    def advance(self) -> bool:
        """Take the next pull's messages, if any wait."""
        if not self._in_bundle:
            self._in_bundle = True
            ended = draining().finished(self._subscriber)
            self._watermark.begin(self._source.index, self._unread_us(), ended=ended)
        floor_us = self._watermark.arrival_floor(self._unread_us())
        pulled = self._subscriber.take()
        if pulled is None:
            return False
        settled_here = self._source.ack_after == "commit"
        self._current = _envelopes(pulled, floor_us, with_receipts=settled_here)
        self._current_us = max(pulled.oldest_us, floor_us)
        if not settled_here:
            count = len(pulled.messages)
            self._emitted.append(np.arange(pulled.first_receipt, pulled.first_receipt + count, dtype=np.int64))
        return True

    def get_current(self) -> list[Envelope]:
        """Return the envelopes of one pull."""
        return self._current

    def get_current_timestamp(self) -> Timestamp:
        """Return the oldest arrival among them."""
        return Timestamp(micros=self._current_us)

    def get_watermark(self) -> Timestamp:
        """Return the time before which nothing will arrive any more; the end of time once all are drained."""
        ended = draining().finished(self._subscriber)
        reached_us = self._watermark.report(self._source.index, self._unread_us(), ended=ended)
        if reached_us >= END:
            return MAX_TIMESTAMP
        return Timestamp(micros=reached_us) if reached_us else MIN_TIMESTAMP  # 0: nothing is known yet

    def get_checkpoint_mark(self) -> Mark:
        """Return a mark that stands for what was emitted since the last one."""
        self._in_bundle = False
        number = next(self._marks)
        if self._emitted:
            _COVERED.setdefault(self._name, {})[number] = np.concatenate(self._emitted)
            self._emitted = []
        return Mark(self._name, number)

    def close(self) -> None:
        """Leave the subscriber to its other readers, and to the deliveries that still wait for their commit."""

    def _unread_us(self) -> int:
        return self._subscriber.oldest_unread_us(time.time_ns() // 1_000)


def _envelopes(pulled: Pulled, floor_us: int, *, with_receipts: bool) -> list[Envelope]:
    envelopes = []
    for offset, each in enumerate(pulled.messages):
        message = each.message
        published_us = micros(message.publish_time)
        receipt = pulled.first_receipt + offset if with_receipts else -1
        envelopes.append(
            Envelope(message.data, dict(message.attributes), message.message_id, published_us,
                     max(published_us, floor_us), receipt)
        )  # fmt: skip
    return envelopes


class Drain(NamedTuple):
    """How this process ends its reading: what a signal handler asks for, and readers obey."""

    requested: threading.Event
    until_empty: threading.Event

    def request(self, *, until_empty: bool) -> None:
        """End the reading: now, or once the subscription has been empty for a moment."""
        if until_empty:
            self.until_empty.set()
        self.requested.set()

    def finished(self, subscriber: Subscriber) -> bool:
        """Say whether the subscriber has given its last message."""
        if not self.requested.is_set():
            return False
        if not self.until_empty.is_set() or subscriber.idle_for_s() > 1.0:
            subscriber.stop_pulling()
        return subscriber.stopped_and_empty()


_DRAIN = Drain(threading.Event(), threading.Event())
_SUBSCRIBERS: dict[str, "Shared"] = {}
_SUBSCRIBERS_LOCK = threading.Lock()


def draining() -> Drain:
    """Return this process's drain."""
    return _DRAIN


class Shared(NamedTuple):
    """What the readers of one subscription share in this process."""

    subscriber: Subscriber
    watermark: SharedWatermark


def shared_subscriber(source: PubSubSource) -> Shared:
    """Return this process's one subscriber of a subscription, started, and its readers' watermark."""
    with _SUBSCRIBERS_LOCK:
        shared = _SUBSCRIBERS.get(source.subscription)
        if shared is None:
            client = pubsub.SubscriptionClient(pubsub.open_channel(), source.subscription)
            subscriber = Subscriber(
                client,
                LEDGER,
                pullers=source.pulls,
                limits=source.limits,
                ack_deadline_s=_ack_deadline_s(client),
            )
            subscriber.start()
            shared = Shared(subscriber, SharedWatermark(source.slack_us))
            _SUBSCRIBERS[source.subscription] = shared
        return shared


def _ack_deadline_s(client: pubsub.SubscriptionClient) -> int:
    try:
        return client.ack_deadline_s()
    except grpc.RpcError as error:
        if error.code() not in _AWAY:
            raise
        return SHORTEST_LEASE_S  # the pulls wait until Pub/Sub is back; leases are then extended sooner than need be


def close_subscribers(*, hand_back: bool) -> None:
    """End this process's subscribers: acknowledge what is settled, hand back the rest where asked."""
    with _SUBSCRIBERS_LOCK:
        while _SUBSCRIBERS:
            _SUBSCRIBERS.popitem()[1].subscriber.close(hand_back=hand_back)
