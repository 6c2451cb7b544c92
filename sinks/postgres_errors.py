"""What PostgreSQL's errors mean for a delivery: whose fault it is, and what may be told of it.

By SQLSTATE (https://www.postgresql.org/docs/15/errcodes-appendix.html). The server's own words are passed on only where
they speak of the table or the connection: of a row they may repeat its values.
"""

import re

import asyncpg

from millrace.sinks.sink import Fault, Rejected, Retry, SinkDownError

_ROW = ("22", "23", "54", "P0")
"""Data, constraints, limits of the server, a trigger's RAISE: of the rows; found by leaving rows out."""
_AGAIN = ("40", "55P03", "57014")
"""Serialization, deadlock; a lock or a statement that took too long."""
_SCHEMA = ("42", "3F", "0A")
"""Tables and columns are not what they were, or never were; what this user may not do."""
_DOWN = ("08", "53", "57P", "58", "25006", "XX001", "XX002", "28", "3D", "0P")
"""Connection, resources (disk, memory, connections), shutdown, I/O, a standby, damage, logging in."""

_REASONS = {
    "22021": "a text holds a character that PostgreSQL cannot keep, such as NUL",
    "22P05": "JSON holds \\u0000, or a character that the database's encoding does not have",
    "22P02": "a value, or JSON such as half of a surrogate pair, that PostgreSQL does not read",
    "22032": "a text is no JSON",
    "22001": "a text is longer than the column",
    "22003": "a number is out of the column's range",
    "22008": "a time is out of range",
    "23502": "the column may not be null",
    "23505": "another row has that value, which has to be unique",
    "23514": "a check constraint of the table",
    "23503": "a foreign key of the table",
    "54000": "a value is too large, such as a key of more than 2,700 bytes",
    "54001": "JSON is nested too deeply",
    "P0001": "a trigger of the table",
}
_PLACE = re.compile(r"^COPY [^,]+, line (\d+)(?:, column (.+?))?$", re.MULTILINE)

LOST = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, TimeoutError)
"""What asyncpg raises beside PostgresError where a connection breaks or cannot be had."""


def blames_rows(error: asyncpg.PostgresError) -> bool:
    """Say whether leaving out rows may help."""
    return _state(error).startswith(_ROW)


def is_stale(error: asyncpg.PostgresError) -> bool:
    """Say whether the table may have changed since it was looked at."""
    return _state(error).startswith(_SCHEMA)


def may_pass(error: asyncpg.PostgresError) -> bool:
    """Say whether the same transaction may succeed the next time."""
    return _state(error).startswith(_AGAIN)


def bad_row(error: asyncpg.PostgresError) -> int | None:
    """Return which row of a COPY it was, from 0; None where the server does not tell."""
    found = _PLACE.search(error.context or "")
    return int(found[1]) - 1 if found else None


def rejected(error: asyncpg.PostgresError) -> Rejected:
    """Return what is told of a row that the server refuses, without its values."""
    found = _PLACE.search(error.context or "")
    column = error.column_name or (found[2] if found else None)
    where = f", column {column}" if column else ""
    if error.constraint_name:
        where += f", constraint {error.constraint_name}"
    reason = _REASONS.get(_state(error), type(error).__name__)
    return Rejected(Fault.REJECTED, f"PostgreSQL refuses the row ({_state(error)}{where}): {reason}")


def retry(error: asyncpg.PostgresError) -> Retry:
    """Return what is told of rows whose transaction may succeed the next time."""
    fault = Fault.TIMED_OUT if _state(error) == "57014" else Fault.FAILED
    return Retry(fault, f"PostgreSQL ended the transaction: {type(error).__name__} ({_state(error)})")


def down(error: Exception, table: str = "") -> SinkDownError | None:
    """Return the error as one of the whole destination; None where it is of another kind."""
    where = f" (table {table})" if table else ""
    if isinstance(error, asyncpg.PostgresError):
        state = _state(error)
        if state == "42P10":
            return SinkDownError(
                f"PostgreSQL{where}: the key has no unique index of its own, by which a row is known again: make one"
            )
        if state.startswith((*_DOWN, *_SCHEMA)):
            return SinkDownError(f"PostgreSQL{where}: {error.message} ({state})")
        return None
    if isinstance(error, LOST):
        return SinkDownError(f"no connection to PostgreSQL: {type(error).__name__}: {error}")
    return None


def _state(error: asyncpg.PostgresError) -> str:
    return error.sqlstate or ""
