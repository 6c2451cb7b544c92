"""What a runner's state holds of a shard: all that is not past, in few runs, and never more than it may."""

from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from millrace.transforms import deduplicate_state
from millrace.transforms.copies import deduplicate
from millrace.transforms.deduplicate_state import BUCKETS, StateFn, _pack, _Run, _State, _unpack, _Workers
from millrace.transforms.recent_ids import Keys
from millrace.transforms.remembered import Remembered
from tests.support.batches import NOON_US, batch, event

BUCKET_US = 100


class Bag:
    """A runner's bag."""

    def __init__(self) -> None:
        self.values: list[bytes] = []

    def read(self) -> list[bytes]:
        return list(self.values)

    def add(self, value: bytes) -> None:
        self.values.append(value)

    def clear(self) -> None:
        self.values = []


class Value:
    """A runner's value."""

    def __init__(self) -> None:
        self.value: bytes | None = None

    def read(self) -> bytes | None:
        return self.value

    def write(self, value: bytes) -> None:
        self.value = value


class Store:
    """A shard's state over many calls."""

    def __init__(self, max_ids: int = 1_000_000) -> None:
        self.index = Value()
        self.bags = tuple(Bag() for _ in range(BUCKETS + 1))
        self.max_ids = max_ids

    def open(self) -> _State:
        return _State(self.index, self.bags, BUCKET_US, self.max_ids)

    def append(self, at_us: int, *ids: int, others: int = 0) -> int:
        """Append a run as a call would; return when all is past."""
        state = self.open()
        state.append(_Run(at_us, keys(*ids), keys(*range(others))))
        state.write()
        return state.past_us

    def ids(self) -> list[int]:
        return sorted(id_ for run in self.open().read() for id_ in run.ids[:, 0].tolist())

    def clear_past(self, bucket: int) -> None:
        state = self.open()
        state.clear_past(bucket)
        state.write()


def keys(*ids: int) -> Keys:
    return np.array([(id_, id_ + 1) for id_ in ids], np.uint64).reshape(-1, 2)


@given(at_us=st.integers(0, 2**62), ids=st.lists(st.integers(0, 2**63)), others=st.lists(st.integers(0, 2**63)))
def test_a_run_comes_back_as_it_was(at_us: int, ids: list[int], others: list[int]):
    run = _unpack(_pack(_Run(at_us, np.asfortranarray(keys(*ids)), keys(*others))))
    assert (run.at_us, run.ids.tolist(), run.others.tolist()) == (at_us, keys(*ids).tolist(), keys(*others).tolist())


def test_what_was_appended_is_read_by_the_next_and_each_change_has_a_token_of_its_own():
    store = Store()
    assert (store.open().token, store.ids()) == (b"", [])
    store.append(50, 1, 2)
    token = store.open().token
    assert store.append(150, 3) == (1 + BUCKETS + 1) * BUCKET_US
    assert store.ids() == [1, 2, 3]
    assert len({b"", token, store.open().token}) == 3
    unchanged = store.open()
    unchanged.write()
    assert store.open().token == unchanged.token


def test_many_runs_become_one():
    store = Store()
    for number in range(deduplicate_state._MANY_RUNS + 3):
        store.append(number % BUCKET_US, number, others=2)
    assert len(store.bags[0].values) == 4
    assert store.ids() == list(range(deduplicate_state._MANY_RUNS + 3))


def test_what_is_past_goes_when_its_time_comes_or_its_bag_is_needed():
    store = Store()
    for bucket in range(BUCKETS + 1):
        store.append(bucket * BUCKET_US, bucket)
    store.clear_past(BUCKETS)
    assert store.ids() == [0, 1, 2, 3, 4]
    store.clear_past(BUCKETS + 1)
    assert store.ids() == [1, 2, 3, 4]
    assert store.bags[0].values == []
    store.append((BUCKETS + 2) * BUCKET_US, 6)  # in the place of bucket 1
    assert store.ids() == [2, 3, 4, 6]


def test_what_arrives_out_of_order_is_kept_with_the_bag_that_took_its_place():
    store = Store()
    store.append((BUCKETS + 2) * BUCKET_US, 6)
    assert store.append(1 * BUCKET_US, 1) == (2 * BUCKETS + 3) * BUCKET_US
    assert store.ids() == [1, 6]


def test_the_oldest_go_when_there_are_more_than_it_may_hold():
    store = Store(max_ids=10)
    for bucket in range(3):
        store.append(bucket * BUCKET_US, *range(bucket * 4, bucket * 4 + 4))
    assert store.ids() == list(range(4, 12))
    store.append(2 * BUCKET_US, *range(12, 20))
    assert store.ids() == list(range(12, 20))


def test_a_worker_gives_back_a_memory_to_the_state_it_belongs_to_and_no_other():
    workers = _Workers()
    memory = Remembered(600, 100)
    workers.keep(1, b"token", memory, 10)
    assert workers.take(2, b"token") is None
    assert workers.take(1, b"token") is memory
    assert workers.take(1, b"token") is None  # it is in use
    workers.keep(1, b"token", memory, 10)
    assert workers.take(1, b"another") is None
    assert workers.take(1, b"token") is None  # of no more use


def test_a_worker_keeps_the_memories_used_last_up_to_a_bound():
    workers = _Workers()
    memories = {shard: Remembered(600, 100) for shard in range(4)}
    for shard, memory in memories.items():
        memory.add(keys(*range(4)), keys(), 0)
        workers.keep(shard, b"t", memory, 10)
    found: dict[int, Any] = {shard: workers.take(shard, b"t") for shard in memories}
    assert found == {0: None, 1: None, 2: memories[2], 3: memories[3]}


@pytest.mark.parametrize("max_ids", [0, 3])
def test_one_memory_is_kept_however_large_it_is(max_ids: int):
    workers, memory = _Workers(), Remembered(600, 100)
    memory.add(keys(*range(4)), keys(), 0)
    workers.keep(1, b"t", memory, max_ids)
    assert workers.take(1, b"t") is memory


class Timer:
    """A runner's timer."""

    def __init__(self) -> None:
        self.at: Timestamp | None = None

    def set(self, at: Timestamp) -> None:
        self.at = at


HORIZON_S = 40
row_ = st.tuples(st.sampled_from("abcd"), st.integers(1, 2), st.integers(0, 20))
arrivals = st.lists(st.tuples(st.integers(0, 25), st.lists(row_, min_size=1, max_size=5), st.booleans()), max_size=12)


@given(given_arrivals=arrivals, many=st.integers(2, 6))
def test_the_state_says_what_one_memory_would_say_wherever_the_shard_is_worked_on(
    given_arrivals: list[tuple[int, list[tuple[str, int, int]], bool]], many: int
):
    index, bags, timer, second = Value(), [Bag() for _ in range(BUCKETS + 1)], Timer(), 0
    fn, memory, workers = StateFn(HORIZON_S, 1_000, 1), Remembered(HORIZON_S, 1_000, buckets=BUCKETS), _Workers()
    with (
        mock.patch.object(deduplicate_state, "_MANY_RUNS", many),
        mock.patch.object(deduplicate_state, "_WORKERS", workers),
    ):
        for wait_s, rows, moves in given_arrivals:
            second += wait_s
            if timer.at is not None and timer.at.micros < NOON_US + second * 1_000_000:
                fn.when_past(timer.at, index, *bags)
                timer.at = None
                assert all(not bag.values for bag in bags)
            if moves:
                workers.take(0, b"")
            arrived = batch(
                [
                    event(id_, second, envelope_id=f"e{place}-{price}", properties=str(price))
                    for id_, price, place in rows
                ]
            )
            process: Any = fn.process
            found = list(process((0, arrived), index, *bags, timer))
            (expected,) = [done.unique for done in deduplicate(arrived, memory, repeats_pass=False)]
            kept = [each for each in found if isinstance(each, pa.RecordBatch)]
            copies = [each.value for each in found if not isinstance(each, pa.RecordBatch)]
            assert [each.to_pylist() for each in kept] == [expected.batch.to_pylist()] * bool(expected.batch.num_rows)
            assert [each.to_pylist() for each in copies] == (
                [expected.duplicates.to_pylist()] * bool(expected.duplicates.num_rows)
            )
