r"""The main job: customer events from Pub/Sub to a Delta archive, each user's in their true order.

    python -m pipelines.events --subscription=projects/PROJECT/subscriptions/NAME --archive=gs://BUCKET/archive \
        --duplicates=gs://BUCKET/duplicates --dead_letters=gs://BUCKET/dead_letters --dropped=gs://BUCKET/dropped \
        --identities=gs://BUCKET/identities --config=millrace.yaml --runner=DataflowRunner ...

Without --runner it runs on this machine, on Prism. Ctrl-C or SIGTERM: stop reading, archive what was read, end; a
second one: hand everything unfinished back to Pub/Sub and end at once. Exit codes: 0 ended as told; 1 failed, nothing
lost; 2 it could not start, and one line says what to do.
"""

import argparse
import functools
import sys
from collections.abc import Sequence

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from millrace.config.job import ConfigError, JobConfig, load_job
from millrace.pipelines import check, one_node
from millrace.pipelines.options import EventOptions
from millrace.pipelines.runners import PROMISES, Kind, RunnerRefusedError, kind_of
from millrace.schemas.envelope import Envelope
from millrace.sinks.archive import WriteArchive, WriteRecords
from millrace.sinks.job_tables import Tables, is_archived
from millrace.sinks.storage import StorageError
from millrace.transforms.copies import added
from millrace.transforms.decode import DecodeEnvelopes
from millrace.transforms.deduplicate import DeduplicateEvents
from millrace.transforms.order import OrderPerUser
from millrace.transforms.protect import ProtectEvents
from millrace.transforms.read import ReadEnvelopes
from millrace.transforms.run_steps import RunSteps
from millrace.transforms.subscriber import Limits
from millrace.transforms.validate import ValidateEvents


def build(
    envelopes: beam.PCollection[list[Envelope]], options: EventOptions, config: JobConfig, tables: Tables
) -> None:
    """Wire the graph behind the read; every output is consumed."""
    decoded = envelopes | "DecodeEnvelopes" >> DecodeEnvelopes(
        batch_rows=options.decode_batch_rows,
        max_body_bytes=options.decode_body_mb * 1024 * 1024,
        processes=options.decode_processes if tables.alone else 0,
    )
    batches = decoded.batches
    letters: tuple[beam.PCollection[pa.RecordBatch], ...] = (decoded.dead_letters,)
    left_out: tuple[beam.PCollection[pa.RecordBatch], ...] = ()
    if config.privacy is not None:
        protected = (decoded.batches, decoded.dead_letters) | "ProtectEvents" >> ProtectEvents(config.privacy)
        batches, letters, left_out = protected.batches, (protected.dead_letters,), (protected.dropped,)
    if config.contracts is not None:
        validated = batches | "ValidateEvents" >> ValidateEvents(config.contracts)
        batches, letters = validated.batches, (*letters, validated.dead_letters)
    unique = batches | "DeduplicateEvents" >> DeduplicateEvents(
        horizon_s=options.dedup_horizon_s,
        max_ids=options.dedup_max_ids,
        alone=tables.alone,
        run_id=tables.run_id,
        shards=options.dedup_shards,
    )
    order = OrderPerUser(
        wait_s=options.order_wait_s,
        window_s=options.order_window_s,
        shards=options.shards,
        turns=options.order_turns if tables.alone else 1,  # elsewhere workers share a window's work
        links=config.identity,
        alone=tables.alone,
    )
    ordered = unique.batches | "OrderPerUser" >> order
    known = functools.partial(is_archived, tables) if tables.alone else None
    enriched = ordered.batches | "EnrichEvents" >> RunSteps(
        config.steps, "enrich", window_s=order.turn_s, alone=tables.alone, is_archived=known
    )
    transformed = enriched.batches | "TransformEvents" >> RunSteps(
        config.transforms, "transform", window_s=order.turn_s, alone=tables.alone, is_archived=known
    )
    (transformed.batches, ordered.repeats) | "WriteArchive" >> WriteArchive(tables)
    (unique.duplicates,) | "WriteDuplicates" >> WriteRecords(tables, "duplicates", window_s=options.order_window_s)
    letters = (*letters, enriched.dead_letters, transformed.dead_letters)
    letters | "WriteDeadLetters" >> WriteRecords(tables, "dead_letters", window_s=options.order_window_s)
    left_out = (*left_out, enriched.dropped, transformed.dropped)
    left_out | "WriteDropped" >> WriteRecords(tables, "dropped", window_s=options.order_window_s)
    if ordered.identities is not None:
        links = (ordered.identities,)
        links | "WriteIdentities" >> WriteRecords(tables, "identities", window_s=options.order_window_s)


def read(options: EventOptions, kind: Kind) -> ReadEnvelopes:
    """Return the read that a runner takes."""
    return ReadEnvelopes(
        options.subscription,
        native=kind is Kind.DATAFLOW,
        ack_after="commit" if kind is Kind.ONE_NODE else "checkpoint",
        readers=options.readers,
        pulls=options.read_pulls,
        slack_s=options.read_slack_s,
        limits=Limits(open_messages=options.read_open_messages, open_bytes=options.read_open_mb * 1024 * 1024),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job until it is told to stop; return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not {"-h", "--help"}.isdisjoint(given):
        print(_help())
        return 0
    try:
        check.arguments(given)
        pipeline_options = PipelineOptions(given, streaming=True)
        options = pipeline_options.view_as(EventOptions)
        kind = kind_of(pipeline_options.view_as(StandardOptions).runner)
        check.options(options)
        config = load_job(options.config)
        tables = Tables(
            archive=options.archive,
            duplicates=options.duplicates,
            dead_letters=options.dead_letters,
            dropped=options.dropped,
            identities=options.identities,
            added=(*added(options.dedup_horizon_s), *config.added),
            alone=kind is Kind.ONE_NODE,
            horizon_s=options.commit_horizon_s,
        )
        if kind is Kind.DATAFLOW:
            check.shared(tables)
        if kind is Kind.ONE_NODE:
            check.privacy(config.privacy)
            check.steps(config)
        pipeline = None if kind is Kind.ONE_NODE else check.pipeline(pipeline_options)
        check.subscription(options.subscription)
        check.tables(tables, config, options)

        def graph(pipeline: beam.Pipeline) -> None:
            build(pipeline | "ReadEnvelopes" >> read(options, kind), options, config, tables)

        print(f"Runner: {kind.value}.\nPromise: {PROMISES[kind]}.", file=sys.stderr, flush=True)
        if pipeline is None:
            return one_node.run(given, options, graph)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (check.CannotStartError, RunnerRefusedError, StorageError) as error:
        print(f"millrace events: {error}", file=sys.stderr)
        return 2
    graph(pipeline)
    result = pipeline.run()
    result.wait_until_finish()
    return 0 if result.state in {"DONE", "DRAINED", "CANCELLED"} else 1


def _help() -> str:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.events",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Beam's own options (--runner, --project, --region, --temp_location ...) go beside these.",
    )
    EventOptions._add_argparse_args(parser)  # noqa: SLF001  Beam's hook is spelled so
    return parser.format_help()


if __name__ == "__main__":
    sys.exit(main())
