"""Events that a step makes of one: their message waits until all of them are safe, and each has a letter of its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from millrace.schemas.dead_letter import Reason
from millrace.sinks.committed_ids import CommittedIds, letter_keys
from millrace.transforms import run_steps
from millrace.transforms.custom.declare import on_event
from millrace.transforms.custom.event import Event
from millrace.transforms.custom.step import CustomStep
from millrace.transforms.letters import letters_of
from millrace.transforms.receipts import Ledger
from millrace.transforms.steps import Applied, Refused, Step, Users
from tests.support.batches import NOON_US, event
from tests.support.commits import Desk
from tests.support.custom import ordered


@on_event()
def in_two(event: Event) -> list[Event]:
    return [event, event.copy()]


class NoOriginals(Step):
    """Leaves out what no step has made, or refuses it."""

    name = "made_only"

    def __init__(self, *, refuses: bool) -> None:
        self._refuses = refuses

    def apply(self, batch: pa.RecordBatch, users: Users) -> Applied:  # noqa: ARG002
        made = ["/" in each for each in batch.column("message_id").to_pylist()]
        rows = [row for row, is_made in enumerate(made) if not is_made]
        kept = batch.filter(pa.array(made))
        if self._refuses:
            return Applied(kept, [Refused(row, Reason.OTHER, "no") for row in rows])
        return Applied(kept, dropped=rows)


@pytest.mark.parametrize("refuses", [False, True])
def test_a_message_is_not_ready_before_what_was_made_of_its_event_is_safe(
    refuses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger()
    monkeypatch.setattr(run_steps, "LEDGER", ledger)
    receipt = ledger.open(["ack"], [1], 1e9, NOON_US)
    ledger.expect(np.array([receipt]), np.array([1]))
    split = CustomStep("split", "", "event", target=in_two)
    run = run_steps._RunFn((split, NoOriginals(refuses=refuses)), "transform", alone=True)
    left, (_, kept) = run.process((0, ordered([event("m", receipt=receipt)])))
    left = left.value
    assert (left.num_rows, kept.num_rows) == (1, 1)

    def settle(batch: pa.RecordBatch) -> list[str]:
        receipts, counts = np.unique(batch.column("receipt").to_numpy(), return_counts=True)
        ledger.settle(receipts, counts)
        return ledger.take_ready()

    assert settle(left) == []
    assert settle(kept) == ["ack"]


def refused(message_id: str, **more: Any) -> pa.RecordBatch:
    return letters_of(
        ordered([event(message_id, **more)]), "transform: check", [Refused(0, Reason.OTHER, "no")], NOON_US
    )


def test_each_event_that_was_made_of_one_has_its_letter_and_no_second_one(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    both = [refused("m", envelope_id="e"), refused("m/split/1", envelope_id="e")]
    assert desk.committer.commit_records("dead_letters", both, NOON_US).rows == 2
    assert desk.committer.commit_records("dead_letters", both, NOON_US).rows == 0
    desk.restart()
    assert desk.committer.commit_records("dead_letters", both[::-1], NOON_US).rows == 0


def test_letters_that_no_step_has_made_are_held_by_their_place_alone() -> None:
    ids = CommittedIds(600, letter_keys)
    letter = refused("m", envelope_id="e")
    decoded = letter.set_column(letter.schema.get_field_index("stage"), "stage", pa.array(["decode"]))
    ids.add(ids.keys_of(decoded), 0)
    other = decoded.set_column(decoded.schema.get_field_index("payload"), "payload", pa.array([b"\xff"], pa.binary()))
    assert ids.holds(ids.keys_of(other)).tolist() == [True]
