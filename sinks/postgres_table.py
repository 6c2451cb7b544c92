"""Tables of PostgreSQL that follow the rows: made, widened, and told apart where they do not fit."""

import dataclasses
import itertools
from collections.abc import Sequence

import asyncpg
import pyarrow as pa

from millrace.sinks.copy_binary import Column, natural_type

_NAME_BYTES = 63
"""Longer names PostgreSQL cuts, so that two of them may become one (NAMEDATALEN - 1)."""
_LOCK_WAIT = "10s"
"""A change of the table waits for whoever reads it, and whoever comes later waits for the change."""

_COLUMNS = """
SELECT a.attname, format_type(coalesce(nullif(t.typbasetype, 0), t.oid), NULL)
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
"""
_stages = itertools.count(1)


class UnfitTableError(Exception):
    """The table cannot take the rows as it is; one sentence that says what to do."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How rows of one schema get into one table.

    Attributes:
        columns: what is sent, in this order.
        stage: name of the temporary table that takes the COPY.
        create_stage: the statement that makes it, once a connection.
        insert: the statement that takes its rows over.
    """

    columns: tuple[Column, ...]
    stage: str
    create_stage: str
    insert: str


def quoted(name: str) -> str:
    """Return an identifier for SQL, whatever is in it.

    >>> print(quoted('say "x" twice'))
    "say ""x"" twice"
    """
    return '"' + name.replace('"', '""') + '"'


def table_parts(table: str) -> tuple[str, ...]:
    """Return the names in `table` or `schema.table`.

    Raises:
        ValueError: neither, or longer than PostgreSQL's names are.
    """
    parts = tuple(table.split("."))
    if len(parts) > 2 or not all(map(_is_name, parts)):
        raise ValueError(f"the table {table!r} has to be a name or schema.name, each of 1 to {_NAME_BYTES} bytes")
    return parts


def _is_name(name: str) -> bool:
    return 0 < len(name.encode()) <= _NAME_BYTES and "\0" not in name


async def plan(
    connection: asyncpg.Connection,
    table: str,
    schema: pa.Schema,
    *,
    key: str,
    create: bool,
    update: bool,
) -> Plan:
    """Return how rows get into a table, which is made or gets further columns where it needs them.

    Args:
        connection: outside of a transaction.
        table: a name, or schema.name.
        schema: of the rows; holds the key.
        key: the column by which a row is known again.
        create: whether the table may be made and widened.
        update: whether a row that is there and differs is written anew.

    Raises:
        UnfitTableError: it does not fit.
        asyncpg.PostgresError: as the server says.
    """
    parts = table_parts(table)
    name = ".".join(map(quoted, parts))
    for column in schema.names:
        if not _is_name(column):
            raise UnfitTableError(f"PostgreSQL has no names such as {column!r}: give the column another in the route")
    try:
        # Who calls gives the connection up after an error: no ROLLBACK, which would wait for a server that is stuck.
        await connection.execute("BEGIN")
        there: dict[str, str] = dict(await connection.fetch(_COLUMNS, name))
        if not set(schema.names) <= set(there):
            if there and key not in there:
                raise UnfitTableError(
                    f"the table {table} has no column {key}: add it with a unique index, or set key to its name"
                )
            if not create:
                raise UnfitTableError(_lacks(table, schema, there))
            await _make(connection, parts, schema, key)
            there = dict(await connection.fetch(_COLUMNS, name))
        await connection.execute("COMMIT")
        columns = tuple(Column.of(field, there[field.name]) for field in schema)
    except TypeError as error:
        raise UnfitTableError(
            f"the table {table}: {error}; change the column's type, or give it another name in the route"
        ) from None
    except asyncpg.LockNotAvailableError:
        raise UnfitTableError(
            f"the table {table} is to get new columns, and was in use by others for all of {_LOCK_WAIT}: see "
            "pg_stat_activity for who holds it"
        ) from None
    stage = f"millrace_stage_{next(_stages)}"
    body = ", ".join(f"{quoted(each.name)} {each.wire}" for each in columns)
    return Plan(
        columns,
        stage,
        f"CREATE TEMPORARY TABLE IF NOT EXISTS {stage} ({body}) ON COMMIT DELETE ROWS",
        _insert(name, stage, columns, key, update=update),
    )


def _lacks(table: str, schema: pa.Schema, there: dict[str, str]) -> str:
    missing = ", ".join(f"{f.name} {natural_type(f)}" for f in schema if f.name not in there)
    if not there:
        return f"there is no table {table}: make it, with the columns {missing}"
    return f"the table {table} lacks columns: add {missing}, or leave them out of the route"


async def _make(connection: asyncpg.Connection, parts: tuple[str, ...], schema: pa.Schema, key: str) -> None:
    """Make the table, or what it lacks; others that do the same at this moment wait."""
    name = ".".join(map(quoted, parts))
    await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_WAIT}'")
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"millrace {name}")
    # Not `IF NOT EXISTS` alone: that asks for the right to make a schema even where it is there.
    if len(parts) == 2 and await connection.fetchval("SELECT to_regnamespace($1)", quoted(parts[0])) is None:
        await connection.execute(f"CREATE SCHEMA {quoted(parts[0])}")
    there = {row[0] for row in await connection.fetch(_COLUMNS, name)}
    missing = [f"{quoted(f.name)} {natural_type(f)}" for f in schema if f.name not in there and f.name != key]
    if not there:
        columns = ", ".join([f"{quoted(key)} text PRIMARY KEY", *missing])
        await connection.execute(f"CREATE TABLE {name} ({columns})")
    elif missing:
        await connection.execute(f"ALTER TABLE {name} " + ", ".join(f"ADD COLUMN {each}" for each in missing))


def _insert(name: str, stage: str, columns: Sequence[Column], key: str, *, update: bool) -> str:
    names = ", ".join(quoted(each.name) for each in columns)
    # Text goes into other types, such as numeric, only where it is told to.
    values = ", ".join(
        quoted(each.name) + ("::numeric" if each.wire == "text" and each.type.startswith("numeric") else "")
        for each in columns
    )
    others = [each for each in columns if each.name != key]
    insert = f"INSERT INTO {name} AS old ({names}) SELECT {values} FROM pg_temp.{stage} ON CONFLICT ({quoted(key)}) "  # noqa: S608  names are quoted
    if not update or not others:
        return insert + "DO NOTHING"
    changes = ", ".join(f"{quoted(each.name)} = excluded.{quoted(each.name)}" for each in others)
    # A row that says the same is not written again: a resend costs no dead row.
    was, now = (", ".join(_comparable(of, each) for each in others) for of in ("old", "excluded"))
    return f"{insert}DO UPDATE SET {changes} WHERE ({was}) IS DISTINCT FROM ({now})"


def _comparable(of: str, column: Column) -> str:
    cast = "::text" if column.type == "json" else ""  # the type json has no equality
    return f"{of}.{quoted(column.name)}{cast}"
