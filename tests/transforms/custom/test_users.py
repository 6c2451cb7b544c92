"""A user's state: there again at the next event, forgotten in time, of one version, and rebuilt from the archive."""

import dataclasses
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from millrace.schemas.event import ARCHIVE, RECEIPT
from millrace.sinks.job_tables import Tables, committer, forget_committer
from millrace.sinks.recall import recall_steps
from millrace.transforms.batches import shard_of
from millrace.transforms.custom.per_event import state_bytes
from millrace.transforms.order import OrderPerUser
from millrace.transforms.run_steps import RunSteps
from millrace.transforms.steps import Users, forget_here, users_here
from tests.support.batches import NOON_US, batch, event
from tests.support.custom import configured, ordered, run

HOUR_S = 3_600
NAMES = ["a", "split", "raise", "z", "a"]


def numbers(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {row["message_id"]: row["number"] for row in rows}


def test_each_user_has_a_state_of_their_own_that_goes_from_batch_to_batch():
    rows = [event(f"{user}{at}", at, user=user) for at in range(3) for user in ("ann", "bob")]
    users = [Users()]
    first = run(configured("Numbered"), rows[:3], users=users)
    second = run(configured("Numbered"), rows[3:], users=[Users.from_bytes(users[0].to_bytes())])
    expected = {f"{user}{at}": at + 1 for at in range(3) for user in ("ann", "bob")}
    assert numbers(first.rows) | numbers(second.rows) == expected


def test_an_event_at_which_it_raises_leaves_the_state_as_it_was():
    names = ["a", "raise", "state", "a", "drop", "a", "forget", "a"]
    found = run(configured("Numbered"), [event(str(at), at, event=name) for at, name in enumerate(names)])
    assert numbers(found.rows) == {"0": 1, "3": 2, "5": 4, "6": None, "7": 1}
    assert ([message_id for message_id, _ in found.refused], found.dropped) == (["1", "2"], ["4"])


@pytest.mark.parametrize(("silent_s", "number"), [(HOUR_S, 3), (HOUR_S + 0.000001, 1)])
def test_a_user_who_was_silent_for_longer_than_the_class_remembers_is_new(silent_s: float, number: int):
    rows = [event("1"), event("2", 1), event("3", 1 + silent_s)]
    for cuts in ((), (1, 2)):
        assert numbers(run(configured("Numbered"), rows, *cuts).rows)["3"] == number


def test_a_state_of_another_version_is_migrated_or_discarded():
    for use, number in (("Numbered", 3), ("Numbered2", 201), ("Numbered3", 1)):
        users = [Users()]
        run(configured("Numbered, name: n"), [event("1"), event("2", 1)], users=users)
        assert numbers(run(configured(f"{use}, name: n"), [event("3", 2)], users=users).rows) == {"3": number}


def test_what_a_state_takes_is_known():
    users = Users()
    run(configured("Numbered"), [event("1"), event("2", 1), event("3", user="bob")], users=[users])
    size, count = state_bytes([users])
    assert (size, count) == (sum(len(value[2]) for value in users.values()), 2)
    assert size > 10


_FOUND: list[dict[str, Any]] = []


def _keep(batches: list[tuple[int, pa.RecordBatch]]) -> None:
    _FOUND[:] = [row for _, rows in batches for row in rows.to_pylist()]


@pytest.mark.parametrize("alone", [True, False])
def test_in_the_graph_it_is_this_process_s_or_the_runner_s_state(alone: bool):
    forget_here()
    windows = [[event(f"{user}{at}", at, user=user) for user in ("ann", "bob")] for at in (0, 1, 6, 60)]
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        given = pipeline | beam.Create([batch(rows) for rows in windows]).with_output_types(pa.RecordBatch)
        batches = OrderPerUser(wait_s=0, shards=2).expand(given).batches
        doors = batches | RunSteps(configured("Numbered"), "transform", alone=alone)
        assert_that(doors.batches, _keep)
    forget_here()
    assert numbers(_FOUND) == {
        f"{user}{at}": number for user in ("ann", "bob") for number, at in enumerate((0, 1, 6, 60), 1)
    }


@pytest.fixture
def tables(tmp_path: Path):
    (step,) = configured("Numbered")
    found = Tables.at(tmp_path, added=step.adds)
    yield found
    forget_committer(found)
    forget_here()


def commit(tables: Tables, rows: pa.RecordBatch) -> None:
    committer(tables).commit_events([committer(tables).write_ahead(rows)], NOON_US)


@pytest.mark.parametrize("when", ["", "event != 'z'"])
def test_on_one_node_it_is_rebuilt_from_the_archive_as_if_it_had_gone_on(tables: Tables, when: str):
    rows = [event(f"m{at:02}", at * 60, user=f"user {at % 3}", event=NAMES[at * 7 % 5]) for at in range(40)]
    entry = "Numbered, on_error: pass" + (f'; when: "{when}"' if when else "")
    (step,) = configured(entry)
    users = Users()
    before = step.apply(ordered(rows[:25]), users)
    commit(dataclasses.replace(tables, added=step.adds), before.batch)
    expected = step.apply(ordered(rows[25:]), users).batch

    forget_here()
    (again,) = configured(entry)
    recall_steps(dataclasses.replace(tables, added=step.adds), [again], shards=2)
    found = []
    for shard in range(2):
        of_shard = ordered(rows[25:]).filter(pa.array(_shards(rows[25:]) == shard))
        found += again.apply(of_shard, users_here(again, shard)).batch.to_pylist()
    assert sorted(found, key=_place) == sorted(expected.to_pylist(), key=_place)


def _place(row: dict[str, Any]) -> tuple[str, int]:
    return row["user_key"], row["order_index"]


def _shards(rows: list[dict[str, Any]]) -> Any:
    return shard_of(ordered(rows).column("user_key"), 2)


def test_what_is_older_than_it_remembers_is_not_rebuilt(tables: Tables):
    (step,) = configured("Numbered")
    rows = [event("1"), event("2", HOUR_S), event("3", 2 * HOUR_S)]
    commit(tables, step.apply(ordered(rows), Users()).batch)
    recall_steps(tables, [step], shards=1)
    found = step.apply(ordered([event("4", 2 * HOUR_S + 1)]), users_here(step, 0)).batch
    assert found.column("number").to_pylist() == [3]  # in one go it would have been 4: docs/guarantees.md says so


def test_recall_reads_only_what_the_class_says_and_what_the_archive_has(tables: Tables):
    (step,) = configured("Numbered")
    assert step.recalls == tuple(ARCHIVE.names)
    assert RECEIPT.name not in step.recalls
    commit(tables, step.apply(ordered([event("1")]), Users()).batch)
    step.recalls = ("message_id", "event", "not_there")
    recall_steps(tables, [step], shards=1)
    assert len(users_here(step, 0)) == 1


def test_a_class_that_does_not_name_what_it_reads_is_told_of(tables: Tables, caplog: pytest.LogCaptureFixture):
    (step,) = configured("Numbered")
    commit(tables, step.apply(ordered([event("1"), event("2")]), Users()).batch)
    step.recalls = ("message_id",)
    recall_steps(tables, [step], shards=1)
    (message,) = caplog.messages
    assert message.startswith("transform numbered: 2 archived events could not be recalled: KeyError (transforms.py:")
