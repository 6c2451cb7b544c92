"""Retry: pauses and giving up."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.delivery.retry import LONGEST_AFTER_S, RetryPolicy

ATTEMPTS = st.integers(1, 10**9)
CHANCES = st.floats(0, 1)


def test_pauses_double_from_the_first_to_the_longest():
    policy = RetryPolicy(first_s=1, longest_s=300)
    assert [policy.pause_s(n, 1.0) for n in range(1, 12)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert [policy.pause_s(n, 0.0) for n in (1, 2, 11)] == [0.5, 1, 150]


@given(attempts=ATTEMPTS, chance=CHANCES)
def test_every_pause_is_between_half_of_the_full_one_and_all_of_it(attempts, chance):
    full = RetryPolicy().pause_s(attempts, 1.0)
    assert full / 2 <= RetryPolicy().pause_s(attempts, chance) <= full <= 300


def test_an_event_is_given_up_only_after_both_the_tries_and_the_time():
    policy = RetryPolicy(min_tries=3, min_s=3_600)
    assert [policy.gives_up(n, s) for n, s in ((2, 9_999), (9, 3_599), (3, 3_600))] == [False, False, True]


@given(after_s=st.floats(), attempts=ATTEMPTS, chance=CHANCES)
def test_what_a_destination_asks_for_is_obeyed_within_reason(after_s, attempts, chance):
    """Zero, negative or endless ones, and what is no number, too: whatever a header can say."""
    pause_s = RetryPolicy().pause_s(attempts, chance, after_s)
    assert 0.5 <= pause_s <= LONGEST_AFTER_S * 1.1
    if 0.5 <= after_s <= LONGEST_AFTER_S:
        assert after_s <= pause_s <= after_s * 1.1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"first_s": 0}, "the first pause must be above 0 s, got 0"),
        ({"longest_s": 0.5}, "the longest pause (0.5 s) is shorter than the first (1.0 s)"),
        ({"min_tries": 0}, "an event is tried at least once, got 0 tries"),
        ({"min_s": -1}, "the time to try must not be negative, got -1 s"),
        ({"longest_s": math.inf}, "longest_s must be a number of seconds, got inf"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_in_one_sentence(given, said):
    with pytest.raises(ValueError) as refused:  # noqa: PT011  the whole text is compared
        RetryPolicy(**given)
    assert str(refused.value) == said
