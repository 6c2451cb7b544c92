"""Sessions and touches through the graph: what the archive says of them hangs on the events alone."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.config.job import read_job
from millrace.pipelines import events
from millrace.pipelines.options import EventOptions
from millrace.schemas.envelope import Envelope
from millrace.sinks.delta import open_table
from millrace.sinks.job_tables import Tables, forget_committer
from millrace.sinks.tables import ARCHIVE
from millrace.transforms.steps import forget_here
from tests.support.along import Row, in_order, micros, sessions_of, touches_of
from tests.support.batches import NOON_US

CONFIG = read_job("sessions:\n  gap_min: 10\ntouch:\n", "millrace.yaml")
LEFT_OUT = {"published_at", "envelope_id", "envelope_index"}


def an_event(number: int, user: str, minute: int, **context: Any) -> dict[str, Any]:
    at = f"2026-11-25T{10 + minute // 60:02}:{minute % 60:02}:00Z"
    return {
        "type": "track", "event": "Viewed", "messageId": f"m{number}", "userId": user, "originalTimestamp": at,
        "context": context,
    }  # fmt: skip


# Two hours of five users over three shards, each with a context of their own.
CONTEXTS: list[dict[str, Any]] = [
    {}, {"campaign": {"source": "mail"}}, {"sessionId": 7}, {"page": {"referrer": "https://news.example/"}}, {},
]  # fmt: skip
EVENTS = [an_event(number, f"user-{number % 5}", number * 37 % 120, **CONTEXTS[number % 5]) for number in range(35)]


def run(pulls: Sequence[Sequence[Envelope]], *, alone: bool = True) -> list[Row]:
    """Run the graph behind the read in memory; return the archive's rows in order."""
    with tempfile.TemporaryDirectory() as folder:
        tables = Tables.at(Path(folder), added=CONFIG.added, alone=alone)
        forget_here()
        try:
            with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
                read = pipeline | beam.Create(list(map(list, pulls))).with_output_types(list[Envelope])
                events.build(read, EventOptions(["--shards=3"]), CONFIG, tables)
        finally:
            forget_committer(tables)
            forget_here()
        return in_order(open_table(tables.archive, ARCHIVE).delta.to_pyarrow_table().to_pylist())


def envelope(given: Sequence[dict[str, Any]], number: int) -> Envelope:
    attributes = {"source_id": "shop", "received_at": "2026-11-25T12:00:00Z"}
    # Published within the waits of the newest: how late the others are depends on nothing else.
    return Envelope(json.dumps(given).encode(), attributes, f"e{number}", NOON_US, NOON_US)


def but_for_the_envelope(rows: Sequence[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name not in LEFT_OUT} for row in rows]


@pytest.fixture(scope="module")
def expected() -> list[Row]:
    """The archive's rows when each event comes in an envelope of its own, in order."""
    return run([[envelope([each], number)] for number, each in enumerate(EVENTS)])


def test_the_archive_has_their_columns_as_the_rules_say_event_by_event(expected: list[Row]):
    sessions = {
        row["message_id"]: (row["session_index"], micros(row["session_start"]), row["session_by"]) for row in expected
    }
    assert sessions == sessions_of(expected, gap_min=10)
    assert {by for _, _, by in sessions.values()} == {"gap", "sdk"}
    by_source = [row for row in expected if row["user_key"] != "user-3"]
    assert {
        row["message_id"]: (row["first_touch_source"], row["last_touch_source"]) for row in by_source
    } == touches_of(by_source)
    assert {row["last_touch_referrer"] for row in expected if row["user_key"] == "user-3"} == {"news.example"}


def test_where_the_runner_keeps_the_memory_the_rows_are_the_same(expected: list[Row]):
    found = run([[envelope([each], number) for number, each in enumerate(EVENTS)]], alone=False)
    assert but_for_the_envelope(found) == but_for_the_envelope(expected)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(st.permutations(EVENTS), st.lists(st.integers(1, 9), min_size=35, max_size=35), st.integers(1, 4))
def test_any_arrangement_and_split_gives_the_same_rows(
    expected: list[Row], arranged: list[dict[str, Any]], sizes: list[int], pull: int
):
    envelopes, left = [], arranged
    for number, size in enumerate(sizes):
        if left:
            envelopes.append(envelope(left[:size], number))
            left = left[size:]
    pulls = [envelopes[start : start + pull] for start in range(0, len(envelopes), pull)]
    assert but_for_the_envelope(run(pulls)) == but_for_the_envelope(expected)
