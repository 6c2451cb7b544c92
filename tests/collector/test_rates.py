"""Rates: what a source may send in a time, told by a model that remembers every request."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.collector.keys import Kind
from millrace.collector.rates import Buckets
from millrace.collector.source import Source

RATES = st.floats(0.1, 10_000)
BURSTS = st.floats(1, 50_000)
STEPS = st.lists(st.tuples(st.floats(0, 30), st.integers(1, 5_000)), min_size=1, max_size=60)


def limited(rate: float, burst: float, name: str = "shop") -> Source:
    return Source(name, name, Kind.SERVER, rate=rate, burst=burst)


def test_a_burst_passes_then_the_rate_counts():
    buckets, source = Buckets(), limited(rate=10, burst=100)
    assert [buckets.take(source, 60, 0.0), buckets.take(source, 40, 0.0)] == [0.0, 0.0]
    assert buckets.take(source, 5, 0.0) == pytest.approx(0.5)
    assert buckets.take(source, 5, 0.4) == pytest.approx(0.1)
    assert buckets.take(source, 5, 0.5) == 0.0


def test_a_request_larger_than_the_burst_waits_for_a_full_bucket_and_is_paid_for_afterwards():
    buckets, source = Buckets(), limited(rate=10, burst=100)
    assert buckets.take(source, 250, 0.0) == 0.0
    assert buckets.take(source, 1, 0.0) == pytest.approx(15.1)  # 150 owed, and one
    assert buckets.take(source, 250, 15.0) == pytest.approx(10.0)
    assert buckets.take(source, 250, 25.0) == 0.0


def test_a_source_without_a_rate_never_waits():
    buckets, source = Buckets(), Source("shop", "shop", Kind.SERVER)
    assert {buckets.take(source, 10**9, 0.0) for _ in range(10)} == {0.0}


def test_sources_do_not_pay_for_each_other():
    buckets = Buckets()
    assert buckets.take(limited(1, 10, "one"), 10, 0.0) == 0.0
    assert buckets.take(limited(1, 10, "other"), 10, 0.0) == 0.0


def test_each_worker_has_its_part():
    buckets, source = Buckets(workers=4), limited(rate=40, burst=400)
    assert buckets.take(source, 100, 0.0) == 0.0
    assert buckets.take(source, 10, 0.0) == pytest.approx(1.0)


def test_a_reload_with_another_rate_counts_at_once_and_forgives_nothing():
    buckets = Buckets()
    assert buckets.take(limited(rate=1, burst=100), 100, 0.0) == 0.0
    assert buckets.take(limited(rate=10, burst=1_000), 10, 0.0) == pytest.approx(1.0)
    assert buckets.take(limited(rate=10, burst=20), 100, 10.0) == 0.0  # what had gathered is cut to the new burst
    assert buckets.take(limited(rate=10, burst=20), 1, 10.0) == pytest.approx(8.1)


@pytest.mark.parametrize("workers", [0, -1])
def test_there_is_at_least_one_worker(workers):
    with pytest.raises(ValueError, match="workers must be 1 or more"):
        Buckets(workers)


@given(RATES, BURSTS, STEPS)
def test_in_no_time_passes_more_than_burst_and_rate_allow(rate, burst, steps):
    buckets, source, now, passed = Buckets(), limited(rate, burst), 0.0, []
    for pause, events in steps:
        now += pause
        if buckets.take(source, events, now) == 0.0:
            passed.append((now, events))
    for first in range(len(passed)):
        total = 0.0
        for at, events in passed[first:]:
            total += events
            beyond = max(0.0, events - burst)  # the last request may be larger than a full bucket; what follows pays
            assert total - beyond <= burst + rate * (at - passed[first][0]) + 0.01


@given(RATES, BURSTS, STEPS)
def test_who_waits_as_long_as_told_is_let_in(rate, burst, steps):
    buckets, source, now = Buckets(), limited(rate, burst), 0.0
    for pause, events in steps:
        now += pause
        wait = buckets.take(source, events, now)
        assert wait >= 0.0
        if wait:
            now += wait
            assert buckets.take(source, events, now) == 0.0


@given(RATES, BURSTS, STEPS)
def test_a_refused_request_costs_nothing(rate, burst, steps):
    patient, pestered, source, now = Buckets(), Buckets(), limited(rate, burst), 0.0
    for pause, events in steps:
        now += pause
        wait = patient.take(source, events, now)
        assert pestered.take(source, events, now) == pytest.approx(wait, abs=1e-3)
        for _ in range(3 if wait else 0):
            assert pestered.take(source, events, now) == pytest.approx(wait, abs=1e-3)


@given(RATES, BURSTS, st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=60))
def test_a_clock_that_jumps_gives_at_most_a_burst_and_locks_nobody_out(rate, burst, moments):
    buckets, source, full = Buckets(), limited(rate, burst), math.ceil(burst)
    for now in moments:
        waits = [buckets.take(source, full, now) for _ in range(3)]
        assert waits.count(0.0) <= 1
        assert max(waits) <= (burst + 1) / rate + 0.01
