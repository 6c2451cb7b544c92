"""For tests of `millrace verify`: tables of a job that did everything right, row by row, and collectors' notes."""

import asyncio
import contextlib
import datetime as dt
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from millrace.collector.accepted import Accepted
from millrace.collector.message import Message
from millrace.pipelines import verify
from millrace.pipelines.verify_tables import SPECS
from millrace.sinks.delta import Table, open_table
from millrace.sinks.tables import with_columns
from millrace.transforms.copies import ADDS

NOON_S = 1_795_608_000
"""2026-11-25T12:00:00Z."""

_PLAIN: dict[str, Any] = {"string": "x", "binary": b"{", "int64": 0, "int32": 0, "bool": False}


class Place(NamedTuple):
    """A record in a table: of which message, which of its events, when it was published, with which columns besides."""

    envelope: str
    nth: int = 0
    at_s: float = 0.0
    """After NOON_S."""
    columns: Mapping[str, Any] = {}
    source: str = "web"


def place(envelope: str, nth: int = 0, at_s: float = 0.0, source: str = "web", **columns: Any) -> Place:
    """Return a record."""
    return Place(envelope, nth, at_s, columns, source)


def write(data: Path | str, table: str, *places: Place) -> Table:
    """Commit records to a table under `data`, as one file; the table is made where there is none."""
    spec = with_columns(SPECS[table], ADDS) if table == "archive" else SPECS[table]
    opened = open_table(f"{data}/{table}", spec)
    if places:
        rows = [_row(spec.schema, each) for each in places]
        version = (opened.committed_version("test") or 0) + 1
        opened.commit(
            opened.write(pa.Table.from_pylist(rows, schema=spec.schema), f"test-{version}"),
            app_id="test",
            version=version,
        )
    return opened


def write_all(data: Path | str, **places: Sequence[Place]) -> None:
    """Commit records to the tables that are named, and make the others."""
    for name in SPECS:
        write(data, name, *places.get(name, ()))


def _row(schema: pa.Schema, each: Place) -> dict[str, Any]:
    at = dt.datetime.fromtimestamp(NOON_S + each.at_s, dt.UTC)
    row: dict[str, Any] = {}
    for field in schema:
        if pa.types.is_timestamp(field.type):
            row[field.name] = at
        elif pa.types.is_date(field.type):
            row[field.name] = at.date()
        else:
            row[field.name] = None if field.nullable else _PLAIN[str(field.type)]
    row |= {"envelope_id": each.envelope, "envelope_index": each.nth, "source_id": each.source}
    if "message_id" in row:
        row["message_id"] = f"{each.envelope}-{each.nth}"
    if "fingerprint" in row:
        row["fingerprint"] = 1
    return row | dict(each.columns)


class Note(NamedTuple):
    """A message that a collector accepted."""

    envelope: str
    events: int = 1
    at_s: float = 0.0
    source: str = "web"


def message(note: Note, body: str = "") -> Message:
    """Return the message of a note, as a collector makes it."""
    received = dt.datetime.fromtimestamp(NOON_S + note.at_s, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    attributes = {"source_id": note.source, "request_id": f"r-{note.envelope}", "received_at": received}
    return Message((body or note.envelope).encode(), attributes, note.events)


def accept(data: Path, *notes: Note) -> None:
    """Have a collector note messages that Pub/Sub acknowledged at once."""

    async def main() -> None:
        now_s = 0.0
        accepted = Accepted(data / "accepted", clock=lambda: NOON_S + now_s)
        for note in notes:
            now_s = note.at_s
            accepted.published([message(note)], [note.envelope])
            await accepted.flush()

    asyncio.run(main())


class Verdict(NamedTuple):
    """What `millrace verify --json` said."""

    code: int
    said: dict[str, Any]

    @property
    def ids(self) -> list[tuple[str, str]]:
        """Kind and id of each finding."""
        return [(each["kind"], each["what"]) for each in self.said["ids"]]

    def account(self, source: str = "web", hour: str = "2026-11-25T12") -> dict[str, int]:
        """Return the numbers of an account that are not 0, those of other publishers summed up."""
        (found,) = (each for each in self.said["sources"] if (each["source"], each["hour"]) == (source, hour))
        numbers = {**found, "others": sum(found["others"].values())}
        return {name: number for name, number in numbers.items() if name not in ("source", "hour") and number}


def verdict(data: Path | str, *options: str) -> Verdict:
    """Run `millrace verify --json`."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = verify.main([str(data), "--json", *options])
    return Verdict(code, json.loads(output.getvalue()))


def text(data: Path, *options: str) -> str:
    """Run `millrace verify`, and return what it printed."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        verify.main([str(data), *options])
    return output.getvalue()
