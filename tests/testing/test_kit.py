"""The test kit: builders, runs, and property checks that find what is wrong."""

import datetime as dt
import subprocess
import sys
from typing import Any

import pyarrow as pa
import pytest

from millrace.api import Event, UserTransform, on_batch, on_event
from millrace.testing import (
    START,
    PropertyError,
    alias,
    batches_of,
    check_properties,
    group,
    identify,
    page,
    run_transform,
    screen,
    track,
)
from millrace.transforms.steps import Users
from tests.support.transforms import Counting, Numbered, euros

SECOND = dt.timedelta(seconds=1)


def test_builders_make_what_the_job_reads():
    events = [
        track("Order Completed", user="ann", at=1, properties={"total": 3}, message_id="mine"),
        identify(user="ann", anonymous_id="device", traits={"plan": "pro"}, at=2),
        page("Home", anonymous_id="device", at=START.astimezone(dt.timezone(dt.timedelta(hours=1))) + 3 * SECOND),
        screen(at=4),
        group("g1", user="bob", at=5),
        alias("old", user="bob", at=20, delay_s=30),
    ]  # fmt: skip
    windows = [batch.to_pylist() for batch in batches_of(events[::-1])]
    assert [len(rows) for rows in windows] == [4, 1, 1]
    rows = [row for rows in windows for row in rows]
    seen = [(row["message_id"], row["type"], row["event"], row["user_key"], row["is_late"]) for row in rows]
    assert seen == [
        ("mine", "track", "Order Completed", "ann", False),
        ("m5", "identify", None, "ann", False),
        ("m4", "page", "Home", "device", False),
        ("m3", "screen", None, "user-1", False),
        ("m2", "group", None, "bob", False),
        ("m1", "alias", None, "bob", True),
    ]
    assert rows[2]["occurred_at"] == START + dt.timedelta(seconds=3)
    assert [row["properties"] for row in rows if row["properties"]] == ['{"total":3}']


def test_what_is_no_event_is_said_so():
    with pytest.raises(ValueError, match="no event: no_user"):
        batches_of([{"type": "track", "event": "x"}])


def test_a_run_says_what_became_of_each_event():
    events = [track("Order", properties={"total": 2}), track("drop", at=1), track("raise", at=2)]
    result = run_transform(euros, events, settings={"rate": 5})
    assert result.column("total_eur") == {"m1": 10.0}
    assert [row["event"] for row in result.rows] == ["Order"]
    assert result.dropped == ("m2",)
    assert list(result.dead_letters) == ["m3"]
    assert result.dead_letters["m3"].startswith("euros 3: KeyError: ")
    assert result.us_per_event > 0
    passed = run_transform("tests.support.transforms:euros", events, on_error="pass", when='event == "raise"')
    assert [row.get("total_eur") for row in passed.rows] == [None] * 3
    assert "transform_errors" in passed.rows[2]


def test_a_run_goes_on_with_what_is_remembered():
    users = Users()
    run_transform(Numbered, [track("x")], users=users)
    assert run_transform(Numbered, [track("x", at=1)], users=users).column("number") == {"m1": 2}


def test_a_run_takes_batches_and_limits():
    batches = batches_of([track("x", properties={"account": "a"})])
    assert run_transform(Counting, batches, concurrency=1).column("plan") == {"m1": "a"}
    with pytest.raises(TypeError, match=r"is no transform: see millrace\.api"):
        run_transform(dict, batches)


def test_nothing_given_is_nothing_found():
    result = run_transform(euros, [])
    assert (result.rows, result.dropped, result.us_per_event) == ([], (), 0.0)
    assert "total_eur" in result.batch.schema.names


EVENTS = [
    track("a", user="ann", at=0, properties={"total": 1}),
    track("split", user="ann", at=1),
    track("drop", user="bob", at=1),
    track("a", user="bob", at=7, properties={"total": 2}),
    track("raise", user="ann", at=9),
    identify(user="ann", at=9, traits={"a": 1}),
]


@pytest.mark.parametrize("transform", [euros, Numbered, Counting])
def test_a_good_transform_has_all_properties(transform: Any):
    report = check_properties(transform, EVENTS)
    assert report.us_per_event > 0
    assert report.checked == (
        "accounts",
        "permuted",
        "duplicated",
        "split",
        "alone",
        "late",
        "nulls",
        "empty",
        "travels",
    )


CALLS = 0


@on_event(adds={"call": pa.int64()})
def counting(event: Event) -> Any:
    """Hangs on how often it was called."""
    global CALLS  # noqa: PLW0603  that is what is wrong with it
    CALLS += 1
    event["call"] = CALLS
    return event


@on_batch(adds={"rows": pa.int64()})
def sized(batch: pa.RecordBatch) -> Any:
    """Hangs on what else is in the batch."""
    return {"rows": [batch.num_rows] * batch.num_rows}


@on_event(adds={"first": pa.string()})
def trusting(event: Event) -> Any:
    """Takes it that there are properties and a name."""
    event["first"] = event.name[0]  # type: ignore[index]
    return event


@on_event()
def late_hater(event: Event) -> Any:
    """Raises at late events."""
    if event["is_late"]:
        raise ValueError("late")
    return event


class Keeping(UserTransform):
    """Keeps the state in itself."""

    adds = (pa.field("seen", pa.int64()),)
    remembers_s = 60.0

    def __init__(self) -> None:
        self._seen: list[Any] = []
        self._lambda = lambda: None

    def each(self, event: Event, state: dict[Any, Any]) -> Any:  # noqa: ARG002
        self._seen.append(event.message_id)
        event["seen"] = len(self._seen)
        return event


@pytest.mark.parametrize(
    ("transform", "property_", "where"),
    [
        (counting, "permuted", "call of m1 is "),
        (counting, "travels", "call of m1 is "),
        (sized, "split", "rows of m"),
        (trusting, "nulls", "it fails where event is null: trusting 0: TypeError"),
        (late_hater, "late", "late_hater 0: ValueError: late"),
    ],
)
def test_a_bad_one_lacks_some_and_is_told_which(transform: Any, property_: str, where: str):
    events = [event for event in EVENTS if event["type"] == "track"]
    with pytest.raises(PropertyError) as caught:
        check_properties(transform, events)
    lines = [line for line in str(caught.value).splitlines() if line.startswith(f"{property_}: ")]
    assert lines
    assert lines[0].removeprefix(f"{property_}: ").startswith(where)


def test_a_property_can_be_left_out():
    report = check_properties(late_hater, EVENTS, but=["late"])
    assert "late" not in report.checked


def test_a_state_kept_elsewhere_is_found():
    with pytest.raises(PropertyError, match="alone: seen of"):
        check_properties(Keeping, [track("x", user=user, at=at) for at in (0, 1) for user in ("zoe", "ann")])


def test_nothing_of_the_job_imports_the_kit():
    code = """
import importlib, pkgutil, sys, millrace
for module in pkgutil.walk_packages(millrace.__path__, "millrace."):
    if not module.name.startswith("millrace.testing"):
        importlib.import_module(module.name)
print([name for name in sys.modules if name.startswith("millrace.testing")])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pytest_pays_little_for_the_plugin():
    code = "import sys, millrace.testing.plugin; print([n for n in sys.modules if n.startswith(('pyarrow', 'apache'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
