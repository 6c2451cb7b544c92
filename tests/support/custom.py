"""Run users' transforms as a job's configuration names them."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from millrace.config.job import read_job
from millrace.transforms.custom.step import CustomStep
from millrace.transforms.order import order, release
from millrace.transforms.steps import Refused, Step, Users
from tests.support.batches import batch

MODULE = "tests.support.transforms"


def configured(*entries: str) -> list[CustomStep]:
    """Return the steps of entries such as `euros, when: ...`: a name of tests.support.transforms, and more keys."""
    lines = ["transforms:"]
    for entry in entries:
        name, _, more = entry.partition(", ")
        lines += [f"  - use: {MODULE}:{name}", *(f"    {line}" for line in more.split("; ") if line)]
    return [step for step in read_job("\n".join(lines), "millrace.yaml").transforms if isinstance(step, CustomStep)]


def ordered(rows: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    """Return rows as the ordering stage gives them, of one shard and, whatever the times, one window."""
    (piece,) = release(batch(rows), wait_us=0, window_us=1 << 60, shards=1)
    return order([piece.batch])[0]


class Ran(NamedTuple):
    """What steps made of rows."""

    rows: list[dict[str, Any]]
    refused: list[tuple[str, str]]
    """(message_id, message)"""
    dropped: list[str]


def run(steps: Sequence[Step], rows: Sequence[dict[str, Any]], *cuts: int, users: Sequence[Users] = ()) -> Ran:
    """Run steps over rows, in one batch or cut before some rows (in their order), and say what left by which door."""
    whole = ordered(rows)
    bounds = [0, *sorted(cuts), whole.num_rows]
    memory = users or [Users() for _ in steps]
    out = Ran([], [], [])
    for start, end in itertools.pairwise(bounds):
        part = whole.slice(start, end - start)
        for step, of_users in zip(steps, memory, strict=True):
            applied = step.apply(part, of_users)
            ids = part.column("message_id").to_pylist()
            out.refused.extend(_refused(ids, applied.refused))
            out.dropped.extend(ids[row] for row in applied.dropped)
            part = applied.batch
        out.rows.extend(part.to_pylist())
    return out


def _refused(ids: Sequence[str], refused: Sequence[Refused]) -> list[tuple[str, str]]:
    return [(ids[each.row], each.message) for each in refused]
