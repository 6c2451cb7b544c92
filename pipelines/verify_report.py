"""What `millrace verify` says: a table of sources and hours, and one sentence; or the same as JSON."""

import dataclasses
from collections.abc import Iterator, Sequence

import msgspec

from millrace.pipelines.verify_findings import HINTS, SHOWN, Findings
from millrace.pipelines.verify_lanes import LaneAccount
from millrace.pipelines.verify_sources import DOORS, Account, Sources
from millrace.pipelines.verify_tables import hour_name, iso


@dataclasses.dataclass(frozen=True)
class Report:
    """All that was found.

    Attributes:
        sources: the accounts of sources.
        lanes: those of sinks.
        findings: what is wrong.
        rows_gone: in files that are no longer there.
        newest_us: publish time of the newest message in the tables.
        now_us: this machine's clock.
    """

    sources: Sources
    lanes: Sequence[LaneAccount]
    findings: Findings
    rows_gone: int
    newest_us: int | None
    now_us: int

    @property
    def closes(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings.counts


def as_json(report: Report) -> str:
    """Return it as one JSON object."""
    found = report.sources
    accounts = [
        {
            "source": source,
            "hour": hour_name(hour),
            **({"accepted": account.accepted, "again": account.again} if found.is_known else {"accepted": None}),
            **{door: getattr(account, door) for door in DOORS},
            "in_flight": account.in_flight,
            "missing": account.missing,
            "others": account.others,
        }
        for (source, hour), account in sorted(found.accounts.items(), key=lambda each: (each[0][1], each[0][0]))
    ]
    said = {
        "closes": report.closes,
        "accepted_is_known": found.is_known,
        "tables_hold_messages_up_to": None if report.newest_us is None else iso(report.newest_us),
        "oldest_in_flight": None if found.oldest_in_flight_us is None else iso(found.oldest_in_flight_us),
        "in_spool": found.in_spool,
        "sources": accounts,
        "sinks": [dataclasses.asdict(account) for account in report.lanes],
        "findings": {kind.value: count for kind, count in report.findings.counts.items()},
        "ids": [{**each._asdict(), "kind": each.kind.value} for each in report.findings.shown],
    }
    return msgspec.json.format(msgspec.json.encode(said), indent=2).decode()


def as_text(report: Report) -> str:
    """Return it for a person."""
    return "\n".join([*_sources(report.sources), "", *_lanes(report.lanes), *_said(report), *_wrong(report.findings)])


def _sources(found: Sources) -> Iterator[str]:
    if not found.accounts:
        yield "No events."
        return
    shown = [(source, hour_name(hour), account) for (source, hour), account in found.accounts.items()]
    shown.sort(key=lambda each: (each[1], each[0]))
    total = Account()
    for _, _, account in shown:
        _add(total, account)
    optional = [name for name in ("again", "missing") if getattr(total, name)]
    others = bool(sum(total.others.values()))
    head = ["hour", "source"]
    if found.is_known:
        head += ["accepted", *("again" for _ in optional[:1] if "again" in optional)]
    head += ["archived", "duplicates", "dead letters", "dropped"]
    if found.is_known:
        head += ["in flight", *("missing" for _ in [0] if "missing" in optional), *("others" for _ in [0] if others)]

    def cells(source: str, hour: str, account: Account) -> list[str]:
        if not found.is_known:
            return [hour, source, *(f"{account.others[door]:,}" for door in DOORS)]
        numbers = [account.accepted, *([account.again] if "again" in optional else [])]
        numbers += [getattr(account, door) for door in DOORS] + [account.in_flight]
        numbers += [account.missing] if "missing" in optional else []
        numbers += [sum(account.others.values())] if others else []
        return [hour, source, *(f"{number:,}" for number in numbers)]

    rows = [cells(source or '""', hour, account) for source, hour, account in shown]
    if len(rows) > 1:
        rows.append(cells("", "total", total))
    yield from aligned(head, rows)


def _add(total: Account, account: Account) -> None:
    for field in ("accepted", "again", *DOORS, "in_flight", "missing"):
        setattr(total, field, getattr(total, field) + getattr(account, field))
    for door in DOORS:
        total.others[door] += account.others[door]


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 2) -> Iterator[str]:
    """Give the lines of a table; the first columns, as many as `texts`, are text, the others numbers."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if at < texts else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _lanes(lanes: Sequence[LaneAccount]) -> Iterator[str]:
    if not lanes:
        return
    missing = ["missing"] if any(account.missing for account in lanes) else []
    names = ["routed", "delivered", "dead", "skipped", "parked", "waiting", *missing, "unread"]
    rows = [[account.lane, *(f"{getattr(account, name):,}" for name in names)] for account in lanes]
    yield from aligned(["sink", *names], rows, texts=1)
    for lane in lanes:
        if lane.not_configured:
            yield f"{lane.lane} is not in the configuration (--config): its routes could not be asked."
        elif lane.unchecked:
            yield (
                f"{lane.lane}: {lane.unchecked:,} rows were not held against the routes: their files were merged "
                "or are gone, the routes have changed since, or --fast."
            )
    yield ""


def _said(report: Report) -> Iterator[str]:
    found, counts = report.sources, report.findings.counts
    if counts:
        wrong = ", ".join(f"{count:,} {kind.value}" for kind, count in counts.items())
        yield f"It does NOT close: {wrong}."
    elif found.is_known:
        yield "It closes: each accepted event is in one table, once" + (", or in flight." if _waits(found) else ".")
    else:
        yield (
            "Nothing is there twice. What was accepted is not known: collectors note it with --accepted, "
            "give their folder as --accepted DIR."
        )
    if _waits(found):
        assert found.oldest_in_flight_us is not None
        stands = "hold nothing yet" if report.newest_us is None else f"hold messages up to {iso(report.newest_us)}"
        spool = f", {found.in_spool:,} of them in a collector's spool" if found.in_spool else ""
        yield (
            f"In flight: {_waits(found):,}{spool}; the oldest was accepted at {iso(found.oldest_in_flight_us)}, "
            f"{age(report.now_us - found.oldest_in_flight_us)} ago. The tables {stands}."
        )
    others = sum(sum(account.others.values()) for account in found.accounts.values())
    if found.is_known and others:
        yield (
            f"Others: {others:,} events are in the tables that no collector noted: of other publishers, of a publish "
            "whose answer was lost, or of the last second of a killed collector."
        )
    if report.rows_gone:
        yield f"In the files that are gone: {report.rows_gone:,} rows."


def _waits(found: Sources) -> int:
    return sum(account.in_flight for account in found.accounts.values())


def _wrong(findings: Findings) -> Iterator[str]:
    for kind, count in findings.counts.items():
        yield ""
        yield f"{kind.value} ({count:,}): {HINTS[kind]}"
        shown = [each for each in findings.shown if each.kind is kind]
        for each in shown:
            yield "  " + "  ".join(part for part in (each.what, each.where, each.at) if part)
        if count > len(shown):
            yield f"  and {count - SHOWN:,} more: --ids FILE writes all"


def age(us: int) -> str:
    """Return a time in words.

    >>> age(59_000_000), age(150_000_000), age(90 * 60_000_000), age(3 * 86_400_000_000)
    ('59 s', '2 min', '1 h 30 min', '3 d')
    """
    seconds = max(0, us // 1_000_000)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3_600:
        return f"{seconds // 60} min"
    if seconds < 2 * 86_400:
        return f"{seconds // 3_600} h {seconds % 3_600 // 60} min"
    return f"{seconds // 86_400} d"
