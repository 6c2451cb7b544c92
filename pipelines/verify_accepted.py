"""What collectors noted as accepted (collector/accepted.py), read back into DuckDB hour by hour."""

from pathlib import Path

import duckdb

from millrace.collector.accepted import PREFIX

HOUR_US = 3_600_000_000

_LINES = """
    SELECT split[1] AS kind, try_cast(split[2] AS BIGINT) * 1000000 AS at_us, split[3] AS source, split[4] AS items,
           split[5] AS key, coalesce(epoch_us(try_cast(split[6] AS TIMESTAMPTZ)), at_us) AS received_us
    FROM (SELECT string_split(line, ' ') AS split
          FROM read_csv(?, columns = {'line': 'VARCHAR'}, delim = '\t', quote = '', escape = '', header = false,
                        auto_detect = false, ignore_errors = true, strict_mode = false, null_padding = true))
    WHERE len(split) = 7 AND split[7] = '.' AND split[1] IN ('p', 's', 'r')
"""
# Of an acceptance the hour is the one in which it came; of what went to the spool, the hour of its request.
_ITEMS = f"""
    SELECT kind, source, key, at_us, item[1] AS envelope_id, try_cast(item[2] AS BIGINT) AS events,
           (CASE WHEN kind = 'p' THEN at_us ELSE received_us END) // {HOUR_US} * {HOUR_US} AS hour_us
    FROM (SELECT * EXCLUDE items, string_split(unnest(string_split(items, ',')), '*') AS item FROM ({_LINES}))
"""  # noqa: S608  constants
PENDING = """
    CREATE TABLE pending (envelope_id VARCHAR, source VARCHAR, hour_us BIGINT, events BIGINT, at_us BIGINT);
"""
_CREATE = f"""
    {PENDING}
    CREATE TABLE spool (kind VARCHAR, key VARCHAR, source VARCHAR, hour_us BIGINT, events BIGINT, at_us BIGINT);
"""
# Several messages of one request may be the same byte for byte: they share a key, and are counted.
_SPOOLED = """
    CREATE TABLE spooled AS
    SELECT key, any_value(source) AS source, any_value(hour_us) AS hour_us, any_value(events) AS events,
           min(at_us) AS at_us, count(*) FILTER (kind = 's') AS spooled, count(*) FILTER (kind = 'r') AS replayed
    FROM spool GROUP BY key
"""


class Acceptances:
    """Notes of collectors, in the tables `pending` (messages that Pub/Sub has, by their id) and `spooled`."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
        """Read what concerns the spool; `load` reads the rest.

        Args:
            connection: where the tables are made.
            folder: of `millrace collector --accepted`.

        Raises:
            FileNotFoundError: there is nothing.
        """
        self._connection = connection
        self._files = sorted(folder.glob(f"{PREFIX}*.log"))
        if not self._files:
            raise FileNotFoundError(f"{folder} has no {PREFIX}*.log: give the folder of millrace collector --accepted")
        self._next = 0
        connection.execute(_CREATE)
        files = [[str(path) for path in self._files]]
        connection.execute(
            f"INSERT INTO spool SELECT kind, key, source, hour_us, events, at_us FROM ({_ITEMS}) WHERE kind != 'p'",  # noqa: S608
            files,
        )
        connection.execute(_SPOOLED)

    def load(self, until_hour: str | None) -> None:
        """Add to `pending` what was noted up to an hour and in it (such as 2026-03-01T12); None: all."""
        files = []
        while self._next < len(self._files) and (until_hour is None or _hour_of(self._files[self._next]) <= until_hour):
            files.append(str(self._files[self._next]))
            self._next += 1
        if files:
            self._connection.execute(
                "INSERT INTO pending SELECT envelope_id, any_value(source), any_value(hour_us), any_value(events), "  # noqa: S608
                f"min(at_us) FROM ({_ITEMS}) WHERE kind != 's' AND events > 0 GROUP BY envelope_id",
                [files],
            )


def _hour_of(path: Path) -> str:
    return path.name.removeprefix(PREFIX)[: len("2026-03-01T12")]
