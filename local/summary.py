"""Summary: what the tables hold, read by DuckDB, for a person."""

from pathlib import Path
from typing import Any

import duckdb

from millrace.sinks.delta import open_table
from millrace.sinks.tables import SPECS

_SIZES = """
    SELECT count(*), count(DISTINCT user_key), count(*) FILTER (is_late), min(occurred_at), max(occurred_at)
    FROM archive
"""
_TYPES = """
    SELECT type, count(*) AS events, count(DISTINCT user_key) AS users FROM archive GROUP BY ALL ORDER BY 2 DESC
"""
_REASONS = """
    SELECT reason, count(*) AS dead_letters, min(message) AS for_example FROM dead_letters
    GROUP BY ALL ORDER BY 2 DESC, 1
"""
# A journey worth reading: someone who did many different things, in not too many rows.
_SHOPPER = """
    SELECT user_key FROM archive GROUP BY ALL
    ORDER BY least(count(DISTINCT event), 12) - greatest(count(*) - 14, 0)
             + 3 * (count(*) FILTER (user_id IS NULL) > 0 AND count(user_id) > 0)::INT DESC,
             user_key LIMIT 1
"""
_JOURNEY = """
    SELECT strftime(occurred_at, '%H:%M:%S.%g') AS occurred, type, coalesce(event, '') AS event,
           coalesce(context_page_path, context_device_model, '') AS where_, coalesce(user_id, '') AS user_id,
           {session} is_late AS late
    FROM archive WHERE user_key = ? ORDER BY order_index LIMIT 14
"""


def connect(data: Path) -> duckdb.DuckDBPyConnection:
    """Return a DuckDB connection with a view of each table of a data folder."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    for spec in SPECS:
        name = spec.name.replace(" ", "_")
        table = open_table(str(data / name), spec)
        files = table.uris()
        if files:
            listed = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
            source = f"read_parquet([{listed}], hive_partitioning = true, union_by_name = true)"
            connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {source}")  # noqa: S608  our own paths
        else:
            connection.register(name, spec.schema.empty_table())
    return connection


def describe(connection: duckdb.DuckDBPyConnection) -> str:
    """Return what a person wants to see first: sizes, reasons, and one user's journey."""
    events, users, late, first, last = _row(connection, _SIZES)
    if not events:
        return "Archive: no events."
    sizes = (
        f"Archive: {events:,} events of {users:,} users, {late:,} late, "
        f"occurred {first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S} UTC."
    )
    (chosen,) = _row(connection, _SHOPPER)
    names = {name for name, *_ in connection.execute("DESCRIBE archive").fetchall()}
    session = "session_index AS session," if "session_index" in names else ""
    journey = f"One user's journey ({chosen}):\n{_table(connection, _JOURNEY.format(session=session), [chosen])}"
    letters = _table(connection, _REASONS) or "No dead letters."
    return "\n\n".join([sizes, _table(connection, _TYPES), letters, journey])


def _row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row


def _table(connection: duckdb.DuckDBPyConnection, query: str, values: list[Any] | None = None) -> str:
    """Return a query's rows as an aligned table; the empty string where there are none."""
    result = connection.execute(query, values or [])
    names = [column[0].rstrip("_") for column in result.description or ()]
    rows = [[_cell(value) for value in row] for row in result.fetchall()]
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
             for row in (names, ["-" * width for width in widths], *rows)]  # fmt: skip
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "late" if value else ""
    if isinstance(value, int):
        return f"{value:,}"
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
