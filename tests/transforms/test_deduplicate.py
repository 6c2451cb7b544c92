"""Deduplicate: on one node by this process's memory, elsewhere by the runner's state; the same rule."""

import contextlib
import functools
import itertools
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing import test_stream
from apache_beam.testing.util import assert_that
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from millrace.local.prism import Prism, find_prism
from millrace.transforms import copies, deduplicate_doors, deduplicate_state
from millrace.transforms.counts import counted_here
from millrace.transforms.deduplicate import DeduplicateEvents
from millrace.transforms.deduplicate_state import ByShardFn
from tests.support.batches import NOON_US, batch, event

NOON_S = NOON_US // 1_000_000
_FOUND: dict[str, list[dict[str, Any]]] = {}
_RUNS = itertools.count()
Row = dict[str, Any]


def buy(message_id: str, envelope: str, at_s: float = 0, price: int = 1, **more: Any) -> Row:
    return event(message_id, at_s, envelope_id=envelope, properties=f'{{"price":{price}}}', **more)


def _keep(door: str, batches: Sequence[pa.RecordBatch]) -> None:
    _FOUND[door] = [row for each in batches for row in each.to_pylist()]


def attach(batches: Any, **settings: Any) -> None:
    settings.setdefault("run_id", f"run {next(_RUNS)}")
    doors = batches | "DeduplicateEvents" >> DeduplicateEvents(**settings)
    assert_that(doors.batches, functools.partial(_keep, "batches"), label="batches")
    assert_that(doors.duplicates, functools.partial(_keep, "duplicates"), label="duplicates")


def found() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return (envelope, id) of what went on, and (envelope, id of the kept one) of the copies."""
    kept = sorted((row["envelope_id"], row["message_id"].partition("~")[0] + "~" * ("~" in row["message_id"]))
                  for row in _FOUND.pop("batches"))  # fmt: skip
    return kept, sorted((row["envelope_id"], row["kept_message_id"]) for row in _FOUND.pop("duplicates"))


def run(*batches: Sequence[Row], **settings: Any) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Run batches through the graph, one after the other."""
    stamped = [TimestampedValue(batch(rows), Timestamp(micros=rows[0]["arrived_at"])) for rows in batches]
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        given = pipeline | beam.Create(stamped) | beam.Map(lambda each: each).with_output_types(pa.RecordBatch)
        attach(given, **settings)
    return found()


BATCHES = [
    [buy("a", "e1", 0), buy("b", "e2", 1), buy("a", "e3", 2), buy("a", "e4", 3, price=2)],
    [buy("a", "e5", 10), buy("c", "e6", 11), buy("a", "e7", 12, price=2), buy("b", "e8", 13, price=3)],
]
KEPT = [("e1", "a"), ("e2", "b"), ("e4", "a~"), ("e6", "c"), ("e8", "b~")]


@pytest.fixture(params=["kept by the worker", "read from the state"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which a worker comes by a shard's memory."""
    if request.param == "read from the state":
        monkeypatch.setattr(deduplicate_state._WORKERS, "take", lambda _shard, _token: None)
    name: str = request.param
    return name


@pytest.mark.parametrize("alone", [True, False])
def test_over_batches_the_first_goes_on_and_the_copies_leave_records(alone: bool, memory: str):
    kept, duplicates = run(*BATCHES, alone=alone, shards=3)
    assert kept == KEPT
    assert [envelope for envelope, _ in duplicates] == ["e3", "e5", "e7"]


@pytest.mark.parametrize("alone", [True, False])
def test_what_is_delivered_again_goes_on_on_one_node_and_elsewhere_ends_here(alone: bool, memory: str):
    kept, duplicates = run(*BATCHES, *BATCHES, alone=alone, shards=3)
    assert kept == sorted(KEPT * 2 if alone else KEPT)
    assert len(duplicates) == 6


@pytest.mark.parametrize("alone", [True, False])
def test_it_counts_what_leaves_by_which_door(alone: bool):
    before = counted_here()
    run(*BATCHES, BATCHES[0][:2], alone=alone)
    after, stage = counted_here(), deduplicate_doors.STAGE
    counts = {name: after.get(f"{stage}/{name}", 0) - before.get(f"{stage}/{name}", 0)
              for name in ("events_out", "duplicates", "synthetic", "repeats")}  # fmt: skip
    assert counts == {"events_out": 7 if alone else 5, "duplicates": 3, "synthetic": 2, "repeats": 2}


def test_without_a_horizon_batches_pass_as_they_are():
    rows = [buy("a", "e1"), buy("a", "e2")]
    for alone in (True, False):
        assert run(rows, horizon_s=0, alone=alone) == ([("e1", "a"), ("e2", "a")], [])
    assert copies.added(0) == ()
    assert [field.name for field in copies.added(1)] == ["fingerprint", "duplicate_of"]


def test_two_runs_in_a_process_have_a_memory_each():
    assert run([buy("a", "e1")], run_id="one") == ([("e1", "a")], [])
    assert run([buy("a", "e2")], run_id="two") == ([("e2", "a")], [])
    assert run([buy("a", "e3")], run_id="one") == ([], [("e3", "a")])


def test_that_the_bound_shortens_the_horizon_is_said_once_and_counted(caplog: pytest.LogCaptureFixture):
    deduplicate_doors._say_that_the_horizon_is_shorter.cache_clear()
    before = counted_here().get("deduplicate/forgotten_early", 0)
    with caplog.at_level(logging.WARNING, logger=deduplicate_doors.__name__):
        run(*([buy(f"m{number}", f"e{number}", number)] for number in range(30)), max_ids=10)
    (record,) = [each for each in caplog.records if each.name == deduplicate_doors.__name__]
    assert record.getMessage().startswith("more than 10 events in --dedup_horizon_s: the oldest are forgotten early")
    assert counted_here()["deduplicate/forgotten_early"] - before == 20


@pytest.mark.parametrize("wrong", [{"horizon_s": -1}, {"max_ids": 0}, {"shards": 0}])
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match="need horizon_s >= 0, max_ids >= 1, shards >= 1"):
        DeduplicateEvents(**wrong)


def test_every_row_is_in_one_shard_and_copies_in_the_same():
    rows = [buy(f"m{number % 50}", f"e{number}", number) for number in range(200)]
    pieces = list(ByShardFn(7).process(batch(rows)))
    assert sorted(row["envelope_id"] for _, piece in pieces for row in piece.to_pylist()) == sorted(
        row["envelope_id"] for row in rows
    )
    shards = {(id_, shard) for shard, piece in pieces for id_ in piece.column("message_id").to_pylist()}
    assert len(shards) == 50
    assert {shard for shard, _ in pieces} == set(range(7))
    assert list(ByShardFn(7).process(batch([]))) == []


@contextlib.contextmanager
def on_prism(folder: Path) -> Iterator[beam.Pipeline]:
    # Beam's threads that talk to Prism say so when it goes.
    with mock.patch.object(threading, "excepthook", return_value=None):
        with (
            Prism(find_prism(None, print), log=folder / "prism.log", notes=folder / "notes") as prism,
            beam.Pipeline(options=PipelineOptions(prism.pipeline_arguments, streaming=True)) as pipeline,
        ):
            yield pipeline
        for thread in threading.enumerate():
            if thread.name == "read_state":
                thread.join(10)


@pytest.mark.slow
@pytest.mark.parametrize("alone", [True, False])
def test_on_prism_a_copy_is_new_again_once_the_horizon_has_passed(tmp_path: Path, alone: bool, memory: str):
    def at(rows: Sequence[Row]) -> TimestampedValue:
        return TimestampedValue(batch(rows), Timestamp(micros=rows[0]["arrived_at"]))

    # The 800 s horizon passes between the third and the last; a part of it, and one for what arrives out of order, on.
    arrivals = (
        test_stream.TestStream(coder=beam.coders.registry.get_coder(pa.RecordBatch))
        .advance_watermark_to(NOON_S)
        .add_elements([at([buy("a", "e1"), buy("b", "e2", 1)])])
        .advance_watermark_to(NOON_S + 5)
        .add_elements([at([buy("a", "e3", 5)])])
        .advance_watermark_to(NOON_S + 800)
        .add_elements([at([buy("a", "e4", 800), buy("a", "e1", 800), buy("c", "e5", 800)])])
        .advance_watermark_to(NOON_S + 1_201)
        .add_elements([at([buy("a", "e6", 1_202), buy("c", "e7", 1_203)])])
        .advance_watermark_to_infinity()
    )
    with on_prism(tmp_path) as pipeline:
        given = pipeline | arrivals | beam.Map(lambda each: each).with_output_types(pa.RecordBatch)
        attach(given, horizon_s=800, alone=alone, shards=3)
    again = [("e1", "a")] if alone else []
    assert found() == (
        sorted([("e1", "a"), ("e2", "b"), ("e5", "c"), ("e6", "a"), *again]),
        [("e3", "a"), ("e4", "a"), ("e7", "c")],
    )
