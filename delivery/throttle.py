"""Throttle: how much goes to a sink at once.

Pure, as barrier.py is: times are passed in, microseconds since the epoch.
"""

import dataclasses
import enum
import random
from collections.abc import Callable, Sequence

from millrace.sinks.sink import Outcome, Retry, SinkDownError


class Concurrency:
    """How many deliveries may be under way at once: as many as do any good.

    It climbs the hill of events a second, which by Little's law are (in flight) / (latency) x (events a delivery): one
    round of answers is measured at a limit, another limit is tried, and kept where it did good: up, where at least a
    third of what the sink could have gained came; down, where less than a third was lost. It doubles until that ends,
    then steps by a quarter, up and down in turn, more and more rarely where nothing comes of it. A round in which the
    limit was not used teaches nothing. 429 and timeouts halve it, and so does a latency three times the usual.

    - A sink that answers in 500 ms however many ask gets all of `most`, one answer's time or two for each doubling.
    - A sink whose latency grows with the number of deliveries, since it does only so many a second, stays near the
      number at which it is busy: more would only wait there. It need not prove its latency without load, as for Envoy,
      which lets next to nothing through for that time
      (https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/adaptive_concurrency_filter); and one
      that became slower for good is not throttled to nothing for it, since fewer deliveries then do no good.

    Netflix's AIMDLimit adds 1 an answer where at least half of the limit is in use, and takes a tenth off for a drop;
    its Gradient2Limit follows long over short latency (https://github.com/Netflix/concurrency-limits). RudderStack
    takes 30 % off its rate where over a tenth of the answers are 429, and adds 10 % after two windows without
    (rudder-server, router/throttler). Only deliveries begun after the last change count: one bad moment halves once.

    Attributes:
        most: deliveries at once, never more.
        limit: deliveries at once, now.
    """

    def __init__(self, most: int) -> None:
        if most < 1:
            raise ValueError(f"at least one delivery at once, got {most}")
        self.most = most
        self.limit = min(most, max(4, most // 16))
        self._changed_us = 0
        self._tried_from: tuple[int, float] | None = None  # the limit before, and its events a microsecond
        self._is_fast = True  # doubling
        self._is_up = True
        self._rest = self._resting = 0  # rounds until the next try, and how many of them after a vain one
        self._usual_us = 0.0  # the latency at this limit; 0: not known
        self._congested_at = 0  # the limit that was too much
        self._was_good = True  # a round came to an end since
        self._begin_round()

    def _begin_round(self) -> None:
        self._answers = self._events = self._peak = self._latency_us = 0

    def answered(self, began_us: int, now_us: int, in_flight: int, events: int = 1) -> None:
        """Take in an answer.

        Args:
            began_us: when the delivery was begun.
            now_us: when the answer came.
            in_flight: deliveries under way when it came, itself included.
            events: how many there were in it.
        """
        if began_us < self._changed_us:
            return
        self._answers += 1
        self._events += events
        self._peak = max(self._peak, in_flight)
        self._latency_us += max(1, now_us - began_us)
        # Fast rounds are short: what doubles shows at once. A quarter hides in the noise of few answers.
        if self._answers < (max(4, self.limit) if self._is_fast else max(32, 2 * self.limit)):
            return
        self._was_good = True
        answers, peak = self._answers, self._peak
        mean_events, mean_us = self._events / answers, self._latency_us / answers
        self._begin_round()
        if peak >= self.limit:
            self._learn(peak * mean_events / mean_us, mean_us, now_us)

    def _learn(self, rate: float, latency_us: float, now_us: int) -> None:
        if self._tried_from is not None:
            before, rate_before = self._tried_from
            self._tried_from = None
            did_good = rate >= rate_before * (1 + (self.limit / before - 1) / 3)
            if did_good:
                self._resting = 0
                if self._is_up:
                    self._try(rate, now_us)  # and on
                self._is_up = True
                return
            self._is_fast = False
            self._is_up = not self._is_up
            self._resting = min(64, 2 * self._resting or 4)
            self._rest = self._resting
            self._change(before, now_us)
        elif self._usual_us and latency_us > 3 * self._usual_us:
            self._halve(now_us)
        elif self._rest:
            self._rest -= 1
            self._usual_us = latency_us if not self._usual_us else 0.8 * self._usual_us + 0.2 * latency_us
        else:
            self._try(rate, now_us)

    def _try(self, rate: float, now_us: int) -> None:
        before = self.limit
        if self._is_up:
            is_far = self._is_fast and (not self._congested_at or 2 * before < self._congested_at)
            tried = min(self.most, 2 * before if is_far else before + max(1, before // 4))
        else:
            tried = max(1, before - max(1, before // 5))
        if tried == before:  # at an end
            self._is_fast = False
            self._is_up = not self._is_up
            self._resting = min(64, 2 * self._resting or 4)
            self._rest = self._resting
            return
        self._tried_from = before, rate
        self._change(tried, now_us)

    def congested(self, began_us: int, now_us: int) -> None:
        """Halve the limit: a delivery begun then was throttled or timed out; once for all that were begun before."""
        if began_us < self._changed_us:
            return
        if self._was_good:  # while all fails, what was too much at first is what is remembered
            self._congested_at = self.limit
            self._was_good = False
        self._halve(now_us)

    def _halve(self, now_us: int) -> None:
        self._tried_from = None
        self._is_up = self._is_fast = True
        self._rest = 2
        self._change(max(1, self.limit // 2), now_us)

    def _change(self, limit: int, now_us: int) -> None:
        self.limit = limit
        self._changed_us = now_us
        self._usual_us = 0.0
        self._begin_round()


class State(enum.Enum):
    """Of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    """Nothing goes until a pause is over."""
    HALF_OPEN = "half_open"
    """One delivery is under way, to see."""


class Breaker:
    """Stops deliveries to a destination that does not work, and asks from time to time whether it does again.

    It opens after FAILURES deliveries in a row that came to nothing: SinkDownError, or all of their events to be tried
    again. One alone says little: a balancer that drops one connection in a hundred would stop everything again and
    again. A sink that is down and knows until when (SinkDownError.after_s) is believed at once; where all events of the
    last delivery were given a Retry-After, the pause is no shorter. Deliveries of nothing but events that failed before
    are not counted: a few events that a destination cannot take must not look like a destination that takes nothing.

    Pauses double from `first_s` to `longest_s`, each between half and all of it, and begin anew only after the breaker
    was closed for `longest_s`.

    Attributes:
        state: now.
        since_us: when it opened, the first time since it was closed last; None: it is closed.
        detail: why it opened last, for people.
    """

    FAILURES = 3

    def __init__(
        self, *, first_s: float = 1.0, longest_s: float = 60.0, chance: Callable[[], float] = random.random
    ) -> None:
        self.state = State.CLOSED
        self.since_us: int | None = None
        self.detail = ""
        self._first_s, self._longest_s, self._chance = first_s, longest_s, chance
        self._in_a_row = 0
        self._openings = 0
        self._opened_us = self._closed_us = -1
        self._until_us = 0

    def allows(self, now_us: int) -> bool:
        """Say whether a delivery may begin; where the breaker is not closed, one: begin it, or say `cancelled`."""
        if self.state is State.OPEN and now_us >= self._until_us:
            self.state = State.HALF_OPEN
            return True
        return self.state is State.CLOSED

    def next_us(self) -> int | None:
        """Return when the pause is over; None: it is not in one."""
        return self._until_us if self.state is State.OPEN else None

    def settled(self, outcomes: Sequence[Outcome], began_us: int, now_us: int, *, is_new: bool = True) -> None:
        """Take in what became of a delivery.

        Args:
            outcomes: of its events.
            began_us: when it began: what was under way when the breaker opened says nothing new.
            now_us: the time.
            is_new: whether an event of it was tried for the first time.
        """
        if began_us <= self._opened_us:
            return
        retries = [o for o in outcomes if isinstance(o, Retry)]
        if len(retries) < len(outcomes) or not retries:
            self._close(now_us)
        elif is_new:
            afters = [r.after_s for r in retries if r.after_s is not None]
            self._failed(now_us, retries[0].detail, min(afters) if len(afters) == len(retries) else None)
        elif self.state is State.HALF_OPEN:
            self._openings -= 1  # not known yet: the same pause again
            self._open(now_us, self.detail)

    def down(self, error: SinkDownError, began_us: int, now_us: int) -> None:
        """Take in that the sink is down, as a delivery (or the opening of it) begun then found."""
        if began_us <= self._opened_us:
            return
        if error.after_s is not None:
            self._open(now_us, error.detail, error.after_s)
        else:
            self._failed(now_us, error.detail, None)

    def cancelled(self, began_us: int) -> None:
        """Take in that a delivery begun (or allowed) then ended without a word on the destination."""
        if self.state is State.HALF_OPEN and began_us > self._opened_us:
            self.state = State.OPEN

    def _failed(self, now_us: int, detail: str, after_s: float | None) -> None:
        self._in_a_row += 1
        if self.state is not State.CLOSED or self._in_a_row >= self.FAILURES:
            self._open(now_us, detail, after_s)

    def _close(self, now_us: int) -> None:
        self._in_a_row = 0
        if self.state is not State.CLOSED:
            self.state, self.since_us, self._closed_us = State.CLOSED, None, now_us

    def _open(self, now_us: int, detail: str, after_s: float | None = None) -> None:
        if self.state is State.CLOSED:
            self.since_us = now_us
            if now_us - self._closed_us > self._longest_s * 1_000_000:
                self._openings = 0
        full_s = min(self._first_s * 2.0 ** min(self._openings, 60), self._longest_s)
        pause_s = full_s * (0.5 + self._chance() / 2)
        if after_s is not None:
            pause_s = min(max(after_s, pause_s), 3_600.0)
        self.state, self.detail, self._in_a_row = State.OPEN, detail, 0
        self._openings += 1
        self._opened_us, self._until_us = now_us, now_us + round(pause_s * 1_000_000)


@dataclasses.dataclass
class Rate:
    """The most events a second of a route: a bucket of tokens that holds those of one second, and one at least.

    Attributes:
        per_s: events a second, above 0; 0.1: one in ten seconds.
        began_us: when the bucket is full first.
    """

    per_s: float
    began_us: int

    def __post_init__(self) -> None:
        if not self.per_s > 0:
            raise ValueError(f"a rate must be above 0 events a second, got {self.per_s}")
        self._burst = max(1.0, self.per_s)
        self._tokens = self._burst
        self._at_us = self.began_us

    def room(self, now_us: int) -> int:
        """Return how many events may go now."""
        if now_us > self._at_us:
            self._tokens = min(self._burst, self._tokens + (now_us - self._at_us) * self.per_s / 1_000_000)
            self._at_us = now_us
        return max(0, int(self._tokens + 1e-6))

    def spend(self, events: int) -> None:
        """Take tokens for events that go; a negative number gives them back."""
        self._tokens = min(self._burst, self._tokens - events)

    def next_us(self, now_us: int) -> int:
        """Return when the next event may go."""
        if self.room(now_us):
            return now_us
        return now_us + max(1, -int(-(1 - self._tokens) * 1_000_000 // self.per_s))
