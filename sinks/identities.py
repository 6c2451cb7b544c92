"""Identities on one node, at the start: the links are read back from their table, and what a crash left out is mended.

A link is in the archive as its event, and in the identities as what it changed. The two are committed one after the
other, so a crash in between leaves the second out: the archive's newest events tell what it would have been.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from millrace.sinks.job_tables import Tables, committer
from millrace.transforms.link import NEEDS, Link, LinkRule, Links, links_of
from millrace.transforms.link_store import ENTRIES, links_here, put_entries, records_of

_BACK_US = 600_000_000
"""How far the archive is read from before the newest link on record: windows may be committed out of turn."""
_FURTHEST_US = 3_600_000_000
"""And no further back than this: where nobody logs in, the newest link may be old."""


def recall_links(tables: Tables, rule: LinkRule) -> None:
    """Fill this process's links from the tables, and write the rows that the identities lack.

    Raises:
        StorageError: a table cannot be read or written; one sentence that says what to do.
    """
    opened = committer(tables)
    identities, archive = opened.identities, opened.archive
    store = links_here(rule)
    newest_us, archived_us = identities.newest_us(), archive.newest_us()
    if newest_us is not None:
        for batch in identities.read_recent(ENTRIES.names, newest_us - round(rule.remember_s * 1_000_000)):
            put_entries(store.links, batch)
    if archived_us is None:
        return
    since_us = min(archived_us, newest_us or archived_us) - _BACK_US
    since_us = max(since_us, archived_us - _FURTHEST_US)
    found = [
        link for batch in archive.read_recent([*NEEDS, "user_key"], since_us)
        for link in _not_on_record(batch, links_of(batch, rule), store.links)
    ]  # fmt: skip
    lacking = store.links.apply_all(found)
    if lacking:
        opened.commit_records("identities", [records_of(lacking)], lacking[0].link.at_us)


def _not_on_record(batch: pa.RecordBatch, found: Sequence[Link], links: Links) -> Iterator[Link]:
    """Leave out links whose effect is known: their event's key is what their id had then.

    The archive has events as transforms have left them. Where one of these hides or changes a user_id, the link that
    its row tells was never in force, and would give the id another key.
    """
    if not found:
        return
    rows = batch.filter(pc.is_in(batch.column("message_id"), pa.array([link.message_id for link in found])))
    columns = ("envelope_id", "envelope_index", "message_id", "user_key")
    keys = {tuple(place): key for *place, key in zip(*(rows.column(name).to_pylist() for name in columns), strict=True)}
    for link in found:
        entry = links.at(link.id, link.at_us)
        if entry is None or entry.user_key != keys[link.envelope_id, link.envelope_index, link.message_id]:
            yield link
