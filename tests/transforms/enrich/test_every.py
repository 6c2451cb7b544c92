"""Every enrichment: splits, repeats, nulls, nothing, hostile values; and all of them from a file to the archive."""

import itertools
import json
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.internal import pickler
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
from millrace.sinks.tables import ARCHIVE, with_columns
from millrace.transforms.enrich.enrichment import memo_of
from millrace.transforms.steps import Step
from tests.support.batches import NOON_US, batch, event
from tests.support.enriching import enrich

DATA = Path(__file__).with_name("data")
TEXT = f"""
enrich:
- user_agent
- url
- referrer: {{own_hosts: [pay.example]}}
- campaign
- locale
- geo: {{file: {DATA / "GeoLite2-City-Test.mmdb"}, asn_file: {DATA / "GeoLite2-ASN-Test.mmdb"}, postal: true}}
- bots: {{hosting_asns: [29518]}}
"""
JOB = read_job(TEXT, "millrace.yaml")
READ = (
    "context_user_agent",
    "context_page_url",
    "context_page_search",
    "context_page_referrer",
    "context_locale",
    "context_timezone",
    "context_ip",
    "context_rest",
    "context_campaign_source",
    "context_campaign_medium",
)

HOSTILE = [
    "",
    " ",
    "-",
    "null",
    "x" * (1 << 20),
    "https://shop.example/" + "a" * (1 << 20),
    "https://shop.example/?" + "a=b&" * 50_000,
    "https://shop.example/%",
    "https://shop.example/%zz%c3%28?utm_source=%ff%fe#%",
    "https://bücher.example/ü?ü=ü#ü",
    "https://xn--/",
    "https://xn--zzzzz-/",
    "http://[2001:db8::1]:8080/a",
    "http://[::1",
    "http://[v1.x]/",
    "http://a:b@c:d/",
    "https://" + "a." * 5_000 + "com/",
    "https://" + "a" * 300 + ".com/",
    "javascript:alert(1)",
    "data:text/html,<script>",
    "//",
    "///",
    "?",
    "#",
    "?utm_source",
    "https://shop.example:0/",
    "https://shop.example:-1/",
    "\u202e\U0001f600",
    "\x7f\x01",
    "\ufffe\uffff",
    "(" * 10_000,
    "a" * 4_000 + "!",
    "255.255.255.255",
    "::ffff:0:0",
    "1e9",
    "../../etc/passwd",
    "Mozilla/5.0 (" + "Linux; " * 2_000 + ")",
    '{"webdriver": true}',
    '{"webdriver":',
    "Europe/Berlin",
    "de-DE",
]


@pytest.fixture(params=JOB.enrich, ids=lambda step: step.name)
def step(request: pytest.FixtureRequest) -> Step:
    each: Step = request.param
    return each


def of(value: str | None, number: int = 0) -> dict[str, Any]:
    return event(str(number), number, **dict.fromkeys(READ, value))


def test_each_is_pickled_with_the_graph(step: Step):
    assert pickler.loads(pickler.dumps(step)) == step


def test_what_events_lack_makes_no_trouble(step: Step):
    made = enrich([step], batch([event("1"), event("2")]))
    told = {field.name: made.column(field.name).to_pylist() for field in step.adds}
    always = {"is_bot", "config_hash", "lineage"}
    assert {name for name, values in told.items() if values != [None, None]} == always & set(told)


def test_no_events_make_no_events(step: Step):
    made = enrich([step], batch([]))
    assert made.num_rows == 0
    assert made.schema == pa.schema([*batch([]).schema, *step.adds])


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: value[:20].encode("unicode_escape").decode())
def test_no_value_breaks_one(value: str):
    good = of("Europe/Berlin", 1)
    alone, together = enrich(JOB.enrich, batch([good])), enrich(JOB.enrich, batch([of(value), good, of(value, 2)]))
    together.validate(full=True)
    assert together.slice(1, 1).to_pylist() == alone.to_pylist()


VALUES = st.sampled_from(
    [
        None,
        *HOSTILE[:4],
        *HOSTILE[7:16],
        "https://www.google.com/search?q=tent&gclid=1",
        "Googlebot/2.1",
        "67.43.156.7",
        "89.160.20.112",
        "America/St_Johns",
        "en-US",
    ]
) | st.text(max_size=30)
ROWS = st.lists(
    st.fixed_dictionaries(dict.fromkeys(READ, VALUES) | {"at_s": st.integers(-(10**8), 10**8)}), max_size=12
)


@given(ROWS, st.lists(st.integers(0, 12), max_size=4))
@settings(max_examples=60, deadline=None)
def test_rows_are_the_same_however_they_are_split(rows: list[dict[str, Any]], cuts: list[int]):
    given_rows = batch([event(str(number), **row) for number, row in enumerate(rows)])
    whole = enrich(JOB.enrich, given_rows).to_pylist()
    assert enrich(JOB.enrich, given_rows).to_pylist() == whole
    edges = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    parts = [given_rows.slice(start, end - start) for start, end in itertools.pairwise(edges)]
    assert [row for part in parts for row in enrich(JOB.enrich, part).to_pylist()] == whole


def test_what_a_process_remembers_of_an_enrichment_is_shared_and_not_of_another_s_settings():
    (referrer,) = (step for step in JOB.enrich if step.name == "referrer")
    again = pickler.loads(pickler.dumps(referrer))
    assert memo_of(again) is memo_of(referrer)
    assert memo_of(type(referrer)()) is not memo_of(referrer)


def run(folder: Path, bodies: list[bytes]) -> list[dict[str, Any]]:
    """Run envelopes through the graph in memory; return the archive."""
    tables = Tables.at(folder, added=JOB.added)
    pulls = [
        [Envelope(body, {"source_id": "shop", "ip": "67.43.156.7"}, f"e{number}", NOON_US, NOON_US)]
        for number, body in enumerate(bodies)
    ]
    try:
        with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
            read = pipeline | "ReadEnvelopes" >> beam.Create(pulls).with_output_types(list[Envelope])
            events.build(read, EventOptions(["--shards=3"]), JOB, tables)
    finally:
        forget_committer(tables)
    table = open_table(tables.archive, with_columns(ARCHIVE, JOB.added)).delta.to_pyarrow_table()
    rows: list[dict[str, Any]] = table.drop_columns(["envelope_id", "envelope_index"]).sort_by("message_id").to_pylist()
    return rows


def test_from_the_file_to_the_archive_and_the_same_at_any_split(tmp_path: Path):
    page = {
        "url": "https://shop.example/tents/?utm_source=google&utm_medium=cpc",
        "referrer": "https://www.google.com/",
    }
    context = {"page": page, "locale": "de-AT", "timezone": "Europe/Vienna", "userAgent": "Googlebot/2.1"}
    given_events: list[dict[str, Any]] = [
        {"type": "page", "messageId": f"m{number}", "userId": f"user {number % 3}", "context": context}
        for number in range(7)
    ]
    given_events.append({"type": "track", "event": "Paid", "messageId": "m7", "userId": "user 1"})
    one = run(tmp_path / "one", [json.dumps(given_events).encode()])
    assert len(one) == len(given_events)
    expected = {
        "ua_browser": "Googlebot",
        "page_domain": "shop.example",
        "page_path_norm": "/tents",
        "referrer_class": "search",
        "campaign_source": "google",
        "channel": "paid_search",
        "locale_region": "AT",
        "tz_local_hour": 13,
        "geo_country": "BT",
        "asn_number": 35908,
        "is_bot": True,
        "bot_reasons": "spider,list",
    }
    assert [{name: row[name] for name in expected} for row in one[:7]] == [expected] * 7
    assert (one[7]["geo_country"], one[7]["is_bot"], one[7]["channel"]) == ("BT", False, None)
    (lineage,) = {row["lineage"] for row in one}
    assert set(json.loads(lineage)) == {
        "millrace",
        "ua-parser",
        "uap-core",
        "tldextract",
        "referrers",
        "tzdata",
        "crawler-user-agents",
        "mmdb GeoLite2-City",
        "mmdb GeoLite2-ASN",
    }
    assert {row["config_hash"] for row in one} == {read_job(TEXT, "other.yaml").lineage.hash}  # type: ignore[union-attr]
    assert run(tmp_path / "many", [json.dumps(each).encode() for each in reversed(given_events)]) == one
