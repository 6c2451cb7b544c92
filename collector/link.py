"""Link: a publisher, and what its answers say about Pub/Sub: is it there, is it slow, does it refuse."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence

from millrace.collector.breaker import Breaker
from millrace.collector.publish import Failure, Publisher, PublishFailed

log = logging.getLogger(__name__)

_REPEAT_S = 60.0  # a refusal that lasts is logged again this often
_SILENCE = 0.25  # share of `slow_s` without any answer that shows an outage


@dataclasses.dataclass
class PublishCounts:
    """What was asked of Pub/Sub, counted since the start, live traffic and replay together."""

    requests: int = 0
    """Acknowledged."""
    messages: int = 0
    """In acknowledged requests."""
    bytes: int = 0
    """In acknowledged requests, serialised."""
    failures: dict[Failure, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(Failure, 0))
    """Requests that were not acknowledged, by kind."""


class Link:
    """Publishes, keeps the breaker informed, and remembers a refusal until it is over."""

    def __init__(
        self,
        publisher: Publisher,
        breaker: Breaker,
        slow_s: float,
        observe_publish_s: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Join the two.

        Args:
            publisher: sends the requests.
            breaker: told of each outcome.
            slow_s: an acknowledgement that took longer is a failure for the breaker, though no failure of the request.
            observe_publish_s: called with the seconds that each acknowledged request took.
            clock: monotonic seconds.
        """
        self.breaker = breaker
        self.counts = PublishCounts()
        self.refusal = ""
        """Why Pub/Sub refuses everything, for a person; empty while it does not."""
        self.on_open: Callable[[], None] = _nothing
        """Called when the breaker opens."""
        self._publisher = publisher
        self._slow_s = slow_s
        self._observe_publish_s = observe_publish_s
        self._clock = clock
        self._logged_s = self._acknowledged_s = -math.inf

    async def publish(self, parts: Sequence[bytes], timeout_s: float) -> Sequence[str]:
        """Return Pub/Sub's ids once it has acknowledged all parts (publish.encode).

        Raises:
            PublishFailed: not acknowledged, though it may have arrived.
        """
        started_s = self._clock()
        try:
            ids = await self._publisher.publish(parts, timeout_s)
        except PublishFailed as error:
            self._failed(error, started_s)
            raise
        self._acknowledged_s = self._clock()
        took_s = self._acknowledged_s - started_s
        self.counts.requests += 1
        self.counts.messages += len(parts)
        self.counts.bytes += sum(map(len, parts))
        if self._observe_publish_s is not None:
            self._observe_publish_s(took_s)
        self._answered(took_s)
        return ids

    async def close(self) -> None:
        """Let go of the connection."""
        await self._publisher.close()

    def _failed(self, error: PublishFailed, started_s: float) -> None:
        now_s = self._clock()
        self.counts.failures[error.failure] += 1
        match error.failure:
            case Failure.UNFIT:  # it is there, and it answers
                self._close()
            case Failure.REFUSED:
                if not self.refusal or now_s - self._logged_s >= _REPEAT_S:
                    self._logged_s = now_s
                    log.error("Pub/Sub refuses all messages until somebody acts; they are spooled: %s", error)
                self.refusal = str(error)
                self._open(now_s, str(error), at_once=True)
            case Failure.PASSING:
                # One slow request among others that pass is no outage; silence all round is: nobody else should wait.
                silent = self._acknowledged_s < started_s <= now_s - self._slow_s * _SILENCE
                self._open(now_s, str(error), at_once=silent)

    def _answered(self, took_s: float) -> None:
        if self.refusal:
            log.warning("Pub/Sub takes messages again")
            self.refusal = ""
        if took_s > self._slow_s:
            self._open(self._clock(), f"an answer took {took_s:.3f} s")
        else:
            self._close()

    def _open(self, now_s: float, why: str, *, at_once: bool = False) -> None:
        was_closed = self.breaker.closed
        self.breaker.failed(now_s, at_once=at_once)
        if was_closed and not self.breaker.closed:
            log.warning("the breaker is open, messages are spooled: %s", why)
            self.on_open()

    def _close(self) -> None:
        if not self.breaker.closed:
            log.warning("the breaker is closed, messages are published")
        self.breaker.succeeded()


def _nothing() -> None:
    return
