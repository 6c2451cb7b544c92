"""Parked events: put aside by an operator, with what their route sends, since the archive's files may be merged."""

import pyarrow as pa

from millrace.delivery.feed import Row
from millrace.delivery.ledger import Parked
from millrace.delivery.pending import Pending


def write_parked(event: Pending, route: str) -> Parked:
    """Return the record of an event that is put aside."""
    row: Row = event.payload
    sink = pa.BufferOutputStream()
    one = row.rows.take(pa.array([row.at]))
    with pa.ipc.new_stream(sink, one.schema) as writer:
        writer.write_batch(one)
    return Parked(event.position, row.user_key, event.message_id, route, sink.getvalue().to_pybytes())


def read_parked(parked: Parked, route: int) -> Pending:
    """Return an event that is tried again; its user has gone on meanwhile, so it waits for nobody.

    Args:
        parked: the record.
        route: which of the lane's routes it takes now.
    """
    with pa.ipc.open_stream(parked.rows) as reader:
        rows = reader.read_next_batch()
    row = Row(rows, 0, parked.user_key)
    return Pending(parked.position, None, parked.message_id, route, rows.nbytes, row)
