"""The tables that Millrace writes: their columns, partition, order, and what the log knows of each file."""

import dataclasses

import pyarrow as pa

from millrace.schemas import dead_letter, event


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
        plain_columns: columns in which hardly a value repeats: building a dictionary for them is lost work.
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
    plain_columns=("message_id", "order_index", "properties", "context_rest", "rest"),
)

DEAD_LETTERS = TableSpec(
    name="dead letters",
    schema=dead_letter.SCHEMA,
    partition_column="date",
    sort_columns=("refused_at",),
    statistics_columns=("stage", "reason", "source_id", "published_at", "refused_at"),
    time_column="refused_at",
    plain_columns=("payload", "message", "published_at", "refused_at"),
)
