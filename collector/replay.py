"""Replay: what was spooled goes to Pub/Sub, oldest first, in the background, and behind live traffic.

It is also who finds out that Pub/Sub is back: while the breaker is open it sends the oldest message as the probe, so
that no client waits for that. While its own requests pass it goes on, also where they are too slow for live traffic.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from millrace.collector.accepted import Accepted
from millrace.collector.link import Link
from millrace.collector.message import Message
from millrace.collector.publish import MAX_MESSAGES, Failure, PublishFailed, encode

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
"""Of a request: small enough for an answer in good time, large enough for 20 MB/s at 50 ms a request."""

_TIMEOUT_S = 10.0
_LAST_TRIES_S = 2.0  # whoever ends waits so long for a Pub/Sub that was away; gRPC itself pauses up to 1 s
_IDLE_S = 1.0  # how often an empty spool is looked at without being told
_RETRY_S = 0.1
_SPOOL_RETRY_S = 1.0
_STUCK_S = 5.0  # until messages are tried again all of which were called unfit
_YIELD_S = 0.01
_LONGEST_YIELD_S = 1.0  # live traffic that never pauses does not stop it for longer
_WHY_CHARACTERS = 200  # of an answer about one message, which may quote it

Spooled = Sequence[tuple[Any, Message]]
"""Messages with their places in the spool, oldest first."""


class ReplayableSpool(Protocol):
    """What replay needs of the spool; called from a thread, one call at a time."""

    def oldest(self, limit_bytes: int) -> Spooled:
        """Return the oldest messages, at least one where there is one, which stay until they are settled."""
        ...

    def settle(self, places: Sequence[Any]) -> None:
        """Forget messages that are in Pub/Sub."""
        ...


class Replay:
    """The loop that empties the spool; `run` is its task."""

    def __init__(
        self,
        link: Link,
        spool: ReplayableSpool,
        set_aside: Callable[[Message, str], object],
        is_live_busy: Callable[[], bool],
        *,
        bytes_per_s: float,
        accepted: Accepted | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            link: the way to Pub/Sub, shared with live traffic.
            spool: where messages wait.
            set_aside: puts a message that Pub/Sub will never take where a person finds it, and says why.
            is_live_busy: whether live messages are waiting for their turn.
            bytes_per_s: most that it sends; more slows live traffic while a backlog is sent.
            accepted: where to note what was sent.
            clock: monotonic seconds.
        """
        self.messages = 0
        """Sent from the spool and settled."""
        self.set_aside = 0
        """Messages that Pub/Sub would not take."""
        self.failing = False
        """Whether the spool cannot be read, or not be settled."""
        self._link = link
        self._spool = spool
        self._put_aside = set_aside
        self._is_live_busy = is_live_busy
        self._bytes_per_s = bytes_per_s
        self._accepted = accepted
        self._clock = clock
        self._woken = asyncio.Event()
        self._hurrying = False
        self._last_try_s = 0.0
        self._flowing = False  # the last request passed
        self._idle = False  # there was nothing to send
        self._stuck = False  # all was called unfit
        self._suspects: dict[Any, int] = {}  # places of unfit messages, and how much was acknowledged before

    def wake(self) -> None:
        """Say that there is something to send; it costs next to nothing."""
        if self._idle:
            self._woken.set()

    def hurry(self) -> None:
        """Send what is left as fast as it goes; `run` returns when the spool is empty or nothing passes.

        Whether anything passes is tried for a moment, be a probe due or not.
        """
        self._hurrying = True
        self._last_try_s = self._clock() + _LAST_TRIES_S
        self._woken.set()

    async def run(self) -> None:
        """Send until cancelled, or after `hurry`. A failure of whatever kind only makes it wait."""
        while True:
            try:
                pause_s = await self._step()
            except PublishFailed:  # the link has noted it
                self._flowing = False
                pause_s = _RETRY_S
            except Exception:
                if not self.failing:  # said once, not at every try
                    log.exception("the spool cannot be replayed; it is tried again until it can")
                self.failing = True
                self._flowing = False
                pause_s = _SPOOL_RETRY_S
            if self._hurrying and (self._idle or self.failing or self._waits_for_pubsub()):
                return
            await self._sleep(pause_s)

    def _waits_for_pubsub(self) -> bool:
        if self._link.breaker.closed or self._flowing:
            return self._stuck
        return bool(self._link.refusal) or self._clock() >= self._last_try_s

    async def _step(self) -> float:
        """Send one chunk, where that may be; return the seconds to wait before the next step."""
        breaker = self._link.breaker
        probing = not breaker.closed and not self._flowing
        if probing and not self._hurrying and (left_s := breaker.pause_left_s(self._clock())) > 0:
            return left_s
        await self._let_live_traffic_go_first()
        chunk = (await asyncio.to_thread(self._spool.oldest, CHUNK_BYTES))[:MAX_MESSAGES]
        self.failing = False
        self._idle = not chunk
        if self._idle:
            self._flowing = False
            return _IDLE_S
        if probing:
            if not self._hurrying and not breaker.try_probe(
                self._clock()
            ):  # closed meanwhile, or live traffic is trying
                return _RETRY_S
            chunk = chunk[:1]
        acknowledged = self._link.counts.requests
        hurried = probing and self._hurrying
        sent_bytes = await self._send(chunk, max(_RETRY_S, self._last_try_s - self._clock()) if hurried else _TIMEOUT_S)
        self._flowing = True
        was_stuck = self._stuck
        self._stuck = bool(self._suspects) and self._link.counts.requests == acknowledged
        if self._stuck:
            if not was_stuck:
                log.error("Pub/Sub calls all that is spooled unfit; it may be the topic's fault, so it stays there")
            return _STUCK_S
        return 0.0 if self._hurrying else sent_bytes / self._bytes_per_s

    async def _send(self, chunk: Spooled, timeout_s: float) -> int:
        """Publish and settle; halve what is unfit until the messages to blame are alone. Returns bytes sent."""
        parts = [encode(message) for _, message in chunk]
        try:
            ids = await self._link.publish(parts, timeout_s)
        except PublishFailed as error:
            if error.failure is not Failure.UNFIT:
                raise
            if len(chunk) == 1:
                await self._suspect(*chunk[0], str(error))
                return 0
            half = len(chunk) // 2
            return await self._send(chunk[:half], timeout_s) + await self._send(chunk[half:], timeout_s)
        if self._accepted is not None:
            await self._accepted.replayed([message for _, message in chunk], ids)
        await self._settle([place for place, _ in chunk])
        self.messages += len(chunk)
        return sum(map(len, parts))

    async def _suspect(self, place: Any, message: Message, why: str) -> None:
        """Set a message aside that was refused before, where others were taken in between; else wait for that."""
        first_refused = self._suspects.setdefault(place, self._link.counts.requests)
        if self._link.counts.requests == first_refused:
            return
        why = why[:_WHY_CHARACTERS]
        log.error("Pub/Sub will not take a message of %d bytes, it is set aside: %s", len(message.body), why)
        await asyncio.to_thread(self._put_aside, message, why)
        await self._settle([place])
        self.set_aside += 1

    async def _settle(self, places: Sequence[Any]) -> None:
        await asyncio.to_thread(self._spool.settle, places)
        for place in places:
            self._suspects.pop(place, None)

    async def _let_live_traffic_go_first(self) -> None:
        until_s = self._clock() + _LONGEST_YIELD_S
        while self._is_live_busy() and not self._hurrying and self._clock() < until_s:
            await asyncio.sleep(_YIELD_S)

    async def _sleep(self, pause_s: float) -> None:
        """Wait; a hurry, or a message where there was none, ends it."""
        if pause_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._woken.wait()
        self._woken.clear()
