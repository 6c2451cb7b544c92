"""The tables that Millrace writes: columns, partition, order, statistics in the log; how they are made and checked."""

import dataclasses
import logging
from collections.abc import Sequence

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.exceptions import DeltaError, TableNotFoundError

from millrace.schemas import dead_letter, dropped, duplicate, event, identity, undelivered
from millrace.sinks.storage import Location, StorageError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TableSpec:
    """What a table looks like.

    Attributes:
        name: for people: metrics and error messages.
        schema: the rows, partition column included.
        partition_column: a date column; it is in the path and not in the file.
        sort_columns: the order of the rows in a file.
        statistics_columns: columns whose minimum and maximum the log keeps, so that queries skip files.
        time_column: the timestamp that rises from file to file: `read_recent` and compaction go by it.
        plain_columns: text in which hardly a value repeats: building a dictionary for it is lost work.
    """

    name: str
    schema: pa.Schema
    partition_column: str
    sort_columns: tuple[str, ...]
    statistics_columns: tuple[str, ...]
    time_column: str
    plain_columns: tuple[str, ...] = ()

    @property
    def body(self) -> pa.Schema:
        """The columns in a file: all but the partition."""
        return pa.schema([field for field in self.schema if field.name != self.partition_column])


ARCHIVE = TableSpec(
    name="archive",
    schema=event.ARCHIVE,
    partition_column="date",
    sort_columns=("user_key", "order_index"),
    statistics_columns=(
        *("message_id", "type", "event", "user_key", "source_id", "order_index"),
        *("received_at", "published_at", "occurred_at", "released_at"),
    ),
    time_column="released_at",
    plain_columns=("message_id", "envelope_id", "properties", "traits", "context_rest", "rest"),
)

DEAD_LETTERS = TableSpec(
    name="dead letters",
    schema=dead_letter.SCHEMA,
    partition_column="date",
    sort_columns=("refused_at",),
    statistics_columns=("stage", "reason", "source_id", "published_at", "refused_at"),
    time_column="refused_at",
    plain_columns=("payload", "message", "envelope_id"),
)

DUPLICATES = TableSpec(
    name="duplicates",
    schema=duplicate.SCHEMA,
    partition_column="date",
    sort_columns=("released_at",),
    statistics_columns=("message_id", "user_key", "source_id", "published_at", "released_at"),
    time_column="released_at",
    plain_columns=("message_id",),
)

DROPPED = TableSpec(
    name="dropped",
    schema=dropped.SCHEMA,
    partition_column="date",
    sort_columns=("dropped_at",),
    statistics_columns=("message_id", "source_id", "rule", "published_at", "dropped_at"),
    time_column="dropped_at",
    plain_columns=("message_id", "envelope_id"),
)

IDENTITIES = TableSpec(
    name="identities",
    schema=identity.SCHEMA,
    partition_column="date",
    sort_columns=("linked_at", "id"),
    statistics_columns=("id", "user_id", "user_key", "source_id", "occurred_at", "linked_at"),
    time_column="linked_at",
    plain_columns=("message_id", "envelope_id"),
)

SPECS = (ARCHIVE, DUPLICATES, DEAD_LETTERS, DROPPED, IDENTITIES)
"""The tables of the job."""

UNDELIVERED = TableSpec(
    name="undelivered",
    schema=undelivered.SCHEMA,
    partition_column="date",
    sort_columns=("gave_up_at",),
    statistics_columns=("message_id", "user_key", "lane", "fault", "position", "gave_up_at"),
    time_column="gave_up_at",
    plain_columns=("message_id", "payload"),
)
"""The table of the lanes: what their sinks did not take."""


def with_columns(spec: TableSpec, added: Sequence[pa.Field]) -> TableSpec:
    """Return a table that has more columns, before its partition column; all of them may be null."""
    if not added:
        return spec
    at = spec.schema.get_field_index(spec.partition_column)
    fields = list(spec.schema)
    return dataclasses.replace(spec, schema=pa.schema([*fields[:at], *added, *fields[at:]]))


COUNTERS = "millrace.counters"
"""The table property that names the totals it keeps, with commas between."""

CONFIGURATION = {
    COUNTERS: "rows",
    # Opening a table, and every commit, replays the log since the last checkpoint, 1 ms an entry (measured);
    # a checkpoint costs 30 ms per thousand files. With one commit in 5 s this is a checkpoint every 100 s.
    "delta.checkpointInterval": "20",
    # A commit lists the log's folder, locally all of it: 13 us an entry (m), half a second with the entries of two days
    # of a commit in 5 s. Two hours are 20 ms. Time travel reaches as far back.
    "delta.logRetentionDuration": "interval 2 hours",
    "delta.enableExpiredLogCleanup": "true",
    # Every checkpoint repeats the names of files that compaction removed, for as long as vacuum keeps them: a query
    # that runs longer than this on a table that is being compacted may miss a file.
    "delta.deletedFileRetentionDuration": "interval 6 hours",
}


def load(location: Location) -> DeltaTable | None:
    """Return the Delta table at a location; None where there is none."""
    try:
        return DeltaTable(location.uri, storage_options=location.options)
    except TableNotFoundError:
        return None


def create(location: Location, spec: TableSpec) -> DeltaTable:
    """Create a table, or return the one that another process created first.

    Raises:
        StorageError: the folder holds other things.
    """
    # Workers may have written files before anyone opened the table: partition folders are no reason to refuse.
    others = [name for name in location.names() if not name.startswith(("_", ".", f"{spec.partition_column}="))]
    if others:
        shown = ", ".join(others[:3]) + (" ..." if len(others) > 3 else "")
        raise StorageError(
            f"{location.uri} is not a Delta table and holds other things ({shown}): give a new or empty folder."
        )
    try:
        return DeltaTable.create(
            location.uri,
            spec.schema,
            mode="error",
            partition_by=[spec.partition_column],
            name=spec.name,
            configuration=CONFIGURATION,
            storage_options=location.options,
            commit_properties=CommitProperties(max_commit_retries=0),
            raise_if_key_not_exists=False,  # COUNTERS is ours
        )
    except DeltaError:
        created_by_another = load(location)
        if created_by_another is None:
            raise
        return created_by_another


def check(delta: DeltaTable, spec: TableSpec, uri: str) -> None:
    """Check that a table holds the columns of `spec`, and add those that an older Millrace did not know.

    Raises:
        StorageError: it holds others, or of other types.
    """
    partitions = delta.metadata().partition_columns
    if partitions != [spec.partition_column]:
        raise StorageError(
            f"{uri} is partitioned by {partitions}, not by {spec.partition_column!r}: give another folder."
        )
    found = pa.schema(delta.schema())
    lacking = []
    for field in spec.schema:
        index = found.get_field_index(field.name)
        if index < 0:
            lacking.append(field)
        elif found.field(index).type != field.type:
            raise StorageError(
                f"Column {field.name} of {uri} is {found.field(index).type}, but the {spec.name} needs {field.type}: "
                f"give another folder, or migrate the table."
            )
    required = [field.name for field in lacking if not field.nullable]
    required += [field.name for field in found if not field.nullable and spec.schema.get_field_index(field.name) < 0]
    if required:
        raise StorageError(f"{uri} is another kind of table: required columns differ ({', '.join(required)}).")
    if lacking:
        logger.info("Adding columns to %s: %s", uri, ", ".join(field.name for field in lacking))
        delta.alter.add_columns(Schema.from_arrow(pa.schema(lacking)).fields)
