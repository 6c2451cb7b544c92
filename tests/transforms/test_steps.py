"""Steps: each row leaves by one door, memory goes from window to window, and no event takes others with it."""

import datetime as dt
import functools
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from millrace.schemas import dead_letter, dropped
from millrace.schemas.dead_letter import Reason
from millrace.transforms import run_steps
from millrace.transforms.order import OrderPerUser, order, release
from millrace.transforms.run_steps import RunSteps
from millrace.transforms.steps import Applied, Refused, Step, Users, forget_here, user_runs, with_columns
from tests.support.batches import NOON_US, batch, event

SEEN = pa.field("seen", pa.int64())


class Seen(Step):
    """Numbers each user's events over all windows."""

    name = "seen"
    adds = (SEEN,)
    remembers_s = 3_600.0

    def apply(self, batch: pa.RecordBatch, users: Users) -> Applied:
        numbers: list[int] = []
        for user, start, end in user_runs(batch):
            before = users.get(user) or 0
            numbers += range(before + 1, before + 1 + end - start)
            users.put(user, before + end - start, NOON_US)
        return Applied(with_columns(batch, [SEEN], [numbers]))


class Picky(Step):
    """Refuses, drops, or breaks at events by their name."""

    name = "picky"
    adds = (pa.field("picked", pa.bool_()),)

    def apply(self, batch: pa.RecordBatch, users: Users) -> Applied:  # noqa: ARG002
        names = batch.column("event").to_pylist()
        if "break" in names:
            raise RuntimeError("it broke")
        refused = [Refused(row, Reason.OTHER, "no") for row, name in enumerate(names) if name == "refuse"]
        left_out = [row for row, name in enumerate(names) if name == "drop"]
        kept = batch.filter(pc.invert(pc.is_in(batch.column("event"), pa.array(["refuse", "drop"]))))
        return Applied(with_columns(kept, self.adds, [[True] * kept.num_rows]), refused, left_out)


DOORS = ("batches", "dead_letters", "dropped")
_FOUND: dict[str, list[Any]] = {}


def _keep(door: str, batches: Sequence[Any]) -> None:
    _FOUND[door] = [row for each in batches for row in (each[1] if door == "batches" else each).to_pylist()]


def ordered(rows: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    (piece,) = release(batch(rows), wait_us=0, window_us=5_000_000, shards=1)
    return order([piece.batch])[0]


def run(steps: Sequence[Step], *windows: Sequence[dict[str, Any]], alone: bool = True) -> dict[str, list[Any]]:
    """Run windows of events through the graph; return what left by each door."""
    forget_here()
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        given = pipeline | beam.Create([batch(rows) for rows in windows]).with_output_types(pa.RecordBatch)
        doors = OrderPerUser(wait_s=0, shards=1).expand(given).batches | RunSteps(steps, "test", alone=alone)
        for door in DOORS:
            assert_that(getattr(doors, door), functools.partial(_keep, door), label=door)
    forget_here()
    return {door: _FOUND.pop(door) for door in DOORS}


@pytest.mark.parametrize("alone", [True, False])
def test_what_a_step_remembers_goes_from_window_to_window(alone: bool):
    first = [event("a1", 0, user="ann"), event("b1", 1, user="bob"), event("a2", 2, user="ann")]
    second = [event("a3", 6, user="ann"), event("b2", 7, user="bob")]
    rows = run([Seen()], first, second, alone=alone)["batches"]
    assert {row["message_id"]: row["seen"] for row in rows} == {"a1": 1, "a2": 2, "a3": 3, "b1": 1, "b2": 2}


def test_each_row_leaves_by_one_door_with_its_receipt():
    names = ["go", "refuse", "drop", "go"]
    rows = [event(str(number), number / 10, event=name, receipt=number) for number, name in enumerate(names)]
    found = run([Picky()], rows)
    assert [(row["message_id"], row["picked"], row["receipt"]) for row in found["batches"]] == [
        ("0", True, 0), ("3", True, 3),
    ]  # fmt: skip
    (letter,) = found["dead_letters"]
    assert list(letter) == dead_letter.BATCH.names
    assert (letter["stage"], letter["reason"], letter["message"]) == ("test: picky", "other", "no")
    assert (letter["envelope_id"], letter["receipt"]) == ("e-1", 1)
    assert b'"messageId":"1"' in letter["payload"]
    (left_out,) = found["dropped"]
    assert list(left_out) == dropped.BATCH.names
    assert (left_out["message_id"], left_out["rule"], left_out["receipt"]) == ("2", "picky", 2)


def test_an_event_at_which_a_step_raises_goes_on_without_its_columns_and_the_others_with_them():
    names = ["go", "break", "drop", "refuse", "go"]
    rows = [event(str(number), number / 10, event=name) for number, name in enumerate(names)]
    found = run([Picky()], rows)
    assert [(row["message_id"], row["picked"]) for row in found["batches"]] == [("0", True), ("1", None), ("4", True)]
    assert [row["message_id"] for row in found["dropped"]] == ["2"]
    assert len(found["dead_letters"]) == 1


def test_without_steps_batches_pass_as_they_are():
    rows = [event("1"), event("2", 1)]
    found = run([], rows)
    assert found == {"batches": ordered(rows).to_pylist(), "dead_letters": [], "dropped": []}


def test_steps_need_different_names():
    with pytest.raises(ValueError, match="different names"):
        RunSteps([Seen(), Seen()], "test")


def test_memory_survives_a_runner_s_state_and_is_forgotten_in_time():
    users = Users()
    users.put("ann", (1, "x"), NOON_US)
    users.put("bob", (2, "y"), NOON_US + 10)
    again = Users.from_bytes(users.to_bytes())
    assert (again.get("ann"), again.get("bob"), len(again)) == ([1, "x"], [2, "y"], 2)
    again.sweep(NOON_US + 100, keep_us=95)
    assert (again.get("ann"), again.get("bob")) == (None, [2, "y"])
    again.forget("bob")
    assert len(again) == 0
    assert len(Users.from_bytes(None)) == 0


def test_runs_of_users():
    rows = [event("1", user="ann"), event("2", 1, user="ann"), event("3", user="bob")]
    assert list(user_runs(ordered(rows))) == [("ann", 0, 2), ("bob", 2, 3)]
    assert list(user_runs(ordered(rows).slice(0, 0))) == []


def test_times_of_rows_come_through():
    (row,) = run([Seen()], [event("1", 1.5)])["batches"]
    assert row["occurred_at"] == dt.datetime(2026, 11, 25, 12, 0, 1, 500_000, dt.UTC)


def test_what_the_archive_holds_already_goes_on_unseen_by_what_remembers_users():
    fn = run_steps._RememberFn((Seen(),), "test", alone=True, is_archived=_is_a2)
    users = Users()
    (_, again), (_, seen) = fn._run(0, ordered([event("a1"), event("a2", 1), event("a3", 2)]), {"seen": users})
    assert [(row["message_id"], row["seen"]) for row in again.to_pylist()] == [("a2", None)]
    assert [(row["message_id"], row["seen"]) for row in seen.to_pylist()] == [("a1", 1), ("a3", 2)]
    assert users.get("ann") == 2


def _is_a2(given: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    return np.array([each == "a2" for each in given.column("message_id").to_pylist()])
