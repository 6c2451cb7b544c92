"""Lanes without order: which rows of the archive a route takes, and the lane never settled.

Such a lane takes its events from a subscription and never sees the archive. It keeps which messages it is done with,
and how many of their events; held against that are the rows that its routes take, message by message.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millrace.delivery.asked_routes import routes_since_us
from millrace.delivery.ledger import Ledger
from millrace.delivery.settings import LaneSettings
from millrace.delivery.settled import settled_envelopes
from millrace.pipelines.verify_findings import Finding, Findings, Kind
from millrace.pipelines.verify_tables import Slice, Tables, iso
from millrace.transforms.route import columns_for, route_rows

_MARGIN_US = 60_000_000
"""Pub/Sub gives a backlog only roughly in order."""
_MADE = r"/[^/]+/[1-9][0-9]*$"
"""Ids of rows that a transform of the job made: no subscription has them."""
_PLACE = ("message_id", "envelope_id", "published_at")


def unsettled(tables: Tables, lane: LaneSettings, ledger: Ledger, hours: Slice, findings: Findings) -> tuple[int, int]:
    """Find the rows that a lane without order should have settled and did not; return (rows checked, missing).

    Args:
        tables: with the archive.
        lane: its settings: the routes.
        ledger: its ledger.
        hours: of publication.
        findings: where to say which; a message of which some events lack is named with all that its routes take.
    """
    told = settled_envelopes(ledger, 0, 0)  # of no message: since when, and until when it is told
    if told is None:
        return 0, 0
    since_us = max(hours.low_us, told.since_us, routes_since_us(ledger, lane))
    span = Slice(since_us, min(hours.high_us, told.until_us - _MARGIN_US))
    routes = [dataclasses.replace(route, columns=(("message_id", "message_id"),)) for route in lane.routes]
    there = pa.schema(tables.tables["archive"].delta.schema()).names
    columns = list(dict.fromkeys([*columns_for(routes, there), *_PLACE]))
    checked = missing = 0
    for part in tables.slices(span.low_us, span.high_us) if span.low_us < span.high_us else ():
        reader = tables.read("archive", columns, part)
        settled = settled_envelopes(ledger, *part)
        if reader is None or settled is None:
            continue
        taken = []
        for batch in reader:
            took = (route_rows(batch, routes) >= 0) & ~_made(batch)
            taken.append(batch.filter(pa.array(took)).select(list(_PLACE)))
            checked += batch.num_rows
        rows = pa.Table.from_batches(taken).combine_chunks()
        if not len(rows):
            continue
        counts = rows.group_by(["envelope_id", "published_at"]).aggregate([("message_id", "count")])
        ids, published = (counts.column(name).combine_chunks() for name in ("envelope_id", "published_at"))
        lacks = counts.column("message_id_count").to_numpy() - np.maximum(settled.events_of(ids, published), 0)
        missing += int(lacks[lacks > 0].sum())
        named = rows.filter(pc.is_in(rows.column("envelope_id"), ids.filter(pa.array(lacks > 0))))
        times = named.column("published_at").cast(pa.int64()).to_pylist()
        findings.add(
            Finding(Kind.UNSETTLED, message_id, lane.name, iso(at_us))
            for message_id, at_us in zip(named.column("message_id").to_pylist(), times, strict=True)
        )
    return checked, missing


def _made(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    made: npt.NDArray[np.bool_] = pc.match_substring_regex(batch.column("message_id"), _MADE).to_numpy(
        zero_copy_only=False
    )
    return made
