"""Deliver: messages become durable, in Pub/Sub where it answers in time, else in the spool; or the caller is told so.

A publish that was given up may have arrived all the same: copies are expected, and removed downstream by message id,
since ids are fixed before the first try. Live messages may overtake spooled ones: downstream orders by event time.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from millrace.collector.accepted import Accepted
from millrace.collector.breaker import Breaker
from millrace.collector.delivery import (
    Delivered,
    DeliveryCounts,
    DeliverySettings,
    DeliveryState,
    DeliveryTotals,
    How,
    Left,
    NotDurableError,
    Undelivered,
    Unready,
)
from millrace.collector.link import Link
from millrace.collector.live import Live, Waiting
from millrace.collector.message import Message
from millrace.collector.publish import Publisher
from millrace.collector.replay import Replay, ReplayableSpool
from millrace.collector.spooling import AppendableSpool, Spooling

log = logging.getLogger(__name__)

OVERHEAD_BYTES = 2_048
"""What a message that waits takes besides its body: attributes, futures, its client's request."""

_RETRY_S = 1.0
_SPOOL_FAILURE_COUNTS_S = 5.0  # a spool that failed is tried again after that: by traffic, so readiness must return
_FOR_THE_SPOOL_S = 1.0  # of a drain's time, kept for writing what is left


class Spool(AppendableSpool, ReplayableSpool, Protocol):
    """What delivery needs of a spool, which its owner opens and closes."""

    def stats(self) -> Any:
        """Return at least `messages`, not settled, and `bytes` on disk, without touching the disk."""
        ...


class Deliverer:
    """Makes messages durable. Make it, start it and drain it on one event loop.

    deliverer = Deliverer(TopicPublisher(topic), spool, set_aside=UnfitFolder(folder).keep)
    deliverer.start()
    await deliverer.deliver([message])
    left = await deliverer.drain(deadline_s=20)
    spool.close()
    """

    def __init__(
        self,
        publisher: Publisher,
        spool: Spool,
        settings: DeliverySettings | None = None,
        observe_publish_s: Callable[[float], None] | None = None,
        *,
        set_aside: Callable[[Message, str], object],
        accepted: Accepted | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Join the parts; nothing is sent yet.

        Args:
            publisher: the way to Pub/Sub; closed by `drain`.
            spool: open; the caller closes it, after `drain`.
            settings: see there.
            observe_publish_s: called with the seconds that each acknowledged request to Pub/Sub took.
            set_aside: keeps a message that Pub/Sub will never take, and why; called from a thread.
            accepted: where to note what became durable; the caller runs it, and flushes it after `drain`.
            clock: monotonic seconds.
        """
        self.settings = settings or DeliverySettings()
        self.breaker = Breaker()
        self.link = Link(publisher, self.breaker, self.settings.deadline_s, observe_publish_s, clock)
        self._spooling = Spooling(
            spool,
            self.settings.spool_wait_s,
            spooled=self._spooled,
            failed=self._failed,
            unfit=self._unfit,
            released=self._release,
            clock=clock,
        )
        self.live = Live(
            self.link,
            self.settings,
            published=self._published,
            unpublished=self._spooling.put,
            unfit=self._unfit,
            clock=clock,
        )
        self.link.on_open = self.live.flush
        rate = self.settings.replay_bytes_per_s
        self.replay = Replay(
            self.link, spool, set_aside, self.live.is_busy, bytes_per_s=rate, accepted=accepted, clock=clock
        )
        self.counts = DeliveryCounts()
        self._accepted = accepted
        self._clock = clock
        self._spool = spool
        self._waiting_messages = self._waiting_bytes = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._replaying: asyncio.Task[None] | None = None
        self._draining = self._closed = False

    def start(self) -> None:
        """Begin to replay what is in the spool."""
        self._replaying = asyncio.create_task(self.replay.run())

    async def deliver(self, messages: Sequence[Message]) -> Delivered:
        """Return when all messages are durable.

        Where the caller is cancelled the messages go on to where they were going.

        Raises:
            NotDurableError: not all are, within `deadline_s` and `spool_wait_s`; those that are will come again.
            ValueError: one is no message: text that is no UTF-8, or larger than anything may be.
        """
        overloaded = self._waiting_bytes + sum(map(_size, messages)) > self.settings.waiting_bytes
        if self._closed or overloaded:
            reason = Undelivered.CLOSED if self._closed else Undelivered.OVERLOADED
            self.counts.undelivered[reason] += len(messages)
            raise NotDurableError(reason, _RETRY_S)
        accepted = [self._accept(message) for message in messages]
        if len(accepted) == 1:  # nearly always
            return Delivered(await accepted[0])
        ends = await asyncio.gather(*accepted, return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end
        return Delivered(How.SPOOLED if How.SPOOLED in ends else How.PUBLISHED)

    def state(self) -> DeliveryState:
        """Return how things are now."""
        unready, why = self._unready()
        return DeliveryState(
            unready, why, self.breaker.state, self._waiting_messages, self._waiting_bytes, self.live.in_flight
        )

    def totals(self) -> DeliveryTotals:
        """Return what was counted since the start."""
        sent = self.link.counts
        return DeliveryTotals(
            published=self.counts.published,
            spooled=self.counts.spooled,
            undelivered=dict(self.counts.undelivered),
            replayed=self.replay.messages,
            set_aside=self.replay.set_aside,
            requests=sent.requests,
            request_bytes=sent.bytes,
            retries=self.live.retries,
            failures={failure.value: count for failure, count in sent.failures.items()},
            breaker_openings=self.breaker.openings,
        )

    async def drain(self, deadline_s: float) -> Left:
        """Bring what was accepted to Pub/Sub, else to the spool; and empty that as far as the time allows.

        Call it when no more requests come: what comes all the same goes to the spool, and is refused in the end.
        It returns within about `deadline_s`; nothing is under way after that.
        """
        end_s = self._clock() + deadline_s
        publish_until_s = end_s - min(_FOR_THE_SPOOL_S, deadline_s / 4)
        await self._wait(self._idle.wait(), publish_until_s)
        self._draining = True
        await self.live.give_up()
        if self._replaying is not None:
            self.replay.hurry()
            await asyncio.wait((self._replaying,), timeout=max(0.0, publish_until_s - self._clock()))
            self._replaying.cancel()
            await asyncio.wait((self._replaying,))
        await self._wait(self._idle.wait(), end_s)
        self._closed = True
        self._spooling.close()
        await self.link.close()
        stats = self._spool.stats()
        left = Left(stats.messages, stats.bytes)
        log.log(
            logging.WARNING if left.messages else logging.INFO, "drained; %d messages are left in the spool", left[0]
        )
        return left

    def _unready(self) -> tuple[Unready | None, str]:
        now_s = self._clock()
        if self._draining or self._closed:
            return Unready.CLOSED, "this process is ending"
        if self.link.refusal and not self._live_probes(now_s):
            return Unready.PUBSUB_REFUSES, f"Pub/Sub refuses all messages: {self.link.refusal}"
        if not self.breaker.closed and now_s - self._spooling.failed_s < _SPOOL_FAILURE_COUNTS_S:
            return Unready.NOWHERE, "Pub/Sub does not answer, and the spool takes no messages"
        return None, ""

    def _accept(self, message: Message) -> asyncio.Future[How]:
        now_s = self._clock()
        done: asyncio.Future[How] = asyncio.get_running_loop().create_future()
        waiting = Waiting(message, now_s + self.settings.deadline_s, done)
        self._waiting_messages += 1
        self._waiting_bytes += _size(message)
        self._idle.clear()
        if self._may_publish(now_s):
            self.live.put(waiting)
        else:
            self._spooling.put((waiting,))
        return done

    def _may_publish(self, now_s: float) -> bool:
        if self._draining:
            return False
        return self.breaker.closed or (self._live_probes(now_s) and self.breaker.try_probe(now_s))

    def _live_probes(self, now_s: float) -> bool:
        """Whether a probe is due, and has to be a client's message since none is in the spool."""
        if self.breaker.pause_left_s(now_s) > 0:
            return False
        return self._replaying is None or self.replay.failing or self._spool.stats().messages == 0

    def _published(self, group: Sequence[Waiting], ids: Sequence[str]) -> None:
        self.counts.published += len(group)
        if self._accepted is not None:
            self._accepted.published([waiting.message for waiting in group], ids)
        for waiting in group:
            self._release(waiting)
            waiting.tell(How.PUBLISHED)

    def _spooled(self, waiting: Waiting) -> None:
        self.counts.spooled += 1
        if self._accepted is not None:
            self._accepted.spooled(waiting.message)
        waiting.tell(How.SPOOLED)
        self.replay.wake()

    def _failed(self, waiting: Waiting, reason: Undelivered) -> None:
        self.counts.undelivered[reason] += 1
        retry_after_s = max(_RETRY_S, math.ceil(self.breaker.pause_left_s(self._clock())))
        waiting.tell(NotDurableError(reason, retry_after_s))

    def _unfit(self, waiting: Waiting, error: Exception) -> None:
        self.counts.undelivered[Undelivered.UNFIT] += 1
        self._release(waiting)
        waiting.tell(error)

    def _release(self, waiting: Waiting) -> None:
        self._waiting_messages -= 1
        self._waiting_bytes -= _size(waiting.message)
        if not self._waiting_messages:
            self._idle.set()

    async def _wait(self, end: Coroutine[Any, Any, Any], until_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(until_s - self._clock()):
                await end


def _size(message: Message) -> int:
    return len(message.body) + OVERHEAD_BYTES
