"""Lookups: one question for each distinct key, so many at once, remembered; and nothing that hangs holds up the job."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from millrace.transforms.custom import lookup, loop
from tests.support.batches import event
from tests.support.custom import configured, run
from tests.support.transforms import Counting


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    lookup._ANSWERS.clear()
    Counting.asked, Counting.most, Counting.failing = [], 0, False
    yield
    lookup._ANSWERS.clear()


def rows(*accounts: Any) -> list[dict[str, Any]]:
    return [
        event(f"{at:04}", properties=msgspec.json.encode({"account": account}).decode())
        for at, account in enumerate(accounts)
    ]


def plans(found: Any) -> list[Any]:
    return [row["plan"] for row in found.rows]


def test_each_distinct_key_is_asked_once_and_remembered():
    steps = configured("Counting")
    assert plans(run(steps, rows("a", "b", "a", None, 1, True, 1.5, [1]))) == [
        "a", "b", "a", None, "1", "True", "1.5", None,
    ]  # fmt: skip
    assert plans(run(configured("Counting"), rows("b", "c"))) == ["b", "c"]
    assert sorted(map(str, Counting.asked)) == ["1", "1.5", "True", "a", "b", "c"]


def test_no_more_are_asked_at_once_than_is_said():
    run(configured("Counting, concurrency: 3"), rows(*range(50)))
    assert (len(Counting.asked), Counting.most) == (50, 3)


def test_the_cache_holds_so_many_and_for_so_long(monkeypatch: pytest.MonkeyPatch):
    steps = configured("Counting, cache_size: 2; cache_ttl_s: 100; concurrency: 1")
    run(steps, rows("a", "b", "c"))
    run(steps, rows("b", "c"))
    assert Counting.asked == ["a", "b", "c"]
    run(steps, rows("a"))
    run(steps, rows("c"))
    assert Counting.asked == ["a", "b", "c", "a"]
    now = time.monotonic()
    monkeypatch.setattr(lookup, "_now_s", lambda: now + 101)
    run(steps, rows("c"))
    assert Counting.asked == ["a", "b", "c", "a", "c"]


def test_after_failures_in_a_row_nothing_is_asked_for_a_while_and_events_go_without(monkeypatch: pytest.MonkeyPatch):
    steps = configured("Counting, give_up_after: 3; pause_s: 60; concurrency: 1")
    Counting.failing = True
    found = run(steps, rows(*range(6)))
    errors = [msgspec.json.decode(row["transform_errors"])[0]["error"] for row in found.rows]
    assert errors == ["OSError"] * 3 + ["_Paused"] * 3
    Counting.failing = False
    assert plans(run(steps, rows("a"))) == [None]
    now = time.monotonic()
    monkeypatch.setattr(lookup, "_now_s", lambda: now + 61)
    assert plans(run(steps, rows("a"))) == ["a"]
    assert len(Counting.asked) == 4


def test_a_failure_is_not_remembered():
    steps = configured("Counting")
    Counting.failing = True
    assert plans(run(steps, rows("a"))) == [None]
    Counting.failing = False
    assert plans(run(steps, rows("a"))) == ["a"]


def test_what_has_no_answer_within_the_budget_goes_without():
    steps = configured("plan, timeout_ms: 60000; budget_ms: 1000")
    found = run(steps, [event("1", user="slow"), event("2", user="ann")])
    assert {row["user_key"]: row["plan"] for row in found.rows} == {"slow": None, "ann": "plan of ann"}


def test_threads_share_the_answers():
    steps = [configured("Counting") for _ in range(4)]
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda step=step: found.append(plans(run(step, rows(*range(20)))))) for step in steps
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [list(map(str, range(20)))] * 4
    assert sorted(Counting.asked) == list(range(20))


@pytest.mark.slow
def test_a_coroutine_that_blocks_the_loop_costs_a_loop_and_at_last_the_lookups(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lookup, "_GRACE_S", 0.2)
    monkeypatch.setattr(loop, "_LOOPS", [])
    steps = configured("Blocking")
    for _ in range(loop.MOST_LOOPS):
        assert plans(run(steps, [event("1", user="ann")])) == ["free"]
        blocked = run(steps, [event("1", user="block"), event("2", user="ann")])
        assert [row["plan"] for row in blocked.rows] == [None, None]
        flags = [msgspec.json.decode(row["transform_errors"])[0]["error"] for row in blocked.rows]
        assert flags == ["StuckError"] * 2
    assert plans(run(steps, [event("1", user="ann")])) == [None]
