"""What needs Beam and what does not: counts reach its metrics where it runs; reading and cleaning events loads none."""

import subprocess
import sys

import apache_beam as beam
from apache_beam.testing import test_pipeline

from millrace.transforms import in_beam as _in_beam  # noqa: F401
from millrace.transforms.counts import count, counted_here, observe

PURE = (
    "config.job, delivery.ledger, sinks.delta, transforms.copies, transforms.pending, transforms.protection, "
    "transforms.subscriber, transforms.validation"
)


def _counting(number: int) -> int:
    count("test", "seen", number)
    observe("test", "size", number)
    return number


def test_what_is_counted_is_in_beams_metrics_and_in_this_process():
    before = counted_here().get("test/seen", 0)
    with test_pipeline.TestPipeline(runner="BundleBasedDirectRunner") as p:
        _ = p | beam.Create([1, 2, 4]) | beam.Map(_counting).with_output_types(int)
    result = p.result
    metrics = result.metrics().query()
    counters = {each.key.metric.name: each.committed for each in metrics["counters"]}
    sizes = {each.key.metric.name: each.committed for each in metrics["distributions"]}
    assert counters["seen"] == 7
    assert (sizes["size"].sum, sizes["size"].count, sizes["size"].max) == (7, 3, 4)
    assert counted_here()["test/seen"] - before == 7


def test_reading_and_cleaning_events_imports_no_beam():
    names = [f"millrace.{name.strip()}" for name in PURE.split(",")]
    code = f"import {', '.join(names)}, sys; sys.exit('apache_beam' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
