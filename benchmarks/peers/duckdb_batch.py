"""DuckDB, in batch: the ceiling. It has all events before it starts, and keeps nothing between them.

Reads JSON lines, keeps one row of each message id, sorts by user and time, writes one zstd Parquet file.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import duckdb

from benchmarks import events_file
from benchmarks.peers.report import Report, peak_rss_mb, rows_in

_COLUMNS = {
    "messageId": "VARCHAR",
    "type": "VARCHAR",
    "event": "VARCHAR",
    "name": "VARCHAR",
    "userId": "VARCHAR",
    "anonymousId": "VARCHAR",
    "originalTimestamp": "TIMESTAMP",
    "timestamp": "TIMESTAMP",
    "context": "JSON",
    "properties": "JSON",
    "traits": "JSON",
}
_JOB = """
COPY (
    SELECT coalesce(nullif(userId, ''), anonymousId) AS user_key, coalesce(originalTimestamp, timestamp) AS occurred_at,
           messageId AS message_id, type, coalesce(event, name) AS event, nullif(userId, '') AS user_id,
           anonymousId AS anonymous_id, context::VARCHAR AS context, properties::VARCHAR AS properties,
           traits::VARCHAR AS traits
    FROM (SELECT DISTINCT ON (messageId) * FROM read_json($source, format = 'newline_delimited', columns = {columns}))
    ORDER BY user_key, occurred_at, message_id
) TO '{target}' (FORMAT parquet, COMPRESSION zstd)
"""


def run(source: Path, folder: Path, events: int) -> Report:
    """Do the job once, in this process."""
    folder.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(config={"preserve_insertion_order": False}) as connection:
        began_s = time.perf_counter()
        target = str(folder / "events.parquet").replace("'", "''")
        connection.execute(_JOB.format(columns=_COLUMNS, target=target), {"source": str(source)})
        seconds = time.perf_counter() - began_s
    return Report(f"DuckDB {duckdb.__version__}, batch", events, round(seconds, 3), rows_in(folder), peak_rss_mb())


def main() -> int:
    """Run from the command line, on a file of its own where none is given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.duckdb_batch", description=__doc__)
    parser.add_argument("--events", type=int, default=2_000_000, help="lines in the file (%(default)s)")
    parser.add_argument("--source", type=Path, help="JSON lines, written before (makes its own)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source = options.source or Path(scratch, "events.ndjson")
        if options.source is None:
            events_file.write(source, options.events)
        run(source, Path(scratch, "out"), options.events).print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
