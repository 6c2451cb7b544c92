"""Which parts of the archive a lane never took into its queue: by the log, the table's files, gaps in the queue."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from millrace.delivery.archive_feed import KEEP_S
from millrace.delivery.enrol import BEGAN, SEEN
from millrace.delivery.follow import Log
from millrace.delivery.ledger import Entry, Ledger
from millrace.sinks.delta import Table

_MARGIN_US = 600_000_000
"""A large file is written some time before its commit."""


class Lacking(NamedTuple):
    """What is not in the queue: a file, when it was committed or written, its rows; or a place in the queue."""

    at_us: int
    what: str
    rows: int


class Enrolment(NamedTuple):
    """What was found."""

    lacking: list[Lacking]
    behind: int
    """Rows that were committed since the lane looked last."""


def enrolment(table: Table, log: Log, ledger: Ledger, entries: Sequence[Entry], now_us: int) -> Enrolment:
    """Compare a lane's queue with the archive, as far back as both tell.

    Args:
        table: the archive, as it was before the ledger was looked at, or later.
        log: its log.
        ledger: of the lane.
        entries: its queue.
        now_us: parts that are settled are forgotten after KEEP_S, so nothing is missed that is older.
    """
    enrolled = {file for entry in entries for file in entry.files}
    seen, began = int(ledger.get(SEEN) or b"-1"), ledger.get(BEGAN)
    first = min((entry.version for entry in entries), default=seen) if began is None else int(began)
    kept_us = now_us - KEEP_S * 1_000_000
    lacking: dict[str, Lacking] = {}
    behind = 0
    oldest = _oldest_version(table)
    for part in () if oldest is None else log.since(oldest - 1, frozenset).entries:
        if part.version > seen:
            behind += part.rows
        elif part.version > first and part.committed_us >= kept_us:
            lost = set(part.files) - enrolled
            lacking |= {file: Lacking(part.committed_us, file, part.rows) for file in lost}
    # What the log has forgotten is in the table's files, but for those that compaction has merged.
    committed = [entry.committed_us for entry in entries]
    actions = pa.table(table.delta.get_add_actions(flatten=True)).to_pylist()
    for action in actions if committed else []:
        at_us, path = action["modification_time"] * 1_000, action["path"]
        is_merged = path.rpartition("/")[2].startswith("compact-")
        told = max(min(committed), kept_us) <= at_us <= max(committed) - _MARGIN_US
        if told and path not in enrolled and not is_merged:
            lacking.setdefault(path, Lacking(at_us, path, action["num_records"]))
    found = sorted(lacking.values())
    if not found:
        found = [
            Lacking(before.committed_us, f"part {before.seq + 1} of the queue", 0)
            for before, entry in itertools.pairwise(entries)
            if entry.seq != before.seq + 1 and before.committed_us >= kept_us
        ]
    return Enrolment(found, behind)


def _oldest_version(table: Table) -> int | None:
    files = table.location.files.get_file_info(pafs.FileSelector("_delta_log"))
    names = [info.base_name.removesuffix(".json") for info in files if info.base_name.endswith(".json")]
    return min((int(name) for name in names if name.isdecimal()), default=None)
