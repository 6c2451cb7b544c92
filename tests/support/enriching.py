"""Run enrichments on rows, without a pipeline."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from millrace.transforms.steps import Step, Users
from tests.support.batches import batch, event


def enrich(steps: Sequence[Step], given: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch with the steps' columns."""
    for step in steps:
        step.open()
        given = step.apply(given, Users()).batch
    return given


def added(step: Step, rows: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return what a step adds to rows, each given as the columns that matter."""
    given = batch([event(str(number), **row) for number, row in enumerate(rows)])
    done = enrich([step], given)
    names = [field.name for field in step.adds]
    assert done.schema.names == [*given.schema.names, *names]
    assert [done.schema.field(name) for name in names] == list(step.adds)
    return [tuple(row[name] for name in names) for row in done.select(names).to_pylist()]
