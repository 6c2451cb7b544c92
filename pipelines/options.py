"""The options of the main job, in Beam's way: each says its unit, its default, and the price of another value."""

import argparse
import math
import os
from collections.abc import Callable, Sequence

from apache_beam.options.pipeline_options import PipelineOptions

from millrace.transforms.order import divides


class EventOptions(PipelineOptions):
    """Options of `python -m pipelines.events`, beside Beam's own."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("Millrace")
        add = group.add_argument
        add(
            "--subscription",
            metavar="NAME",
            help="What to read: projects/PROJECT/subscriptions/NAME. Only a subscription keeps events while the job is "
            "down, so there is no reading from a topic.",
        )
        add(
            "--archive",
            default="data/archive",
            metavar="URI",
            help="The Delta table of events: a folder, or gs://BUCKET/FOLDER. Default: %(default)s.",
        )
        add(
            "--duplicates",
            default="data/duplicates",
            metavar="URI",
            help="The Delta table of copies that were left out: which, when, of which. Default: %(default)s.",
        )
        add(
            "--dead_letters",
            default="data/dead_letters",
            metavar="URI",
            help="The Delta table of what could not go on, payload untouched, with its reason. Default: %(default)s.",
        )
        add(
            "--dropped",
            default="data/dropped",
            metavar="URI",
            help="The Delta table of events that a rule of yours left out: which, when, by which rule. "
            "Default: %(default)s.",
        )
        add(
            "--identities",
            default="data/identities",
            metavar="URI",
            help="The Delta table of links: which id belongs to whose sequence, from when on (docs/config.md, "
            "identity). Default: %(default)s.",
        )
        add(
            "--config",
            default="",
            metavar="FILE",
            help="What the stages do: contracts, identities, sessions, enrichments, privacy, your own transforms "
            "(docs/config.md). `millrace check FILE` reads it as this job does. Default: none.",
        )
        add(
            "--order_wait_s",
            type=float,
            default=10.0,
            metavar="S",
            help="How long an event waits, after it occurred, for earlier ones of its user. More: fewer late events; "
            "every event is archived that much later and takes memory meanwhile. Default: %(default)g seconds.",
        )
        add(
            "--order_window_s",
            type=float,
            default=5.0,
            metavar="S",
            help="Events of a user that leave within so many seconds are archived together. More: fewer, larger files; "
            "later. At least 1. Default: %(default)g seconds.",
        )
        add(
            "--order_turns",
            type=int,
            default=4,
            metavar="N",
            help="On one node: in how many turns the shards leave within a window, each turn a commit. More: smoother "
            "work, and so less delay at the sinks; fewer: fewer, larger files where traffic is low. The window must "
            "be so many times some whole milliseconds. Default: %(default)d.",
        )
        add(
            "--shards",
            type=int,
            default=8,
            metavar="N",
            help="Into how many groups users are spread; each is ordered and written by itself. More: more workers "
            "can share the work, smaller files. Dataflow: about 4 for each worker core. Default: %(default)d.",
        )
        add(
            "--dedup_horizon_s",
            type=float,
            default=86_400.0,
            metavar="S",
            help="How long an event is remembered, by arrival, so that a copy of it is left out; up to an eighth "
            "longer. Price: 16 bytes for each event of that time, and on one node reading them back at the start. "
            "0: copies are kept. Default: %(default)g seconds.",
        )
        add(
            "--dedup_max_ids",
            type=int,
            default=50_000_000,
            metavar="N",
            help="How many events are remembered at most, 16 bytes each; beyond that the oldest are forgotten before "
            "the horizon, which is said in the log and counted. Default: %(default)d (800 MB).",
        )
        add(
            "--dedup_shards",
            type=int,
            default=32,
            metavar="N",
            help="Over how many keys the remembered ids are spread in a cluster's state. More: more workers can share "
            "them, smaller batches behind. Not used on one node. Default: %(default)d.",
        )
        add(
            "--commit_horizon_s",
            type=float,
            default=600.0,
            metavar="S",
            help="On one node: how far back, in the tables' own time, it is known which messages are committed, so "
            "that one that is delivered again after a crash is not archived twice. At least Pub/Sub's ack deadline. "
            "Price: 16 bytes for each event of that time. Default: %(default)g seconds.",
        )
        add(
            "--readers",
            type=int,
            default=2,
            metavar="N",
            help="How many readers feed the graph side by side: while the runner takes what one has read, the other "
            "decodes. More: memory for a bundle each. Not used on Dataflow. Default: %(default)d.",
        )
        add(
            "--read_pulls",
            type=int,
            default=1,
            metavar="N",
            help="How many pulls are under way at once. Google's service: 2 to 4 read faster; its emulator and the "
            "embedded broker: 1 is fastest. Not used on Dataflow. Default: %(default)d.",
        )
        add(
            "--read_slack_s",
            type=float,
            default=0.5,
            metavar="S",
            help="How far out of publish order messages may be delivered without making their events late. Adds to "
            "the latency. Not used on Dataflow. Default: %(default)g seconds.",
        )
        add(
            "--read_open_messages",
            type=int,
            default=2_000_000,
            metavar="N",
            help="Read no further while so many messages are not yet committed: the bound on memory. It must hold what "
            "is published in order wait + window. Price: about 0.5 KB each, and their events. Default: %(default)d.",
        )
        add(
            "--read_open_mb",
            type=int,
            default=4_096,
            metavar="MB",
            help="The same bound in megabytes of message bodies; they wait compressed, at about a fifth. "
            "Default: %(default)d.",
        )
        add(
            "--decode_batch_rows",
            type=int,
            default=32_768,
            metavar="N",
            help="Events that travel together. More: less overhead, more memory for a moment. Default: %(default)d.",
        )
        add(
            "--decode_processes",
            type=int,
            default=min(2, os.cpu_count() or 1),
            metavar="N",
            help="On one node: how many processes decode beside the job's own, which then has its hands free for order "
            "and files. 0: none does. Price: 100 to 200 MB each. Default: 2, or 1 on one core.",
        )
        add(
            "--decode_body_mb",
            type=int,
            default=10,
            metavar="MB",
            help="A message whose body is larger, unpacked, is a dead letter: Pub/Sub's own limit for a message, and "
            "the guard against gzip bombs. Default: %(default)d.",
        )
        add(
            "--compact_every_s",
            type=float,
            default=300.0,
            metavar="S",
            help="On one node: how often small files are merged, 0 for never (then run `millrace compact` yourself). "
            "Default: %(default)g seconds.",
        )
        add(
            "--progress_s",
            type=float,
            default=0.0,
            metavar="S",
            help="On one node: print a line of counts every so many seconds, 0 for none. Default: %(default)g.",
        )
        add(
            "--drain_until_empty",
            action="store_true",
            help="On one node: when told to stop, first read what the subscription still holds. Default: off.",
        )


PROBLEMS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("order_wait_s", lambda value: value >= 0, "must not be negative"),
    ("order_window_s", lambda value: value >= 1, "must be at least 1"),
    ("order_turns", lambda value: 1 <= value <= 100, "must be from 1 to 100"),
    ("shards", lambda value: value >= 1, "must be at least 1"),
    ("dedup_horizon_s", lambda value: value >= 0, "must not be negative"),
    ("dedup_max_ids", lambda value: value >= 1, "must be at least 1"),
    ("dedup_shards", lambda value: value >= 1, "must be at least 1"),
    ("commit_horizon_s", lambda value: value >= 0, "must not be negative"),
    ("readers", lambda value: 1 <= value <= 20, "must be from 1 to 20"),
    ("read_pulls", lambda value: 1 <= value <= 20, "must be from 1 to 20"),
    ("read_slack_s", lambda value: value >= 0, "must not be negative"),
    ("read_open_messages", lambda value: value >= 1, "must be at least 1"),
    ("read_open_mb", lambda value: value >= 1, "must be at least 1"),
    ("decode_batch_rows", lambda value: value >= 1, "must be at least 1"),
    ("decode_processes", lambda value: 0 <= value <= 64, "must be from 0 to 64"),
    ("decode_body_mb", lambda value: value >= 1, "must be at least 1"),
    ("compact_every_s", lambda value: value >= 0, "must not be negative"),
    ("progress_s", lambda value: value >= 0, "must not be negative"),
)
"""What a value must be, by option, and how to say so."""


def problem_with(options: EventOptions) -> str | None:
    """Return what is wrong with the first unusable option, in one line; None where all can be used."""
    for name, is_good, demand in PROBLEMS:
        value = getattr(options, name)
        if not math.isfinite(value):
            return f"--{name} must be a finite number, got {value:g}."
        if not is_good(value):
            return f"--{name} {demand}, got {value:g}."
    if not divides(options.order_turns, options.order_window_s):
        return (
            f"--order_window_s={options.order_window_s:g} is not {options.order_turns} turns of whole milliseconds: "
            "choose another window, or other --order_turns."
        )
    return None


def problem_with_arguments(arguments: Sequence[str]) -> str | None:
    """Return what no option can take, in one line; None where all can be read.

    Beam by itself would drop what it does not know with a warning, and answer what it cannot read with all its usage.
    """
    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, conflict_handler="resolve", exit_on_error=False
    )
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)  # noqa: SLF001  Beam's hook is spelled so
    try:
        strangers = parser.parse_known_args(list(arguments))[1]
    except argparse.ArgumentError as error:
        return f"{error.argument_name}: {error.message}; see --help."
    return f"no such option: {' '.join(strangers)}; see --help." if strangers else None
