"""The broker's file: SQLite in WAL mode, one row per published batch: a backlog lives on disk, not in memory.

A message's id is a number: its topic's row times TOPIC_SPAN plus its place in the topic. So one integer key holds every
topic's messages, each topic's in publish order, and no id is ever used twice.
"""

import fcntl
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from millrace.broker.errors import CannotStart
from millrace.broker.wire import Batch

MEMORY = ":memory:"
TOPIC_SPAN = 10**13  # ids of one topic; 9 million topics fit into SQLite's 63 bits

_FORMAT = 1
_SCHEMA = """
CREATE TABLE topics (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, config BLOB NOT NULL,
    next_id INTEGER NOT NULL, deleted INTEGER NOT NULL DEFAULT 0);
CREATE TABLE subscriptions (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, topic INTEGER,
    config BLOB NOT NULL, born INTEGER NOT NULL, floor INTEGER NOT NULL);
CREATE TABLE acked (subscription INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY (subscription, first)) WITHOUT ROWID;
CREATE TABLE snapshots (name TEXT PRIMARY KEY, topic INTEGER NOT NULL, config BLOB NOT NULL, floor INTEGER NOT NULL,
    acked TEXT NOT NULL);
CREATE TABLE batches (id INTEGER PRIMARY KEY, count INTEGER NOT NULL, published_us INTEGER NOT NULL,
    stored BLOB NOT NULL);
"""
_READ = "SELECT id, count, published_us, stored FROM batches "

Write = tuple[str, Sequence[Any]]
"""One statement and its parameters."""


class TopicRow(NamedTuple):
    """A topic as stored; next_id is the id that its next message gets."""

    id: int
    name: str
    config: bytes
    next_id: int
    deleted: bool


class SubscriptionRow(NamedTuple):
    """A subscription as stored: all below floor is acknowledged, and so are the ranges (both ends included).

    What was published before `born` it sees only where the topic keeps its messages.
    """

    id: int
    name: str
    topic: int | None
    config: bytes
    born: int
    floor: int
    acked: list[tuple[int, int]]


class SnapshotRow(NamedTuple):
    """A snapshot as stored; acked is the JSON text of its ranges above the floor."""

    name: str
    topic: int
    config: bytes
    floor: int
    acked: str


class Store:
    """One directory, locked for one broker. `apply` may run in a thread of its own; everything else in one other."""

    def __init__(self, data: str | os.PathLike[str], cache_bytes: int = 64 << 20) -> None:
        """Open or create the file.

        Args:
            data: a directory, made where missing, or ":memory:".
            cache_bytes: how much of the messages' bytes to keep in memory for the pulls that follow a publish.

        Raises:
            CannotStart: the directory cannot be written, is in use by another broker, or holds another format.
        """
        self.in_memory = str(data) == MEMORY
        self._lock: int | None = None
        self._cache: OrderedDict[int, Batch] = OrderedDict()
        self._cache_bytes = 0
        self._cache_limit = cache_bytes
        if self.in_memory:
            self._writer = self._reader = _connect(MEMORY)
            self._prepare()
            return
        folder = Path(data)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(folder)
            self._writer = _connect(str(folder / "broker.sqlite3"))
            self._prepare()
            self._reader = _connect(str(folder / "broker.sqlite3"))
        except OSError as error:
            raise CannotStart(f"cannot use the data directory {folder}: {error.strerror or error}") from error
        except sqlite3.Error as error:
            raise CannotStart(f"cannot open {folder / 'broker.sqlite3'}: {error}") from error

    def _prepare(self) -> None:
        (found,) = self._writer.execute("PRAGMA user_version").fetchone()
        if found not in (0, _FORMAT):
            raise CannotStart(f"the data directory holds format {found}, this version reads format {_FORMAT}")
        if found == 0:
            self._writer.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_FORMAT}; COMMIT")
        (free,) = self._writer.execute("PRAGMA freelist_count").fetchone()
        (pages,) = self._writer.execute("PRAGMA page_count").fetchone()
        if free > 4096 and free > pages // 2:  # a past backlog: give its disk space back while nobody waits
            self._writer.execute("VACUUM")

    def close(self) -> None:
        """Close the file and give the directory free."""
        self._reader.close()
        self._writer.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def apply(self, writes: Iterable[Write]) -> None:
        """Execute all in one transaction that is on disk (fsync) on return, or none of them.

        Raises:
            sqlite3.Error: the disk is full or broken; nothing was applied.
        """
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            for statement, parameters in writes:
                self._writer.execute(statement, parameters)
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise

    def topics(self) -> list[TopicRow]:
        """All topics, deleted ones that still have subscriptions among them."""
        rows = self._reader.execute("SELECT id, name, config, next_id, deleted FROM topics ORDER BY id")
        return [TopicRow(row, name, config, next_id, bool(gone)) for row, name, config, next_id, gone in rows]

    def subscriptions(self) -> list[SubscriptionRow]:
        """All subscriptions with what they have acknowledged."""
        acked: dict[int, list[tuple[int, int]]] = {}
        for row, first, last in self._reader.execute("SELECT * FROM acked ORDER BY subscription, first"):
            acked.setdefault(row, []).append((first, last))
        rows = self._reader.execute("SELECT id, name, topic, config, born, floor FROM subscriptions ORDER BY id")
        return [SubscriptionRow._make((*row, acked.get(row[0], []))) for row in rows.fetchall()]

    def snapshots(self) -> list[SnapshotRow]:
        """All snapshots."""
        rows = self._reader.execute("SELECT name, topic, config, floor, acked FROM snapshots ORDER BY name")
        return [SnapshotRow(*row) for row in rows]

    def remember(self, batch: Batch) -> None:
        """Keep a batch that was just committed in memory, for the pull that comes next."""
        if batch.first in self._cache:
            return
        self._cache[batch.first] = batch
        self._cache_bytes += len(batch.stored) + 500  # 500: what the objects around it take
        while self._cache_bytes > self._cache_limit and len(self._cache) > 1:
            _, old = self._cache.popitem(last=False)
            self._cache_bytes -= len(old.stored) + 500

    def batch_from(self, message_id: int, end: int) -> Batch | None:
        """Return the batch holding this id, or else the first behind it and before end; None where there is none."""
        cached = self._cache.get(message_id)
        if cached is not None:
            return cached
        before = self.batch_of(message_id)
        if before is not None:
            return before
        # A backlog is read in pages: up to 1 MiB of single messages with one query.
        size = 0
        found: list[Batch] = []
        cursor = self._reader.execute(_READ + "WHERE id > ? AND id < ? ORDER BY id LIMIT 1000", (message_id, end))
        for row in cursor:
            found.append(Batch(*row))
            size += len(row[3])
            if size > 1 << 20:
                break
        cursor.close()
        for batch in found:
            self.remember(batch)
        return found[0] if found else None

    def batch_of(self, message_id: int) -> Batch | None:
        """Return the batch holding this very id, None where it is gone."""
        base = message_id - message_id % TOPIC_SPAN
        query = _READ + "WHERE id <= ? AND id >= ? ORDER BY id DESC LIMIT 1"
        row = self._reader.execute(query, (message_id, base)).fetchone()
        if row is None or row[0] + row[1] <= message_id:
            return None
        batch = self._cache.get(row[0])
        if batch is None:
            batch = Batch(*row)
            self.remember(batch)
        return batch

    def cached(self, first: int) -> Batch | None:
        """Return the batch starting at this id where it is in memory."""
        return self._cache.get(first)

    def first_at(self, time_us: int, first: int, end: int) -> int:
        """Return the first id in [first, end) published at that time or later, end where there is none.

        Publish times rise with ids, so some 40 probes of the key find it in any backlog.
        """
        low, high = first, end  # batches that start before low are older, those from high on are not
        while low < high:
            middle = (low + high) // 2
            row = self._probe(middle, high)
            if row is None or row[2] >= time_us:
                high = middle
            else:
                low = row[0] + row[1]
        return low

    def piece_end(self, first: int, end: int, size: int) -> int | None:
        """Return the id up to which the batches from first on hold about size bytes, None where end comes earlier."""
        query = "SELECT id, length(stored) FROM batches WHERE id >= ? AND id < ? ORDER BY id LIMIT 500"
        rows = self._reader.execute(query, (first, end)).fetchall()
        for message_id, length in rows:
            size -= length
            if size < 0 and message_id > first:
                return int(message_id)
        return int(rows[-1][0]) if len(rows) == 500 else None

    def last_row(self, table: str) -> int:
        """Return the highest row id that a table ever gave out."""
        row = self._reader.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
        return 0 if row is None else int(row[0])

    def _probe(self, message_id: int, end: int) -> tuple[int, int, int] | None:
        query = "SELECT id, count, published_us FROM batches WHERE id >= ? AND id < ? ORDER BY id LIMIT 1"
        row: tuple[int, int, int] | None = self._reader.execute(query, (message_id, end)).fetchone()
        return row


def _connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=64)
    connection.execute("PRAGMA page_size = 16384")  # measured: 440 MB/s of 700 KB batches, 275 with 4 KiB pages
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # an answered Publish survives a power cut too
    connection.execute("PRAGMA journal_size_limit = 67108864")
    connection.execute("PRAGMA wal_autocheckpoint = 4000")  # 64 MiB: fewer syncs of the main file under load
    connection.execute("PRAGMA cache_size = -8000")
    return connection


def _lock(folder: Path) -> int:
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise CannotStart(f"the data directory {folder} is in use by another broker; give another --data") from None
    return lock
