"""The sink `postgres`: a table with a row for each event, known again by its id."""

import contextlib
import dataclasses
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pyarrow as pa

from millrace.sinks import postgres_errors as errors
from millrace.sinks.copy_binary import copy_data, encode
from millrace.sinks.json_rows import is_json
from millrace.sinks.postgres_table import Plan, UnfitTableError, plan, table_parts
from millrace.sinks.references import is_reference, resolved
from millrace.sinks.sink import (
    DELIVERED,
    CannotOpenSinkError,
    Delivery,
    Memory,
    Outcome,
    Rejected,
    Sink,
    SinkDownError,
)

_CONNECT_S = 10.0
_TRIES = 3
_TLS = ("disable", "prefer", "require", "verify-full")
_SCHEMES = ("postgresql", "postgres")


class _Session:
    """A connection and what was made in it."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.stages: set[str] = set()


class _State:
    """What the sink holds while it is open."""

    def __init__(self) -> None:
        self.idle: list[_Session] = []
        self.plans: dict[Any, Plan] = {}
        self.dsn = ""
        self.password: str | None = None
        self.was_open = False


@dataclasses.dataclass(frozen=True)
class Postgres(Sink):
    """Writes each event into a row of a PostgreSQL table; a delivery is one transaction, by COPY.

    Attributes:
        dsn: `postgresql://user@host/database`, without a password; or a reference to a secret that holds the whole.
        password: a reference to the password; none: as libpq finds one (PGPASSWORD, ~/.pgpass), or none at all.
        table: a name or schema.name; a route's `target` goes before it.
        key: the column that holds the message id, by which a row is known again; it needs a unique index.
        create: make the table where it is not there, and columns that the rows have and the table lacks.
        on_conflict: of a row that is there: `update` writes it anew where it differs; `keep` leaves it.
        tls: as libpq's sslmode: disable, prefer, require (without a look at the certificate) or verify-full; none: as
            the dsn says, else prefer.
        ca: a file with the certificates that verify-full trusts; none: the system's.
    """

    dsn: str
    password: str = ""
    table: str = "events"
    key: str = "message_id"
    create: bool = True
    on_conflict: str = "update"
    tls: str = ""
    ca: str = ""
    _state: _State = dataclasses.field(default_factory=_State, init=False, repr=False, compare=False)

    max_events = 2_000
    max_in_flight = 4
    keeps_order = True
    keeps_ids = True

    def __post_init__(self) -> None:
        if not is_reference(self.dsn):
            try:
                parts = urlsplit(self.dsn)
            except ValueError:
                parts = urlsplit("")
            if parts.scheme not in _SCHEMES:
                raise ValueError("dsn has to be postgresql://user@host/database, or where the secret is that holds it")
            if parts.password is not None or "password=" in parts.query:
                raise ValueError("dsn may not hold a password: name the secret that holds it in password")
        if self.password and not is_reference(self.password):
            raise ValueError("password has to say where the secret is, such as env:PGPASSWORD, never the secret itself")
        table_parts(self.table)
        if self.on_conflict not in ("update", "keep"):
            raise ValueError(f"on_conflict has to be update or keep, got {self.on_conflict!r}")
        if self.tls and self.tls not in _TLS:
            raise ValueError(f"tls has to be one of {', '.join(_TLS)}, got {self.tls!r}")
        if self.ca and self.tls != "verify-full":
            raise ValueError("ca is used by tls: verify-full only")

    def check_columns(self, columns: Mapping[str, str]) -> None:
        """Refuse a route that puts another column where the id of the rows has to be."""
        if columns.get(self.key, "message_id") != "message_id":
            raise ValueError(
                f"{self.key} is the key of the table, and in this route it is {columns[self.key]}, not message_id: "
                "give that column another name, or set the sink's key"
            )

    def check_target(self, target: str) -> None:
        """Refuse what is no name of a table."""
        table_parts(target)

    async def open(self, memory: Memory) -> None:  # noqa: ARG002  the table itself remembers
        """Connect; see Sink.open."""
        state = self._state
        await self.close()
        state.plans.clear()
        state.dsn = resolved(self.dsn) if is_reference(self.dsn) else self.dsn
        state.password = resolved(self.password) if self.password else None
        state.idle.append(await self._connect())
        state.was_open = True

    async def close(self) -> None:
        """Disconnect; what is in a transaction is rolled back by the server."""
        while self._state.idle:
            self._state.idle.pop().connection.terminate()

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        """Write the rows in one transaction; see Sink.deliver."""
        table = delivery.target or self.table
        rows, chosen = self._keyed(delivery)
        failed: asyncpg.PostgresError | None = None
        for _ in range(_TRIES):
            try:
                refused = await self._write(table, rows)
            except asyncpg.PostgresError as error:
                if not (errors.may_pass(error) or errors.is_stale(error)):
                    raise errors.down(error, table) or error from error
                self._state.plans.clear()  # the table may have been changed, or dropped
                failed = error
            except UnfitTableError as error:
                raise SinkDownError(str(error)) from None
            except ValueError as error:  # the target of a route is no name
                raise SinkDownError(str(error)) from None
            except errors.LOST as error:
                raise errors.down(error) or error from error
            else:
                outcomes = {delivery.message_ids[chosen[row]]: outcome for row, outcome in refused.items()}
                return [outcomes.get(each, DELIVERED) for each in delivery.message_ids]
        assert failed is not None
        if errors.may_pass(failed):
            return [errors.retry(failed)] * len(delivery)
        raise errors.down(failed, table) or failed

    def _keyed(self, delivery: Delivery) -> tuple[pa.RecordBatch, Sequence[int]]:
        """Return the rows with their key, of equal ids the last, and which rows of the delivery they are."""
        rows, ids = delivery.rows, pa.array(delivery.message_ids, pa.string())
        if self.key not in rows.schema.names:
            rows = rows.add_column(0, pa.field(self.key, pa.string()), ids)
        elif not rows.column(self.key).equals(ids):
            raise SinkDownError(f"the column {self.key} of the rows is not the message id: set key to the one that is")
        last = {each: row for row, each in enumerate(delivery.message_ids)}
        chosen = sorted(last.values())
        return (rows.take(pa.array(chosen)) if len(chosen) < len(delivery) else rows), chosen

    async def _write(self, table: str, rows: pa.RecordBatch) -> dict[int, Rejected]:
        """Write rows in one transaction; return those that the server refuses, the others are in the table."""
        async with self._session() as session:
            planned = await self._plan(session, table, rows.schema)
            encoded = encode(rows, planned.columns)
            if planned.stage not in session.stages:
                await session.connection.execute(planned.create_stage)
                session.stages.add(planned.stage)
            # No transaction(): a delivery that is cancelled must not wait for a server that does not answer.
            # COMMIT goes alone: a server that has lost its client in the INSERT then never sees it.
            await session.connection.execute("BEGIN")
            try:
                await _put(session, planned, encoded)
                await session.connection.execute("COMMIT")
            except asyncpg.PostgresError as error:
                if not errors.blames_rows(error):
                    raise
                await session.connection.execute("ROLLBACK")
                return await _put_what_can_be(session, planned, encoded)
            return {}

    async def _plan(self, session: _Session, table: str, schema: pa.Schema) -> Plan:
        plans = self._state.plans
        called = (table, tuple((field.name, str(field.type), is_json(field)) for field in schema))
        if called not in plans:
            plans[called] = await plan(
                session.connection,
                table,
                schema,
                key=self.key,
                create=self.create,
                update=self.on_conflict == "update",
            )
        return plans[called]

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[_Session]:
        """Lend a connection; it is given up after any error: the server then rolls back what was not committed."""
        idle = self._state.idle
        session = idle.pop() if idle else await self._connect()
        try:
            yield session
        except BaseException:
            session.connection.terminate()
            raise
        idle.append(session)

    async def _connect(self) -> _Session:
        state = self._state
        try:
            connection = await asyncpg.connect(
                state.dsn,
                password=state.password,
                ssl=self._tls(),
                timeout=_CONNECT_S,
                statement_cache_size=0,  # statements are few and large; and poolers such as PgBouncer have none
                server_settings={"application_name": "millrace", "timezone": "UTC"},
            )
        except (asyncpg.PostgresError, *errors.LOST, ValueError) as error:
            if isinstance(error, ValueError) and not isinstance(error, OSError):  # it may show a part of the dsn
                raise CannotOpenSinkError(f"the dsn of PostgreSQL cannot be read: {type(error).__name__}") from None
            if not state.was_open and _is_configured_wrong(error):
                raise CannotOpenSinkError(f"PostgreSQL cannot be used as configured: {error}") from None
            raise errors.down(error) or error from None
        return _Session(connection)

    def _tls(self) -> str | ssl.SSLContext | None:
        """Return what asyncpg calls ssl; None: as the dsn says.

        Raises:
            CannotOpenSinkError: there are no certificates in the file.
        """
        if self.tls != "verify-full":
            return self.tls or None
        try:
            return ssl.create_default_context(cafile=self.ca or None)
        except OSError as error:
            raise CannotOpenSinkError(f"the certificates in {self.ca} cannot be read: {error.strerror}") from None


async def _put(session: _Session, planned: Plan, encoded: pa.BinaryArray) -> None:
    columns = [each.name for each in planned.columns]
    data: Any = copy_data(encoded)
    await session.connection.copy_to_table(
        planned.stage, schema_name="pg_temp", source=data, columns=columns, format="binary"
    )
    await session.connection.execute(planned.insert)


async def _put_what_can_be(session: _Session, planned: Plan, encoded: pa.BinaryArray) -> dict[int, Rejected]:
    """Write rows of which some are refused, still in one transaction, piece by piece; return those.

    Where the server names the row it is left out, else the piece is halved: of n rows with k bad ones it takes some
    k log n savepoints.
    """
    refused: dict[int, Rejected] = {}
    pieces = [(0, len(encoded))]
    execute = session.connection.execute
    await execute("BEGIN; SET CONSTRAINTS ALL IMMEDIATE")  # so that each piece is told of its own rows
    while pieces:
        start, end = pieces.pop()
        if start == end:
            continue
        await execute(f"SAVEPOINT piece; TRUNCATE pg_temp.{planned.stage}")
        try:
            await _put(session, planned, encoded.slice(start, end - start))
            await execute("RELEASE SAVEPOINT piece")
        except asyncpg.PostgresError as error:
            if not errors.blames_rows(error):
                raise
            await execute("ROLLBACK TO SAVEPOINT piece; RELEASE SAVEPOINT piece")
            bad = errors.bad_row(error)
            if end - start == 1 or bad is not None:
                row = start + (bad or 0)
                refused[row] = errors.rejected(error)
                pieces += [(row + 1, end), (start, row)]
            else:
                middle = (start + end) // 2
                pieces += [(middle, end), (start, middle)]
    await execute("COMMIT")
    return refused


def _is_configured_wrong(error: Exception) -> bool:
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith(("28", "3D"))
    return isinstance(error, ssl.SSLCertVerificationError)
