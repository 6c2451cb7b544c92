"""The table of what sinks did not take: written by every lane, a commit for each save that has some."""

import dataclasses
import datetime as dt
import uuid
from collections.abc import Sequence

import pyarrow as pa

from millrace.delivery.feed import Row
from millrace.delivery.pending import Pending
from millrace.schemas.undelivered import SCHEMA
from millrace.sinks.delta import Table, open_table
from millrace.sinks.json_rows import json_rows
from millrace.sinks.sink import Fault
from millrace.sinks.storage import explain
from millrace.sinks.tables import UNDELIVERED


@dataclasses.dataclass(frozen=True)
class Dead:
    """An event that was given up."""

    event: Pending
    lane: str
    route: str
    fault: Fault
    detail: str
    at_us: int


class Undelivered:
    """The table; opened at the first dead letter, since most lanes have none for days. For one thread."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._table: Table | None = None
        self._run = f"lane-{uuid.uuid4().hex}"
        self._number = 0

    def write(self, dead: Sequence[Dead]) -> None:
        """Commit the records of events that were given up.

        Raises:
            StorageError: the storage refused it; nothing went in.
        """
        if self._table is None:
            self._table = open_table(self._uri, UNDELIVERED)
        table, self._table = self._table, None  # after a failure it is opened anew: it may have been deleted
        self._number += 1
        try:
            files = table.write(records(dead), uuid.uuid4().hex)
        except OSError as error:
            raise explain(table.location, error) from error
        table.commit(files, app_id=self._run, version=self._number)
        self._table = table


def records(dead: Sequence[Dead]) -> pa.Table:
    """Return the rows of the table."""
    rows = []
    for each in dead:
        row: Row = each.event.payload
        (payload,) = json_rows(row.rows.slice(row.at, 1))
        at = _time(each.at_us)
        rows.append(
            {
                "message_id": each.event.message_id,
                "user_key": row.user_key,
                "lane": each.lane,
                "route": each.route,
                "position": each.event.position,
                "fault": each.fault.value,
                "detail": each.detail,
                "attempts": each.event.attempts + (each.event.first_us == 0),
                "first_tried_at": _time(each.event.first_us) if each.event.first_us else at,
                "gave_up_at": at,
                "payload": payload.decode(),
                "date": at.date(),
            }
        )
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _time(at_us: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=at_us)
