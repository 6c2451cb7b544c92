"""The feed of a lane without order: a subscription of its own on the job's raw topic, cleaned as the job cleans.

A message is acknowledged once the ledger says what became of all its events. Until then its lease is renewed; a lane
that ends, however it ends, gets it again. What waits in memory is bounded, and beyond that nothing is pulled: the
backlog stays in Pub/Sub, for this lane alone. Of an event that an operator parks the ledger keeps what its route sends,
so its message goes as the others do; a parked event outlives the subscription.
"""

import itertools
import logging
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from google.auth.exceptions import GoogleAuthError

from millrace.config.job import ConfigError, JobConfig, load_job
from millrace.config.secrets import SecretError
from millrace.delivery import clock
from millrace.delivery.asked_routes import note_routes
from millrace.delivery.clean import Cleaned, Cleaner
from millrace.delivery.feed import CannotReadError
from millrace.delivery.ledger import Ledger, Mark, Trying
from millrace.delivery.live_rows import Held, LiveRow, Routed, by_route
from millrace.delivery.messages import Messages
from millrace.delivery.own_subscription import subscription_of
from millrace.delivery.pending import Pending
from millrace.delivery.puller import Bounds, Puller
from millrace.delivery.put_aside import PutAside
from millrace.delivery.settings import LaneSettings
from millrace.delivery.tries import Tries
from millrace.schemas.envelope import Envelope
from millrace.transforms.receipts import Ledger as Receipts
from millrace.transforms.steps import CannotOpenError
from millrace.transforms.subscriber import micros
from millrace.transforms.suppression import SuppressionError

_LOG = logging.getLogger(__name__)

_WAIT_S = 0.02
_FLUSH_S = 0.5
_NAMES = {Mark.DELIVERED: "delivered", Mark.DEAD: "dead", Mark.SKIPPED: "skipped", Mark.PARKED: "parked"}


class Memory(NamedTuple):
    """How much a lane has in mind at most, and for how long."""

    rows_bytes: int = 256 * 1024 * 1024
    """What is routed and not settled, as columns: a packed message may be a hundred times larger when it is read."""
    copies_s: float = 3_600.0
    copies_ids: int = 2_000_000
    """Events remembered to know copies; 16 bytes each."""
    record_s: float = 86_400.0
    """How long settled envelopes are kept for `millrace verify`: see docs/sinks.md for their size."""


BOUNDS, MEMORY = Bounds(), Memory()


class LiveFeed:
    """Implements Feed; see there.

    Args:
        settings: the lane's.
        job: what the job does to events.
        ledger: open, for writing.
        subscription: projects/PROJECT/subscriptions/NAME: nobody else may read it.
        topic: the job's raw topic, where a missing subscription is to be created; empty: it is not.
        bounds: beyond them nothing is pulled.
        memory: how much is kept, and for how long.
    """

    def __init__(
        self,
        settings: LaneSettings,
        job: JobConfig,
        ledger: Ledger,
        subscription: str,
        topic: str,
        *,
        bounds: Bounds = BOUNDS,
        memory: Memory = MEMORY,
    ) -> None:
        """Load what the job's configuration names.

        Raises:
            SecretError, SuppressionError, CannotOpenError: it cannot be had; one sentence that says what to do.
        """
        self._ledger = ledger
        self._settings = settings
        self._memory = memory
        self._cleaner = Cleaner(job, horizon_s=memory.copies_s, max_ids=memory.copies_ids)
        receipts = Receipts()
        self._puller = Puller(subscription, topic, receipts, bounds)
        self._messages = Messages(ledger, receipts, memory.record_s, clock.now_us())
        self._positions = itertools.count(clock.now_us())  # later runs begin higher: no two events share one
        self._held = Held()
        self._put_aside = PutAside(ledger, settings.routes)
        self._tries = Tries(ledger)
        self._flushed_s = -math.inf
        self._opened_us = 0
        self._is_noted = False

    def open(self) -> tuple[list[Pending], list[Pending]]:
        """Begin to pull. What an earlier run left unsettled comes again by itself.

        Raises:
            CannotReadError: there is none, or it may not be read; one sentence that says what to do.
        """
        self._opened_us = clock.now_us()
        self._tries.recall()
        self._put_aside.recall()
        self._messages.recall(self._opened_us)
        if not self._pulls():
            _LOG.warning("%s: Pub/Sub does not answer; the lane begins when it does", self._settings.name)
        return [], []

    def read(self) -> list[Pending]:
        """Return the next events; messages that bring none for this lane are acknowledged with the next save.

        Raises:
            CannotReadError: see `open`, where Pub/Sub did not answer.
            sqlite3.Error: the ledger cannot be written; nothing is lost by trying again.
        """
        if not self._pulls() or self._held.bytes >= self._memory.rows_bytes:
            time.sleep(_WAIT_S)
            return []
        if self._messages.has_done and time.monotonic() - self._flushed_s >= _FLUSH_S:
            self._flush(clock.now_us())
        envelopes = self._new_envelopes(self._puller.take(_WAIT_S))
        return self._events(envelopes) if envelopes else []

    def _pulls(self) -> bool:
        """Say whether messages come; note since when these routes are asked, for `millrace verify`."""
        if not self._puller.is_pulling():
            return False
        if not self._is_noted:
            note_routes(self._ledger, self._settings, clock.now_us())
            self._is_noted = True
        return True

    def settle(self, events: Sequence[Pending], mark: Mark) -> None:
        """Note that events are settled; a message counts once all its events are."""
        name = _NAMES[mark]
        for event in events:
            row = event.payload
            if isinstance(row, LiveRow):
                self._settle_one(event, row, name)
                if mark is Mark.PARKED:
                    self._put_aside.park(event)
            elif mark is Mark.PARKED:
                self._put_aside.park_again(event)
            else:
                self._put_aside.settle(event)
                self._messages.counts[_NAMES[Mark.PARKED]] -= 1
                self._messages.counts[name] += 1

    def save(self, trying: Sequence[Trying], over: Sequence[int], now_us: int) -> None:
        """Make it durable, in one transaction; then acknowledge what is settled."""
        self._flush(now_us, (trying, over))
        self._held.thin()

    def bring_back(self, subject: str) -> list[Pending]:
        """Return parked events, to be tried again; their records stay until they are settled."""
        return self._put_aside.bring_back(subject)

    def lag_us(self, now_us: int) -> int:
        """Return how long ago the oldest message was published that is not settled, as far as the lane knows."""
        return max(0, now_us - self._until_us(now_us))

    def behind(self) -> int:
        """Return how many messages were pulled and not read; how many wait in the subscription is not known."""
        return self._puller.queued_messages

    def note(self) -> str:
        """Return nothing: a topic that is not there ends the lane."""
        return ""

    def close(self) -> None:
        """Acknowledge what is settled, and give the rest back to Pub/Sub, for whoever reads next."""
        if self._messages.has_done:
            self._flush(clock.now_us())
        self._puller.close()

    def _new_envelopes(self, taken: list[tuple[Any, int]]) -> list[Envelope]:
        """Return those that are not in hand already and were not settled lately."""
        now_us = clock.now_us()
        facts = [(each.message.message_id, micros(each.message.publish_time), receipt) for each, receipt in taken]
        is_new = self._messages.enter(facts)
        return [
            Envelope(each.message.data, dict(each.message.attributes), envelope_id, published_us, now_us, receipt)
            for (each, _), (envelope_id, published_us, receipt), new in zip(taken, facts, is_new, strict=True)
            if new
        ]

    def _events(self, envelopes: list[Envelope]) -> list[Pending]:
        try:
            routed = self._routed(envelopes)
        except Exception:  # noqa: BLE001  which message was it? Slow, and never seen
            return [event for each in envelopes for event in self._events_of_one(each)]
        return self._offered(routed, envelopes)

    def _events_of_one(self, envelope: Envelope) -> list[Pending]:
        try:
            routed = self._routed([envelope], again=True)
        except Exception as error:  # noqa: BLE001  neither its content nor the error's text, which may repeat it
            _LOG.error(
                "%s: the message %s cannot be read (%s): it is not delivered, and counts as failed",
                self._settings.name, envelope.envelope_id, type(error).__name__,
            )  # fmt: skip
            self._messages.fail(envelope.receipt)
            return []
        return self._offered(routed, [envelope])

    def _routed(self, envelopes: Sequence[Envelope], *, again: bool = False) -> tuple[Cleaned, list[Routed]]:
        cleaned = self._cleaner.clean(envelopes, envelopes[0].arrived_us, again=again)
        return cleaned, by_route(cleaned.batch, self._settings.routes)

    def _offered(self, routed: tuple[Cleaned, list[Routed]], envelopes: Sequence[Envelope]) -> list[Pending]:
        """Enter what was routed, and return it; messages without any of it are done."""
        cleaned, of_routes = routed
        messages = self._messages.open
        for why, receipt, count in cleaned.left_out_of():
            messages[receipt].count(why, count)
        events: list[Pending] = []
        for number, sent, users, ids, receipts, bytes_ in of_routes:
            part = self._held.add(sent)
            for at, (user, message_id, receipt, size) in enumerate(zip(users, ids, receipts, bytes_, strict=True)):
                message = messages[receipt]
                message.routed += 1
                message.left += 1
                row = LiveRow(sent, at, user, message, part)
                event = Pending(next(self._positions), None, message_id, number, size, row)
                part.open.add(event)
                events.append(event)
        self._tries.count(events)
        if self._put_aside.ids:
            events = self._without_parked(events)
        self._messages.close_unrouted([each.receipt for each in envelopes])
        return events

    def _without_parked(self, events: list[Pending]) -> list[Pending]:
        """Leave out what is parked: its message came again since others of it were not settled."""
        ids = self._put_aside.ids
        for event in events:
            if event.message_id in ids:
                self._settle_one(event, event.payload, _NAMES[Mark.PARKED])
        return [event for event in events if event.message_id not in ids]

    def _settle_one(self, event: Pending, row: LiveRow, name: str) -> None:
        self._held.settle(event, row.part)
        self._messages.settle(row.message, name)

    def _flush(self, now_us: int, tries: tuple[Sequence[Trying], Sequence[int]] | None = None) -> None:
        with self._ledger.writing():
            self._messages.write(self._until_us(now_us), now_us)
            self._put_aside.write()
            if tries is not None:
                self._tries.write(*tries)
        if tries is not None:
            self._tries.written()
        self._put_aside.written()
        self._flushed_s = time.monotonic()
        self._messages.acknowledge(now_us)

    def _until_us(self, now_us: int) -> int:
        """Return up to when all is settled, by time of publishing, as far as the lane can know."""
        return min(self._puller.oldest_us(now_us) or self._opened_us, now_us)


def live_feed(settings: LaneSettings, ledger: Ledger, *, config: str, topic: str, prefix: str) -> LiveFeed:
    """Return the feed of a lane of `millrace deliver`.

    Args:
        settings: the lane's.
        ledger: open, for writing.
        config: the path of the job's configuration.
        topic: the job's raw topic.
        prefix: before the lane's name in that of its subscription.

    Raises:
        CannotReadError: what it needs is not there; one sentence that says what to do.
    """
    try:
        subscription = subscription_of(topic, settings.name, prefix)
        return LiveFeed(settings, load_job(config), ledger, subscription, topic)
    except (ConfigError, SecretError, SuppressionError, CannotOpenError, GoogleAuthError) as error:
        raise CannotReadError(str(error)) from error
