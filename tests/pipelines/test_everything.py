"""Every stage on, as examples/job.yaml has them, and a transform of a user's own: the log alone decides on the rows."""

import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from millrace.config.job import JobConfig, read_job
from millrace.local.shop import Habits, Shop
from millrace.pipelines import check, events
from millrace.pipelines.options import EventOptions
from millrace.schemas.envelope import Envelope
from millrace.sinks.delta import open_table
from millrace.sinks.job_tables import Tables, forget_committer
from millrace.sinks.tables import SPECS
from millrace.transforms import copies
from millrace.transforms.link_store import forget_links_here
from millrace.transforms.steps import forget_here
from tests.examples.names import example

ROOT = Path(__file__).parents[2]
Found = dict[str, list[dict[str, Any]]]
"""The rows of each table."""
NOON_S = 1_795_608_000
RUN_OF_ITS_OWN = {"refused_at", "dropped_at", "released_at", "date"}
"""Of the other tables: what the job's clock says, and for a copy its arrival."""


@pytest.fixture(scope="module")
def config() -> Iterator[JobConfig]:
    rates = ROOT / "examples" / "currency" / "rates.csv"
    text = (ROOT / "examples" / "job.yaml").read_text(encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        example(patch, "currency")
        patch.chdir(ROOT)
        yield read_job(
            f"{text}\ntransforms:\n- {{use: 'currency:ConvertCurrency', with: {{rates: {rates}}}}}\n", "job.yaml"
        )


@pytest.fixture(scope="module")
def log() -> list[Envelope]:
    """Some minutes of the sample shop: late, shuffled, broken events, but no copies: which stays hangs on arrival."""
    sent = 0
    traffic = Shop(seed=11, users=40, habits=Habits(duplicates=0), clock=lambda: NOON_S + sent / 5)
    envelopes: list[Envelope] = []
    for body in traffic:
        at_us = round((NOON_S + sent / 5) * 1e6)
        envelopes.append(Envelope(body.body, dict(body.attributes), f"e{len(envelopes)}", at_us, at_us))
        sent += body.events
        if sent >= 1_200:
            return envelopes
    raise AssertionError("the shop has closed")


def run(pulls: Sequence[Sequence[Envelope]], config: JobConfig, *options: str) -> Found:
    """Run the graph behind the read in memory, as a new process would; return the rows of each table."""
    given = EventOptions(["--decode_processes=0", *options])
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder:
        tables = Tables.at(Path(folder), added=(*copies.added(given.dedup_horizon_s), *config.added))
        try:
            check.tables(tables, config, given)
            with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
                read = pipeline | "ReadEnvelopes" >> beam.Create(list(map(list, pulls))).with_output_types(
                    list[Envelope]
                )
                events.build(read, given, config, tables)
        finally:
            forget_committer(tables)
            forget_here()
            forget_links_here()
        for spec in SPECS:
            rows = open_table(tables.uri_of(spec), spec).delta.to_pyarrow_table().to_pylist()
            left_out = set() if spec.name == "archive" else RUN_OF_ITS_OWN
            rows = [{name: row[name] for name in row if name not in left_out} for row in rows]
            found[spec.name] = sorted(rows, key=repr)
    return found


def split(log: Sequence[Envelope], chance: random.Random) -> Iterator[list[Envelope]]:
    left = list(log)
    chance.shuffle(left)
    while left:
        size = chance.randint(1, 40)
        yield left[:size]
        left = left[size:]


@pytest.fixture(scope="module")
def whole(log: list[Envelope], config: JobConfig) -> Found:
    """The tables of a run that reads it all at once."""
    return run([log], config)


@pytest.mark.slow
def test_every_stage_left_its_columns_and_every_table_that_has_to_has_rows(whole: Found):
    assert {name: len(rows) > 0 for name, rows in whole.items()} == {
        "archive": True, "duplicates": False, "dead letters": True, "dropped": False, "identities": True,
    }  # fmt: skip
    row = whole["archive"][0]
    columns = (
        "fingerprint",
        "contract",
        "linked_at",
        "ua_browser",
        "session_id",
        "first_touch_at",
        "lineage",
        "total_eur",
    )
    assert set(columns) <= set(row)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_two_runs_of_one_log_in_other_splits_and_orders_give_equal_tables(
    log: list[Envelope], config: JobConfig, whole: Found, seed: int
):
    pulls = list(split(log, random.Random(seed)))  # noqa: S311  repeatable
    assert run(pulls, config, f"--shards={seed + 1}", f"--decode_batch_rows={100 * seed + 7}") == whole
