"""`millrace verify`: do the accounts close, source by source and hour by hour, and if not, what is missing."""

import argparse
import datetime as dt
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import duckdb
from deltalake.exceptions import DeltaError

from millrace.collector.sources import FILE
from millrace.config.fanout import FanoutError, load_fanout
from millrace.pipelines.verify_accepted import HOUR_US, Acceptances
from millrace.pipelines.verify_findings import Finding, Findings, Kind
from millrace.pipelines.verify_lanes import LaneAccount, LaneCheck
from millrace.pipelines.verify_repeats import repeated_ids
from millrace.pipelines.verify_report import Report, as_json, as_text
from millrace.pipelines.verify_sources import SourceCheck
from millrace.pipelines.verify_tables import ALL, SPECS, Slice, Tables, open_tables
from millrace.sinks.delta import find_table
from millrace.sinks.storage import StorageError, locate
from millrace.sinks.tables import UNDELIVERED, load

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DESCRIPTION = """\
Check that every event is accounted for. Per source and hour:

  accepted = archived + duplicates + dead letters + dropped + in flight

What was accepted is known from the notes of millrace collector --accepted; without them the tables are counted, and
looked through for records that are there twice. Per sink, from the ledgers of millrace deliver (--state):

  routed = delivered + dead + skipped + parked + waiting

and the archive's parts, the routes and the table of what could not be delivered are held against each ledger."""
_EPILOG = """\
exit codes: 0 it closes; 1 it does not: the ids are named; 2 it could not be told, and a line says why

docs/verify.md has more."""


def main(arguments: Sequence[str]) -> int:
    """Run `millrace verify`; 0: closes, 1: does not, 2: it could not be told."""
    given = _parser().parse_args(list(arguments))
    try:
        with Findings(given.ids) as findings, tempfile.TemporaryDirectory(prefix="millrace-verify-") as scratch:
            report = _run(given, findings, Path(scratch))
    except FanoutError as error:
        print(error, file=sys.stderr)
        return 2
    except (StorageError, DeltaError, OSError, sqlite3.Error) as error:
        print(f"millrace verify: {error}", file=sys.stderr)
        return 2
    print(as_json(report) if given.json else as_text(report))
    return 0 if report.closes else 1


def _run(given: argparse.Namespace, findings: Findings, scratch: Path) -> Report:
    tables = open_tables(_uris(given))
    hours = Slice(given.since or ALL.low_us, given.until or ALL.high_us)
    with duckdb.connect(str(scratch / "verify.duckdb")) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"SET memory_limit = '{given.memory_mb}MB'")
        connection.execute("SET preserve_insertion_order = false")
        folder = given.accepted or _beside(given, "accepted")
        acceptances = None if folder is None else Acceptances(connection, folder)
        settled_us = round(given.settled_after * 1_000_000)
        findings.add(Finding(Kind.FILE_GONE, file.path, file.table) for file in tables.gone)
        sources = SourceCheck(tables, connection, acceptances, findings, settled_after_us=settled_us, hours=hours).run()
        findings.add(repeated_ids(tables, connection, round(given.dedup_horizon_s * 1_000_000), hours))
    lanes = _lanes(given, tables, findings, scratch, hours)
    return Report(sources, lanes, findings, _rows_gone(tables), tables.newest_us, time.time_ns() // 1_000)


def _lanes(
    given: argparse.Namespace, tables: Tables, findings: Findings, scratch: Path, hours: Slice
) -> list[LaneAccount]:
    state = given.state or _beside(given, "delivery")
    if state is None:
        return []
    config = given.config or _beside(given, FILE)
    lanes = load_fanout("" if config is None else str(config)).lanes
    uri = given.undelivered or f"{tables.tables['archive'].location.uri.rpartition('/')[0]}/undelivered"
    there = load(locate(uri)) is not None
    undelivered = find_table(uri, [UNDELIVERED]) if there else None
    check = LaneCheck(tables, undelivered, findings, scratch, fast=given.fast, hours=hours)
    return check.run(state, lanes)


def _uris(given: argparse.Namespace) -> dict[str, str]:
    return {name: getattr(given, name) or f"{given.data.rstrip('/')}/{name}" for name in SPECS}


def _beside(given: argparse.Namespace, name: str) -> Path | None:
    """Return where a local run keeps a thing, if it is one and has it."""
    if "://" in given.data:
        return None
    path = Path(given.data) / name
    return path if path.exists() else None


def _rows_gone(tables: Tables) -> int:
    return sum(file.rows for file in tables.gone)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="millrace verify",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("data", nargs="?", default="data", help="where the tables are, each under its name: a folder or gs:// "
        "(default: %(default)s)")  # fmt: skip
    for name in SPECS:
        add(f"--{name}", metavar="URI", help=f"the table, where it is elsewhere (default: DATA/{name})")
    add("--accepted", type=Path, metavar="DIR", help="notes of millrace collector --accepted; those of several "
        "collectors may be copied into one folder (default: DATA/accepted, where that is there)")  # fmt: skip
    add("--state", type=Path, metavar="DIR", help="the --state of millrace deliver: check its lanes, too (default: "
        "DATA/delivery, where that is there)")  # fmt: skip
    add("--config", type=Path, metavar="FILE", help="with the routes (default: DATA/millrace.yaml)")
    add("--undelivered", metavar="URI", help="the table of what sinks did not take (default: beside the archive)")
    add("--fast", action="store_true", help="ask no route again which events it takes")
    add("--since", type=_hour, metavar="TIME", help="from this hour on, UTC: 2026-03-01T12, or 2026-03-01 (all)")
    add("--until", type=_hour, metavar="TIME", help="up to this hour, which is not looked at (all)")
    add("--settled-after", type=_duration, default="15m", metavar="TIME", help="what is in no table is in flight; "
        "it is missing when the tables hold messages that are newer by so much (default: %(default)s)")  # fmt: skip
    add("--dedup_horizon_s", type=float, default=86_400.0, metavar="S", help="the job's: within it the archive has no "
        "id twice (default: %(default)g)")  # fmt: skip
    add("--ids", type=Path, metavar="FILE", help="write all ids that do not fit to this CSV file, not only some")
    add("--json", action="store_true", help="print JSON")
    add("--memory_mb", type=int, default=1_024, metavar="N", help="what DuckDB may take; with less it works on disk "
        "(default: %(default)s)")  # fmt: skip
    return parser


def _hour(text: str) -> int:
    try:
        time_ = dt.datetime.fromisoformat(text.removesuffix("Z"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no hour; write 2026-03-01T12 or 2026-03-01") from None
    at_us = int(time_.replace(tzinfo=time_.tzinfo or dt.UTC).timestamp()) * 1_000_000
    return at_us // HOUR_US * HOUR_US


def _duration(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}[smhd]", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 15m, 2h or 90s")
    return float(text[:-1]) * _UNITS_S[text[-1]]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
