"""`millrace sinks`: how delivery goes, who is blocked, and what to do about it.

    millrace sinks                            every lane: what was delivered, what waits, how far behind it is
    millrace sinks blocked [SINK]             the users that are blocked: by which event, since when, why
    millrace sinks retry SINK SUBJECT         try it again now; parked events too
    millrace sinks skip SINK SUBJECT          go on without it
    millrace sinks park SINK SUBJECT          put it aside; retry brings it back
    millrace sinks log [SINK]                 what operators told the lanes, and what came of it

SUBJECT is user:KEY, event:MESSAGE_ID or all: all events that have failed; others are not touched. Exit codes: 0; 1 (of
the overview) a lane does not deliver, or (of an order) nothing of that user or event has failed; 2 one line says what
is wrong.
"""

import argparse
import contextlib
import datetime as dt
import getpass
import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from millrace.delivery.clock import now_us
from millrace.delivery.ledger import Ledger
from millrace.delivery.records import Order
from millrace.delivery.status import LaneView, NoLaneError, ledger_paths, look

_ORDERS = ("retry", "skip", "park")
_WAIT_S = 5.0
_TOLD = "told; the lane does it as soon as it runs, or its delivery under way has ended: see `millrace sinks log`"


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.what in _ORDERS:
            return _order(options, parser)
        views = look(options.state, [options.sink] if options.sink else [])
    except NoLaneError as error:
        print(f"millrace sinks: {error}", file=sys.stderr)
        return 2
    now = now_us()
    if options.what == "blocked":
        print(_blocked(views, now))
    elif options.what == "log":
        print(_log(views))
    elif options.json:
        print(msgspec.json.format(msgspec.json.encode([_as_json(view, now) for view in views])).decode())
    else:
        print(_overview(views, now))
    return 1 if options.what is None and not all(view.is_well(now) for view in views) else 0


def _overview(views: Sequence[LaneView], now: int) -> str:
    rows: list[Sequence[str]] = [
        ("sink", "state", "delivered", "retrying", "waiting", "dead", "skipped", "parked", "blocked", "lag")
    ]
    rows += [
        (
            view.name,
            view.state(now),
            *(f"{n:,}" for n in (view.total("delivered"), len(view.trying), view.waiting, view.total("dead"))),
            *(f"{n:,}" for n in (view.total("skipped"), len(view.parked))),
            f"{0 if view.status is None else view.status.blocked_users:,}",
            _span(view.lag_s(now)),
        )
        for view in views
    ]
    return "\n".join([_table(rows), *(line for view in views for line in _remarks(view, now))])


def _remarks(view: LaneView, now: int) -> Iterator[str]:
    name, status = view.name, view.status
    if view.state(now) == "failed":
        yield f"{name} does not go on: {view.detail()}."
    elif status is not None and status.down_since_us is not None:
        since = _span((now - status.down_since_us) / 1_000_000)
        yield f"{name} is down since {since}: {status.detail}. Its events wait."
    elif status is not None and status.detail and view.state(now) == "running":
        yield f"{name} {status.detail}."
    if view.fault:
        yield f"{view.fault}."
    if status is not None and status.behind:
        yield f"{name} has yet to read {status.behind:,} rows of the archive."
    if view.total("unreadable"):
        lost = view.total("unreadable")
        yield f"{name} has lost {lost:,} rows of the archive, whose files were deleted before it came to them."
    if view.state(now) == "silent":
        yield f"{name} has said nothing for {_span((now - view.said_us) / 1_000_000)}: is it running?"


def _blocked(views: Sequence[LaneView], now: int) -> str:
    rows: list[Sequence[str]] = [("sink", "user", "event", "since", "tries", "next", "waiting", "why")]
    for view in views:
        for each in view.trying:
            next_s = (each.next_us - now) / 1_000_000
            rows.append(
                (
                    view.name,
                    each.user_key or "(no order)",
                    each.message_id,
                    _span((now - each.first_us) / 1_000_000),
                    str(each.attempts),
                    f"in {_span(next_s)}" if next_s > 0 else "now",
                    f"{each.waiting:,}",
                    f"{each.fault}: {each.detail}",
                )
            )
    return _table(rows) if len(rows) > 1 else "Nobody is blocked."


def _log(views: Sequence[LaneView]) -> str:
    rows: list[Sequence[str]] = [("when", "sink", "who", "what", "of", "why", "came of it")]
    rows += [
        (
            _time(each.told_us),
            view.name,
            each.told_by,
            each.verb,
            each.subject,
            each.reason,
            each.result or "(to be done)",
        )
        for view in views
        for each in view.orders
    ]
    return _table(rows) if len(rows) > 1 else "Nothing was ordered."


def _order(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if not options.sink or not options.subject:
        parser.error(f"{options.what}: give the sink, and user:KEY, event:MESSAGE_ID or all")
    kind, _, value = options.subject.partition(":")
    if options.subject != "all" and (kind not in {"user", "event"} or not value):
        parser.error(f"{options.subject!r} is no subject; give user:KEY, event:MESSAGE_ID or all")
    by = options.by or _who()
    nothing = []
    for path in ledger_paths(options.state, options.sink):
        try:
            with contextlib.closing(Ledger(path)) as ledger:
                order = _answered(ledger, ledger.tell(options.what, options.subject, by, options.reason))
        except sqlite3.Error as error:
            raise NoLaneError(f"{path} cannot be written: {error}") from error
        print(f"{path.stem}: {order.result or _TOLD}")
        nothing.append(order.found_nothing)
    return 1 if all(nothing) else 0  # of a sink with two lanes one has it


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have nobody by that number
        return f"uid {os.getuid()}"


def _answered(ledger: Ledger, number: int) -> Order:
    """Return an order, and wait a little for what comes of it."""
    until_s = time.monotonic() + _WAIT_S
    while True:
        order = next(each for each in ledger.orders() if each.id == number)
        if order.result is not None or time.monotonic() >= until_s:
            return order
        time.sleep(0.1)


def _as_json(view: LaneView, now: int) -> dict[str, object]:
    return {
        "name": view.name,
        "state": view.state(now),
        "detail": view.detail(),
        "lag_s": round(view.lag_s(now), 3),
        "status": view.status,
        "retrying": list(view.trying),
        "parked": [each.message_id for each in view.parked],
    }


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _span(seconds: float) -> str:
    """Return a time span for people.

    >>> _span(0.25), _span(75), _span(7_300), _span(200_000)
    ('0.2 s', '1 min 15 s', '2 h 1 min', '2 d 7 h')
    """
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = int(seconds)
    for unit, size, smaller, small in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small} {smaller}"
    return f"{whole} s"


def _time(at_us: int) -> str:
    return dt.datetime.fromtimestamp(at_us / 1_000_000, dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="millrace sinks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", nargs="?", choices=("blocked", "log", *_ORDERS), metavar="COMMAND")
    add("sink", nargs="?", metavar="SINK")
    add("subject", nargs="?", metavar="SUBJECT")
    add("--state", type=Path, default=Path("delivery-state"), metavar="DIR", help="the lanes' ledgers (%(default)s/)")
    add("--json", action="store_true", help="of the overview: everything, for programs")
    add("--reason", default="", help="why, for the log")
    add("--by", default="", metavar="WHO", help="who says so, for the log (the user who is logged in)")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
