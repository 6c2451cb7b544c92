"""Users' transforms in the whole graph: from the configuration's text to the tables."""

import json
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from millrace.config.job import read_job
from millrace.pipelines import events
from millrace.pipelines.options import EventOptions
from millrace.schemas.envelope import Envelope
from millrace.sinks.delta import open_table
from millrace.sinks.job_tables import Tables, forget_committer
from millrace.sinks.tables import SPECS
from millrace.transforms.steps import forget_here
from tests.pipelines.test_graph import an_event, envelope
from tests.support.custom import MODULE
from tests.support.transforms import SECRET

CONFIG = f"""
transforms:
  - use: {MODULE}:euros
    with: {{rate: 3}}
    when: event != "quiet" or event is null
  - use: {MODULE}:lengths
    on_error: pass
  - use: {MODULE}:Numbered
  - use: {MODULE}:plan
"""
NAMES = ["Order", "split", "drop", "raise", "quiet", "Order", "yield", "type", "Order", "wrong"]
EVENTS = [
    an_event(number, user, -9 + number / 2, event=name, properties={"total": number})
    for number, (name, user) in enumerate(zip(NAMES, ["ann", "bob"] * 5, strict=True))
]


def run(folder: Path, envelopes: list[Envelope], config: str = CONFIG) -> dict[str, list[dict[str, Any]]]:
    job = read_job(config, "millrace.yaml")
    tables = Tables.at(folder, added=job.added)
    try:
        with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
            read = pipeline | "ReadEnvelopes" >> beam.Create([envelopes]).with_output_types(list[Envelope])
            events.build(read, EventOptions(["--shards=3"]), job, tables)
    finally:
        forget_committer(tables)
        forget_here()
    found = {}
    for spec in SPECS:
        table = open_table(f"{folder}/{spec.name.replace(' ', '_')}", spec).delta.to_pyarrow_table()
        by = [(name, "ascending") for name in (*spec.sort_columns, "envelope_id", "envelope_index")]
        found[spec.name] = table.sort_by(by).to_pylist()
    return found


def in_envelopes(given: list[dict[str, Any]], size: int) -> list[Envelope]:
    return [envelope(given[start : start + size], "batch", start, 0) for start in range(0, len(given), size)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return run(tmp_path_factory.mktemp("tables"), in_envelopes(EVENTS, 4))


def test_added_columns_are_columns_of_the_archive(found: dict[str, list[dict[str, Any]]]):
    columns = ("message_id", "event", "total_eur", "length", "number", "plan")
    assert [tuple(row[name] for name in columns) for row in found["archive"]] == [
        ("m0", "Order", 0.0, 2, 1, "plan of ann"),
        ("m4", "quiet", None, 2, 2, "plan of ann"),
        ("m6", "Part 0", None, 2, 3, "plan of ann"),
        ("m6/euros/1", "Part 1", None, 10, 4, "plan of ann"),
        ("m8", "Order", 24.0, 2, 5, "plan of ann"),
        ("m1", "split", None, 2, 1, "plan of bob"),
        ("m1/numbered/1", "Part", None, 2, 1, "plan of bob"),
        ("m1/euros/1", "Part", None, 10, 2, "plan of bob"),
        ("m1/euros/2", "Part", None, 10, 3, "plan of bob"),
        ("m5", "Order", 15.0, 2, 4, "plan of bob"),
    ]
    for user in ("ann", "bob"):
        index = [row["order_index"] for row in found["archive"] if row["user_key"] == user]
        assert index == sorted(set(index))


def test_what_failed_is_a_dead_letter_with_its_payload_and_no_word_of_what_it_held(
    found: dict[str, list[dict[str, Any]]],
):
    letters = {json.loads(row["payload"])["messageId"]: row for row in found["dead letters"]}
    assert sorted(letters) == ["m3", "m7", "m9"]
    assert {(row["stage"], row["reason"]) for row in letters.values()} == {("transform: euros", "transform_failed")}
    assert letters["m3"]["message"].startswith("euros 3: KeyError (transforms.py:")
    assert not [row for row in letters.values() if SECRET in row["message"]]


def test_what_was_left_out_is_recorded_under_the_transform_s_name(found: dict[str, list[dict[str, Any]]]):
    assert [(row["message_id"], row["rule"]) for row in found["dropped"]] == [("m2", "euros")]


def test_the_accounts_close(found: dict[str, list[dict[str, Any]]]):
    places = [
        (row["envelope_id"], row["envelope_index"])
        for name, rows in found.items()
        for row in rows
        if "/" not in (row.get("message_id") or "")
    ]
    assert len(places) == len(set(places)) == len(EVENTS)


def test_another_arrangement_gives_the_same_rows(found: dict[str, list[dict[str, Any]]], tmp_path: Path):
    again = run(tmp_path, in_envelopes([*EVENTS[::-1], *EVENTS[:5]], 1))
    ignored = {"envelope_id", "envelope_index", "published_at"}
    for name in ("archive", "dead letters", "dropped"):
        kept = [
            [
                {key: value for key, value in row.items() if key not in ignored and not key.endswith("ed_at")}
                for row in rows
            ]
            for rows in (sorted(again[name], key=_id), sorted(found[name], key=_id))
        ]
        assert kept[0] == kept[1]


def _id(row: dict[str, Any]) -> Any:
    return row.get("message_id") or row["payload"]


def test_every_row_that_a_transform_made_and_a_later_one_left_out_is_recorded(tmp_path: Path):
    config = f"""
transforms:
  - use: {MODULE}:euros
    when: event == "split"
  - use: {MODULE}:euros
    name: again
    when: event == "split"
  - use: {MODULE}:dropping
"""
    found = run(tmp_path, in_envelopes([an_event(1, "ann", -9, event="split")], 1), config)
    made = [row["message_id"] for row in found["dropped"]]
    assert found["archive"] == []
    assert sorted(made) == [
        "m1", "m1/again/1", "m1/again/2", "m1/euros/1", "m1/euros/2",
    ]  # fmt: skip
