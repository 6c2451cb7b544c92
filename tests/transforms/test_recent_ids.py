"""Recent ids: a dict would say the same, at ten times the price."""

import threading
import tracemalloc
from collections.abc import Iterable

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from millrace.sinks.recent_ids import COPY, NEW, REDELIVERED, Keys, RecentIds, event_keys, place_keys
from tests.support.batches import batch, event

HORIZON_S = 8.0
SECOND_US = 1_000_000
SLACK_S = HORIZON_S / 8
"""The horizon is kept to within an eighth of itself."""


def keys(*pairs: tuple[int, int]) -> Keys:
    """Return keys of (id, delivery)."""
    digests = [xxhash.xxh3_128_digest(str(id_).encode()) for id_, _ in pairs]
    found = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2).copy()
    deliveries = np.array([delivery for _, delivery in pairs], np.uint64)
    found[:, 1] = (found[:, 1] & np.uint64(0xFFFFFFFF00000000)) | deliveries
    return found


def numbered(numbers: Iterable[int]) -> Keys:
    return keys(*((number, 1) for number in numbers))


def test_an_id_is_new_then_redelivered_from_its_place_and_a_copy_from_another():
    ids = RecentIds(HORIZON_S)
    assert ids.find(keys((1, 1), (2, 1))).tolist() == [NEW, NEW]
    ids.add(keys((1, 1)), 0)
    assert ids.find(keys((1, 1), (1, 2), (2, 1))).tolist() == [REDELIVERED, COPY, NEW]
    assert len(ids) == 1


def test_nothing_at_all_is_found_and_added():
    ids = RecentIds(HORIZON_S)
    ids.add(keys(), 0)
    assert (ids.find(keys()).tolist(), ids.find(keys((1, 1))).tolist(), len(ids)) == ([], [NEW], 0)


def test_ids_that_share_their_first_64_bits_are_told_apart():
    ids = RecentIds(HORIZON_S)
    one = np.array([[7, 5 << 32 | 1]], np.uint64)
    other = np.array([[7, 6 << 32 | 1]], np.uint64)
    ids.add(one, 0)
    assert (ids.find(one).tolist(), ids.find(other).tolist()) == ([REDELIVERED], [NEW])


def test_an_id_is_remembered_for_the_horizon_and_forgotten_soon_after():
    ids = RecentIds(HORIZON_S)
    ids.add(keys((1, 1)), 0)
    ids.add(keys((2, 1)), round(HORIZON_S * SECOND_US))
    assert ids.find(keys((1, 1))).tolist() == [REDELIVERED]
    ids.add(keys((3, 1)), round((HORIZON_S + SLACK_S) * SECOND_US))
    assert ids.find(keys((1, 1), (2, 1), (3, 1))).tolist() == [NEW, REDELIVERED, REDELIVERED]
    assert len(ids) == 2


def test_a_backlog_older_than_all_that_is_remembered_is_remembered_too():
    ids = RecentIds(HORIZON_S)
    ids.add(keys((1, 1)), 10_000 * SECOND_US)  # read back at the start, or written at the job's own clock
    for second in range(5):
        ids.add(keys((100 + second, 1)), second * SECOND_US)
    found = ids.find(keys((1, 1), *((100 + second, 1) for second in range(5))))
    assert found.tolist() == [REDELIVERED] * 6
    ids.add(keys((2, 1)), 10_000 * SECOND_US)
    assert ids.find(keys((100, 1), (1, 1))).tolist() == [NEW, REDELIVERED]


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

    def check(self, id_: int, delivery: int, found: int) -> None:
        at = self.known.get(id_, self.fading.get(id_))
        expected = NEW if at is None else REDELIVERED if at[0] == delivery else COPY
        assert found == expected or (found == NEW and id_ in self.fading), (id_, delivery, found, expected)


pairs = st.tuples(st.integers(0, 30), st.integers(1, 3))
steps = st.lists(
    st.tuples(st.lists(pairs, max_size=12, unique_by=lambda pair: pair[0]), st.integers(0, 40)), max_size=25
)


@given(steps=steps)
def test_it_says_what_a_dict_would_say_whatever_the_order_of_times(steps):
    ids, model = RecentIds(HORIZON_S), Model()
    for asked, second in steps:
        found = ids.find(keys(*asked))
        for (id_, delivery), one in zip(asked, found.tolist(), strict=True):
            model.check(id_, delivery, one)
        new = [pair for pair, one in zip(asked, found.tolist(), strict=True) if one == NEW]
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
    assert ids.find(numbered(range(starts[-1]))).tolist() == [REDELIVERED] * starts[-1]
    assert len(ids) == starts[-1]


def test_an_id_takes_sixteen_bytes():
    count, parts = 200_000, 50
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
    assert held / count == pytest.approx(16, abs=0.2)


@pytest.mark.parametrize(
    "second", [lambda n: n // 100, lambda n: n * 7 % 9, lambda n: n * 0], ids=["rising", "mixed", "one"]
)
def test_a_look_up_searches_few_runs_however_many_adds_there_were(second):
    ids = RecentIds(HORIZON_S)
    for number in range(900):
        ids.add(numbered(range(number * 3, number * 3 + 3)), second(number) * SECOND_US)
    assert len(ids) == 2_700
    assert len(ids._runs) <= 9 * 10  # a bucket of n adds holds at most some log2(n) runs
    assert (ids.find(numbered(range(2_700))) == REDELIVERED).all()


def test_a_thread_may_look_up_while_another_adds():
    ids = RecentIds(HORIZON_S)
    early = numbered(range(500))
    parts = [numbered(range(1_000 + part * 50, 1_050 + part * 50)) for part in range(400)]
    ids.add(early, 0)
    wrong: list[list[int]] = []
    looked, ended = threading.Event(), threading.Event()

    def look() -> None:
        while not ended.is_set():
            found = ids.find(early)
            if not (found == REDELIVERED).all():
                wrong.append(found.tolist())
            looked.set()

    reader = threading.Thread(target=look)
    reader.start()
    try:
        assert looked.wait(10)
        for number, part in enumerate(parts):
            ids.add(part, number * SECOND_US // 60)
    finally:
        ended.set()
        reader.join()
    assert wrong == []
    assert all((ids.find(part) == REDELIVERED).all() for part in parts)


def test_an_event_is_known_by_its_source_and_id_and_its_place_by_envelope_and_index():
    rows = [
        event("m", envelope_id="e1"),
        event("m", envelope_id="e1", envelope_index=1),
        event("m", envelope_id="e2"),
        event("m", envelope_id="e1", source_id="app"),
        event("m", 30, envelope_id="e1", user="bob", type="page"),
    ]
    ids = RecentIds(HORIZON_S)
    ids.add(event_keys(batch(rows[:1])), 0)
    assert ids.find(event_keys(batch(rows))).tolist() == [REDELIVERED, COPY, COPY, NEW, REDELIVERED]
    alone = [ids.find(event_keys(batch([row]))).tolist() for row in rows]
    assert alone == [[REDELIVERED], [COPY], [COPY], [NEW], [REDELIVERED]]


def test_a_dead_letter_or_duplicate_is_known_by_its_place_alone():
    rows = [
        event("m", envelope_id="e1"),
        event("other", envelope_id="e1"),
        event("m", envelope_id="e1", envelope_index=-1),
        event("m", envelope_id="e11", envelope_index=0),
    ]
    ids = RecentIds(HORIZON_S, place_keys)
    ids.add(place_keys(batch(rows[:1])), 0)
    assert ids.find(place_keys(batch(rows))).tolist() == [REDELIVERED, REDELIVERED, NEW, NEW]


def test_no_rows_have_no_keys():
    assert event_keys(batch([])).shape == place_keys(batch([])).shape == (0, 2)
