"""In Beam's hands: how batches travel between its stages, and that its metrics hear what is counted.

Every file with a transform imports this one. What else does the same work (a lane of delivery) needs no Beam for it:
half a second and sixty megabytes.
"""

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics

from millrace.transforms import counts
from millrace.transforms.shelf import SHELF, is_ticket

_WRITE = pa.ipc.IpcWriteOptions(compression="lz4")
"""Batches wait in the runner's memory for the order wait; lz4 makes that a quarter for little time."""


class RecordBatchCoder(beam.coders.Coder):
    """Arrow's stream format with its schema, so that a stage may add columns of its own; a ticket on one node."""

    def encode(self, value: pa.RecordBatch) -> bytes:
        """Return the batch as one Arrow IPC stream, or put it on the shelf and return its ticket."""
        if SHELF.is_open:
            return SHELF.put(value)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema, options=_WRITE) as writer:
            writer.write_batch(value)
        data: bytes = sink.getvalue().to_pybytes()
        return data

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        """Return the one batch of the stream, or the ticket's."""
        if is_ticket(encoded):
            return SHELF.take(encoded)
        with pa.ipc.open_stream(encoded) as reader:
            return reader.read_next_batch()

    def estimate_size(self, value: pa.RecordBatch) -> int:
        """Return the batch's size in memory, bytes; Beam would encode it to measure it."""
        size: int = value.nbytes
        return size

    def is_deterministic(self) -> bool:
        """Never a key."""
        return False

    def to_type_hint(self) -> type:
        """Return the type that this coder is registered for."""
        hint: type = pa.RecordBatch
        return hint


beam.coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)


class _BeamMetrics:
    def count(self, stage: str, name: str, amount: int) -> None:
        Metrics.counter(stage, name).inc(amount)

    def observe(self, stage: str, name: str, value: int) -> None:
        Metrics.distribution(stage, name).update(value)


counts.listen(_BeamMetrics())
