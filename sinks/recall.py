"""Recall: at the start on one node, the deduplication remembers again what the tables say of the last horizon."""

from millrace.sinks.archive import Tables, committer
from millrace.transforms.recent_ids import place_hashes
from millrace.transforms.remembered import Remembered

_EVENT = ("source_id", "message_id", "envelope_id", "envelope_index", "published_at", "fingerprint", "duplicate_of")
_PLACE = ("envelope_id", "envelope_index")


def recall_events(tables: Tables, remembered: Remembered, horizon_s: float) -> None:
    """Fill the memory from the archive: what was archived in the horizon before its newest row.

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
