"""Gather: the events that the barrier gives become a delivery, as its sink knows it.

What a sink does not ask for is not made: one that speaks JSON never has the columns of its deliveries gathered, and the
JSON of a part is made once, for all its rows.
"""

import functools
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from millrace.delivery.feed import Row
from millrace.delivery.pending import Pending
from millrace.sinks.json_rows import json_rows
from millrace.sinks.sink import Delivery
from millrace.transforms.route import Route

_FEW = 32
"""So few rows of a batch, or fewer, are made JSON by themselves: a retry must not make that of all again."""

_AT_ONCE = 1_024
"""Of larger batches' columns the processor's cache holds less."""

_lines: dict[int, list[bytes]] = {}
"""The JSON of batches, by their id in memory, for as long as they live."""


class Gathered(Delivery):
    """A delivery whose columns are gathered when they are asked for first."""

    _rows: Sequence[Row]

    def __init__(self, gathered_rows: Sequence[Row], **fields: Any) -> None:
        """Take the fields of a delivery, but for its rows, and where these are."""
        for name, value in (*fields.items(), ("_rows", gathered_rows)):
            object.__setattr__(self, name, value)

    @functools.cached_property
    def rows(self) -> pa.RecordBatch:
        """The columns; see Delivery."""
        return _joined(self._rows)

    def json(self) -> list[bytes]:
        """Return each row as one JSON object, without its nulls; see Delivery."""
        wholes = {id(row.rows): row.rows for row in self._rows}
        if len(self._rows) <= _FEW and any(key not in _lines for key in wholes):
            return json_rows(self.rows)
        for key, whole in wholes.items():
            if key not in _lines:
                pieces = (whole.slice(start, _AT_ONCE) for start in range(0, whole.num_rows, _AT_ONCE))
                _lines[key] = [line for piece in pieces for line in json_rows(piece)]
                weakref.finalize(whole, _lines.pop, key)
        return [_lines[id(row.rows)][row.at] for row in self._rows]


def gather(events: Sequence[Pending], route: Route) -> Delivery:
    """Return a delivery of events, in their order.

    Args:
        events: one at least, of one route.
        route: it.
    """
    rows: list[Row] = [event.payload for event in events]
    return Gathered(
        rows,
        message_ids=[event.message_id for event in events],
        user_keys=[row.user_key for row in rows],
        positions=[event.position for event in events],
        is_ordered=[event.user_key is not None for event in events],
        attempts=[event.attempts for event in events],
        route=route.name,
        target=route.target,
    )


def _joined(rows: Sequence[Row]) -> pa.RecordBatch:
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
