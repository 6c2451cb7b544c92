"""Ids that the archive has twice: events of one source with the same `message_id`, within deduplication's reach.

Rows that were archived without deduplication have no `fingerprint`, and may repeat. So may ids past the horizon.
"""

from collections.abc import Iterator

import duckdb

from millrace.pipelines.verify_findings import Finding, Kind
from millrace.pipelines.verify_tables import Slice, Tables, iso

GROUP_ROWS = 10_000_000
"""Ids that are compared together, as 64-bit hashes. More rows take more passes over the column."""

_COLUMNS = ("source_id", "message_id", "published_at", "fingerprint", "envelope_id", "envelope_index")
_HASH = "hash(source_id, message_id)"
_SEEN = """
    SELECT source_id, message_id, max(published_us)
    FROM (SELECT *, lag(published_us) OVER ids AS before, lag(place) OVER ids AS place_before
          FROM same WINDOW ids AS (PARTITION BY source_id, message_id ORDER BY published_us))
    WHERE published_us - before <= ? AND place != place_before GROUP BY ALL ORDER BY 1, 2
"""


def repeated_ids(
    tables: Tables, connection: duckdb.DuckDBPyConnection, horizon_us: int, hours: Slice
) -> Iterator[Finding]:
    """Give the ids that stand twice in the archive, at different places in the queue, published within the horizon.

    Args:
        tables: to read.
        connection: of DuckDB, for tables of this function's own.
        horizon_us: of the deduplication.
        hours: which publish times to look at.
    """
    rows = sum(file.rows for file in tables.files if file.table == "archive")
    passes = max(1, -(-rows // GROUP_ROWS))
    for number in range(passes):
        reader = tables.read("archive", _COLUMNS[:4], hours)
        if reader is None:
            return
        connection.register("rows_read", reader)
        connection.execute(
            f"CREATE OR REPLACE TABLE twice AS SELECT {_HASH} AS id FROM rows_read "  # noqa: S608  constants
            "WHERE fingerprint IS NOT NULL AND id % ? = ? GROUP BY id HAVING count(*) > 1",
            [passes, number],
        )
        connection.unregister("rows_read")
        if not connection.execute("SELECT count(*) FROM twice").fetchall()[0][0]:
            continue
        reader = tables.read("archive", _COLUMNS, hours)
        assert reader is not None, "there was one before"
        connection.register("rows_read", reader)
        connection.execute(
            "CREATE OR REPLACE TABLE same AS SELECT source_id, message_id, epoch_us(published_at) AS published_us, "  # noqa: S608
            f"concat(envelope_id, '/', envelope_index) AS place, {_HASH} AS id "
            "FROM rows_read WHERE fingerprint IS NOT NULL AND id IN (SELECT id FROM twice)"
        )
        connection.unregister("rows_read")
        with connection.cursor() as cursor:
            cursor.execute(_SEEN, [horizon_us])
            while chunk := cursor.fetchmany(10_000):
                for source, message_id, at_us in chunk:
                    yield Finding(Kind.REPEATED_ID, message_id, source, iso(at_us))
