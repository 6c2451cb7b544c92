"""Parts of deliveries: rows on their way into an append, and whose they are."""

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from millrace.sinks.bigquery_table import aligned
from millrace.sinks.sink import Fault, Outcome, Rejected

APPEND_BYTES = 8_000_000
"""About the most of an append; Google documents 10 MB, by now 20."""


@dataclasses.dataclass(eq=False)
class Item:
    """A delivery that waits."""

    rows: pa.RecordBatch
    ids: Sequence[str]
    future: asyncio.Future[list[Outcome]]
    outcomes: list[Outcome | None]


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows of one append, and whose they are."""

    rows: pa.RecordBatch
    owners: tuple[tuple[Item, int], ...]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(item.ids[row] for item, row in self.owners)

    def slice(self, start: int, end: int) -> "Part":
        return Part(self.rows.slice(start, end - start), self.owners[start:end])

    def without(self, rows: set[int]) -> "Part":
        kept = [row for row in range(len(self.owners)) if row not in rows]
        return Part(self.rows.take(pa.array(kept, pa.int64())), tuple(self.owners[row] for row in kept))

    def say(self, outcome: Outcome, rows: Sequence[int] | None = None) -> None:
        for item, row in self.owners if rows is None else [self.owners[row] for row in rows]:
            item.outcomes[row] = outcome

    def complaint(self, text: str) -> str:
        """Name the columns that the service complains of; what it says may quote the value."""
        named = [name for name in self.rows.schema.names if name in text]
        return f"BigQuery refuses the row: column {', '.join(named)}" if named else "BigQuery refuses the row"

    def span(self, column: str) -> tuple[int, int] | None:
        """Return from when to when the rows are, microseconds since the epoch; None where they do not all say."""
        at = self.rows.schema.get_field_index(column)
        if at < 0 or self.rows.schema.field(at).type != pa.timestamp("us", tz="UTC") or self.rows.column(at).null_count:
            return None
        found = pc.min_max(self.rows.column(at).cast(pa.int64()))
        return found["min"].as_py(), found["max"].as_py()


def fitting(item: Item, rows: list[int], schema: pa.Schema) -> Iterator[Part]:
    """Yield rows in the table's types; a value that does not fit rejects its row."""
    if not rows:
        return
    chosen = item.rows if len(rows) == len(item.ids) else item.rows.take(pa.array(rows, pa.int64()))
    try:
        yield Part(aligned(chosen, schema), tuple((item, row) for row in rows))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        if len(rows) == 1:
            item.outcomes[rows[0]] = Rejected(Fault.REJECTED, "a value does not fit the type of its column")
            return
        for row in rows:
            yield from fitting(item, [row], schema)


def appends(parts: Sequence[Part], schema: pa.Schema) -> Iterator[Part]:
    """Yield the rows of all parts, in order, in appends of at most APPEND_BYTES, but for a row that is larger."""
    if not parts:
        return
    table = pa.Table.from_batches([part.rows for part in parts], schema).combine_chunks()
    whole = Part(table.to_batches()[0], tuple(owner for part in parts for owner in part.owners))
    pieces = [whole]
    while pieces:
        piece = pieces.pop()
        rows = len(piece.owners)
        if piece.rows.nbytes <= APPEND_BYTES:
            yield piece
        elif rows == 1:
            piece.say(Rejected(Fault.REFUSED, f"larger than {APPEND_BYTES} bytes, which BigQuery does not take"))
        else:
            pieces += [piece.slice(rows // 2, rows), piece.slice(0, rows // 2)]
