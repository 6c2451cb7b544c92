"""Settings: what `millrace collector` is told on its command line."""

import argparse
import os
from collections.abc import Sequence
from typing import NamedTuple

from millrace.collector.framing import HttpLimits
from millrace.collector.limits import Limits
from millrace.collector.sources import FILE

MAX_BODY_BYTES = 9_000_000
"""A Pub/Sub message holds 10 MB, attributes included."""

_DESCRIPTION = """\
Take events from Segment's and RudderStack's SDKs over HTTP and publish them to a Pub/Sub topic. A request is answered
with 200 once its events are durable: acknowledged by Pub/Sub, or synced to the spool on this machine's disk, from which
they are published as soon as Pub/Sub answers again. Plain HTTP: let a load balancer or a proxy speak TLS."""

_EPILOG = """\
signals:
  TERM, INT   end: accept no more, answer what is under way, publish or spool it all
  HUP         read the sources again; a file with mistakes changes nothing, and the log says why
  USR2        replace the workers one after the other, by new processes; no request fails

exit codes:
  0  ended, and nothing is left       2  could not start: one line says why
  1  failed                           3  ended, and the spool holds events: start again on the same --spool

Pub/Sub at PUBSUB_EMULATOR_HOST, if that is set. docs/operate.md has the rest."""


class Settings(NamedTuple):
    """All of them; the same for every worker."""

    topic: str
    sources: str = FILE
    host: str = "127.0.0.1"
    port: int = 8080
    admin_host: str = "127.0.0.1"
    admin_port: int = 8081
    workers: int = 1
    spool: str = "spool"
    spool_max_bytes: int = 10 << 30
    publish_deadline_s: float = 1.0
    drain_s: float = 25.0
    demo: bool = False
    accepted: str = ""
    log: str = "auto"
    log_level: str = "INFO"
    limits: Limits = Limits()
    http: HttpLimits = HttpLimits()


def parse(arguments: Sequence[str] | None) -> Settings:
    """Read the command line; SystemExit(2) with one line where it is wrong."""
    options = _parser().parse_args(arguments)
    http = HttpLimits(
        head_s=options.head_s,
        body_s=options.body_s,
        idle_s=options.idle_s,
        connections=options.max_connections,
        held_bytes=options.max_held_bytes,
    )
    limits = Limits(
        body_bytes=options.max_body_bytes,
        events=options.max_events,
        event_bytes=options.max_event_bytes,
        event_bytes_soft=options.soft_event_bytes,
        lenient=options.lenient,
    )
    own = {name: getattr(options, name) for name in Settings._fields if name not in ("limits", "http")}
    return Settings(**own, limits=limits, http=http)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="millrace collector", description=_DESCRIPTION, epilog=_EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    default, http, limits = Settings(""), HttpLimits(), Limits()

    main = parser.add_argument_group("what and where").add_argument
    main("--topic", required=True, metavar="projects/P/topics/T", type=_topic, help="where the events go")
    main(
        "--sources",
        default=FILE,
        metavar="FILE",
        help="who may send (%(default)s); see: millrace source",
    )
    main("--host", default=default.host, help="%(default)s; in a container, 0.0.0.0")
    main("--port", default=default.port, type=_port, help="%(default)s; 0: any that is free")
    main("--admin_host", default=default.admin_host, metavar="HOST", help="%(default)s: not for strangers")
    main(
        "--admin_port",
        default=default.admin_port,
        type=_port,
        metavar="PORT",
        help="/metrics and /health (%(default)s)",
    )
    main("--workers", default=cores, type=_count, metavar="N", help="processes (%(default)s: one a core)")
    main("--demo", action="store_true", help="serve the sample shop at /demo")

    safe = parser.add_argument_group("safety").add_argument
    safe("--spool", default=default.spool, metavar="DIR",
         help="for events while Pub/Sub is away (%(default)s/); on a disk that outlives the process")  # fmt: skip
    safe("--spool_max_bytes", default=default.spool_max_bytes, type=_bytes, metavar="BYTES",
         help="of all workers (%(default)s); past it, 503. An hour's outage needs an hour's traffic")  # fmt: skip
    safe("--accepted", default=default.accepted, metavar="DIR",
         help="note here what was made durable, for millrace verify: about 30 bytes a request, kept for 8 days "
         "(nothing is noted)")  # fmt: skip
    safe("--publish_deadline_s", default=default.publish_deadline_s, type=_seconds, metavar="S",
         help="Pub/Sub's time to answer before the spool is used (%(default)s)")  # fmt: skip
    safe("--drain_s", default=default.drain_s, type=_seconds, metavar="S",
         help="how long ending may take (%(default)s); less than whoever kills after that waits")  # fmt: skip

    most = parser.add_argument_group("limits").add_argument
    most("--max_body_bytes", default=limits.body_bytes, type=_body_bytes, metavar="BYTES",
         help="of a request, packed and unpacked (%(default)s; at most 9000000)")  # fmt: skip
    most("--max_events", default=limits.events, type=_count, metavar="N", help="in a request (%(default)s)")
    most("--max_event_bytes", default=limits.event_bytes, type=_bytes, metavar="BYTES", help="of one (%(default)s)")
    most("--soft_event_bytes", default=limits.event_bytes_soft, type=_bytes, metavar="BYTES",
         help="past which an event is counted, and taken (%(default)s)")  # fmt: skip
    most("--max_connections", default=http.connections, type=_count, metavar="N",
         help="of a worker (%(default)s); needs as many open files")  # fmt: skip
    most("--max_held_bytes", default=http.held_bytes, type=_bytes, metavar="BYTES",
         help="bodies in a worker's memory (%(default)s); past it, 503")  # fmt: skip
    most("--head_s", default=http.head_s, type=_seconds, metavar="S", help="for a request's head (%(default)s)")
    most("--body_s", default=http.body_s, type=_seconds, metavar="S", help="for its body (%(default)s)")
    most("--idle_s", default=http.idle_s, type=_seconds, metavar="S",
         help="between requests (%(default)s); more than the load balancer's, which is 600 for Google's")  # fmt: skip

    other = parser.add_argument_group("answers and logs").add_argument
    other("--lenient", action="store_true", help="answer as Segment does: 200, whatever became of the single events")
    other("--log", default=default.log, choices=("auto", "json", "console"), help="auto: console on a terminal")
    other("--log_level", default=default.log_level, choices=("DEBUG", "INFO", "WARNING", "ERROR"), help="%(default)s")
    return parser


def _topic(text: str) -> str:
    parts = text.split("/")
    if len(parts) != 4 or parts[0] != "projects" or parts[2] != "topics" or not all(parts):
        raise argparse.ArgumentTypeError(f"must be projects/PROJECT/topics/TOPIC, got {text!r}")
    return text


def _count(text: str) -> int:
    return _whole(text, 1, 1 << 40)


def _bytes(text: str) -> int:
    return _whole(text, 1, 1 << 60)


def _body_bytes(text: str) -> int:
    return _whole(text, 1, MAX_BODY_BYTES)


def _port(text: str) -> int:
    return _whole(text, 0, 65_535)


def _whole(text: str, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be seconds above 0, got {text!r}")
    return seconds
