"""Throttle: concurrency against destinations of several kinds in virtual time, the breaker, the rate."""

import dataclasses
import heapq
import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.delivery.throttle import Breaker, Concurrency, Rate, State
from millrace.sinks.sink import DELIVERED, Fault, Rejected, Retry, SinkDownError

S = 1_000_000


@dataclasses.dataclass
class Destination:
    """A destination in virtual time, and a lane that always has events for it."""

    concurrency: Concurrency
    latency_s: Callable[[float], float]
    events: int = 1
    per_s: float = 0.0  # deliveries that it does a second, one after the other; 0: as many as come
    most: Callable[[float], int] = lambda _: 10**9  # beyond so many at once: 429
    jitter: float = 0.0  # the part of the latency that is exponential
    asks: Callable[[float], int] = lambda _: 10**9  # deliveries that the lane would have under way

    def __post_init__(self) -> None:
        self.now_us = self.free_us = 0
        self.chance = random.Random(1)  # noqa: S311
        self.count = itertools.count()
        self.under_way: list[tuple[int, int, int, bool]] = []

    def run(self, until_s: float) -> tuple[int, int]:
        """Return events delivered and deliveries refused until then."""
        delivered = refused = 0
        while self.now_us < until_s * S:
            while len(self.under_way) < min(self.concurrency.limit, self.asks(self.now_us / S)):
                self._begin()
            self.now_us, _, began_us, is_delivered = heapq.heappop(self.under_way)
            if is_delivered:
                delivered += self.events
                self.concurrency.answered(began_us, self.now_us, len(self.under_way) + 1, self.events)
            else:
                refused += 1
                self.concurrency.congested(began_us, self.now_us)
        return delivered, refused

    def _begin(self) -> None:
        now_s = self.now_us / S
        if len(self.under_way) >= self.most(now_s):
            heapq.heappush(self.under_way, (self.now_us + 5_000, next(self.count), self.now_us, False))
            return
        latency_s = self.latency_s(now_s) * (1 - self.jitter + self.jitter * self.chance.expovariate(1))
        at_us = self.now_us + int(latency_s * S)
        if self.per_s:
            self.free_us = max(self.free_us, self.now_us) + int(S / self.per_s)
            at_us = max(at_us, self.free_us)
        heapq.heappush(self.under_way, (at_us, next(self.count), self.now_us, True))


@pytest.mark.parametrize(("most", "events"), [(2_000, 1), (16, 100)])
@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_a_sink_that_answers_in_half_a_second_gets_two_thousand_events_a_second_within_four(most, events, jitter):
    sink = Destination(Concurrency(most), lambda _: 0.5, events, jitter=jitter)
    sink.run(3)
    delivered, _ = sink.run(4)
    assert delivered >= 2_000
    delivered, _ = sink.run(64)
    assert delivered >= 60 * most * events / 0.5 * 0.93  # what trying a little less now and then costs


@pytest.mark.parametrize("jitter", [0.0, 0.8])
def test_a_sink_whose_latency_grows_with_concurrency_stays_near_the_number_at_which_it_is_busy(jitter):
    """2,000 a second at 100 ms: busy from 200 at once; all 2,000 would wait a second and gain nothing."""
    sink = Destination(Concurrency(2_000), lambda _: 0.1, per_s=2_000, jitter=jitter)
    sink.run(10)
    limits, delivered = [], 0
    for second in range(11, 101):
        delivered += sink.run(second)[0]
        limits.append(sink.concurrency.limit)
    assert delivered >= 90 * 2_000 * 0.93
    assert max(limits) <= 400
    assert 150 <= sorted(limits)[45] <= 300


def test_a_sink_that_does_one_thing_at_a_time_ends_with_few():
    sink = Destination(Concurrency(2_000), lambda _: 0.01, per_s=200)
    sink.run(120)
    assert sink.concurrency.limit <= 8
    assert sink.run(140)[0] >= 20 * 200 * 0.95


def test_where_it_is_throttled_the_limit_stays_below_what_is_too_much_and_few_are_refused():
    sink = Destination(Concurrency(2_000), lambda _: 0.1, most=lambda _: 50)
    sink.run(10)
    delivered, refused = sink.run(70)
    assert delivered >= 60 * 500 * 0.6
    assert refused <= delivered * 0.04


def test_a_bad_moment_is_survived_at_one_and_left_fast():
    sink = Destination(Concurrency(2_000), lambda _: 0.1, most=lambda s: 0 if 10 < s < 20 else 10_000)
    sink.run(20)
    assert sink.concurrency.limit == 1
    sink.run(25)
    assert sink.concurrency.limit >= 1_000


def test_a_sink_that_became_slower_for_good_is_not_throttled_for_it():
    sink = Destination(Concurrency(100), lambda s: 0.05 if s < 10 else 0.5)
    sink.run(20)
    assert sink.run(30)[0] >= 10 * 100 / 0.5 * 0.9


def test_a_latency_three_times_the_usual_halves_the_limit_and_where_that_does_no_good_it_comes_back():
    sink = Destination(Concurrency(64), lambda s: 0.05 if s < 10 else 0.5)
    sink.run(10)
    limits = []
    for tenth in range(100, 400):
        sink.run(tenth / 10)
        limits.append(sink.concurrency.limit)
    assert min(limits) == 32
    assert limits[-1] >= 51


def test_a_lane_with_little_to_deliver_learns_nothing():
    sink = Destination(Concurrency(2_000), lambda _: 0.1, asks=lambda _: 50)
    sink.run(60)
    assert sink.concurrency.limit == 125


def test_one_bad_moment_halves_once():
    limit = Concurrency(2_000)
    for _ in range(125):
        limit.congested(0, S)
    assert limit.limit == 62


@given(
    most=st.integers(1, 3_000),
    steps=st.lists(
        st.tuples(st.booleans(), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 4_000)), max_size=300
    ),
)
@settings(max_examples=50)
def test_the_limit_is_always_from_one_to_the_most(most, steps):
    limit, now = Concurrency(most), 0
    for is_congested, passed, latency, in_flight in steps:
        now += passed
        if is_congested:
            limit.congested(now - latency, now)
        else:
            for _ in range(50):
                limit.answered(now - latency, now, in_flight)
        assert 1 <= limit.limit <= most


def test_no_delivery_at_once_is_refused():
    with pytest.raises(ValueError, match="at least one delivery at once, got 0"):
        Concurrency(0)


# The breaker

FAILED = Retry(Fault.FAILED, "HTTP 503")
TIMED_OUT = Retry(Fault.TIMED_OUT, "no answer in 30 s")
DOWN = SinkDownError("connection refused")


def opened(chance: float = 1.0) -> tuple[Breaker, int]:
    breaker = Breaker(chance=lambda: chance)
    for now in (1, 2, 3):
        breaker.down(DOWN, now, now)
    assert breaker.state is State.OPEN
    return breaker, 3


def test_it_opens_after_three_in_a_row_that_came_to_nothing():
    breaker = Breaker(chance=lambda: 1.0)
    breaker.settled([FAILED, FAILED], 1, 1)
    breaker.settled([TIMED_OUT], 2, 2)
    assert (breaker.state, breaker.since_us, breaker.next_us()) == (State.CLOSED, None, None)
    breaker.down(DOWN, 3, 3)
    assert (breaker.state, breaker.since_us, breaker.detail) == (State.OPEN, 3, "connection refused")
    assert breaker.next_us() == 3 + S
    assert not breaker.allows(3 + S - 1)


@pytest.mark.parametrize("between", [[DELIVERED], [FAILED, DELIVERED], [Rejected(Fault.REJECTED, "HTTP 400")]])
def test_an_answer_in_between_keeps_it_closed(between):
    breaker = Breaker()
    for now in range(1, 30, 3):
        breaker.settled([FAILED], now, now)
        breaker.down(DOWN, now + 1, now + 1)
        breaker.settled(between, now + 2, now + 2)
    assert breaker.state is State.CLOSED


def test_events_that_failed_before_do_not_open_it():
    breaker = Breaker()
    for now in range(1, 100):
        breaker.settled([FAILED], now, now, is_new=False)
    assert breaker.state is State.CLOSED


def test_after_the_pause_one_delivery_goes_to_see_and_closes_it():
    breaker, now = opened()
    now += S
    assert breaker.allows(now)
    assert (breaker.state, breaker.since_us) == (State.HALF_OPEN, 3)
    assert not breaker.allows(now)
    breaker.settled([FAILED, DELIVERED], now, now + 5)
    assert (breaker.state, breaker.since_us) == (State.CLOSED, None)
    assert breaker.allows(now + 5)


def test_pauses_double_to_a_minute_and_begin_anew_only_after_it_was_closed_for_long():
    breaker, now = opened()
    pauses = []
    for _ in range(9):
        next_us = breaker.next_us()
        assert next_us is not None
        pauses.append(round((next_us - now) / S))
        now = next_us
        assert breaker.allows(now)
        breaker.down(DOWN, now, now)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert breaker.since_us == 3
    for closed_s, pause in ((59, 60), (61, 1)):
        now = breaker.next_us() or 0
        assert breaker.allows(now)
        breaker.settled([DELIVERED], now, now)
        now += closed_s * S
        for _ in range(3):
            breaker.down(DOWN, now, now)
        assert round(((breaker.next_us() or 0) - now) / S) == pause


def test_pauses_differ_by_chance():
    assert {opened(chance)[0].next_us() for chance in (0.0, 0.5, 1.0)} == {3 + S // 2, 3 + 3 * S // 4, 3 + S}


def test_what_was_under_way_when_it_opened_says_nothing_new():
    breaker, now = opened()
    for began in (1, 2, 3):
        breaker.down(DOWN, began, now + 10)
        breaker.settled([DELIVERED], began, now + 10)
        breaker.cancelled(began)
    assert (breaker.state, breaker.next_us()) == (State.OPEN, 3 + S)
    assert breaker.allows(3 + S)
    breaker.cancelled(2)
    assert not breaker.allows(3 + S)


def test_a_delivery_that_was_cancelled_lets_another_go_to_see():
    breaker, now = opened()
    now += S
    assert breaker.allows(now)
    breaker.cancelled(now)
    assert breaker.allows(now)


def test_a_sink_that_knows_until_when_it_is_down_is_believed_within_an_hour():
    breaker = Breaker(chance=lambda: 1.0)
    breaker.down(SinkDownError("maintenance", after_s=600), 1, 1)
    assert breaker.next_us() == 1 + 600 * S
    breaker = Breaker(chance=lambda: 1.0)
    breaker.down(SinkDownError("maintenance", after_s=10**9), 1, 1)
    assert breaker.next_us() == 1 + 3_600 * S


def test_retry_after_on_every_event_makes_the_pause_no_shorter():
    breaker = Breaker(chance=lambda: 1.0)
    for now in (1, 2, 3):
        breaker.settled([Retry(Fault.THROTTLED, "HTTP 429", 30), Retry(Fault.THROTTLED, "HTTP 429", 20)], now, now)
    assert breaker.next_us() == 3 + 20 * S
    assert breaker.detail == "HTTP 429"


def test_an_event_that_failed_before_and_fails_again_is_no_proof_either_way():
    """It goes to see, as the oldest: the pause stays as it is, and the next one to see is another."""
    breaker, now = opened()
    now += S
    assert breaker.allows(now)
    breaker.settled([FAILED], now, now, is_new=False)
    assert (breaker.state, breaker.next_us()) == (State.OPEN, now + S)


# The rate


@given(
    per_s=st.floats(0.01, 5_000),
    steps=st.lists(st.tuples(st.integers(0, 3 * S), st.integers(0, 500)), min_size=1, max_size=100),
)
def test_in_no_time_go_more_events_than_its_rate_and_those_of_a_second(per_s, steps):
    rate, now, went = Rate(per_s, 0), 0, [(0, 0)]
    for passed, wanted in steps:
        now += passed
        events = min(wanted, rate.room(now))
        rate.spend(events)
        went.append((now, events))
    for first in range(len(went)):
        total = 0
        for at, events in went[first:]:
            total += events
            assert total <= max(1, per_s) + per_s * (at - went[first][0]) / S + 0.001


@pytest.mark.parametrize("per_s", [0.1, 1.0, 3.0, 250.0])
def test_over_time_as_many_go_as_the_rate_says(per_s):
    rate, now, count = Rate(per_s, 0), 0, 0
    while now < 100 * S:
        assert rate.room(now) >= 1
        rate.spend(1)
        count += 1
        now = rate.next_us(now)
    assert count == pytest.approx(per_s * 100 + max(1, per_s), abs=1)


def test_what_did_not_go_gives_its_tokens_back():
    rate = Rate(2, 0)
    rate.spend(2)
    assert (rate.room(0), rate.next_us(0)) == (0, S // 2)
    rate.spend(-2)
    assert (rate.room(0), rate.next_us(0)) == (2, 0)
    assert rate.room(-5) == 2  # a clock that was set back takes nothing away


@pytest.mark.parametrize("per_s", [0, -1, float("nan")])
def test_no_rate_is_refused(per_s):
    with pytest.raises(ValueError, match="a rate must be above 0 events a second"):
        Rate(per_s, 0)
