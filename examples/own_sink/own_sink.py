"""A sink of your own: a table of SQLite in which each event is once, since its message_id is the key."""

import dataclasses
import sqlite3
from collections.abc import Sequence

from millrace.api import DELIVERED, BlockingSink, Delivery, Outcome, SinkDownError


@dataclasses.dataclass(frozen=True)
class SQLite(BlockingSink):
    """Adds events to the table `events` of a file."""

    path: str

    keeps_ids = True

    def deliver_now(self, delivery: Delivery) -> Sequence[Outcome]:
        rows = [(key, row.decode()) for key, row in zip(delivery.message_ids, delivery.json(), strict=True)]
        try:
            database = sqlite3.connect(self.path, timeout=10)
            with database:  # one transaction: all of them, or none
                database.execute("CREATE TABLE IF NOT EXISTS events (message_id TEXT PRIMARY KEY, event TEXT)")
                database.executemany("INSERT OR IGNORE INTO events VALUES (?, ?)", rows)
            database.close()
        except sqlite3.OperationalError as error:  # no event is to blame: everything waits
            raise SinkDownError(f"{self.path}: {error}") from error
        return [DELIVERED] * len(delivery)
