"""A job's tables in its process: where they are, the one committer of them, and what it remembers of them."""

import dataclasses
import logging
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millrace.sinks.commit import Committer, Index
from millrace.sinks.committed_ids import CommittedIds, event_keys, identity_keys, letter_keys, place_keys
from millrace.sinks.delta import Table, open_table
from millrace.sinks.storage import StorageError
from millrace.sinks.tables import ARCHIVE, DEAD_LETTERS, DROPPED, DUPLICATES, IDENTITIES, SPECS, TableSpec, with_columns

_LOG = logging.getLogger(__name__)
_LONGEST_PAUSE_S = 30.0
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class Tables:
    """Where a job's tables are, and how it commits to them.

    Attributes:
        archive, duplicates, dead_letters, dropped, identities: URIs: a folder, file:// or gs://.
        alone: this process is the only one that writes them (one node): it remembers what is committed, so that
            redelivery after a crash adds nothing. Elsewhere the runner's own state has to see to that.
        horizon_s: how far back it remembers what is committed.
        run_id: names this run's transactions.
        added: the columns that this job's stages add to the archive.
    """

    archive: str
    duplicates: str
    dead_letters: str
    dropped: str
    identities: str
    alone: bool = True
    horizon_s: float = 600.0
    run_id: str = dataclasses.field(default_factory=lambda: f"millrace-{uuid.uuid4().hex}")
    added: tuple[pa.Field, ...] = ()

    def uri_of(self, spec: TableSpec) -> str:
        """Return where one of the tables is."""
        uri: str = getattr(self, spec.name.replace(" ", "_"))
        return uri

    @classmethod
    def at(cls, root: Path | str, **more: Any) -> "Tables":
        """Return the tables that are side by side in one place, under their names."""
        archive, duplicates, letters, dropped, identities = (f"{root}/{spec.name.replace(' ', '_')}" for spec in SPECS)
        return cls(archive, duplicates, letters, dropped, identities, **more)


class Opened(NamedTuple):
    """A job's tables."""

    archive: Table
    duplicates: Table
    dead_letters: Table
    dropped: Table
    identities: Table


def open_tables(tables: Tables) -> Opened:
    """Open a job's tables; create those that are missing, and add the columns that they lack.

    Raises:
        StorageError: one cannot be opened; one sentence that says what to do.
    """
    return Opened(
        open_table(tables.archive, with_columns(ARCHIVE, tables.added)),
        open_table(tables.duplicates, DUPLICATES),
        open_table(tables.dead_letters, DEAD_LETTERS),
        open_table(tables.dropped, DROPPED),
        open_table(tables.identities, IDENTITIES),
    )


_COMMITTERS: dict[Tables, Committer] = {}
_COMMITTERS_LOCK = threading.Lock()


def committer(tables: Tables) -> Committer:
    """Return this process's committer of these tables; opens them, and reads back recent ids, the first time.

    Raises:
        StorageError: a table cannot be opened; one sentence that says what to do.
    """
    with _COMMITTERS_LOCK:
        found = _COMMITTERS.get(tables)
        if found is None:
            opened = open_tables(tables)
            index = None
            if tables.alone:
                horizon_s = tables.horizon_s
                index = Index(
                    _remembered(opened.archive, CommittedIds(horizon_s), horizon_s),
                    _remembered(opened.duplicates, CommittedIds(horizon_s, place_keys), horizon_s),
                    _remembered(opened.dead_letters, CommittedIds(horizon_s, letter_keys), horizon_s),
                    _remembered(opened.dropped, CommittedIds(horizon_s, event_keys), horizon_s),
                    CommittedIds(horizon_s, identity_keys),  # the links, read back from their table, make no row twice
                )
            found = Committer(**opened._asdict(), index=index, run_id=tables.run_id)
            _COMMITTERS[tables] = found
        return found


def forget_committer(tables: Tables) -> None:
    """Forget the committer, as the end of the process would: the next one reads back what is committed."""
    with _COMMITTERS_LOCK:
        _COMMITTERS.pop(tables, None)


def is_archived(tables: Tables, batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """Say which events this process knows the archive to hold: one node."""
    holds: npt.NDArray[np.bool_] = committer(tables).holds(batch)
    return holds


def _remembered(table: Table, ids: CommittedIds, horizon_s: float) -> CommittedIds:
    """Fill an index with what the table holds of the last horizon before its newest row."""
    newest_us = table.newest_us()
    if newest_us is None:
        return ids
    columns = ["message_id", "source_id", "envelope_id", "envelope_index", "stage", "payload", table.spec.time_column]
    columns = [name for name in columns if table.spec.schema.get_field_index(name) >= 0]
    for batch in table.read_recent(columns, newest_us - round(horizon_s * 1_000_000)):
        at_us = pc.max(batch.column(table.spec.time_column)).value
        ids.add(ids.keys_of(batch), at_us)
    return ids


def patiently(tables: Tables, write: Callable[[], _Result], sleep: Callable[[float], None] = time.sleep) -> _Result:
    """Call write; on one node wait out a storage that refuses (full disk, outage); elsewhere the runner tries again.

    Nothing is acknowledged meanwhile, and the reader stops at its bounds. To end the job would not mend the disk.
    """
    pause_s = 1.0
    while True:
        try:
            return write()
        except (StorageError, OSError) as error:
            if not tables.alone:
                raise
            _LOG.error("cannot write, will go on trying: %s", error)
            sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
