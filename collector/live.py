"""Live traffic: messages of concurrent requests share a PublishRequest, within the deadline of each.

Where fewer than `in_flight` groups are under way a message goes at once; what comes meanwhile goes together in the
next. So a quiet collector adds no delay, and a busy one pays the price of a request once for many messages.
"""

import asyncio
import collections
import logging
import time
from collections.abc import Callable, Sequence

from millrace.collector.delivery import DeliverySettings, How
from millrace.collector.link import Link
from millrace.collector.message import Message
from millrace.collector.publish import MAX_BYTES, MAX_MESSAGES, Failure, PublishFailed, encode

log = logging.getLogger(__name__)

_RETRY_FIRST_S, _RETRY_LONGEST_S = 0.05, 0.4
_LEAST_TRY = 0.25  # share of the deadline: with less of it left an answer is no longer to be expected


class Waiting:
    """A message on its way, and the future of whoever waits for it."""

    __slots__ = ("done", "expires_s", "message", "settled")

    def __init__(self, message: Message, expires_s: float, done: asyncio.Future[How]) -> None:
        self.message = message
        self.expires_s = expires_s
        self.done = done
        self.settled = False
        """Whether it has been told the end; `done` may have been cancelled before."""

    def tell(self, end: How | Exception) -> None:
        """Tell whoever still waits, once."""
        self.settled = True
        if self.done.done():
            return
        if isinstance(end, How):
            self.done.set_result(end)
        else:
            self.done.set_exception(end)


class Live:
    """Groups messages and publishes them; each ends in one of the three calls that it was made with."""

    def __init__(
        self,
        link: Link,
        settings: DeliverySettings,
        *,
        published: Callable[[Sequence[Waiting], Sequence[str]], None],
        unpublished: Callable[[Sequence[Waiting]], None],
        unfit: Callable[[Waiting, Exception], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Join the parts.

        Args:
            link: the way to Pub/Sub.
            settings: `deadline_s` and `in_flight`.
            published: called with what Pub/Sub has acknowledged, and its ids.
            unpublished: called with what it has not, in time; it may have arrived.
            unfit: called with what is no message, say for text that is no UTF-8, and why.
            clock: monotonic seconds.
        """
        self.retries = 0
        """Groups that were sent again."""
        self._link = link
        self._most_in_flight = settings.in_flight
        self._least_s = settings.deadline_s * _LEAST_TRY
        self._published = published
        self._unpublished = unpublished
        self._unfit = unfit
        self._clock = clock
        self._queue: collections.deque[Waiting] = collections.deque()
        self._senders: set[asyncio.Task[None]] = set()
        self.in_flight = 0
        """Senders that take from the queue; each has one group under way, pauses between tries included."""
        self._expiry: asyncio.TimerHandle | None = None

    def is_busy(self) -> bool:
        """Whether messages are waiting for others to be answered."""
        return bool(self._queue)

    def put(self, waiting: Waiting) -> None:
        """Publish a message; what was put before it expires before it."""
        self._queue.append(waiting)
        if self.in_flight < self._most_in_flight:
            self.in_flight += 1
            task = asyncio.create_task(self._send_waiting())
            self._senders.add(task)
            task.add_done_callback(self._senders.discard)
        if self._expiry is None:
            self._expire()

    def flush(self) -> None:
        """Hand over what is not on its way as unpublished."""
        group = list(self._queue)
        self._queue.clear()
        if group:
            self._unpublished(group)

    async def give_up(self) -> None:
        """Hand over everything as unpublished, also what is on its way; put nothing more."""
        self.flush()
        senders = list(self._senders)
        for task in senders:
            task.cancel()
        await asyncio.gather(*senders, return_exceptions=True)

    def _expire(self) -> None:
        """Hand over what has waited for so long that an answer cannot come in time; come back for the next."""
        late = []
        now_s = self._clock()
        while self._queue and self._queue[0].expires_s - self._least_s <= now_s:
            late.append(self._queue.popleft())
        self._expiry = None
        if self._queue:
            left_s = self._queue[0].expires_s - self._least_s - now_s
            self._expiry = asyncio.get_running_loop().call_later(left_s, self._expire)
        if late:
            self._unpublished(late)

    async def _send_waiting(self) -> None:
        while self._queue:
            group, parts = self._take()
            ids: Sequence[str] | None = None
            try:
                ids = await self._send(parts, group[0].expires_s) if group else []
            except Exception:
                log.exception("publishing failed in an unforeseen way; the messages are spooled")
            finally:  # also when it is cancelled
                if ids is None:
                    self._unpublished(group)
                else:
                    self._published(group, ids)
        self.in_flight -= 1  # here, not when the task is over: a message that is put in between would find no sender

    def _take(self) -> tuple[list[Waiting], list[bytes]]:
        """Take as many as one request may hold, serialised."""
        group: list[Waiting] = []
        parts: list[bytes] = []
        size = 0
        while self._queue and len(group) < MAX_MESSAGES:
            waiting = self._queue[0]
            try:
                part = encode(waiting.message)
            except (TypeError, ValueError) as error:
                self._unfit(self._queue.popleft(), error)
                continue
            size += len(part)
            if group and size > MAX_BYTES:
                break
            group.append(self._queue.popleft())
            parts.append(part)
        return group, parts

    async def _send(self, parts: Sequence[bytes], expires_s: float) -> Sequence[str] | None:
        """Publish, again where that may help; return Pub/Sub's ids, None when there is no time left or no hope."""
        pause_s = _RETRY_FIRST_S
        while True:
            try:
                return await self._link.publish(parts, max(expires_s - self._clock(), self._least_s))
            except PublishFailed as error:
                left_s = expires_s - self._clock()
                hopeless = error.failure is not Failure.PASSING or not self._link.breaker.closed
                if hopeless or left_s - pause_s < self._least_s:
                    return None
            await asyncio.sleep(pause_s)
            if not self._link.breaker.closed:  # others have found out meanwhile
                return None
            pause_s = min(_RETRY_LONGEST_S, pause_s * 2)
            self.retries += 1
