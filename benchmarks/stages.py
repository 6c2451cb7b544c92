"""What each stage costs, in ns of one core an event: the sample shop's events through the stages' own functions.

    python -m benchmarks.stages                     every stage and every step of examples/job.yaml
    python -m benchmarks.stages --config my.yaml    with your own configuration
    python -m benchmarks.stages --only campaign     one line

Nothing else is in these figures: no Beam, no Pub/Sub, and no disk. What travels between workers, or waits for its
window, is written and read once more: the lines `to the next worker`. `first` is the first time that a process sees
these events, with cold caches; `then` the best of the rounds after it. `distinct` tells how many different values of
its columns a step has met in 1,000 events. Shares are of the sum. Read the ratios: another load on the machine moves
them all.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from millrace.config.job import ConfigError, JobConfig, load_job
from millrace.local.shop import Shop
from millrace.schemas.envelope import Envelope
from millrace.sinks.delta import open_table
from millrace.sinks.job_tables import Tables
from millrace.sinks.tables import ARCHIVE, with_columns
from millrace.transforms.batches import concat
from millrace.transforms.contexts import Contexts
from millrace.transforms.copies import added, deduplicate
from millrace.transforms.enrich.distinct import distinct
from millrace.transforms.enrich.enrichment import Enrichment
from millrace.transforms.in_beam import RecordBatchCoder
from millrace.transforms.link import LinkRule
from millrace.transforms.link_store import LinkStore
from millrace.transforms.order import order, release
from millrace.transforms.pending import Limits, Pending
from millrace.transforms.protection import Protection
from millrace.transforms.remembered import Remembered
from millrace.transforms.resolve import resolve
from millrace.transforms.steps import CannotOpenError, Step, Users
from millrace.transforms.validation import validate

Batches = Sequence[pa.RecordBatch]
_Result = TypeVar("_Result")

_NOON_S = 1_795_608_000
_WINDOW_US = 5_000_000
_WAIT_US = 10_000_000


class Line(NamedTuple):
    """One stage's cost."""

    stage: str
    first_ns: float
    then_ns: float
    remark: str = ""


class Stages:
    """Runs events through the stages, one after the other, and keeps a line of each.

    Args:
        rounds: how often each stage is run; at least 2.
        shards, wait_us, window_us: of the ordering stage.
    """

    def __init__(self, rounds: int, shards: int) -> None:
        self._rounds = rounds
        self._shards = shards
        self.lines: list[Line] = []

    def decode(self, envelopes: Sequence[Envelope], batch_rows: int) -> Batches:
        """Make batches of envelopes, as the decode stage does."""
        contexts = Contexts()

        def work() -> Batches:
            batches = []
            pending = Pending(Limits(), contexts)
            for number, envelope in enumerate(envelopes, 1):
                pending.add(envelope)
                if pending.is_full(batch_rows) or number == len(envelopes):
                    batches.append(pending.take(envelope.arrived_us).batch)
            return batches

        return self._measured("decode", work)

    def before_the_order(self, batches: Batches, config: JobConfig, horizon_s: float) -> Batches:
        """Protect, validate and deduplicate, where the configuration or a horizon asks for it."""
        if config.privacy is not None:
            protection, now_us = Protection(config.privacy), _NOON_S * 1_000_000
            batches = self._measured("protect", lambda: [protection.protect(each, now_us).batch for each in batches])
        if config.contracts is not None:
            plan = config.contracts
            given = batches
            batches = self._measured("validate", lambda: [validate(batch, plan).batch for batch in given])
        if horizon_s:
            unlike = batches

            def first_copies() -> Batches:
                remembered = Remembered(horizon_s, 1_000_000)  # each round its own, or all would be copies
                found = [each for one in unlike for each in deduplicate(one, remembered, repeats_pass=True)]
                return [each.unique.batch for each in found]

            batches = self._measured("deduplicate", first_copies, _rows(unlike))
        return batches

    def resolve(self, batches: Batches, rule: LinkRule) -> Batches:
        """Find the links in ordered batches, and give events the keys of their persons."""

        def resolved() -> Batches:
            store = LinkStore(rule)
            for batch in batches:
                store.enter(batch)
            store.settle(1 << 62, _WINDOW_US)
            return [resolve(batch, store.links, self._shards).batch for batch in batches]

        return self._measured("resolve: across login", resolved)

    def order(self, batches: Batches) -> Batches:
        """Release and order batches; return one for each shard and window."""

        def released() -> dict[tuple[int, int], list[pa.RecordBatch]]:
            pieces: dict[tuple[int, int], list[pa.RecordBatch]] = {}
            for batch in batches:
                for piece in release(batch, wait_us=_WAIT_US, window_us=_WINDOW_US, shards=self._shards):
                    pieces.setdefault((piece.window_us, piece.shard), []).append(piece.batch)
            return pieces

        events = sum(batch.num_rows for batch in batches)
        groups = self._measured("release", released, events)
        return self._measured("order", lambda: [order(groups[key])[0] for key in sorted(groups)], events)

    def step(self, stage: str, step: Step, batches: Batches) -> Batches:
        """Run a step on ordered batches, each round with a memory of its own."""

        def work() -> Batches:
            users = Users()
            return [step.apply(batch, users).batch for batch in batches]

        step.open()
        return self._measured(f"{stage}: {step.name}", work, remark=_repeats(step, batches))

    def travel(self, stage: str, batches: Batches) -> None:
        """Write and read batches, as Beam does between workers and where they wait for their window."""
        coder = RecordBatchCoder()
        size = sum(len(coder.encode(batch)) for batch in batches) / max(1, _rows(batches))
        self._measured(
            f"to the next worker, {stage}",
            lambda: [coder.decode(coder.encode(batch)) for batch in batches],
            remark=f"{size:.0f} bytes an event",
        )

    def write(self, batches: Batches, folder: Path, added: Sequence[pa.Field]) -> None:
        """Write Parquet files, one for each window, and no commit."""
        table = open_table(Tables.at(folder).archive, with_columns(ARCHIVE, added))
        windows = [pa.table(concat(batches[at : at + self._shards])) for at in range(0, len(batches), self._shards)]
        names = iter(range(1 << 62))
        files = self._measured(
            "write: Parquet",
            lambda: [file for window in windows for file in table.write(window, f"{next(names)}")],
            _rows(batches),
        )
        size = sum(file.size for file in files) / max(1, _rows(batches))
        self.lines[-1] = self.lines[-1]._replace(remark=f"{size:.0f} bytes an event")

    def _measured(self, stage: str, work: Callable[[], _Result], events: int = 0, remark: str = "") -> _Result:
        spent = []
        for _ in range(max(2, self._rounds)):
            start = time.process_time_ns()
            result = work()
            spent.append(time.process_time_ns() - start)
        events = events or _rows(result)
        first, then = spent[0] / max(1, events), min(spent[1:]) / max(1, events)
        self.lines.append(Line(stage, first, then, remark))
        return result


def shop(events: int, per_s: float) -> list[Envelope]:
    """Return the sample shop's request bodies of so many events, as Pub/Sub would bring them.

    Args:
        events: at least so many records.
        per_s: how many reach the shop a second.
    """
    sent = 0
    traffic = Shop(seed=7, users=20_000, clock=lambda: _NOON_S + sent / per_s)
    envelopes: list[Envelope] = []
    for body in traffic:
        at_us = round((_NOON_S + sent / per_s) * 1e6)
        envelopes.append(Envelope(body.body, dict(body.attributes), f"{len(envelopes)}", at_us, at_us))
        sent += body.events
        if sent >= events:
            break
    return envelopes


def with_unseen(batch: pa.RecordBatch, share: float) -> pa.RecordBatch:
    """Give a share of the rows values that no other row has, in the columns that enrichments look up."""
    every = max(1, round(1 / share))
    columns = {
        "context_user_agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/131.0.0.0 Safari/537.36 A/{}",
        "context_page_url": "https://shop.example/p/{0}?utm_source=google&utm_medium=cpc&gclid={0}",
        "context_page_search": "?utm_source=google&utm_medium=cpc&gclid={}",
        "context_page_referrer": "https://www.google.com/search?q={}",
    }
    for name, text in columns.items():
        at = batch.schema.get_field_index(name)
        ids = batch.column("message_id").to_pylist()
        values = batch.column(at).to_pylist()
        values[::every] = [text.format(each) for each in ids[::every]]
        batch = batch.set_column(at, batch.schema.field(at), pa.array(values, pa.string()))
    return batch


def run(options: argparse.Namespace) -> list[Line]:
    """Measure what the options ask for.

    Raises:
        ConfigError: the configuration has mistakes.
        CannotOpenError: a step lacks what it needs.
    """
    config = load_job(options.config)
    stages = Stages(options.rounds, options.shards)
    batches = stages.decode(shop(options.events, options.rate), options.batch_rows)
    batches = stages.before_the_order(batches, config, options.dedup_horizon_s)
    batches = stages.order(batches)
    if config.identity is not None:
        batches = stages.resolve(batches, config.identity)
    if options.unseen:
        batches = [with_unseen(batch, options.unseen) for batch in batches]
    stages.travel("ordered", batches)
    for stage, steps in (("enrich", config.steps), ("transform", config.transforms)):
        for step in steps:
            batches = stages.step(stage, step, batches)
    columns = (*added(options.dedup_horizon_s), *config.added)
    if columns:
        stages.travel("enriched", batches)
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
        stages.write(batches, Path(folder), columns)
    return [line for line in stages.lines if options.only in line.stage]


def table(lines: Iterable[Line]) -> Iterator[str]:
    """Give the lines of the table."""
    found = list(lines)
    first, then = sum(line.first_ns for line in found), sum(line.then_ns for line in found)
    yield f"{'stage':34}{'first':>9}{'then':>9}{'share':>7}  ns an event"
    for line in [*found, Line("all", first, then, f"{1e9 / then:,.0f} events/s of one core" if then else "")]:
        share = f"{line.then_ns / then:.0%}" if then else "-"
        yield f"{line.stage:34}{line.first_ns:9,.0f}{line.then_ns:9,.0f}{share:>7}  {line.remark}".rstrip()


def _repeats(step: Step, batches: Batches) -> str:
    """Say how many different values a step has looked up."""
    rows = _rows(batches)
    if not isinstance(step, Enrichment) or not rows:
        return ""
    seen: set[Any] = set()
    for batch in batches:
        keys = step.keys(batch)
        if keys:
            seen.update(distinct(keys)[1])
    return f"{1_000 * len(seen) / rows:.1f} distinct" if seen else ""


def _rows(batches: Any) -> int:
    return sum(batch.num_rows for batch in batches)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 2 where the configuration cannot be used."""
    options = _parser().parse_args(arguments)
    try:
        lines = run(options)
    except (ConfigError, CannotOpenError) as error:
        print(error, file=sys.stderr)
        return 2
    print(*table(lines), sep="\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stages", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    example = Path(__file__).parents[1] / "examples" / "job.yaml"
    add("--config", default=str(example), metavar="FILE", help="whose steps are measured (examples/job.yaml)")
    add("--dedup_horizon_s", type=float, default=86_400, metavar="S", help="0: no deduplication (%(default)g)")
    add("--only", default="", metavar="WORD", help="show only lines with this word in their name (all)")
    add("--events", type=int, default=60_000, metavar="N", help="events of the sample shop (%(default)d)")
    add(
        "--rate",
        type=float,
        default=20_000,
        metavar="N",
        help="events/s that reach it: more, larger batches (%(default)g)",
    )
    add("--batch_rows", type=int, default=32_768, metavar="N", help="rows of a decoded batch (%(default)d)")
    add(
        "--unseen",
        type=float,
        default=0,
        metavar="SHARE",
        help="give so many events user agents, pages and referrers "
        "that no other has, such as 0.1: `first` is then their price; 0: as the shop sends them",
    )
    add("--shards", type=int, default=8, metavar="N", help="shards of the ordering stage (%(default)d)")
    add("--rounds", type=int, default=5, metavar="N", help="how often each stage is run, at least 2 (%(default)d)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
