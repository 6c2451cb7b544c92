"""What transforms cost: quantiles within their promise, and a line for each at a job's end."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.pipelines.progress import progress
from millrace.transforms.custom.timings import Timings, forget_timings, note, summary, timings
from millrace.transforms.steps import forget_here, users_here
from tests.support.batches import event
from tests.support.custom import configured, ordered, run


@pytest.fixture(autouse=True)
def _fresh() -> None:
    forget_timings()
    forget_here()


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=200), st.sampled_from([0.5, 0.99]))
def test_a_quantile_is_the_true_one_to_9_percent(ns: list[int], share: float):
    found = Timings()
    found.add(ns)
    true = sorted(ns)[max(0, math.ceil(share * len(ns)) - 1)]
    assert true * 0.99 <= found.quantile_ns(share) <= true * 1.10
    assert found.events == len(ns)


def test_a_mean_counts_for_each_of_its_events():
    found = Timings()
    found.add([1_000], times=99)
    found.add(np.array([1_000_000]))
    assert found.events == 100
    assert found.quantile_ns(0.98) < 1_100
    assert found.quantile_ns(1.0) > 900_000
    assert Timings().quantile_ns(0.5) == 0.0


def test_at_the_end_there_is_a_line_for_each_transform(capsys: pytest.CaptureFixture[str]):
    step, lookup = configured("Numbered, name: seen", "lengths, name: long")
    with progress(0):
        step.open()
        step.apply(ordered([event("1"), event("2", user="bob")]), users_here(step, 0))
        run([lookup], [event("1"), event("2"), event("3")])
    seen, long = capsys.readouterr().out.splitlines()
    size = sum(len(value[2]) for value in users_here(step, 0).values())
    assert seen.startswith("transform seen: 2 events  p50 ")
    assert seen.endswith(f" µs  state {size} bytes of 2 users")
    assert long.startswith("transform long: 3 events  p50 ")


def test_nothing_ran_is_no_line():
    note("nothing", [])
    assert summary() == []
    assert timings("asked for").events == 0


def test_each_row_is_timed_once_whatever_becomes_of_it():
    names = ["a", "drop", "raise", "split"]
    rows = [event(name, event=name) for name in names]
    for step in configured("euros", "Numbered", "lengths", "plan"):
        run([step], rows)
        assert timings(step.name).events == 4
