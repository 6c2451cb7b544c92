"""Recent ids: a dict would say the same, at ten times the price."""

import threading
import tracemalloc
from collections.abc import Iterable
from unittest import mock

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from millrace.transforms import recent_ids
from millrace.transforms.recent_ids import BELONGING, Hashes, Keys, RecentIds, id_hashes, mixed, place_hashes
from tests.support.batches import batch, event

HORIZON_S = 8.0
SECOND_US = 1_000_000
SLACK_S = HORIZON_S / 8
"""The horizon is kept to within an eighth of itself."""


def hashes(*ids: int) -> Hashes:
    return np.array([xxhash.xxh3_64_intdigest(str(id_).encode()) for id_ in ids], np.uint64)


def keys(*pairs: tuple[int, int]) -> Keys:
    """Return keys of (id, what belongs to it)."""
    belongs = np.array([belongs for _, belongs in pairs], np.uint64)
    return np.column_stack([hashes(*(id_ for id_, _ in pairs)), belongs])


def known(ids: RecentIds, *asked: int) -> list[int | None]:
    """Return what belongs to ids; None where they are not known."""
    found = ids.find(hashes(*asked))
    return [belongs if one else None for one, belongs in zip(found.known.tolist(), found.belongs.tolist(), strict=True)]


def numbered(numbers: Iterable[int]) -> Keys:
    return keys(*((number, 1) for number in numbers))


def test_what_was_added_is_found_with_what_belongs_to_it_and_nothing_else_is():
    ids = RecentIds(HORIZON_S)
    assert known(ids, 1, 2) == [None, None]
    ids.add(keys((1, 7), (3, 9)), 0)
    assert known(ids, 2, 3, 1, 3) == [None, 9, 7, 9]
    assert len(ids) == 2


def test_nothing_at_all_is_found_and_added():
    ids = RecentIds(HORIZON_S)
    ids.add(keys(), 0)
    assert (known(ids), known(ids, 1), len(ids)) == ([], [None], 0)


def test_an_id_is_remembered_for_the_horizon_and_forgotten_soon_after():
    ids = RecentIds(HORIZON_S)
    ids.add(keys((1, 1)), 0)
    ids.add(keys((2, 1)), round(HORIZON_S * SECOND_US))
    assert known(ids, 1) == [1]
    ids.add(keys((3, 1)), round((HORIZON_S + SLACK_S) * SECOND_US))
    assert known(ids, 1, 2, 3) == [None, 1, 1]
    assert len(ids) == 2


def test_time_alone_makes_it_forget():
    ids = RecentIds(HORIZON_S)
    ids.add(keys((1, 1)), 0)
    ids.forget(round(HORIZON_S * SECOND_US))
    assert len(ids) == 1
    ids.forget(round((HORIZON_S + SLACK_S) * SECOND_US))
    assert len(ids) == 0


def test_a_backlog_older_than_all_that_is_remembered_is_remembered_too():
    ids = RecentIds(HORIZON_S)
    ids.add(keys((1, 1)), 10_000 * SECOND_US)  # read back at the start, or written at the job's own clock
    for second in range(5):
        ids.add(keys((100 + second, 1)), second * SECOND_US)
    assert known(ids, 1, 100, 101, 102, 103, 104) == [1] * 6
    ids.add(keys((2, 1)), 10_000 * SECOND_US)
    assert known(ids, 100, 1) == [None, 1]


def test_the_oldest_go_first_and_no_run_is_larger_than_what_may_go_at_once():
    ids = RecentIds(HORIZON_S, run_ids=10)
    for number in range(12):
        ids.add(numbered(range(number * 5, number * 5 + 5)), number // 6 * SECOND_US)
    assert max(len(run.ids) for run in ids._runs) <= 10
    dropped = ids.drop_oldest()
    assert len(ids) == 60 - dropped
    assert known(ids, *range(60)) == [None] * dropped + [1] * (60 - dropped)


class Model:
    """What a dict remembers: exactly until the horizon has passed; in the eighth after it, either is right."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[int, int]] = {}
        self.fading: dict[int, tuple[int, int]] = {}

    def add(self, pairs: Iterable[tuple[int, int]], at_us: int) -> None:
        for id_, (delivery, added_us) in [*self.known.items(), *self.fading.items()]:
            age_s = (at_us - added_us) / SECOND_US
            if age_s > HORIZON_S:
                self.known.pop(id_, None)
                self.fading.pop(id_, None)
                if age_s <= HORIZON_S + SLACK_S:
                    self.fading[id_] = (delivery, added_us)
        for id_, delivery in pairs:
            self.fading.pop(id_, None)
            self.known[id_] = (delivery, at_us)

    def check(self, id_: int, found: int | None) -> None:
        at = self.known.get(id_, self.fading.get(id_))
        expected = None if at is None else at[0]
        assert found == expected or (found is None and id_ in self.fading), (id_, found, expected)


pairs = st.tuples(st.integers(0, 30), st.integers(1, 3))
steps = st.lists(
    st.tuples(st.lists(pairs, max_size=12, unique_by=lambda pair: pair[0]), st.integers(0, 40)), max_size=25
)


@given(steps=steps)
def test_it_says_what_a_dict_would_say_whatever_the_order_of_times(steps):
    ids, model = RecentIds(HORIZON_S), Model()
    for asked, second in steps:
        found = known(ids, *(id_ for id_, _ in asked))
        for (id_, _), one in zip(asked, found, strict=True):
            model.check(id_, one)
        new = [pair for pair, one in zip(asked, found, strict=True) if one is None]
        ids.add(keys(*new), second * SECOND_US)
        model.add(new, second * SECOND_US)


@given(adds=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 8)), min_size=1, max_size=12), data=st.data())
def test_within_the_horizon_the_order_of_adds_does_not_matter(adds, data):
    starts = np.cumsum([0, *(count for count, _ in adds)]).tolist()
    parts = [
        (numbered(range(start, start + count)), second * SECOND_US)
        for start, (count, second) in zip(starts, adds, strict=False)
    ]
    ids = RecentIds(HORIZON_S)
    for part, at_us in data.draw(st.permutations(parts)):
        ids.add(part, at_us)
    assert known(ids, *range(starts[-1])) == [1] * starts[-1]
    assert len(ids) == starts[-1]


@pytest.mark.parametrize("count", [20_000, 200_000, 300_000])
def test_an_id_takes_sixteen_bytes_at_most(count: int):
    parts = 50
    rows = np.random.default_rng(1).integers(0, 2**63, (count, 2), np.int64).astype(np.uint64)
    ids = RecentIds(600)
    tracemalloc.start()
    try:
        for number in range(parts):
            ids.add(rows[number * count // parts : (number + 1) * count // parts], number * 5 * SECOND_US)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(ids) == count
    assert 15 <= held / count <= 16.1


@pytest.mark.parametrize(
    "second", [lambda n: n // 100, lambda n: n * 7 % 9, lambda n: n * 0], ids=["rising", "mixed", "one"]
)
def test_a_look_up_searches_few_runs_however_many_adds_there_were(second):
    ids = RecentIds(HORIZON_S)
    for number in range(900):
        ids.add(numbered(range(number * 3, number * 3 + 3)), second(number) * SECOND_US)
    assert len(ids) == 2_700
    assert len(ids._runs) <= 9 * 10  # a bucket of n adds holds at most some log2(n) runs
    assert ids.find(hashes(*range(2_700))).known.all()


def test_a_thread_may_look_up_while_another_adds():
    ids = RecentIds(HORIZON_S)
    early = numbered(range(500))
    parts = [numbered(range(1_000 + part * 50, 1_050 + part * 50)) for part in range(400)]
    ids.add(early, 0)
    wrong: list[list[bool]] = []
    looked, ended = threading.Event(), threading.Event()

    def look() -> None:
        while not ended.is_set():
            found = ids.find(early[:, 0]).known
            if not found.all():
                wrong.append(found.tolist())
            looked.set()

    reader = threading.Thread(target=look)
    reader.start()
    try:
        assert looked.wait(90)
        for number, part in enumerate(parts):
            ids.add(part, number * SECOND_US // 60)
    finally:
        ended.set()
        reader.join()
    assert wrong == []
    assert all(ids.find(part[:, 0]).known.all() for part in parts)


def test_an_id_is_of_its_source_and_the_same_in_every_batch():
    rows = [event("m"), event("m", source_id="app"), event("m", 30, user="bob", envelope_id="other"), event("n")]
    together = batch(rows)
    found = id_hashes(together.column("source_id"), together.column("message_id"))
    alone = [id_hashes(each.column("source_id"), each.column("message_id"))[0] for each in (batch([r]) for r in rows)]
    assert found.tolist() == [int(each) for each in alone]
    assert found[0] == found[2]
    assert len(set(found.tolist())) == 3


def test_a_place_is_envelope_and_index():
    rows = [
        event("m", envelope_id="e1"),
        event("other", envelope_id="e1"),
        event("m", envelope_id="e1", envelope_index=-1),
        event("m", envelope_id="e11", envelope_index=0),
        event("m", envelope_id="e1", envelope_index=1),
    ]
    found = place_hashes(batch(rows)).tolist()
    assert found[0] == found[1]
    assert len(set(found)) == 4
    assert set(place_hashes(batch(rows), seed=1).tolist()).isdisjoint(found)


def test_no_rows_have_no_hashes():
    nothing = batch([])
    assert id_hashes(nothing.column("source_id"), nothing.column("message_id")).shape == (0,)
    assert place_hashes(nothing).shape == (0,)


@given(numbers=st.lists(st.integers(0, 2**64 - 1), unique=True))
def test_mixing_keeps_different_numbers_apart(numbers):
    assert len(set(mixed(np.array(numbers, np.uint64)).tolist())) == len(numbers)


@given(
    numbers=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=60, unique=True),
    others=st.lists(st.integers(0, 2**64 - 1), max_size=20),
    belonging=st.integers(0, 2**56 - 1),
)
def test_behind_a_filter_a_run_finds_just_what_is_in_it(numbers: list[int], others: list[int], belonging: int):
    with mock.patch.object(recent_ids, "_FILTERED_IDS", 0):
        ids = RecentIds(HORIZON_S)
        added = np.array(numbers, np.uint64)
        belongs = (added % np.uint64(1_000)) ^ np.uint64(belonging)
        ids.add(np.column_stack([added, belongs]), 0)
        assert ids._runs[0].filter is not None
        found = ids.find(np.array([*numbers, *others], np.uint64))
    assert found.known.tolist() == [True] * len(numbers) + [each in numbers for each in others]
    assert found.belongs.tolist()[: len(numbers)] == belongs.tolist()


def test_of_what_belongs_to_an_id_56_bits_are_kept():
    ids = RecentIds(HORIZON_S)
    ids.add(np.array([[1, 2**64 - 1], [2, 2**56]], np.uint64), 0)
    assert ids.find(np.array([1, 2], np.uint64)).belongs.tolist() == [int(BELONGING), 0]


def test_a_bucket_that_is_complete_is_one_run():
    ids = RecentIds(HORIZON_S)
    for second in range(4):
        for number in range(10):
            ids.add(numbered(range(second * 100 + number * 7, second * 100 + number * 7 + 7 - number % 3)),
                    second * SECOND_US)  # fmt: skip
    buckets = [run.bucket for run in ids._runs]
    assert buckets[:3] == [0, 1, 2]
    assert set(buckets[3:]) == {3}
