"""Tables of BigQuery: the columns that rows need, made and added; rows given the table's types; a look for ids.

Types and their forms in Arrow: https://cloud.google.com/bigquery/docs/supported-data-types
"""

import dataclasses
import datetime as dt
from collections.abc import Iterable, Sequence

import pyarrow as pa
import requests
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud import bigquery

from millrace.sinks.sink import SinkDownError

CALL_S = 10.0
"""How long one call to the REST API may take. None is tried again here: that is for the lane's breaker."""
_CHANGES = 5
"""Tries to add columns, while others change the table as well."""
_EPOCH = dt.datetime.fromtimestamp(0, dt.UTC)
_ARROW: dict[str, pa.DataType] = {
    "STRING": pa.string(),
    "JSON": pa.string(),
    "INTEGER": pa.int64(),
    "FLOAT": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "TIMESTAMP": pa.timestamp("us", tz="UTC"),
    "DATETIME": pa.timestamp("us"),
    "DATE": pa.date32(),
    "TIME": pa.time64("us"),
    "BYTES": pa.binary(),
    "NUMERIC": pa.decimal128(38, 9),
    "BIGNUMERIC": pa.decimal256(76, 38),
}
_ALIASES = {"INT64": "INTEGER", "FLOAT64": "FLOAT", "BOOL": "BOOLEAN", "STRUCT": "RECORD"}
_ALSO_FITS = {("JSON", "STRING"), ("INTEGER", "FLOAT"), ("INTEGER", "NUMERIC"), ("INTEGER", "BIGNUMERIC")}
"""(type of the rows, type of the table) that differ and lose nothing."""


class SchemaConflictError(Exception):
    """Rows do not fit into their table: one sentence that names the column, and what to do."""


def column_of(field: pa.Field) -> bigquery.SchemaField:
    """Return the column that a field of rows needs; nullable always, since another route may not have it.

    Raises:
        SchemaConflictError: no type of BigQuery holds it.
    """
    kind, mode = field.type, "NULLABLE"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind, mode = kind.value_type, "REPEATED"
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        inner = [column_of(kind.field(i)) for i in range(kind.num_fields)]
        return bigquery.SchemaField(field.name, "RECORD", mode, fields=inner)
    is_json = bool(field.metadata) and b"millrace.json" in field.metadata
    return bigquery.SchemaField(field.name, "JSON" if is_json else _scalar(field.name, kind), mode)


def _scalar(name: str, kind: pa.DataType) -> str:
    types = pa.types
    if types.is_string(kind) or types.is_large_string(kind):
        return "STRING"
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "BYTES"
    if types.is_integer(kind):
        return "INTEGER"
    if types.is_floating(kind):
        return "FLOAT"
    if types.is_timestamp(kind):
        return "DATETIME" if kind.tz is None else "TIMESTAMP"
    if types.is_date(kind):
        return "DATE"
    if types.is_time(kind):
        return "TIME"
    if types.is_boolean(kind):
        return "BOOLEAN"
    if types.is_decimal(kind):
        return "NUMERIC" if kind.scale <= 9 and kind.precision - kind.scale <= 29 else "BIGNUMERIC"
    raise SchemaConflictError(f"column {name} is {kind}, which BigQuery has no type for: leave it out of the route")


def kind_of(column: bigquery.SchemaField) -> str:
    """Return a column's type by one name."""
    name = str(column.field_type).upper()
    return _ALIASES.get(name, name)


def arrow_field(column: bigquery.SchemaField) -> pa.Field:
    """Return a column as Arrow has it when it is appended."""
    kind = kind_of(column)
    held = pa.struct([arrow_field(each) for each in column.fields]) if kind == "RECORD" else _ARROW[kind]
    return pa.field(column.name, pa.list_(held) if column.mode == "REPEATED" else held)


def missing_columns(
    have: Sequence[bigquery.SchemaField], wanted: Sequence[bigquery.SchemaField]
) -> list[bigquery.SchemaField]:
    """Return the columns to add. Names differ not by case, as in BigQuery.

    Raises:
        SchemaConflictError: a column's type would not hold the rows, or it must have a value and gets none.
    """
    by_name = {column.name.lower(): column for column in have}
    named: dict[str, str] = {}
    for column in wanted:
        other = named.setdefault(column.name.lower(), column.name)
        if other != column.name:
            raise SchemaConflictError(f"columns {other} and {column.name} are one in BigQuery: rename one in the route")
        there = by_name.get(column.name.lower())
        if there is not None and not _fits(column, there):
            raise SchemaConflictError(
                f"column {column.name} is {_shown(there)} in the table and {_shown(column)} in the rows: rename it in "
                "the route's columns, or change the table"
            )
    for column in have:
        if column.mode == "REQUIRED" and column.name.lower() not in named:
            raise SchemaConflictError(
                f"column {column.name} is REQUIRED in the table and not among the route's columns"
            )
    return [column for column in wanted if column.name.lower() not in by_name]


def _fits(ours: bigquery.SchemaField, theirs: bigquery.SchemaField) -> bool:
    if (ours.mode == "REPEATED") != (theirs.mode == "REPEATED"):
        return False
    kinds = (kind_of(ours), kind_of(theirs))
    if kinds == ("RECORD", "RECORD"):
        inner = {column.name.lower(): column for column in theirs.fields}
        return all(each.name.lower() in inner and _fits(each, inner[each.name.lower()]) for each in ours.fields)
    return kinds[0] == kinds[1] or kinds in _ALSO_FITS


def _shown(column: bigquery.SchemaField) -> str:
    return f"{kind_of(column)} REPEATED" if column.mode == "REPEATED" else kind_of(column)


def aligned(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return rows with the columns and types of a table; those that they lack are null.

    Raises:
        pyarrow.ArrowInvalid: a value does not fit, such as an integer of more than 64 bits.
    """
    by_name = {name.lower(): i for i, name in enumerate(rows.schema.names)}
    columns = []
    for field in schema:
        at = by_name.get(field.name.lower())
        columns.append(pa.nulls(rows.num_rows, field.type) if at is None else rows.column(at).cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as it is now."""

    columns: tuple[bigquery.SchemaField, ...]
    created_us: int
    """When it was created: another one of the same name has another."""


@dataclasses.dataclass(frozen=True)
class Tables:
    """The REST API, as far as it is needed. Blocks: for a thread.

    Every method raises SinkDownError where the service cannot be reached, or does not let us.
    """

    client: bigquery.Client

    def get(self, name: str) -> Table | None:
        """Return a table (`project.dataset.table`); None where there is none."""
        try:
            return _table(self.client.get_table(name, retry=None, timeout=CALL_S))
        except api.NotFound:
            return None
        except _FAILURES as error:
            raise down(error, f"table {name}") from error

    def in_step(self, name: str, rows: pa.Schema, *, create: bool, partition_by: str) -> Table:
        """Make a table that has all columns of rows: created where it is missing, columns added.

        Raises:
            SchemaConflictError: it cannot be.
        """
        wanted = [column_of(field) for field in rows]
        try:
            for _ in range(_CHANGES):
                try:
                    table = self.client.get_table(name, retry=None, timeout=CALL_S)
                except api.NotFound:
                    if not create:
                        raise SchemaConflictError(f"there is no table {name}: create it, or set create: true") from None
                    self._create(name, wanted, partition_by)
                    continue
                missing = missing_columns(table.schema, wanted)
                if not missing:
                    return _table(table)
                table.schema = [*table.schema, *missing]
                try:  # by its etag: columns that another adds at this moment are not taken away
                    self.client.update_table(table, ["schema"], retry=None, timeout=CALL_S)
                except api.PreconditionFailed:
                    continue
        except _FAILURES as error:
            raise down(error, f"table {name}") from error
        raise SinkDownError(f"table {name} changes all the time: its columns could not be added")

    def _create(self, name: str, columns: Sequence[bigquery.SchemaField], partition_by: str) -> None:
        table = bigquery.Table(name, schema=columns)
        if any(column.name == partition_by and kind_of(column) == "TIMESTAMP" for column in columns):
            table.time_partitioning = bigquery.TimePartitioning(field=partition_by)
        try:
            self.client.create_table(table, exists_ok=True, retry=None, timeout=CALL_S)
        except api.NotFound as error:
            raise SinkDownError(f"there is no dataset for {name}: create it") from error

    def present(
        self, name: str, id_column: str, ids: Iterable[str], time_column: str, span: tuple[int, int] | None
    ) -> frozenset[str]:
        """Return which ids a table holds; a span (of time_column, in microseconds) bounds what is read."""
        query = f"SELECT `{id_column}` FROM `{name}` WHERE `{id_column}` IN UNNEST(@ids)"  # noqa: S608  names are checked
        given: list[bigquery.ArrayQueryParameter | bigquery.ScalarQueryParameter] = [
            bigquery.ArrayQueryParameter("ids", "STRING", list(ids))
        ]
        if span is not None:
            query += f" AND `{time_column}` BETWEEN @start AND @end"
            given += [
                bigquery.ScalarQueryParameter(side, "TIMESTAMP", _EPOCH + dt.timedelta(microseconds=us))
                for side, us in zip(("start", "end"), span, strict=True)
            ]
        settings = bigquery.QueryJobConfig(query_parameters=given, use_query_cache=False)
        try:
            job = self.client.query(query, job_config=settings, retry=None, timeout=CALL_S, job_retry=None)
            return frozenset(row[0] for row in job.result(retry=None, timeout=4 * CALL_S, job_retry=None))
        except (*_FAILURES, TimeoutError) as error:
            raise down(error, f"a query of {name}") from error


_FAILURES = (api.GoogleAPIError, auth.GoogleAuthError, requests.RequestException)


def down(error: Exception, what: str) -> SinkDownError:
    """Return what a failed call means: the sink as a whole does not work; the texts of the service hold no rows."""
    if isinstance(error, (api.Forbidden, api.Unauthorized)):
        return SinkDownError(f"BigQuery does not let us at {what}: give the account the role bigquery.dataEditor")
    text = str(getattr(error, "message", error) or type(error).__name__)
    return SinkDownError(f"BigQuery failed at {what}: {text[:300]}")


def _table(found: bigquery.Table) -> Table:
    created = found.created
    return Table(tuple(found.schema), 0 if created is None else int(created.timestamp() * 1_000_000))
