"""The breaker: opens after failures in a row, lets one probe through a pause, closes with the first answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.collector.breaker import Breaker, BreakerState


def test_opens_after_failures_in_a_row_and_a_success_in_between_counts_anew() -> None:
    breaker = Breaker(failures_to_open=3)
    for _ in range(2):
        breaker.failed(0.0)
        breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.closed
    for _ in range(3):
        breaker.failed(0.0)
    assert (breaker.state, breaker.openings) == (BreakerState.OPEN, 1)


def test_opens_at_once_when_told_that_this_says_enough() -> None:
    breaker = Breaker(failures_to_open=3)
    breaker.failed(0.0, at_once=True)
    assert breaker.state is BreakerState.OPEN


def test_one_probe_a_pause_and_the_pauses_double_up_to_the_longest() -> None:
    breaker = Breaker(failures_to_open=1, first_pause_s=0.5, longest_pause_s=3.0)
    now_s = 100.0
    breaker.failed(now_s)
    pauses = []
    for _ in range(5):
        pauses.append(breaker.pause_left_s(now_s))
        now_s += pauses[-1]
        assert not breaker.try_probe(now_s - 0.01)
        assert breaker.try_probe(now_s)
        assert not breaker.try_probe(now_s)
        assert breaker.state is BreakerState.HALF_OPEN
        breaker.failed(now_s)
    assert pauses == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert breaker.openings == 1


def test_a_probe_that_succeeds_closes_it_and_the_next_outage_starts_with_the_first_pause() -> None:
    breaker = Breaker(failures_to_open=1, first_pause_s=0.5)
    breaker.failed(0.0)
    assert breaker.try_probe(0.5)
    breaker.failed(0.5)
    assert breaker.try_probe(1.5)
    breaker.succeeded()
    assert breaker.closed
    assert not breaker.try_probe(99.0)
    breaker.failed(100.0)
    assert breaker.pause_left_s(100.0) == 0.5


def test_failures_of_what_was_sent_before_it_opened_change_nothing() -> None:
    breaker = Breaker(failures_to_open=1, first_pause_s=0.5)
    breaker.failed(0.0)
    breaker.failed(0.3)
    assert breaker.pause_left_s(0.3) == pytest.approx(0.2)


def test_a_probe_that_nobody_reports_on_is_forgotten() -> None:
    breaker = Breaker(failures_to_open=1, first_pause_s=0.5, longest_pause_s=3.0)
    breaker.failed(0.0)
    assert breaker.try_probe(0.5)
    assert not breaker.try_probe(3.4)
    assert breaker.try_probe(3.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"failures_to_open": 0}, "failures_to_open"),
        ({"first_pause_s": 0.0}, "pauses"),
        ({"first_pause_s": 2.0, "longest_pause_s": 1.0}, "pauses"),
    ],
)
def test_refuses_settings_that_make_no_sense(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        Breaker(**arguments)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 128).map(lambda ticks: ticks / 64),
            st.sampled_from(["failed", "at once", "succeeded", "probe", "lost probe"]),
        ),
        max_size=60,
    )
)
def test_whatever_happens_probes_are_a_first_pause_apart_and_one_is_always_to_come(steps) -> None:
    breaker = Breaker(failures_to_open=2, first_pause_s=0.5, longest_pause_s=3.0)
    now_s, last_s = 0.0, None
    for wait_s, step in steps:
        now_s += wait_s
        match step:
            case "succeeded":
                breaker.succeeded()
                assert breaker.closed
                last_s = None
            case "failed" | "at once":
                breaker.failed(now_s, at_once=step == "at once")
            case _ if breaker.try_probe(now_s):
                assert last_s is None or now_s - last_s >= 0.5
                last_s = now_s
                if step == "probe":
                    breaker.failed(now_s)
        assert breaker.pause_left_s(now_s) <= 3.0
    assert breaker.closed or breaker.try_probe(now_s + 3.0)
