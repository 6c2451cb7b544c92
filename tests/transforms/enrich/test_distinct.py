"""Distinct: each value is looked up once, remembered within bounds, and no value's trouble is another's."""

import concurrent.futures
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.transforms.counts import counted_here
from millrace.transforms.enrich import distinct
from millrace.transforms.enrich.distinct import Memo

FIELDS = [pa.field("size", pa.int64()), pa.field("text", pa.string())]


class Asked:
    """Looks up, and knows what it was asked for."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def __call__(self, *values: Any) -> tuple[Any, ...]:
        self.values.append(values[0] if len(values) == 1 else values)
        if values[0] == "break":
            raise RuntimeError("it broke")
        return (sum(len(str(value)) for value in values), f"<{values}>")


def looked_up(asked: Asked, *columns: pa.Array, **bounds: int) -> list[tuple[Any, ...]]:
    found = Memo("test", asked, FIELDS, **bounds).columns(columns)
    return list(zip(*(column.to_pylist() for column in found), strict=True))


@given(st.lists(st.tuples(st.sampled_from([None, "", "a", "ä", "bb"]), st.booleans() | st.none(), st.integers(0, 3))))
def test_columns_are_what_a_loop_over_the_rows_would_make(rows: list[tuple[Any, ...]]):
    kinds = (pa.string(), pa.bool_(), pa.int64())
    columns = [pa.array([row[at] for row in rows], kind) for at, kind in enumerate(kinds)]
    asked = Asked()
    assert looked_up(asked, *columns) == [Asked()(*row) for row in rows]
    assert sorted(map(str, asked.values)) == sorted(map(str, set(rows)))


def test_a_value_is_looked_up_once_over_all_batches():
    asked = Asked()
    memo = Memo("test", asked, FIELDS)
    for _ in range(3):
        memo.columns([pa.array(["a", "b", "a", None])])
    assert asked.values == ["a", "b", None]


def test_what_is_remembered_is_bounded_and_what_is_in_use_stays():
    asked = Asked()
    memo = Memo("test", asked, FIELDS, entries=100)
    for number in range(1_000):
        memo.columns([pa.array(["in use", f"once {number}"])])
        assert len(memo) <= 100
    assert asked.values.count("in use") == 1


def test_long_keys_are_bounded_by_their_characters():
    memo = Memo("test", Asked(), FIELDS, characters=10_000)
    for number in range(100):
        memo.columns([pa.array([f"{number:01000}"])])
        assert len(memo) <= 10


def test_a_text_that_hardly_comes_again_is_not_kept_and_an_absurd_one_not_looked_up():
    asked = Asked()
    memo = Memo("test", asked, FIELDS)
    kept, looked, absurd = ("x" * size for size in (distinct.LONGEST_KEPT, distinct.LONGEST, 1 << 20))
    before = counted_here().get("enrich/test_too_long", 0)
    found = [memo.columns([pa.array([kept, looked, absurd])])[0].to_pylist() for _ in range(2)]
    assert found == [[distinct.LONGEST_KEPT, distinct.LONGEST, None]] * 2
    assert asked.values == [kept, looked, looked]
    assert len(memo) == 1
    assert counted_here()["enrich/test_too_long"] == before + 2


def test_a_value_at_which_the_look_up_fails_is_null_and_counted(caplog: pytest.LogCaptureFixture):
    before = counted_here().get("enrich/test_failed_look_ups", 0)
    assert looked_up(Asked(), pa.array(["a", "break", "b", "break"])) == [
        (1, "<('a',)>"), (None, None), (1, "<('b',)>"), (None, None),
    ]  # fmt: skip
    assert counted_here()["enrich/test_failed_look_ups"] == before + 1
    assert not caplog.records  # it would hold what a user sent


def test_threads_may_share_what_is_remembered():
    memo = Memo("test", Asked(), FIELDS, entries=20)

    def work(seed: int) -> bool:
        values = [str((seed * 7 + number) % 60) for number in range(50)]
        return all(
            memo.columns([pa.array(values)])[0].to_pylist() == [len(value) for value in values] for _ in range(50)
        )

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(16)))
    assert len(memo) <= 20 + 8  # each thread may be at the bound at once


def test_no_rows_make_empty_columns_of_their_types():
    found = Memo("test", Asked(), FIELDS).columns([pa.array([], pa.string()), pa.array([], pa.bool_())])
    assert [(column.type, len(column)) for column in found] == [(pa.int64(), 0), (pa.string(), 0)]
