"""`millrace check`: is `millrace.yaml` right, and if not, where and why."""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from millrace.collector.keys import Kind
from millrace.collector.sources import FILE, Sources, SourcesError
from millrace.config.fanout import FanoutError, read_fanout, unused
from millrace.config.job import ConfigError, JobConfig, read_job
from millrace.config.sections import DELIVERY, SECTIONS
from millrace.delivery.settings import Fanout
from millrace.schemas import avro
from millrace.schemas.event import ARCHIVE

_OF_DEDUPLICATION = tuple(avro.arrow_schema(avro.load("added/deduplicate")).names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check a file; the exit code is 0 where it is right, 2 where something would refuse it."""
    parser = argparse.ArgumentParser(
        prog="millrace check",
        description="Check a file of sources, of the job's sections, and of sinks and routes: every mistake with its "
        "line, or one line of what it says.",
    )
    parser.add_argument("file", nargs="?", default=FILE, metavar="FILE", help=f"default: {FILE}")
    path = parser.parse_args(arguments).file
    said, mistakes = [], []
    try:
        text = Path(path).read_text(encoding="utf-8")
        sections = [name for name in SECTIONS if re.search(rf"^{name}:", text, re.MULTILINE)]
        delivers = any(re.search(rf"^{name}:", text, re.MULTILINE) for name in DELIVERY)
        try:
            if re.search(r"^sources:", text, re.MULTILINE) or not (sections or delivers):
                said.append(summary(Sources.parse(text, path), time.time_ns() // 1_000))
        except SourcesError as error:
            mistakes.append(str(error))
        job = None
        try:
            job = read_job(text, path)
            said += [f"the job's sections: {', '.join(sections)}"] if sections else []
        except ConfigError as error:
            mistakes.append(str(error))
        try:
            fanout = read_fanout(text, path)
            said += [delivery(fanout, job)] if delivers and job is not None else []
        except FanoutError as error:
            mistakes.append(str(error))
    except OSError as error:
        mistakes.append(f"{path}: cannot be read: {error.strerror or error}")
    except ValueError as error:
        mistakes.append(f"{path}: cannot be read: {error}")
    if mistakes:
        print("\n".join(dict.fromkeys(line for each in mistakes for line in each.splitlines())))
        return 2
    print(f"{path}: {'; '.join(said)}")
    return 0


def summary(sources: Sources, now_us: int) -> str:
    """Say in one line what a file holds, and what in it a person may not have meant."""
    kinds = [source.kind for source in sources.all]
    counts = [f"{kinds.count(kind)} {kind.value}" for kind in Kind if kind in kinds]
    parts = [f"{len(kinds)} source{'s' * (len(kinds) != 1)} ({', '.join(counts)})"]
    if sources.trusted_proxies:
        parts.append(f"trusted proxies: {', '.join(map(str, sources.trusted_proxies))}")
    anywhere = [source.id for source in sources.all if source.origins.any]
    if anywhere:
        parts.append(f"any page of any site may use {', '.join(anywhere)}")
    silent = [source.id for source in sources.all if not any(key.valid_at(now_us) for key in source.keys)]
    if silent:
        parts.append(f"no valid key, so nothing can be sent: {', '.join(silent)}")
    return "; ".join(parts)


def delivery(fanout: Fanout, job: JobConfig) -> str:
    """Say in one line where events go, and what in it a person may not have meant."""
    sinks, routes = (
        f"{len(each)} {name}{'s' * (len(each) != 1)}"
        for each, name in ((fanout.sinks, "sink"), (fanout.routes, "route"))
    )
    names = ", ".join(sink.name for sink in fanout.sinks)
    parts = [f"{sinks} ({names})" if names else sinks, routes]
    if idle := unused(fanout):
        parts.append(f"no route leads to {', '.join(idle)}")
    there = {*ARCHIVE.names, *_OF_DEDUPLICATION, *(field.name for field in job.added)}
    for route in fanout.routes:
        named = [*(column for column, _ in route.columns), *(() if route.when is None else route.when.columns)]
        if absent := [name for name in dict.fromkeys(named) if name not in there]:
            parts.append(f"{route.name} names what is null in every event, since its stage is off: {', '.join(absent)}")
    return "; ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
