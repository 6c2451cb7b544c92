"""`millrace verify`: do the accounts close, source by source and hour by hour, and if not, what is missing."""

import argparse
import datetime as dt
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import duckdb

from millrace.pipelines.verify_accepted import HOUR_US, Acceptances
from millrace.pipelines.verify_findings import Finding, Findings, Kind
from millrace.pipelines.verify_repeats import repeated_ids
from millrace.pipelines.verify_report import Report, as_json, as_text
from millrace.pipelines.verify_sources import SourceCheck
from millrace.pipelines.verify_tables import ALL, SPECS, Slice, Tables, open_tables
from millrace.sinks.storage import StorageError

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DESCRIPTION = """\
Check that every event is accounted for. Per source and hour:

  accepted = archived + duplicates + dead letters + dropped + in flight

What was accepted is known from the notes of millrace collector --accepted; without them the tables are counted, and
looked through for records that are there twice."""
_EPILOG = """\
exit codes: 0 it closes; 1 it does not: the ids are named; 2 it could not be told, and a line says why

docs/verify.md has more."""


def main(arguments: Sequence[str]) -> int:
    """Run `millrace verify`; 0: closes, 1: does not, 2: it could not be told."""
    given = _parser().parse_args(list(arguments))
    try:
        with Findings(given.ids) as findings, tempfile.TemporaryDirectory(prefix="millrace-verify-") as scratch:
            report = _run(given, findings, Path(scratch))
    except (StorageError, OSError) as error:
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
        folder = given.accepted or _default_notes(given)
        acceptances = None if folder is None else Acceptances(connection, folder)
        settled_us = round(given.settled_after * 1_000_000)
        findings.add(Finding(Kind.FILE_GONE, file.path, file.table) for file in tables.gone)
        sources = SourceCheck(tables, connection, acceptances, findings, settled_after_us=settled_us, hours=hours).run()
        findings.add(repeated_ids(tables, connection, round(given.dedup_horizon_s * 1_000_000), hours))
    return Report(sources, findings, _rows_gone(tables), tables.newest_us, time.time_ns() // 1_000)


def _uris(given: argparse.Namespace) -> dict[str, str]:
    return {name: getattr(given, name) or f"{given.data.rstrip('/')}/{name}" for name in SPECS}


def _default_notes(given: argparse.Namespace) -> Path | None:
    """Return where a local run keeps the notes of its collector, if it is one."""
    if "://" in given.data:
        return None
    folder = Path(given.data) / "accepted"
    return folder if folder.is_dir() else None


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
