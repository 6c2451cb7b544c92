"""Gather: the events that the barrier gives become a delivery, as its sink knows it."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from millrace.delivery.feed import Row
from millrace.delivery.pending import Pending
from millrace.sinks.sink import Delivery
from millrace.transforms.route import Route


def gather(events: Sequence[Pending], route: Route) -> Delivery:
    """Return a delivery of events, in their order.

    Args:
        events: one at least, of one route.
        route: it.
    """
    rows: list[Row] = [event.payload for event in events]
    return Delivery(
        rows=_joined(rows),
        message_ids=[event.message_id for event in events],
        user_keys=[row.user_key for row in rows],
        positions=[event.position for event in events],
        is_ordered=[event.user_key is not None for event in events],
        attempts=[event.attempts for event in events],
        route=route.name,
        target=route.target,
    )


def _joined(rows: list[Row]) -> pa.RecordBatch:
    """Return the columns of some events. They stand in few batches, but to and fro in them: a user's go together."""
    wholes = {id(row.rows): row.rows for row in rows}
    if len(wholes) == 1:
        return rows[0].rows.take(pa.array([row.at for row in rows], pa.int64()))
    of = np.array([id(row.rows) for row in rows], np.uint64)
    at = np.array([row.at for row in rows], np.int64)
    pieces, places = [], []
    for key, whole in wholes.items():
        there = np.flatnonzero(of == key)
        pieces.append(pa.Table.from_batches([whole.take(pa.array(at[there]))]))
        places.append(there)
    # The archive gains columns while the lane runs, and parked events have those of their time.
    together = pa.concat_tables(pieces, promote_options="permissive").combine_chunks().to_batches()[0]
    return together.take(pa.array(np.argsort(np.concatenate(places))))
