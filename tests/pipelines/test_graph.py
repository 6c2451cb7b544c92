"""The graph: its shape, on every runner; and that what comes out hangs on the events alone."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.config.job import JobConfig
from millrace.pipelines import check, events
from millrace.pipelines.options import EventOptions
from millrace.pipelines.runners import Kind
from millrace.schemas.envelope import Envelope
from millrace.sinks.delta import open_table
from millrace.sinks.job_tables import Tables, forget_committer
from millrace.sinks.tables import SPECS
from millrace.transforms import copies
from tests.support.batches import NOON_US

LABELS = [
    "ReadEnvelopes", "DecodeEnvelopes", "DeduplicateEvents", "OrderPerUser", "EnrichEvents", "TransformEvents",
    "WriteArchive", "WriteDuplicates", "WriteDeadLetters", "WriteDropped",
]  # fmt: skip
SUBSCRIPTION = "projects/my-project/subscriptions/orders"
Rows = list[dict[str, Any]]


def tables_in(folder: Path, *, alone: bool = True) -> Tables:
    return Tables.at(folder, alone=alone, added=copies.added(EventOptions([]).dedup_horizon_s))


def job(folder: Path, kind: Kind, *options: str) -> beam.Pipeline:
    """Return the whole graph as main builds it, with its read."""
    given = [f"--subscription={SUBSCRIPTION}", *options]
    pipeline = beam.Pipeline(options=PipelineOptions(given, streaming=True))
    ours = EventOptions(given)
    tables = tables_in(folder, alone=kind is Kind.ONE_NODE)
    events.build(pipeline | "ReadEnvelopes" >> events.read(ours, kind), ours, JobConfig(), tables)
    return pipeline


def names(proto: Any, parent: str = "") -> list[str]:
    """Return the full names of the transforms right below one, in order."""
    transforms = proto.components.transforms
    (root,) = (
        [id_ for id_, each in transforms.items() if each.unique_name == parent] if parent else proto.root_transform_ids
    )
    return [transforms[id_].unique_name for id_ in transforms[root].subtransforms]


@pytest.mark.parametrize("kind", Kind)
def test_the_stages_stand_in_the_order_an_event_meets_them(tmp_path: Path, kind: Kind):
    proto = job(tmp_path, kind).to_runner_api()
    assert names(proto) == LABELS
    reads = ["ReadFromPubSub", "Wrap"] if kind is Kind.DATAFLOW else ["PubSubSource"]
    assert names(proto, "ReadEnvelopes") == [f"ReadEnvelopes/{name}" for name in reads]


@pytest.mark.parametrize("kind", Kind)
def test_every_function_of_the_graph_travels_to_a_worker(tmp_path: Path, kind: Kind):
    proto = job(tmp_path, kind).to_runner_api()
    travelled = []
    for transform in proto.components.transforms.values():
        if transform.spec.urn == common_urns.primitives.PAR_DO.urn:
            payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
            fn, *_ = pickler.loads(payload.do_fn.payload)
            assert isinstance(fn, beam.DoFn)
            travelled.append(type(fn).__name__)
    alone = kind is Kind.ONE_NODE
    decode, commit = ("_DecodeBesideFn", "_CommitInOrderFn") if alone else ("_DecodeFn", "_CommitFn")
    assert {decode, "_ReleaseFn", "_OrderFn", "_WriteFn", "_RunFn", commit, "_CommitRecordsFn"} <= set(travelled)


def test_dataflow_s_own_translation_takes_the_graph_and_reads_natively(tmp_path: Path):
    google = ["--project=my-project", "--region=europe-west4", "--job_name=orders", "--dry_run=true"]
    places = ["--temp_location=gs://bucket/temp", "--staging_location=gs://bucket/staging", "--no_auth"]
    pipeline = job(tmp_path, Kind.DATAFLOW, "--runner=DataflowRunner", *google, *places)
    result = pipeline.run()
    proto = result.job.proto_pipeline
    assert names(proto) == LABELS
    (read,) = (
        each for each in proto.components.transforms.values() if each.spec.urn == "beam:transform:pubsub_read:v1"
    )
    payload = beam_runner_api_pb2.PubSubReadPayload.FromString(read.spec.payload)
    assert (payload.subscription, payload.with_attributes) == (SUBSCRIPTION, True)
    assert read.unique_name.startswith("ReadEnvelopes/ReadFromPubSub/")


def an_event(number: int, user: str, at_s: float, **more: Any) -> dict[str, Any]:
    seconds = 12 * 3_600 + at_s
    clock = f"{int(seconds // 3600):02}:{int(seconds // 60 % 60):02}:{seconds % 60:06.3f}"
    at = {"originalTimestamp": f"2026-11-25T{clock}Z"}
    return {"type": "track", "event": "Viewed", "messageId": f"m{number}", "userId": user} | at | more


EVENTS = [
    an_event(1, "ann", -9.5, properties={"price": 1.5, "name": "Ä"}),
    an_event(2, "ann", -4, type="page", name="Cart", context={"page": {"path": "/cart"}, "extra": [1, {"a": None}]}),
    an_event(3, "ann", -4),  # at the same moment: the id decides
    an_event(4, "bob", -9, traits={"plan": "pro"}),
    an_event(5, "ann", 0.25),
    an_event(6, "bob", -0.001, context={"library": {"name": "web", "version": 2}}),
    an_event(7, "eve", -7, anonymousId="device", unknown={"kept": True}),
]
# Other events, whose sender has reused ids.
REUSED = [
    an_event(1, "ann", -9, properties={"price": 2}),
    an_event(4, "bob", -3, traits={"plan": "free"}),
    an_event(4, "joe", -8, traits={"plan": "pro"}),
]
BROKEN = [{"type": "track", "messageId": "nobody"}, {"type": "nonsense", "userId": "ann"}]


def envelope(given: Sequence[dict[str, Any]], form: str, number: int, published_ms: int) -> Envelope:
    """Return an envelope of events, in one of the forms that a body may have."""
    if form == "lines":
        body = "\n".join(json.dumps(each) for each in given)
    elif form == "single" and len(given) == 1:
        body = json.dumps(given[0])
    else:
        body = json.dumps({"batch": given} if form == "batch" else given)
    published_us = NOON_US + published_ms * 1_000
    attributes = {"source_id": "shop", "received_at": "2026-11-25T12:00:00.500Z"}
    return Envelope(body.encode(), attributes, f"e{number}", published_us, published_us)


def run(folder: Path, pulls: Sequence[Sequence[Envelope]], *given_options: str) -> dict[str, Rows]:
    """Run the graph behind the read in memory, as a new process would; return the rows of each table."""
    options = EventOptions(["--shards=3", "--decode_processes=0", *given_options])
    config = JobConfig()
    tables = Tables.at(folder, added=copies.added(options.dedup_horizon_s))
    try:
        check.tables(tables, config, options)
        with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
            read = pipeline | "ReadEnvelopes" >> beam.Create(list(map(list, pulls))).with_output_types(list[Envelope])
            events.build(read, options, config, tables)
    finally:
        forget_committer(tables)
    found = {}
    for spec in SPECS:
        uri = getattr(tables, spec.name.replace(" ", "_"))
        by = [(name, "ascending") for name in (*spec.sort_columns, "envelope_id", "envelope_index")]
        found[spec.name] = open_table(uri, spec).delta.to_pyarrow_table().sort_by(by).to_pylist()
    return found


def but_for_the_envelope(rows: Rows) -> Rows:
    return [
        {name: row[name] for name in row if name not in {"published_at", "envelope_id", "envelope_index"}}
        for row in rows
    ]


def but_for_the_id(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in row if name not in {"message_id", "duplicate_of", "order_index"}}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """The archive's rows when each event comes once, in an envelope of its own, in order."""
    pulls = [[envelope([each], "single", number, 0)] for number, each in enumerate(EVENTS)]
    found = run(tmp_path_factory.mktemp("expected"), pulls)
    assert (found["duplicates"], found["dead letters"]) == ([], [])
    rows = found["archive"]
    order = ["ann m1", "ann m2", "ann m3", "ann m5", "bob m4", "bob m6", "eve m7"]
    assert [f"{row['user_key']} {row['message_id']}" for row in rows] == order
    assert not any(row["is_late"] for row in rows)
    return but_for_the_envelope(rows)


arrangements = st.lists(st.sampled_from([*EVENTS, *BROKEN, *REUSED]), max_size=6).flatmap(
    lambda copies: st.permutations([*EVENTS, *copies])
)
splits = st.lists(st.tuples(st.integers(1, 5), st.sampled_from(["lines", "single", "batch", "array"]),
                            st.integers(0, 400)), min_size=13, max_size=13)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(arranged=arrangements, split=splits, pull=st.integers(1, 4))
def test_any_arrangement_duplication_and_split_gives_the_same_rows_and_closed_accounts(
    expected: Rows, arranged: list[dict[str, Any]], split: list[tuple[int, str, int]], pull: int
):
    envelopes, left = [], list(arranged)
    for number, (size, form, published_ms) in enumerate(split):
        if left:
            envelopes.append(envelope(left[:size], form, number, published_ms))
            left = left[size:]
    pulls = [envelopes[start : start + pull] for start in range(0, len(envelopes), pull)]
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), pulls)
    # Which of the events with one id comes first, and so bears it, hangs on the batches; each is kept just once.
    reused = [each for each in arranged if each in REUSED]
    own_ids = [but_for_the_id(row) for row in but_for_the_envelope(found["archive"]) if row["user_key"] != "joe"]
    if not reused:
        assert but_for_the_envelope(found["archive"]) == expected
    for row in map(but_for_the_id, expected):
        assert own_ids.count(row) == 1
    assert len(found["archive"]) == len(expected) + len({json.dumps(each) for each in reused})
    firsts = [row["message_id"] for row in found["archive"] if row["duplicate_of"] is None]
    assert sorted(firsts) == sorted(each["messageId"] for each in EVENTS)
    for row in found["archive"]:
        if row["duplicate_of"] is not None:
            assert row["message_id"] == f"{row['duplicate_of']}~{row['fingerprint'] % 2**64:016x}"
    kept = {row["message_id"] for row in found["archive"]}
    assert {row["kept_message_id"] for row in found["duplicates"]} <= kept
    assert sum(map(len, found.values())) == len(arranged)
    broken = [each for each in arranged if each in BROKEN]
    assert sorted(json.loads(row["payload"])["type"] for row in found["dead letters"]) == sorted(
        each["type"] for each in broken
    )
    places = [(row["envelope_id"], row["envelope_index"]) for rows in found.values() for row in rows]
    assert len(set(places)) == len(arranged)


@pytest.mark.parametrize("off", [False, True])
def test_copies_are_left_out_unless_that_is_switched_off(tmp_path: Path, off: bool):
    pulls = [[envelope(EVENTS[:1], "single", number, number)] for number in range(3)]
    found = run(tmp_path, pulls, *(["--dedup_horizon_s=0"] if off else []))
    assert {name: len(rows) for name, rows in found.items()} == {
        "archive": 3 if off else 1, "duplicates": 0 if off else 2, "dead letters": 0, "dropped": 0, "identities": 0,
    }  # fmt: skip
    assert ("fingerprint" in found["archive"][0]) == (not off)


def test_a_message_delivered_again_is_in_no_table_twice(tmp_path: Path):
    pulls = [[envelope(EVENTS[:2], "batch", 1, 0)]] * 3
    assert {name: len(rows) for name, rows in run(tmp_path, pulls).items()} == {
        "archive": 2, "duplicates": 0, "dead letters": 0, "dropped": 0, "identities": 0,
    }  # fmt: skip


def test_a_new_process_remembers_what_the_archive_holds(tmp_path: Path):
    run(tmp_path, [[envelope(EVENTS[:2], "batch", 1, 0)]])
    again = [envelope(EVENTS[:1], "single", 2, 900_000), envelope(REUSED[:1], "single", 3, 900_000)]
    found = run(tmp_path, [again])
    assert [row["envelope_id"] for row in found["duplicates"]] == ["e2"]
    assert [(row["envelope_id"], row["duplicate_of"]) for row in found["archive"]] == [
        ("e1", None), ("e1", None), ("e3", "m1"),
    ]  # fmt: skip


def test_events_past_the_wait_are_kept_and_flagged(tmp_path: Path):
    late, early = an_event(1, "ann", -30), an_event(2, "ann", -5)
    rows = run(tmp_path, [[envelope([early], "single", 1, 0)], [envelope([late], "single", 2, 100)]])["archive"]
    assert [(row["message_id"], row["is_late"], row["late_by_ms"]) for row in rows] == [
        ("m1", True, 20_100),
        ("m2", False, 0),
    ]


def test_nothing_read_is_nothing_written(tmp_path: Path):
    assert run(tmp_path, [[]]) == {spec.name: [] for spec in SPECS}
