"""Receipts: nothing is acknowledged before all of it is settled, and nothing is forgotten."""

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from millrace.transforms.receipts import LEDGER, Ledger


def longs(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def opened(*ack_ids: str, until_s: float = 100.0) -> Ledger:
    ledger = Ledger()
    assert ledger.open(list(ack_ids), [10] * len(ack_ids), until_s, 1_000) == 0
    return ledger


def test_a_message_is_ready_once_all_its_records_are_settled():
    ledger = opened("a", "b")
    ledger.expect(longs(0, 1), longs(3, 1))
    ledger.settle(longs(0, 1), longs(2, 1))
    assert ledger.take_ready() == ["b"]
    assert (ledger.open_messages, ledger.open_bytes) == (1, 10)
    ledger.settle(longs(0), longs(1))
    assert ledger.take_ready() == ["a"]
    assert ledger.take_ready() == []
    assert (ledger.open_messages, ledger.open_bytes, ledger.settled) == (0, 0, 2)


def test_what_is_settled_before_it_is_expected_or_after_it_is_done_changes_nothing():
    ledger = opened("a")
    ledger.settle(longs(0, 77), longs(5, 1))
    assert ledger.take_ready() == []
    ledger.expect(longs(0, 77), longs(1, 1))
    ledger.settle(longs(0), longs(1))
    ledger.settle(longs(0), longs(1))
    assert ledger.take_ready() == ["a"]


def test_leases_are_extended_only_for_what_is_still_open():
    ledger = opened("a", "b", until_s=10)
    ledger.open(["c"], [1], 50, 2_000)
    ledger.expect(longs(0), longs(1))
    ledger.settle(longs(0), longs(1))
    assert ledger.take_expiring(before_s=20, leased_until_s=60) == ["b"]
    assert ledger.take_expiring(before_s=20, leased_until_s=60) == []
    assert sorted(ledger.take_expiring(before_s=70, leased_until_s=99)) == ["b", "c"]


def test_the_oldest_open_message_tells_the_lag():
    ledger = opened("a")
    ledger.open(["b"], [1], 50, 2_000)
    assert ledger.oldest_open_us() == 1_000
    ledger.expect(longs(0, 1), longs(1, 1))
    ledger.settle(longs(0), longs(1))
    assert ledger.oldest_open_us() == 2_000
    ledger.settle(longs(1), longs(1))
    assert ledger.oldest_open_us() is None


def test_what_is_handed_back_is_closed():
    ledger = opened("a", "b")
    ledger.expect(longs(0), longs(1))
    assert ledger.hand_back(ledger.all_open()) == ["a", "b"]
    ledger.settle(longs(0), longs(1))
    assert (ledger.take_ready(), ledger.open_messages) == ([], 0)


def test_a_pickled_ledger_is_this_process_s_ledger():
    assert pickle.loads(pickle.dumps(LEDGER)) is LEDGER  # noqa: S301  our own


@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=10), data=st.data())
def test_in_any_order_of_settling_each_message_is_ready_exactly_once_and_last(counts, data):
    ledger = opened(*map(str, range(len(counts))))
    ledger.expect(np.arange(len(counts)), np.array(counts))
    records = data.draw(st.permutations([receipt for receipt, count in enumerate(counts) for _ in range(count)]))
    left = list(counts)
    for receipt in records:
        left[receipt] -= 1
        ledger.settle(longs(receipt), longs(1))
        assert ledger.take_ready() == ([str(receipt)] if left[receipt] == 0 else [])
    assert ledger.open_messages == 0
