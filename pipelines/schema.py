"""`millrace schema`: contracts proposed from the archive, and changed ones held against it before they are deployed."""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from millrace.config.contracts import FOLDER
from millrace.config.plan import PlanError, read_plan
from millrace.pipelines import break_check, infer
from millrace.pipelines.break_check import Report, Verdict
from millrace.schemas.contracts import Contract
from millrace.sinks.delta import Table, find_table
from millrace.sinks.storage import StorageError
from millrace.sinks.tables import ARCHIVE

_MOST_SHOWN = 20
_UNITS_S = {"m": 60, "h": 3_600, "d": 86_400}

_INFER = """\
Propose contracts from what the archive holds: for each event an Avro schema of its properties (of identify and group:
traits), written to OUT/<event_name>/<version>.avsc. Types are those seen; a field is required where it is in enough of
the events; enums are not guessed. An event that has a contract gets its next version, if the proposal says anything
else. The same rows give the same files. Read them before you deploy them: they say what is, not what should be.
"""
_CHECK = """\
Hold the archive's events against the newest version of each contract, and say what it would have broken: events that
violate it, and keep the version before it (all that violate it, where there is none). Say also whether the newest
version can read what the one before it wrote, by Avro's rules for schema resolution (BACKWARD compatibility).
Events that were stripped or refused when they came are seen as the archive has them, or not at all.
"""
_CODES = "exit codes: 0 nothing would break; 1 something would; 2 it could not be told, and a line says why"
_EXAMPLE = """\
in CI, on a change of the plan:
  millrace schema check gs://BUCKET/archive schemas/events --since 30d
"""


def main(arguments: Sequence[str]) -> int:
    """Run `millrace schema infer` or `millrace schema check`."""
    parser = argparse.ArgumentParser(prog="millrace schema", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="infer|check")
    raw = argparse.RawDescriptionHelpFormatter
    one = commands.add_parser(
        "infer", help="propose contracts from the archive", description=_INFER, formatter_class=raw
    )
    _common(one)
    one.add_argument("--out", type=Path, default=Path(FOLDER), help="the plan's folder (default: %(default)s)")
    one.add_argument(
        "--required_share",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="a field that is in at least this share of the events, and not null, is required; less makes "
        "violations of what is rarely missing (default: %(default)s)",
    )
    one.add_argument(
        "--min_events",
        type=int,
        default=10,
        metavar="N",
        help="leave out events that came less often: typing errors, tests (default: %(default)s)",
    )
    two = commands.add_parser(
        "check",
        help="what would a plan have broken",
        description=_CHECK,
        epilog=f"{_CODES}\n\n{_EXAMPLE}",
        formatter_class=raw,
    )
    _common(two)
    two.add_argument(
        "schemas", type=Path, nargs="?", default=Path(FOLDER), help="the plan's folder (default: %(default)s)"
    )
    two.add_argument(
        "--allow_share",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of an event, how large a share may break before the exit code is 1 (default: %(default)s)",
    )
    given = parser.parse_args(list(arguments))
    for name in ("required_share", "allow_share"):
        if not 0 <= getattr(given, name, 0.0) <= 1:
            parser.error(f"--{name} must be from 0 to 1")
    try:
        table = find_table(given.archive, [ARCHIVE])
        return _infer(table, given) if given.command == "infer" else _check(table, given)
    except PlanError as error:
        print(error, file=sys.stderr)
    except (StorageError, OSError) as error:
        print(f"millrace schema: {error}", file=sys.stderr)
    return 2


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("archive", help="the Delta table of events: a folder, file:// or gs://bucket/folder")
    parser.add_argument(
        "--since",
        type=_time,
        default="30d",
        metavar="TIME",
        help="look at so much of the archive, back from its newest event: 7d, 12h, 30m (default: 30d)",
    )
    parser.add_argument(
        "--event",
        action="append",
        metavar="NAME",
        help="only this one: its name as it is sent, or its folder (may be given several times)",
    )


def _time(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,4}[mhd]", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 7d, 12h or 30m")
    return text


def _rows(table: Table, columns: Sequence[str], since: str) -> Iterator[pa.RecordBatch]:
    newest_us = table.newest_us()
    if newest_us is not None:
        yield from table.read_recent(columns, newest_us - int(since[:-1]) * _UNITS_S[since[-1]] * 1_000_000)


def _infer(table: Table, given: argparse.Namespace) -> int:
    plan: tuple[Contract, ...] = read_plan(given.out) if any(given.out.glob("*/*.avsc")) else ()
    seen = infer.see(_rows(table, infer.COLUMNS, given.since))
    written = 0
    for (kind, event), folder in infer.folders_of(seen, plan).items():
        objects = seen[kind, event]
        count = objects.kinds["object"]
        if given.event and not {event, folder} & set(given.event):
            continue
        if count < given.min_events:
            print(f"{folder:30} {count:>10,} events: too few, left out")
            continue
        proposed = infer.propose(objects, folder, event, given.required_share)
        version = infer.next_version(proposed, [each for each in plan if each.folder == folder])
        if version is None:
            print(f"{folder:30} {count:>10,} events: as its newest version says")
            continue
        file = given.out / folder / f"{version}.avsc"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(infer.lines(proposed)) + "\n", encoding="utf-8")
        written += 1
        print(f"{folder:30} {count:>10,} events: {len(proposed['fields'])} fields, written to {file}")
    print(f"{written} written. Read them, and then: millrace schema check ARCHIVE {given.out}")
    return 0


def _check(table: Table, given: argparse.Namespace) -> int:
    plan = read_plan(given.schemas)
    report = break_check.examine(plan, _rows(table, break_check.COLUMNS, given.since))
    if given.event:
        wanted = [each for each in report.verdicts if {each.newest.title, each.newest.folder} & set(given.event)]
        report = Report(tuple(wanted), {})
    broken = [each for each in report.verdicts if _breaks(each, given.allow_share)]
    print("\n".join(_table(report)))
    held = sum(each.events for each in report.verdicts)
    said = f"{len(broken)} of {len(report.verdicts)} contracts would break" if broken else "Nothing would break"
    print(f"\n{said}: {held:,} events of the archive's last {given.since} held against {given.schemas}.")
    return 1 if broken else 0


def _breaks(verdict: Verdict, allow_share: float) -> bool:
    return bool(verdict.incompatible) or verdict.broken > allow_share * verdict.events


def _table(report: Report) -> Iterator[str]:
    width = max([len(each.newest.folder) for each in report.verdicts] + [5])
    yield f"{'event':{width}}  {'version':>9}  {'events':>10}  {'would break':>18}  backward compatible"
    for each in report.verdicts:
        version = each.newest.version if each.previous is None else f"{each.previous.version} -> {each.newest.version}"
        breaks = f"{each.broken:,} ({share(each.broken, each.events)})" if each.broken else "-"
        compatible = "first version" if each.previous is None else "NO" if each.incompatible else "yes"
        yield f"{each.newest.folder:{width}}  {version:>9}  {each.events:>10,}  {breaks:>18}  {compatible}"
        yield from (f"    not compatible: {why}" for why in each.incompatible)
        ways = sorted(each.ways.items(), key=lambda way: (-way[1].events, way[0]))
        for (field, what), (events, message_id) in ways[:_MOST_SHOWN]:
            yield (
                f"    {share(events, each.events)} of {each.newest.folder}: {field} {what} "
                f"({events:,} events, such as {message_id})"
            )
        if len(ways) > _MOST_SHOWN:
            yield f"    and {len(ways) - _MOST_SHOWN} other ways"
    if report.unplanned:
        yield f"\nNot in the plan: {sum(report.unplanned.values()):,} events"
        names = sorted(report.unplanned.items(), key=lambda each: (-each[1], each[0]))
        yield from (f"    {events:>10,}  {name!r}" for name, events in names[:_MOST_SHOWN])
        if len(names) > _MOST_SHOWN:
            yield f"    and {len(names) - _MOST_SHOWN} other names"


def share(part: int, whole: int) -> str:
    """Return a share in per cent, so that what is there is not 0.

    >>> share(1, 100_000), share(3, 1_000)
    ('< 0.1 %', '0.3 %')
    """
    percent = 100 * part / whole
    return "< 0.1 %" if 0 < percent < 0.1 else f"{percent:.1f} %"
