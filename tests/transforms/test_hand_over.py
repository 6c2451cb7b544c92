"""Hand over: a batch is given once and taken once, whole, whether it was packed or not."""

import pytest

from millrace.transforms.hand_over import HandOver
from tests.support.batches import batch, event


def test_a_batch_is_taken_once_and_is_the_one_that_was_given():
    here, given = HandOver(), batch([event("1")])
    number = here.give(given)
    assert here.take(number) is given
    assert len(here) == 0
    with pytest.raises(KeyError):
        here.take(number)


def test_past_the_bound_batches_are_packed_and_come_out_equal():
    given = [batch([event(f"{number}-{row}", row) for row in range(50)]) for number in range(4)]
    here = HandOver(open_bytes=2 * given[0].nbytes)
    numbers = [here.give(each) for each in given]
    found = [here.take(number) for number in reversed(numbers)][::-1]
    assert [one is other for one, other in zip(found, given, strict=True)] == [True, True, False, False]
    assert all(one.equals(other) for one, other in zip(found, given, strict=True))
    number = here.give(given[0])
    assert here.take(number) is given[0]  # what was taken makes room again
