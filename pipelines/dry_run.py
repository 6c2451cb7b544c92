"""`millrace dry-run`: what a changed configuration would make of the archive's last days, before it is deployed.

The steps of EnrichEvents and TransformEvents run over archived rows, in order, part of time by part, in this process;
the rows they make are compared with those that are archived. Nothing is written but what --out asks for.
"""

import argparse
import datetime as dt
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from millrace.config.job import ConfigError, JobConfig, load_job, read_job
from millrace.pipelines.compare import Comparison, errors
from millrace.schemas.event import ARCHIVE as EVENT
from millrace.schemas.event import ARRIVED_AT, RECEIPT
from millrace.sinks import tables
from millrace.sinks.delta import Table
from millrace.sinks.storage import StorageError, locate
from millrace.sinks.tables import ARCHIVE
from millrace.transforms.batches import one_batch
from millrace.transforms.custom.step import CustomStep
from millrace.transforms.custom.timings import summary
from millrace.transforms.steps import CannotOpenError, Step, Users, run_step, with_columns

PART_ROWS = 500_000
"""So many rows, about, are in memory at once; 1 to 2 KB each."""

_SHORTEST_US = 5_000_000
_UNITS_S = {"m": 60, "h": 3_600, "d": 86_400}
_ORDER = [("user_key", "ascending"), ("order_index", "ascending")]


class Span(NamedTuple):
    """A part of the archive's time (released_at), µs since the epoch; the end is not in it."""

    start_us: int
    end_us: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what would differ; the exit code is 0, 1 with --fail-on-diff where anything does, 2 where it cannot run."""
    parser = argparse.ArgumentParser(
        prog="millrace dry-run",
        description="Run a changed configuration's enrichments and transforms over the archive's last days, and say "
        "what would be other than it is archived. Writes nothing.",
    )
    parser.add_argument("--archive", default="data/archive", metavar="URI", help="default: %(default)s")
    parser.add_argument("--config", default="", metavar="FILE", help="the changed millrace.yaml")
    parser.add_argument(
        "--transform", default="", metavar="X", help="only this one: its name in --config, or module:Name without it"
    )
    parser.add_argument(
        "--since",
        default="7d",
        metavar="T",
        help="how far back from the newest row (90m, 12h, 7d), or a date; default: %(default)s",
    )
    parser.add_argument("--out", default="", metavar="FOLDER", help="write the rows that it makes there, as Parquet")
    parser.add_argument("--examples", type=int, default=3, metavar="N", help="of each column; default: %(default)d")
    parser.add_argument("--fail-on-diff", action="store_true", help="exit code 1 where anything would differ")
    given = parser.parse_args(arguments)
    try:
        steps = _steps(given.config, given.transform)
        table = _table(given.archive)
        span = _span(table, given.since)
        for step in steps:
            step.open()
        found, failed = run(table, steps, span, examples=given.examples, out=given.out)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (StorageError, CannotOpenError, ValueError) as error:
        print(f"millrace dry-run: {error}", file=sys.stderr)
        return 2
    print(f"{_time(span.start_us)} to {_time(span.end_us)}, {', '.join(step.name for step in steps)}")
    print("\n".join([*found.lines(), *errors(failed), *summary()]))
    return int(given.fail_on_diff and not (found.is_equal and not failed))


def run(
    table: Table, steps: Sequence[Step], span: Span, *, examples: int = 3, out: str = ""
) -> tuple[Comparison, list[tuple[str, str]]]:
    """Run steps over a part of the archive.

    Returns:
        What differs; and (step and door, message) of each event that would not be archived.
    """
    archived = pa.schema(table.delta.schema())
    found = Comparison(archived, examples)
    failed: list[tuple[str, str]] = []
    users = {step.name: Users() for step in steps}
    _recall(table, steps, users, span)
    for number, part in enumerate(_parts(table, span)):
        rows = _read(table, part)
        batch = _given(rows, steps)
        for step in steps:
            applied = run_step(step, batch, users[step.name], "dry-run")
            failed += [(f"{step.name} dead letters", each.message) for each in applied.refused]
            failed += [(f"{step.name} drops", "left out")] * len(applied.dropped)
            if step.remembers_s:
                users[step.name].sweep(part.end_us, round(step.remembers_s * 1_000_000))
            batch = applied.batch
        found.add(rows, batch)
        if out:
            Path(out).mkdir(parents=True, exist_ok=True)
            kept = [name for name in batch.schema.names if name not in {ARRIVED_AT.name, RECEIPT.name}]
            pq.write_table(pa.table(batch.select(kept)), Path(out) / f"part-{number:05}.parquet")
    return found, failed


def _steps(config: str, transform: str) -> list[Step]:
    if not config:
        if ":" not in transform:
            raise ValueError("say what to run: --config FILE, or --transform module:Name.")
        return list(read_job(f"transforms: [{{use: '{transform}'}}]", "--transform").transforms)
    job: JobConfig = load_job(config)
    # All but the lineage, which is another for any other configuration.
    every = [*(step for step in job.steps if step is not job.lineage), *job.transforms]
    chosen = [step for step in every if not transform or step.name == transform]
    if not chosen:
        there = ", ".join(step.name for step in every) or "none"
        raise ValueError(f"{config} has no transform {transform!r}; there are: {there}.")
    return chosen


def _table(uri: str) -> Table:
    location = locate(uri)
    delta = tables.load(location)
    if delta is None or delta.metadata().name != ARCHIVE.name:
        raise StorageError(f"There is no archive at {location.uri}: correct --archive.")
    return Table(location, ARCHIVE, delta)


def _span(table: Table, since: str) -> Span:
    newest_us = table.newest_us()
    if newest_us is None:
        raise ValueError(f"{table.location.uri} has no rows yet.")
    length = re.fullmatch(r"([0-9]{1,6})([mhd])", since)
    if length is not None:
        start_us = newest_us - int(length[1]) * _UNITS_S[length[2]] * 1_000_000
    else:
        try:
            at = dt.datetime.fromisoformat(since)
        except ValueError as error:
            raise ValueError(f"--since={since} is no length such as 7d and no date such as 2026-12-31.") from error
        start_us = round((at if at.tzinfo else at.replace(tzinfo=dt.UTC)).timestamp() * 1_000_000)
    return Span(start_us, newest_us + 1)


def _parts(table: Table, span: Span) -> Iterator[Span]:
    """Split a span so that each part has about PART_ROWS rows, as far as the log knows."""
    actions = pa.table(table.delta.get_add_actions(flatten=True))
    oldest = pc.min(actions.column("min.released_at")).cast(pa.timestamp("us", tz="UTC")).value
    rows = pc.sum(actions.column("num_records")).as_py() or 1
    start_us = max(span.start_us, oldest)
    whole_us = max(1, span.end_us - oldest)
    part_us = max(_SHORTEST_US, int(whole_us * PART_ROWS / rows))
    while start_us < span.end_us:
        end_us = min(start_us + part_us, span.end_us)
        yield Span(start_us, end_us)
        start_us = end_us


def _read(table: Table, span: Span, columns: Sequence[str] | None = None) -> pa.RecordBatch:
    """Return the rows of a span, in order."""
    at = pc.field(ARCHIVE.time_column)
    start, end = (pa.scalar(each, pa.timestamp("us", tz="UTC")) for each in span)
    dataset = table.delta.to_pyarrow_dataset(filesystem=table.location.files)
    found = dataset.to_table(columns=columns, filter=(at >= start) & (at < end))
    return one_batch(found.sort_by(_ORDER))


def _recall(table: Table, steps: Sequence[Step], users: dict[str, Users], span: Span) -> None:
    """Let steps remember what came before the span, as a job does at its start."""
    known = set(pa.schema(table.delta.schema()).names)
    for step in steps:
        if step.remembers_s and step.recalls:
            columns = dict.fromkeys([*step.recalls, "user_key", "order_index", "released_at"])
            before = Span(span.start_us - round(step.remembers_s * 1_000_000), span.start_us)
            rows = _read(table, before, [name for name in columns if name in known])
            if rows.num_rows:
                step.recall(rows, users[step.name])


def _given(rows: pa.RecordBatch, steps: Sequence[Step]) -> pa.RecordBatch:
    """Return archived rows as the steps would get them: without what they add, and without what they made."""
    for step in steps:
        if isinstance(step, CustomStep):
            rows = rows.filter(pc.invert(step.made(rows.column("message_id"))))
    added = {field.name for step in steps for field in step.adds} - set(EVENT.names)
    rows = rows.select([name for name in rows.schema.names if name not in added])
    return with_columns(rows, [ARRIVED_AT, RECEIPT], [rows.column("released_at"), [-1] * rows.num_rows])


def _time(us: int) -> str:
    return dt.datetime.fromtimestamp(us / 1_000_000, dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


if __name__ == "__main__":
    sys.exit(main())
