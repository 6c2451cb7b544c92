"""Contracts in the job: from the section of millrace.yaml to the archive's columns, also of an older archive."""

import json
from pathlib import Path
from typing import Any

import apache_beam as beam
import duckdb
import pytest
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from deltalake import DeltaTable

from millrace.config.job import JobConfig, read_job
from millrace.pipelines import events
from millrace.pipelines.options import EventOptions
from millrace.schemas.contracts import ADDED
from millrace.schemas.envelope import Envelope
from millrace.sinks.delta import open_table
from millrace.sinks.job_tables import Tables, forget_committer
from millrace.sinks.tables import ARCHIVE, DEAD_LETTERS, with_columns
from tests.support.archives import write_archive
from tests.support.batches import NOON_US, batch, event
from tests.support.plans import record, write_plan

GOOD = {"order_id": "o-1", "total": 1.5}
BAD = {"order_id": "o-2", "total": "1.5", "more": 1}


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    """Order Completed is flagged, from tills refused, from the app stripped."""
    folder = write_plan(tmp_path / "plan", order_completed=record("Order", order_id="string", total="double"))
    section = f"contracts: {{folder: {folder}, unplanned: off, sources: {{tills: dead_letter, app: strip}}}}"
    return read_job(section, "millrace.yaml")


def envelope(number: int, source: str, properties: dict[str, Any]) -> Envelope:
    body = {
        "type": "track", "event": "Order Completed", "messageId": f"m{number}", "userId": "ann",
        "originalTimestamp": f"2026-11-25T12:00:0{number}Z", "properties": properties,
    }  # fmt: skip
    return Envelope(json.dumps(body).encode(), {"source_id": source}, f"e{number}", NOON_US, NOON_US)


def run(tables: Tables, config: JobConfig, *envelopes: Envelope) -> None:
    try:
        with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
            read = pipeline | "ReadEnvelopes" >> beam.Create([list(envelopes)]).with_output_types(list[Envelope])
            events.build(read, EventOptions([]), config, tables)
    finally:
        forget_committer(tables)


def test_flagged_stripped_and_refused_events_are_each_in_their_table(tmp_path: Path, config: JobConfig):
    tables = Tables.at(tmp_path / "data", added=config.added)
    sent = [("shop", GOOD), ("shop", BAD), ("app", BAD), ("tills", BAD), ("tills", GOOD)]
    run(tables, config, *(envelope(number, *each) for number, each in enumerate(sent)))
    rows = (
        open_table(tables.archive, with_columns(ARCHIVE, ADDED))
        .delta.to_pyarrow_table()
        .sort_by("message_id")
        .to_pylist()
    )
    found = {row["message_id"]: (json.loads(row["properties"]), row["contract"], row["violations"]) for row in rows}
    total = '{"kind":"wrong_type","field":"properties.total","found":"string","expected":"double","action":"%s"}'
    more = '{"kind":"extra_field","field":"properties.more","found":"number","expected":"no such field","action":"%s"}'
    name = "order_completed/1"
    assert found == {
        "m0": (GOOD, name, None),
        "m1": (BAD, name, f"[{total % 'kept'},{more % 'kept'}]"),
        "m2": ({"order_id": "o-2", "total": None}, name, f"[{total % 'nulled'},{more % 'removed'}]"),
        "m4": (GOOD, name, None),
    }
    (letter,) = open_table(tables.dead_letters, DEAD_LETTERS).delta.to_pyarrow_table().to_pylist()
    assert (letter["stage"], letter["reason"], letter["message"]) == (
        "validate", "contract_violated",
        "order_completed/1: wrong_type properties.total: found string, expected double; 1 more",
    )  # fmt: skip
    assert json.loads(letter["payload"])["properties"] == BAD


def test_an_archive_made_before_gets_the_columns_and_its_old_files_read_with_nulls(tmp_path: Path, config: JobConfig):
    tables = Tables.at(tmp_path / "data", added=config.added)
    write_archive(Path(tables.archive), [event("old", event="Order Completed", properties="{}")])
    before = DeltaTable(tables.archive)
    assert not {field.name for field in ADDED} & {field.name for field in before.schema().fields}
    run(tables, config, envelope(1, "shop", BAD))

    after = DeltaTable(tables.archive)
    by_delta = (
        after.to_pyarrow_table(columns=["message_id", "contract", "violations"]).sort_by("message_id").to_pylist()
    )
    assert [(row["message_id"], row["contract"], bool(row["violations"])) for row in by_delta] == [
        ("m1", "order_completed/1", True), ("old", None, False),
    ]  # fmt: skip
    files = after.file_uris()
    field = "json_extract_string(violations, '$[0].field')"
    query = f"select message_id, contract, {field} from read_parquet(?, union_by_name = true) order by 1"  # noqa: S608
    assert duckdb.execute(query, [files]).fetchall() == [
        ("m1", "order_completed/1", "properties.total"), ("old", None, None),
    ]  # fmt: skip


def test_contracts_switched_off_again_leave_the_columns_and_nulls_in_them(tmp_path: Path, config: JobConfig):
    first = Tables.at(tmp_path / "data", added=config.added)
    run(first, config, envelope(1, "shop", BAD))
    run(Tables.at(tmp_path / "data"), JobConfig(), envelope(2, "shop", BAD))
    rows = DeltaTable(first.archive).to_pyarrow_table(columns=["message_id", "contract"]).sort_by("message_id")
    assert rows.to_pylist() == [{"message_id": "m1", "contract": "order_completed/1"},
                                {"message_id": "m2", "contract": None}]  # fmt: skip


def test_the_stage_stands_before_the_order_and_takes_the_plan_with_it(
    tmp_path: Path, config: JobConfig, monkeypatch: pytest.MonkeyPatch
):
    pipeline = beam.Pipeline(options=PipelineOptions([], streaming=True))
    read = pipeline | "ReadEnvelopes" >> beam.Create([]).with_output_types(list[Envelope])
    events.build(read, EventOptions([]), config, Tables.at(tmp_path / "data"))
    proto = pipeline.to_runner_api()
    (root,) = proto.root_transform_ids
    labels = [proto.components.transforms[each].unique_name for each in proto.components.transforms[root].subtransforms]
    assert labels[:4] == ["ReadEnvelopes", "DecodeEnvelopes", "ValidateEvents", "DeduplicateEvents"]
    (validate,) = (
        each
        for each in proto.components.transforms.values()
        if each.unique_name.startswith("ValidateEvents/") and each.spec.urn == common_urns.primitives.PAR_DO.urn
    )
    monkeypatch.chdir("/")  # a worker has no such folder
    for file in (tmp_path / "plan").rglob("*.avsc"):
        file.unlink()
    payload = beam_runner_api_pb2.ParDoPayload.FromString(validate.spec.payload)
    fn, *_ = pickler.loads(payload.do_fn.payload)
    fn.setup()
    (found,) = fn.process(batch([event("m", event="Order Completed", properties=json.dumps(BAD))]))
    assert json.loads(found.column("violations")[0].as_py())[0]["field"] == "properties.total"
