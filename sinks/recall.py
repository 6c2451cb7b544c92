"""Recall: at the start on one node, stages remember again what the tables say of the time before."""

from collections.abc import Iterable

import pyarrow as pa

from millrace.sinks.job_tables import Tables, committer
from millrace.transforms.batches import one_batch, shard_of
from millrace.transforms.recent_ids import place_hashes
from millrace.transforms.remembered import Remembered
from millrace.transforms.steps import Step, users_here

_EVENT = ("source_id", "message_id", "envelope_id", "envelope_index", "published_at", "fingerprint", "duplicate_of")
_PLACE = ("envelope_id", "envelope_index")
_RECALLED_BYTES = 64 * 1024 * 1024
"""About so much is sorted and given to a step at once."""


def recall_events(tables: Tables, remembered: Remembered, horizon_s: float) -> None:
    """Fill the deduplication's memory from the archive: what was archived in the horizon before its newest row.

    Copies that are on record, and whose message was not yet acknowledged, come again. The event that they were copies
    of may not have been committed, and comes again behind them: they are still copies, by their place in the queue, or
    one place would be in two tables.

    Args:
        tables: the job's, with the columns of the deduplication.
        remembered: still empty.
        horizon_s: how far back.

    Raises:
        StorageError: a table cannot be read; one sentence that says what to do.
    """
    opened = committer(tables)
    newest_us = opened.archive.newest_us()
    if newest_us is not None:
        # By the archive's own time, not the clock: after a day of rest what comes again was committed before the stop.
        for batch in opened.archive.read_recent(_EVENT, newest_us - round(horizon_s * 1_000_000)):
            remembered.recall(batch)
    newest_us = opened.duplicates.newest_us()
    if newest_us is not None:
        for batch in opened.duplicates.read_recent(_PLACE, newest_us - round(tables.horizon_s * 1_000_000)):
            remembered.record(place_hashes(batch))


def recall_steps(tables: Tables, steps: Iterable[Step], shards: int) -> None:
    """Let steps remember again, in this process, what the archive's newest rows say of their users: one node.

    Raises:
        StorageError: the archive cannot be read; one sentence that says what to do.
    """
    archive = committer(tables).archive
    newest_us = archive.newest_us()
    for step in steps:
        if not (step.remembers_s and step.recalls) or newest_us is None:
            continue
        columns = list(dict.fromkeys([*step.recalls, "user_key", "order_index", "released_at"]))
        columns = [name for name in columns if archive.spec.schema.get_field_index(name) >= 0]  # of stages that are on
        found = list(archive.read_recent(columns, newest_us - round(step.remembers_s * 1_000_000)))
        if not found:
            continue
        # In parts of a shard's users, each of them whole: Arrow holds 2 GiB of text in a column of one batch.
        parts = shards * (1 + sum(batch.nbytes for batch in found) // (shards * _RECALLED_BYTES))
        part_of = [shard_of(batch.column("user_key"), parts) for batch in found]
        for part in range(parts):
            of_part = [batch.filter(pa.array(of == part)) for batch, of in zip(found, part_of, strict=True)]
            rows = pa.Table.from_batches(of_part)
            if rows.num_rows:
                ordered = one_batch(rows.sort_by([("user_key", "ascending"), ("order_index", "ascending")]))
                step.recall(ordered, users_here(step, part % shards))
