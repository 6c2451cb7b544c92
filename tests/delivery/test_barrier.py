"""Barrier: what may go now, one rule a test; test_barrier_simulation.py has them all at once."""

from collections.abc import Sequence
from typing import Any

import pytest

from millrace.delivery import barrier
from millrace.delivery.barrier import Barrier, Blocked, Pending, Settled
from millrace.delivery.retry import RetryPolicy
from millrace.sinks.sink import DELIVERED, Fault, Outcome, Rejected, Retry

S = 1_000_000
NOW = 1_800_000_000 * S
FAILED = Retry(Fault.FAILED, "HTTP 500")
REJECTED = Rejected(Fault.REJECTED, "HTTP 400")


class Lane:
    """A barrier with a clock of its own, which speaks of events by names: `a1` is the first one of user a."""

    def __init__(self, *, keeps_order: bool = True, **policy: Any) -> None:
        self.barrier = Barrier(RetryPolicy(**policy), keeps_order=keeps_order, chance=lambda: 1.0)
        self.now = NOW
        self.positions = 0
        self.taken: list[Pending] = []

    def event(self, name: str, route: int = 0, size: int = 1, **more: Any) -> Pending:
        self.positions += 1
        user = None if name.startswith("-") else name[0]
        return Pending(self.positions, user, name, route, size, None, **more)

    def offer(self, *names: str, **more: int) -> None:
        self.barrier.offer([self.event(name, **more) for name in names])

    def take(self, max_events: int = 100, max_bytes: int = 1_000, **more: Any) -> list[str]:
        self.taken = self.barrier.take(self.now, max_events, max_bytes, **more)
        return ids(self.taken)

    def settle(self, *outcomes: Outcome, taken: list[Pending] | None = None) -> Settled:
        return self.barrier.settle(list(zip(taken or self.taken, outcomes, strict=True)), self.now)

    def pause_ends(self) -> int:
        next_us = self.barrier.next_us()
        assert next_us is not None
        return next_us


def ids(events: Sequence[Pending]) -> list[str]:
    return [event.message_id for event in events]


def test_a_sink_that_keeps_order_gets_all_of_a_user_at_once_and_each_in_order():
    lane = Lane()
    lane.offer("a1", "b1", "a2", "-", "a3")
    assert lane.take() == ["a1", "a2", "a3", "b1", "-"]
    assert lane.barrier.in_flight() == len(lane.barrier) == 5


def test_a_sink_that_does_not_keep_order_gets_one_of_a_user_and_none_while_one_is_under_way():
    lane = Lane(keeps_order=False)
    lane.offer("a1", "a2", "b1", "-1", "-2")
    assert lane.take() == ["a1", "b1", "-1", "-2"]
    first = lane.taken
    assert lane.take() == []
    lane.settle(*[DELIVERED] * 4, taken=first)
    assert lane.take() == ["a2"]


def test_what_comes_while_its_user_is_under_way_waits_for_it():
    lane = Lane()
    lane.offer("a1")
    lane.take()
    lane.offer("a2", "b1")
    first, second = lane.taken, lane.take()
    assert second == ["b1"]
    lane.settle(DELIVERED, taken=first)
    assert lane.take() == ["a2"]


def test_a_failed_event_blocks_its_user_and_nobody_else_until_its_pause_is_over():
    lane = Lane()
    lane.offer("a1", "b1")
    lane.take()
    settled = lane.settle(FAILED, DELIVERED)
    assert (ids(settled.retrying), ids(settled.delivered), settled.dead) == (["a1"], ["b1"], [])
    lane.offer("a2", "b2", "a3")
    assert lane.take() == ["b2"]
    assert lane.barrier.next_us() == NOW + S
    assert lane.barrier.blocked() == [
        Blocked("a", 1, "a1", NOW, 1, NOW + S, fault="failed", detail="HTTP 500", waiting=2)
    ]
    lane.now += S - 1
    assert lane.take() == []
    lane.now += 1
    assert lane.take() == ["a1"]
    assert lane.barrier.next_us() is None
    lane.settle(DELIVERED)
    assert lane.take() == ["a2", "a3"]
    assert lane.barrier.blocked() == []


def test_pauses_double_and_the_event_is_given_up_after_both_tries_and_time_are_used_up():
    lane = Lane(first_s=1, longest_s=4, min_tries=3, min_s=10)
    lane.offer("a1")
    at = []
    for _ in range(10):
        lane.take()
        at.append((lane.now - NOW) // S)
        settled = lane.settle(FAILED)
        if settled.dead:
            break
        lane.now = lane.pause_ends()
    assert at == [0, 1, 3, 7, 11]
    assert [(e.message_id, fault, detail) for e, fault, detail in settled.dead] == [("a1", Fault.FAILED, "HTTP 500")]
    assert (len(lane.barrier), lane.barrier.next_us(), lane.barrier.blocked()) == (0, None, [])


def test_what_the_destination_rejects_is_dead_at_once():
    lane = Lane()
    lane.offer("a1")
    lane.take()
    settled = lane.settle(REJECTED)
    assert [(e.message_id, fault, detail) for e, fault, detail in settled.dead] == [("a1", Fault.REJECTED, "HTTP 400")]
    assert len(lane.barrier) == 0


def test_retry_after_is_obeyed():
    lane = Lane()
    lane.offer("a1")
    lane.take()
    lane.settle(Retry(Fault.THROTTLED, "HTTP 429", after_s=30))
    assert lane.barrier.next_us() == NOW + 33 * S  # a tenth of jitter: chance is 1


def test_in_a_half_delivered_batch_the_first_to_be_retried_blocks_and_later_ones_go_back_behind_it_uncounted():
    lane = Lane()
    lane.offer("a1", "a2", "a3", "a4", "b1")
    lane.take()
    lane.offer("a5")
    settled = lane.settle(DELIVERED, FAILED, FAILED, FAILED, DELIVERED)
    assert (ids(settled.delivered), ids(settled.retrying), settled.dead) == (["a1", "b1"], ["a2"], [])
    assert [(b.message_id, b.attempts, b.waiting) for b in lane.barrier.blocked()] == [("a2", 1, 3)]
    lane.now += S
    assert lane.take() == ["a2"]  # alone: the next ones of its user only once it is there
    lane.settle(DELIVERED)
    assert lane.take() == ["a3", "a4", "a5"]
    assert [e.attempts for e in lane.taken] == [0, 0, 0]


def test_outcomes_behind_a_blocking_event_are_taken_as_they_are():
    lane = Lane()
    lane.offer("a1", "a2", "a3", "a4")
    lane.take()
    settled = lane.settle(FAILED, DELIVERED, REJECTED, FAILED)
    assert (ids(settled.delivered), ids(settled.retrying), len(settled.dead)) == (["a2"], ["a1"], 1)
    lane.offer("a5")
    assert [(b.message_id, b.waiting) for b in lane.barrier.blocked()] == [("a1", 2)]
    lane.now += S
    lane.take()
    lane.settle(DELIVERED)
    assert lane.take() == ["a4", "a5"]


def test_an_event_is_never_given_up_for_a_destination_that_cannot_be_reached():
    lane = Lane(min_tries=2, min_s=0)
    lane.offer("a1")
    for _ in range(5):
        assert lane.take() == ["a1"]
        settled = lane.settle(Retry(Fault.UNREACHABLE, "no connection"))
        assert (ids(settled.retrying), settled.dead) == (["a1"], [])
        lane.now = lane.pause_ends()
    assert lane.take() == ["a1"]
    assert ids([event for event, *_ in lane.settle(FAILED).dead]) == ["a1"]


def test_where_the_blocking_event_is_given_up_those_behind_it_are_not_blamed():
    lane = Lane(min_tries=1, min_s=0)
    lane.offer("a1", "a2", "a3")
    lane.take()
    settled = lane.settle(FAILED, FAILED, FAILED)
    assert ([e.message_id for e, _, _ in settled.dead], settled.retrying) == (["a1"], [])
    assert lane.take() == ["a2"]  # one at a time
    assert lane.taken[0].attempts == 0


@pytest.mark.parametrize("last_of_all", [True, False])
def test_the_last_one_of_a_user_stays_the_last_whatever_becomes_of_it(last_of_all):
    lane = Lane()
    lane.offer("a1", "a2", "a3")
    lane.take()
    if not last_of_all:
        lane.offer("a4")
    lane.settle(FAILED, FAILED, DELIVERED)
    lane.offer("a5")
    lane.now += S
    lane.take()
    lane.settle(DELIVERED)
    assert lane.take() == (["a2", "a5"] if last_of_all else ["a2", "a4", "a5"])


def test_after_a_dead_one_the_rest_of_its_user_goes_one_at_a_time_until_one_is_delivered():
    lane = Lane()
    lane.offer("a1", "b1", "b2")
    lane.take(max_events=1)
    lane.offer("a2", "a3", "a4", "a5", "b3")
    lane.settle(REJECTED)
    assert lane.take() == ["b1", "b2", "b3", "a2"]
    lane.settle(DELIVERED, DELIVERED, DELIVERED, REJECTED)
    assert lane.take() == ["a3"]
    lane.settle(DELIVERED)
    assert lane.take() == ["a4", "a5"]


def test_after_twenty_deaths_in_a_row_the_lane_goes_one_event_at_a_time_until_one_is_delivered():
    lane = Lane()
    lane.offer(*[f"-{i}" for i in range(25)])
    lane.take(max_events=20)
    lane.settle(*[REJECTED] * 20)
    assert lane.take() == ["-20"]
    alone = lane.taken
    assert lane.take() == []
    lane.settle(REJECTED, taken=alone)
    assert lane.take() == ["-21"]
    lane.settle(DELIVERED)
    assert lane.take() == ["-22", "-23", "-24"]


def test_deliveries_in_between_keep_the_lane_at_its_pace():
    lane = Lane()
    for _ in range(5):
        lane.offer(*[f"-{i}" for i in range(20)])
        lane.take()
        lane.settle(*[REJECTED] * 19, DELIVERED)
    lane.offer("-1", "-2")
    assert lane.take() == ["-1", "-2"]


def test_a_delivery_is_of_one_route_and_the_order_of_a_user_holds_across_routes():
    lane = Lane()
    lane.offer("a1", "b1", route=1)
    lane.offer("a2", "c1", route=2)
    lane.offer("a3", route=1)
    assert lane.take() == ["a1", "b1"]
    first = lane.taken
    assert lane.take() == ["c1"]
    lane.settle(DELIVERED, DELIVERED, taken=first)
    assert lane.take() == ["a2"]
    lane.settle(DELIVERED)
    assert lane.take() == ["a3"]


def test_a_route_that_is_not_accepted_waits_and_so_does_what_its_users_have_on_others():
    lane = Lane()
    lane.offer("a1", "-1", route=1)
    lane.offer("a2", "-2", route=2)
    assert lane.take(accepts=lambda route: route == 2) == ["-2"]
    assert lane.take(accepts=lambda route: route == 2) == []
    assert lane.take(at_most=lambda _: 0) == []
    assert lane.take(at_most=lambda _: 1) == ["a1"]


def test_a_due_retry_of_a_route_that_is_not_accepted_keeps_its_place():
    lane = Lane()
    lane.offer("-1", route=1)
    lane.take()
    lane.settle(FAILED)
    lane.now += S
    assert lane.take(accepts=lambda _: False) == []
    assert (lane.barrier.next_us(), lane.barrier.ready()) == (None, 1)
    assert lane.take() == ["-1"]


def test_a_delivery_holds_so_many_events_and_bytes_and_one_too_large_goes_alone():
    lane = Lane()
    lane.offer("a1", "a2", "b1", size=4)
    lane.offer("c1", size=20)
    lane.offer("d1", size=1)
    assert lane.take(max_bytes=10) == ["a1", "a2"]
    assert lane.take(max_bytes=10) == ["b1"]
    assert lane.take(max_bytes=10) == ["c1"]
    assert lane.take(max_events=1, max_bytes=10) == ["d1"]


def test_retries_that_are_due_go_first_and_the_room_left_is_filled():
    lane = Lane(keeps_order=False)
    lane.offer("a1", "b1", "c1")
    lane.take()
    lane.settle(FAILED, FAILED, DELIVERED)
    lane.offer("d1", "e1")
    lane.now += S
    assert lane.take(max_events=3) == ["a1", "b1", "d1"]


def test_a_batch_that_fails_as_a_whole_comes_again_in_ever_smaller_company():
    """One event that a sink cannot take drags a batch down: without this, for an hour, and then all of it is dead."""
    lane = Lane()
    lane.offer(*[f"-{i}" for i in range(64)])
    waiting, sizes = 64, []
    while waiting:
        if not lane.take():
            lane.now = lane.pause_ends()
            continue
        sizes.append(len(lane.taken))
        if "-40" in ids(lane.taken):
            lane.settle(*[FAILED] * len(lane.taken))
            waiting = len(lane.barrier) - 1
        else:
            lane.settle(*[DELIVERED] * len(lane.taken))
            waiting = len(lane.barrier) - 1
    assert lane.now - NOW <= 10 * S
    assert sizes == [64, 16, 16, 16, 16, 4, 4, 4, 4, 1, 1, 1, 1]
    lane.now += 300 * S
    lane.offer("-64", "-65")
    assert lane.take() == ["-40"]  # it still goes alone
    assert lane.take() == ["-64", "-65"]


def test_put_back_is_as_if_never_taken():
    lane = Lane()
    lane.offer("a1", "a2", "b1", "c1", "a3")
    lane.take(max_events=1)
    lane.settle(FAILED)
    lane.now += S
    due = lane.take(max_events=1), lane.taken
    fresh = lane.take(max_events=1), lane.taken
    assert (due[0], fresh[0]) == (["a1"], ["b1"])
    lane.barrier.put_back(fresh[1])
    lane.barrier.put_back(due[1])
    assert (lane.barrier.in_flight(), len(lane.barrier)) == (0, 5)
    assert lane.take() == ["a1"]
    assert lane.taken[0].attempts == 1
    assert lane.take() == ["b1", "c1"]


def test_a_put_back_run_of_a_user_stays_together():
    lane = Lane()
    lane.offer("a1", "b1", "a2", "-1")
    lane.take()
    lane.offer("a3")
    lane.barrier.put_back(lane.taken)
    assert lane.take() == ["a1", "a2", "a3", "b1", "-1"]


def test_what_was_being_retried_before_a_restart_blocks_its_user_still():
    lane = Lane()
    lane.barrier.restore(
        lane.event("a1", attempts=2, first_us=NOW - S, next_us=NOW + S, fault="failed", detail="HTTP 500")
    )
    lane.offer("a2", "b1")
    assert lane.take() == ["b1"]
    assert [(b.message_id, b.attempts, b.since_us) for b in lane.barrier.blocked()] == [("a1", 2, NOW - S)]
    lane.now += S
    assert lane.take() == ["a1"]
    assert lane.barrier.blocked()[0].message_id == "a1"  # under way: to be kept still
    lane.settle(FAILED)
    assert lane.barrier.next_us() == lane.now + 4 * S


def test_what_is_restored_without_a_failure_leaves_nothing_behind():
    lane = Lane()
    lane.barrier.restore(lane.event("a1"))
    assert lane.take() == ["a1"]
    lane.settle(DELIVERED)
    assert (len(lane.barrier), lane.barrier.blocked()) == (0, [])


def test_what_is_brought_back_later_goes_behind_what_is_there():
    lane = Lane()
    late = lane.event("a1")
    lane.offer("a2")
    lane.barrier.restore(late)
    assert lane.take() == ["a2", "a1"]


def test_an_operator_takes_out_a_blocking_event_and_its_user_goes_on():
    lane = Lane()
    lane.offer("a1", "b1", "c1", "-1")
    lane.take()
    lane.settle(*[FAILED] * 4)
    lane.offer("a2", "b2", "c2")
    assert ids(lane.barrier.skip(user_key="a")) == ["a1"]
    assert ids(lane.barrier.park(message_id="b1")) == ["b1"]
    assert ids(lane.barrier.skip(user_key="a")) == []
    assert lane.take() == ["a2", "b2"]
    assert len(lane.barrier) == 5
    assert ids(lane.barrier.skip()) == ["c1", "-1"]
    lane.now += S
    assert lane.take() == ["c2"]
    assert (lane.barrier.next_us(), lane.barrier.blocked()) == (None, [])


def test_an_operator_makes_a_retry_due_now_and_takes_out_what_is_due():
    lane = Lane(keeps_order=False)
    lane.offer("a1", "b1")
    lane.take()
    lane.settle(FAILED, FAILED)
    assert ids(lane.barrier.retry(user_key="b")) == ["b1"]
    assert lane.barrier.next_us() == 0
    assert lane.take(accepts=lambda _: False) == []  # now it is due
    assert ids(lane.barrier.retry(user_key="b")) == ["b1"]  # which is no reason to say that there is none
    assert ids(lane.barrier.skip(user_key="b")) == ["b1"]
    lane.now += S
    assert lane.take() == ["a1"]
    assert len(lane.barrier) == 1


def test_what_is_under_way_is_left_to_its_outcome():
    lane = Lane()
    lane.offer("a1")
    lane.take()
    assert not lane.barrier.is_under_way(user_key="a")  # it never failed: the operator cannot mean it
    lane.settle(FAILED)
    lane.now += S
    lane.take()
    assert lane.barrier.is_under_way(user_key="a")
    assert lane.barrier.is_under_way(message_id="a1")
    assert not lane.barrier.is_under_way(user_key="b")
    assert lane.barrier.skip() == lane.barrier.retry() == []
    lane.settle(DELIVERED)
    assert len(lane.barrier) == 0


def test_users_who_are_done_leave_nothing_behind():
    lane = barrier.Barrier(RetryPolicy(), keeps_order=True)
    lane.offer(Pending(i, f"u{i}", "", 0, 1, None) for i in range(100_000))
    size = lane._last.__sizeof__()
    outcomes: list[Outcome] = [REJECTED, *[DELIVERED] * 200]
    for outcome in outcomes:
        lane.settle([(event, outcome) for event in lane.take(NOW, 500, 1_000)], NOW)
    lane.settle([(event, DELIVERED) for event in lane.take(NOW, 500, 1_000)], NOW)
    assert len(lane) == 0
    assert lane._last.__sizeof__() < size / 1_000
    assert (len(lane._last), len(lane._careful), len(lane._failed._all), lane.in_flight()) == (0, 0, 0, 0)


def test_a_line_of_a_hundred_thousand_events_of_one_user_can_be_dropped():
    lane = Lane()
    lane.barrier.offer(Pending(i, "a", "", 0, 1, None) for i in range(100_000))
    del lane.barrier  # events are linked: to free one frees the next, and must not overflow the stack
