"""`millrace routes`: which routes there are, and where an event would go, and why."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

from millrace.collector import source_file
from millrace.collector.sources import FILE
from millrace.config.fanout import load_fanout
from millrace.config.job import load_job
from millrace.config.secrets import SecretError
from millrace.config.yaml_page import MistakesError, meant, text_of
from millrace.delivery.settings import Fanout
from millrace.pipelines.one_event import Seen, see
from millrace.pipelines.options import EventOptions
from millrace.sinks.json_rows import json_rows
from millrace.transforms.route import Route, columns_for, rows_for
from millrace.transforms.route_explain import Verdict, explain
from millrace.transforms.suppression import SuppressionError

_GOES = {True: "goes", False: "does not go", None: "may go"}
_HOLDS = {True: "yes", False: "no", None: "?"}
_NAME_WIDTH = 14


def main(arguments: Sequence[str] | None = None) -> int:
    """Print it; the exit code is 0, 2 where the configuration or the event cannot be read."""
    parser = argparse.ArgumentParser(
        prog="millrace routes",
        description="Which routes millrace.yaml has, and where an event would go, and why. Sends nothing.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    told = verbs.add_parser("explain", help="for one event and each route: does it go there, why, and as what")
    told.add_argument("event", metavar="EVENT.json", help="an event, or a batch, as an SDK sends it; -: standard input")
    told.add_argument("--source", default="", metavar="NAME", help="the source that sends it; default: none")
    listed = verbs.add_parser("list", help="one line a route")
    for each in (told, listed):
        each.add_argument("--config", default=FILE, metavar="FILE", help="default: %(default)s")
    given = parser.parse_args(arguments)
    try:
        fanout = load_fanout(given.config)
        if given.verb == "list":
            print("\n".join(listing(fanout)))
            return 0
        job = load_job(given.config)
        if wrong := _no_source(given.config, given.source):
            print(f"millrace routes: --source {given.source}: {wrong}", file=sys.stderr)
            return 2
        body = sys.stdin.buffer.read() if given.event == "-" else Path(given.event).read_bytes()
        seen = see(body, given.source, job, PipelineOptions([]).view_as(EventOptions))
    except MistakesError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"millrace routes: {given.event} cannot be read: {error.strerror or error}", file=sys.stderr)
        return 2
    except (SecretError, SuppressionError) as error:
        print(f"millrace routes: {error}.", file=sys.stderr)
        return 2
    print("\n".join(explanation(fanout, seen)))
    return 0 if seen.raw.num_rows or not seen.gone else 2


def _no_source(path: str, name: str) -> str:
    """Say that a file lists sources and not this one; empty: it has it, or lists none, as a job's own file may.

    Raises:
        SourcesError: the sources have mistakes.
    """
    if not name:
        return ""
    known = [source.id for source in source_file.read(text_of(path, source_file.SourcesError), path).sources]
    return f"{path} has no such source; {meant(name, known)}" if known and name not in known else ""


def listing(fanout: Fanout) -> list[str]:
    """Return a line for each route."""
    if not fanout.routes:
        return ["There is no route."]
    uses = {sink.name: sink.use for sink in fanout.sinks}
    rows = [("route", "to", "order", "what"), *((r.name, f"{r.to} ({uses[r.to]})", *_how(r)) for r in fanout.routes)]
    widths = [max(len(row[at]) for row in rows) for at in range(3)]
    return ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows]


def _how(route: Route) -> tuple[str, str]:
    parts = [str(route.when) if route.when is not None else "every event", *_limits(route)]
    if route.columns:
        parts.append(f"{len(route.columns)} column{'s' * (len(route.columns) != 1)}")
    if route.target:
        parts.append(f"to {route.target}")
    return "user" if route.is_ordered else "none", ", ".join(parts)


def _limits(route: Route) -> list[str]:
    parts = []
    if route.consent:
        parts.append(f"with consent to {f' {route.strategy} '.join(route.consent)}")
    if route.sample < 1:
        parts.append(f"{route.sample * 100:g} % of the {route.sample_by}s")
    if route.rate is not None:
        parts.append(f"at most {route.rate:g} a second")
    return parts


def explanation(fanout: Fanout, seen: Seen) -> list[str]:
    """Return the lines that say what becomes of some events."""
    lines = list(seen.gone)
    raw = {row: seen.raw.slice(row, 1) for row in range(seen.raw.num_rows)}
    ordered = [seen.ordered.slice(row, 1) for row in range(seen.ordered.num_rows)]
    by_place = {(_word(event, "envelope_index"), _word(event, "message_id")): event for event in raw.values()}
    for event in ordered:
        place = _word(event, "envelope_index"), _word(event, "message_id")
        lines += ["", *_of_event(fanout, by_place.pop(place, None), event, seen.unknown)]
    for event in by_place.values():
        lines += ["", *_of_event(fanout, event, None, seen.unknown)]
    return lines[1:] if lines and not lines[0] else lines


def _of_event(
    fanout: Fanout, raw: pa.RecordBatch | None, ordered: pa.RecordBatch | None, unknown: dict[str, str]
) -> list[str]:
    """Return what is said of one event.

    Args:
        fanout: where it may go.
        raw: as it is before the order; None: it is made behind it.
        ordered: as it is archived; None: it does not get so far.
        unknown: columns of `ordered` that cannot be told, and why.
    """
    event = raw if raw is not None else ordered
    assert event is not None
    name = _word(event, "event")
    what = f"{_word(event, 'type')} {name!r}" if name else _word(event, "type")
    lines = [f"{what} of {_word(event, 'user_key')} ({_word(event, 'message_id')}), as if it came in now, in time"]
    looked_at = set(columns_for([route for route in fanout.routes if route.is_ordered], list(unknown)))
    for why in dict.fromkeys(unknown.values()):
        columns = [column for column in unknown if unknown[column] == why and column in looked_at]
        if columns:
            lines.append(f"  cannot be told: {', '.join(columns)} ({why})")
    verdicts: dict[str, list[str]] = {}
    for is_ordered, given in ((True, ordered), (False, raw)):
        routes = [route for route in fanout.routes if route.is_ordered == is_ordered]
        if given is None:
            where = "behind the order only: a transform makes it" if raw is None else "before the order only"
            verdicts |= {each.name: [f"{_title(each)}: does not go: the event is there {where}"] for each in routes}
            continue
        hidden = unknown if is_ordered else {}
        verdicts |= {each.route.name: _of_route(each, given, hidden) for each in explain(given, routes, hidden)}
    for route in fanout.routes:
        lines += ["", *verdicts[route.name]]
    return lines if fanout.routes else [*lines, "", "There is no route: it goes nowhere but into the archive."]


def _of_route(verdict: Verdict, event: pa.RecordBatch, unknown: dict[str, str]) -> list[str]:
    route = verdict.route
    lines = [f"{_title(route)}: {_GOES[verdict.goes]}"]
    lines += [f"  {each.name:{_NAME_WIDTH}}{_HOLDS[each.holds]:5}{each.why}" for each in verdict.conditions]
    if verdict.goes is False:
        return lines
    if route.rate is not None:
        lines.append(f"  {'rate':{_NAME_WIDTH}}{'':5}at most {route.rate:g} events a second: it may wait")
    sent = rows_for(event, route)
    columns = dict(route.columns) if route.columns else {name: name for name in event.schema.names}
    missing = [columns[column] for column in unknown if column in columns]
    shown = sent.select([name for name in sent.schema.names if name not in missing])
    without = f" (without {', '.join(missing)})" if missing else ""
    lines.append(f"  {'sent' + (f' to {route.target}' if route.target else '')}{without}:")
    lines.append(f"    {json_rows(shown)[0].decode()}")
    return lines


def _title(route: Route) -> str:
    name = route.name if route.name == route.to else f"{route.name} (to {route.to})"
    return f"{name}, {'in order' if route.is_ordered else 'without order'}"


def _word(event: pa.RecordBatch, column: str) -> str:
    value = event.column(column)[0].as_py()
    return "" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
