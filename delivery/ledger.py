"""The ledger of a lane: its place in the queue and what became of every event; SQLite, one file a lane.

One process writes it (the lane), any may read it (`millrace sinks`, `millrace verify`, metrics). What is written
here follows what the sink has said: a crash between the two brings the same event to the sink once more, never less.
"""

import contextlib
import dataclasses
import operator
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from millrace.delivery import clock
from millrace.delivery.records import ROW_BITS, Entry, Mark, Order, Parked, Status, Trying

__all__ = ["ROW_BITS", "Entry", "Ledger", "Mark", "Order", "Parked", "Status", "Trying"]

_HOURS_S = 90 * 86_400
"""How long totals are kept by the hour, beyond the parts: a year of them would take the lane 10 ms a second to sum."""

_of_trying = operator.attrgetter(*(field.name for field in dataclasses.fields(Trying)))

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY,        -- the place in the lane's queue, from 1
    version INTEGER NOT NULL,       -- of the archive, at which it was found
    window_us INTEGER,              -- the release window, microseconds since the epoch; null where the log says none
    committed_us INTEGER NOT NULL,  -- when it was committed, by the log
    files TEXT NOT NULL,            -- JSON: the paths of its files, as the log has them
    rows INTEGER NOT NULL,
    outcomes BLOB,                  -- zlib of one byte a row (Mark); null: not read yet
    is_open INTEGER NOT NULL        -- 1 until no routed row waits
);
CREATE INDEX IF NOT EXISTS open_entries ON entries (seq) WHERE is_open;
-- Events that failed and will be tried again; of those in order at most one a user.
CREATE TABLE IF NOT EXISTS trying (
    position INTEGER PRIMARY KEY, user_key TEXT NOT NULL, message_id TEXT NOT NULL,
    attempts INTEGER NOT NULL, first_us INTEGER NOT NULL, next_us INTEGER NOT NULL,
    fault TEXT NOT NULL, detail TEXT NOT NULL, waiting INTEGER NOT NULL  -- how many events of the user wait behind it
);
CREATE TABLE IF NOT EXISTS totals (   -- by the hour in which it happened
    hour_s INTEGER NOT NULL, name TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (hour_s, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS orders (   -- what an operator told the lane, and what came of it: never deleted
    id INTEGER PRIMARY KEY, told_us INTEGER NOT NULL, told_by TEXT NOT NULL, verb TEXT NOT NULL, subject TEXT NOT NULL,
    reason TEXT NOT NULL, done_us INTEGER, result TEXT
);
-- Events put aside by an operator; rows: the event as its route sends it, an Arrow IPC stream. One that was brought
-- back stays until it is settled: the files of its part may be gone.
CREATE TABLE IF NOT EXISTS parked (
    position INTEGER PRIMARY KEY, user_key TEXT NOT NULL, message_id TEXT NOT NULL, route TEXT NOT NULL,
    rows BLOB NOT NULL, is_back INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS memory (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS now (id INTEGER PRIMARY KEY CHECK (id = 1), written_us INTEGER NOT NULL, body TEXT NOT NULL);
"""


class Ledger:
    """An open ledger. For one thread at a time; the lane is the only process that writes what is no order."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._putting = threading.Lock()
        if read_only:
            self._db = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10, isolation_level=None
            )
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
            # After a power cut the last moments may be missing, which the sink then gets once more; never a torn file.
            # Its tables all at once: who reads meanwhile sees none of them, or all (`is_made`).
            pragmas = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
            self._db.executescript(f"{pragmas} BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")

    @property
    def file(self) -> sqlite3.Connection:
        """The file itself, for the tables that only one kind of lane has (settled.py)."""
        return self._db

    def is_made(self) -> bool:
        """Say whether the ledger has its tables: a reader may find the file before its lane has made them."""
        return self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'now'").fetchone() is not None

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Make everything written in it one transaction."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite has rolled back itself where the disk is full
                self._db.execute("ROLLBACK")
            raise

    # The queue

    def enrol(self, entries: Iterable[Entry]) -> None:
        """Append parts to the queue."""
        self._db.executemany(
            "INSERT INTO entries (version, window_us, committed_us, files, rows, is_open) VALUES (?, ?, ?, ?, ?, 1)",
            [(e.version, e.window_us, e.committed_us, msgspec.json.encode(e.files).decode(), e.rows) for e in entries],
        )

    def forget(self, before_us: int) -> None:
        """Delete parts that are settled and were committed before a time: they are kept for `millrace verify` only.

        Parts with parked events stay. So does the last one: SQLite would give its number to the next, and positions
        would begin anew below those that sinks know. Hours of which nobody asks any more become one.
        """
        self._db.execute(
            "DELETE FROM entries WHERE NOT is_open AND committed_us < ? AND seq < (SELECT max(seq) FROM entries) "
            "AND seq NOT IN (SELECT position >> ? FROM parked)",
            (before_us, ROW_BITS),
        )
        old_s = before_us // 1_000_000 - _HOURS_S
        with self.writing():
            self._db.execute(
                "INSERT INTO totals SELECT 0, name, sum(count) FROM totals WHERE hour_s BETWEEN 1 AND ? GROUP BY name "
                "ON CONFLICT DO UPDATE SET count = count + excluded.count",
                (old_s,),
            )
            self._db.execute("DELETE FROM totals WHERE hour_s BETWEEN 1 AND ?", (old_s,))

    def unread(self, after: int, limit: int) -> list[Entry]:
        """Return the next parts that the lane has not read, oldest first: those behind one that it has in its hands."""
        return self._entries("WHERE outcomes IS NULL AND is_open AND seq > ? ORDER BY seq LIMIT ?", after, limit)

    def first_unread(self) -> int:
        """Return the place of the next part that the lane will read, or would: there may be none there yet."""
        query = "SELECT min(seq) FROM entries WHERE outcomes IS NULL AND is_open"
        for found in (query, "SELECT max(seq) + 1 FROM entries"):
            (seq,) = self._db.execute(found).fetchone()
            if seq is not None:
                return int(seq)
        return 1

    def unfinished(self) -> list[tuple[Entry, npt.NDArray[np.uint8]]]:
        """Return the parts that were read and hold rows which are not settled, with their marks."""
        entries = self._entries("WHERE outcomes IS NOT NULL AND is_open ORDER BY seq")
        return [(entry, self.marks(entry.seq)) for entry in entries]

    def behind(self) -> int:
        """Return how many rows the lane has not read yet."""
        (rows,) = self._db.execute(
            "SELECT coalesce(sum(rows), 0) FROM entries WHERE outcomes IS NULL AND is_open"
        ).fetchone()
        return int(rows)

    def oldest_open_us(self) -> int | None:
        """Return when the oldest part that is not settled was committed."""
        row = self._db.execute("SELECT committed_us FROM entries WHERE is_open ORDER BY seq LIMIT 1").fetchone()
        return None if row is None else int(row[0])

    def entries(self) -> list[Entry]:
        """Return the whole queue as far as it is kept, oldest first."""
        return self._entries("ORDER BY seq")

    def _entries(self, where: str, *values: int) -> list[Entry]:
        query = f"SELECT version, window_us, committed_us, files, rows, seq FROM entries {where}"  # noqa: S608
        rows = self._db.execute(query, values)
        return [Entry(v, w, c, tuple(msgspec.json.decode(f)), n, s) for v, w, c, f, n, s in rows]

    # What became of the events

    def was_read(self, seq: int) -> bool:
        """Say whether a part was read, and so has marks."""
        query = "SELECT count(*) FROM entries WHERE seq = ? AND outcomes IS NOT NULL"
        return bool(self._db.execute(query, (seq,)).fetchone()[0])

    def marks(self, seq: int) -> npt.NDArray[np.uint8]:
        """Return one Mark a row; all NOT_ROUTED where the part was not read."""
        row = self._db.execute("SELECT rows, outcomes FROM entries WHERE seq = ?", (seq,)).fetchone()
        if row is None or row[1] is None:
            return np.zeros(0 if row is None else row[0], np.uint8)
        return np.frombuffer(zlib.decompress(row[1]), np.uint8).copy()

    def set_marks(self, seq: int, marks: npt.NDArray[np.uint8]) -> None:
        """Write what became of a part's rows; it is closed when none of them waits."""
        is_open = bool((marks == Mark.WAITING).any())
        self._db.execute(
            "UPDATE entries SET outcomes = ?, is_open = ? WHERE seq = ?",
            (zlib.compress(marks.tobytes(), 1), is_open, seq),
        )

    def add_totals(self, counts: Mapping[str, int], now_us: int) -> None:
        """Add to the totals of this hour."""
        hour = now_us // 3_600_000_000 * 3_600
        self._db.executemany(
            "INSERT INTO totals VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count",
            [(hour, name, count) for name, count in counts.items() if count],
        )

    def totals(self) -> dict[str, int]:
        """Return the counts of all hours, by name."""
        return dict(self._db.execute("SELECT name, sum(count) FROM totals GROUP BY name"))

    # Events that are being retried

    def set_trying(self, found: Sequence[Trying]) -> None:
        """Write which events are being retried: these, and no others."""
        self._db.execute("DELETE FROM trying")
        self.change_trying(found, ())

    def change_trying(self, found: Sequence[Trying], over: Iterable[int]) -> None:
        """Write of some events that they are being retried, and of positions that these are no more."""
        self._db.executemany("DELETE FROM trying WHERE position = ?", [(position,) for position in over])
        self._db.executemany("INSERT OR REPLACE INTO trying VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", map(_of_trying, found))

    def trying(self) -> list[Trying]:
        """Return the events that are being retried, by position."""
        return [Trying(*row) for row in self._db.execute("SELECT * FROM trying ORDER BY position")]

    # Events that an operator put aside

    def park(self, parked: Parked) -> None:
        """Put an event aside."""
        self._db.execute("INSERT OR REPLACE INTO parked VALUES (?, ?, ?, ?, ?, 0)", dataclasses.astuple(parked))

    def parked(self, *, brought_back: bool = False) -> list[Parked]:
        """Return the events that were put aside, by position; or those of them that are tried again."""
        query = "SELECT position, user_key, message_id, route, rows FROM parked WHERE is_back = ? ORDER BY position"
        return [Parked(*row) for row in self._db.execute(query, (brought_back,))]

    def bring_back(self, position: int) -> None:
        """Note that an event is tried again; what it says is kept until it is settled."""
        self._db.execute("UPDATE parked SET is_back = 1 WHERE position = ?", (position,))

    def unpark(self, position: int) -> None:
        """Forget an event that is settled."""
        self._db.execute("DELETE FROM parked WHERE position = ?", (position,))

    # What the operator says

    def tell(self, verb: str, subject: str, told_by: str, reason: str) -> int:
        """Leave an order for the lane, which carries it out within a second, or when it starts; return its id."""
        row = self._db.execute(
            "INSERT INTO orders (told_us, told_by, verb, subject, reason) VALUES (?, ?, ?, ?, ?) RETURNING id",
            (clock.now_us(), told_by, verb, subject, reason),
        ).fetchone()
        return int(row[0])

    def orders(self, *, pending: bool = False) -> list[Order]:
        """Return the orders, oldest first: all of them, or only those not carried out."""
        where = "WHERE done_us IS NULL" if pending else ""
        return [Order(*row) for row in self._db.execute(f"SELECT * FROM orders {where} ORDER BY id")]  # noqa: S608

    def done(self, order: int, result: str) -> None:
        """Note that an order was carried out, and what came of it."""
        self._db.execute("UPDATE orders SET done_us = ?, result = ? WHERE id = ?", (clock.now_us(), result, order))

    # What a sink, and the lane itself, want to know after a restart

    def get(self, key: str) -> bytes | None:
        """Return what was put; None where nothing was."""
        row = self._db.execute("SELECT value FROM memory WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def keep(self, key: str, value: bytes) -> None:
        """Keep a value as the rest is kept: in the transaction under way, not synced."""
        self._db.execute("INSERT OR REPLACE INTO memory VALUES (?, ?)", (key, value))

    def put(self, key: str, value: bytes | None) -> None:
        """Keep a value, at once and synced; None forgets the key. A sink may call it in several threads."""
        with self._putting:
            self._db.execute("PRAGMA synchronous=FULL")
            try:
                if value is None:
                    self._db.execute("DELETE FROM memory WHERE key = ?", (key,))
                else:
                    self.keep(key, value)
            finally:
                self._db.execute("PRAGMA synchronous=NORMAL")

    def set_status(self, status: Status) -> None:
        """Write what the lane says of itself."""
        self._db.execute(
            "INSERT OR REPLACE INTO now VALUES (1, ?, ?)",
            (clock.now_us(), msgspec.json.encode(status).decode()),
        )

    def status(self) -> tuple[int, Status] | None:
        """Return what the lane said of itself last, and when (microseconds since the epoch)."""
        row = self._db.execute("SELECT written_us, body FROM now").fetchone()
        return None if row is None else (int(row[0]), msgspec.json.decode(row[1], type=Status))
