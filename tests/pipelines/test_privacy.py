"""Privacy in the whole graph: what is stored, that the accounts close, and that no secret travels with the graph."""

import gzip
import json
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from millrace.config.job import JobConfig, read_job
from millrace.pipelines import events
from millrace.pipelines.options import EventOptions
from millrace.pipelines.runners import why_not_prism
from millrace.schemas.envelope import Envelope
from millrace.sinks.delta import open_table
from millrace.sinks.job_tables import Tables, forget_committer
from millrace.sinks.tables import ARCHIVE, SPECS, with_columns
from tests.support.batches import NOON_US
from tests.support.privacy import SECRETS, keys, set_secrets

IP = "203.0.113.77"
CONFIG = """
privacy:
  keys: [{version: v2, secret: env:MILLRACE_TEST_V2}, {version: v1, secret: env:MILLRACE_TEST_V1}]
  fields:
    - {field: context_ip, policy: truncate}
    - {field: user_id, policy: hash}
    - {field: traits.email, policy: encrypt}
  consent: {required_for_archive: [ads]}
  suppression: {file: FILE}
"""
MAIL = "ann@example.com"
DENIED = {"consentManagement": {"deniedConsentIds": ["ads"]}}
BODIES: list[dict[str, Any]] = [
    {"type": "identify", "messageId": "1", "userId": "ann", "traits": {"email": MAIL}, "context": {"ip": IP}},
    {"type": "track", "messageId": "2", "userId": "eve"},
    {"type": "track", "messageId": "3", "userId": "bob", "context": DENIED},
    {"type": "track", "messageId": "4", "anonymousId": "d"},
    {"type": "trakc", "messageId": "5", "userId": "ann", "traits": {"email": MAIL}, "context": {"ip": IP}},
    {"type": "identify", "messageId": "1", "userId": "ann", "traits": {"email": MAIL}, "context": {"ip": IP}},  # a copy
]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobConfig:
    set_secrets(monkeypatch)
    (tmp_path / "ids").write_text("eve\n")
    return read_job(CONFIG.replace("FILE", str(tmp_path / "ids")), "F")


def run(folder: Path, config: JobConfig, bodies: list[bytes]) -> dict[str, list[dict[str, Any]]]:
    """Run the graph behind the read; return the rows of each table."""
    tables = Tables.at(folder, added=config.added)
    attributes = {"source_id": "shop", "ip": IP}
    envelopes = [Envelope(each, attributes, f"e{at}", NOON_US, NOON_US) for at, each in enumerate(bodies)]
    try:
        with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
            read = pipeline | "ReadEnvelopes" >> beam.Create([envelopes]).with_output_types(list[Envelope])
            events.build(read, EventOptions(["--shards=2"]), config, tables)
    finally:
        forget_committer(tables)
    found = {}
    for spec in SPECS:
        whole = with_columns(spec, config.added) if spec is ARCHIVE else spec
        found[spec.name] = (
            open_table(tables.uri_of(spec), whole).delta.to_pyarrow_table().sort_by("envelope_id").to_pylist()
        )
    return found


def test_what_is_stored_is_protected_and_the_accounts_close(tmp_path: Path, config: JobConfig):
    bodies = [json.dumps(each).encode() for each in BODIES]
    found = run(tmp_path / "tables", config, [*bodies, gzip.compress(bodies[4])[:-9]])
    ring = keys()
    kept = {row["message_id"]: row for row in found["archive"]}
    assert sorted(kept) == ["1", "4"]
    ann = ring.hash("ann")
    sealed = ring.encrypt(MAIL)
    assert (kept["1"]["user_id"], kept["1"]["user_key"], kept["1"]["context_ip"]) == (ann, ann, "203.0.113.0")
    assert json.loads(kept["1"]["traits"]) == {"email": sealed}
    assert (kept["4"]["user_id"], kept["4"]["user_key"], kept["4"]["consent_denied"]) == (None, "d", None)
    assert [row["user_key"] for row in found["duplicates"]] == [ann]
    assert [(row["message_id"], row["rule"]) for row in found["dropped"]] == [("2", "suppression"), ("3", "consent")]
    refused, packed = found["dead letters"]
    assert json.loads(refused["payload"]) == {
        **BODIES[4], "userId": ann, "traits": {"email": sealed}, "context": {"ip": "203.0.113.0"}
    }  # fmt: skip
    assert packed["payload"] == b""
    assert sum(map(len, found.values())) == len(bodies) + 1
    stored = b"".join(file.read_bytes() for file in (tmp_path / "tables").rglob("*") if file.is_file())
    for private in (IP, MAIL, *SECRETS.values()):
        assert private not in str(found)
        assert private.encode() not in stored


def test_without_the_section_the_stage_is_not_in_the_graph(tmp_path: Path, config: JobConfig):
    for given, expected in ((JobConfig(), 0), (config, 1)):
        pipeline = beam.Pipeline(options=PipelineOptions([]))
        read = pipeline | beam.Create([[]]).with_output_types(list[Envelope])
        events.build(read, EventOptions([]), given, Tables.at(tmp_path, added=given.added))
        names = [each.unique_name for each in pipeline.to_runner_api().components.transforms.values()]
        assert names.count("ProtectEvents") == expected


def test_what_came_out_comes_out_the_same_when_it_is_sent_again(tmp_path: Path, config: JobConfig):
    first = run(tmp_path / "first", config, [json.dumps(BODIES[0]).encode(), json.dumps(BODIES[4]).encode()])
    mended = first["dead letters"][0]["payload"].replace(b"trakc", b"track")
    (row,) = run(tmp_path / "again", config, [mended])["archive"]
    for name in ("user_id", "user_key", "traits", "context_ip"):
        assert row[name] == first["archive"][0][name]


def test_no_secret_travels_with_the_graph(tmp_path: Path, config: JobConfig):
    pipeline = beam.Pipeline(options=PipelineOptions([]))
    read = pipeline | beam.Create([[]]).with_output_types(list[Envelope])
    events.build(read, EventOptions([]), config, Tables.at(tmp_path, added=config.added))
    assert why_not_prism(pipeline) == []
    proto = pipeline.to_runner_api()
    unpickled = []
    for transform in proto.components.transforms.values():
        if transform.spec.urn == common_urns.primitives.PAR_DO.urn:
            payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
            fn, *_ = pickler.loads(payload.do_fn.payload)
            if "ProtectEvents" in transform.unique_name:
                fn.setup()  # finds its secrets here
                unpickled.append(repr(vars(fn)))
    assert len(unpickled) == 2
    for secret in SECRETS.values():
        assert secret.encode() not in proto.SerializeToString()
        assert secret not in str(unpickled)
        assert secret not in repr(config)


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ("MILLRACE_TEST_V1", ("the secret env:MILLRACE_TEST_V1 is missing: set the environment variable "
         "MILLRACE_TEST_V1 where the job runs.")),
        ("ids", "the suppression list FILE is not there: write one id a line, or remove the setting."),
    ],
)  # fmt: skip
def test_what_is_missing_is_told_at_the_start(
    lacks: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    set_secrets(monkeypatch)
    file = tmp_path / "ids"
    file.write_text("eve\n")
    if lacks == "ids":
        file.unlink()
    else:
        monkeypatch.delenv(lacks)
    (tmp_path / "millrace.yaml").write_text(CONFIG.replace("FILE", str(file)))
    name = "projects/my-project/subscriptions/orders"
    assert events.main([f"--subscription={name}", f"--config={tmp_path / 'millrace.yaml'}"]) == 2
    assert capsys.readouterr().err == f"millrace events: {said.replace('FILE', str(file))}\n"


def test_a_mistake_in_the_section_is_told_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "millrace.yaml"
    file.write_text("privacy:\n  keys:\n    - {version: v1, secret: hunter2hunter2}\n")
    assert events.main([f"--config={file}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{file}:3: privacy: keys: secret: has to say where the secret is, never the secret itself")
    assert "hunter2" not in said
