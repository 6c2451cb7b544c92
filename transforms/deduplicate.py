"""Deduplicate: of the copies of an event the first goes on; another event that bears its id goes on under its own.

SDKs send again what was not answered, so copies are daily bread: same source, same id, same content (the fingerprint).
They leave a small record. The same id with other content is another event, of an SDK or a developer who reuses ids: it
is kept, its id made from both, and flagged.

A *repeat* is neither: the same message, delivered again, known by its place in the queue. On one node it goes on: its
first delivery may not be committed yet, and to take this one out would acknowledge the message; the ordering stage and
the committer, which know what is safe, deal with it. Elsewhere the runner's state holds what it remembers and what is
on its way together, so the event is safe and the repeat ends here.
"""

import dataclasses
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa

from millrace.transforms.copies import deduplicate
from millrace.transforms.deduplicate_doors import doors
from millrace.transforms.deduplicate_state import ByShardFn, StateFn
from millrace.transforms.remembered import Remembered


class Deduplicated(NamedTuple):
    """The two doors of DeduplicateEvents."""

    batches: beam.PCollection[pa.RecordBatch]
    duplicates: beam.PCollection[pa.RecordBatch]


@dataclasses.dataclass(eq=False)
class DeduplicateEvents(beam.PTransform):
    """Let the first copy of each event go on.

    In:      batches, schemas.event.BATCH
    Out:     batches with `fingerprint` and `duplicate_of`; duplicates, schemas.duplicate.BATCH. Every row leaves by one
             of them; where alone is false a repeat by none
    Window:  the input's, global.  Order: none promised.  Repeats: see above.
    Time:    that of arrival (`arrived_at`), which rises; `occurred_at` is the client's word: one event of next year
             would make the memory forget all others.
    State:   16 bytes for each event of the horizon, at most max_ids. One node: this process's memory; else the runner's
             state by shard of the id (transforms/deduplicate_state.py).
    Errors:  ValueError when built with a horizon below 0, max_ids or shards below 1
    Source:  docs/guarantees.md

    Args:
        horizon_s: how long an event is remembered; up to an eighth longer (not alone: a quarter). 0: batches pass as
            they are.
        max_ids: how many events are remembered at most; beyond that the oldest are forgotten early.
        alone: one node.
        run_id: whose memory it is, in a process that runs several.
        shards: not alone: over how many keys the ids are spread.
    """

    horizon_s: float = 86_400.0
    max_ids: int = 50_000_000
    alone: bool = True
    run_id: str = ""
    shards: int = 32

    def __post_init__(self) -> None:
        if self.horizon_s < 0 or self.max_ids < 1 or self.shards < 1:
            raise ValueError(
                f"need horizon_s >= 0, max_ids >= 1, shards >= 1; got {self.horizon_s}, {self.max_ids}, {self.shards}"
            )

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> "Deduplicated":
        if self.alone or not self.horizon_s:
            fn: beam.DoFn = _HereFn(self.run_id, self.horizon_s, self.max_ids)
        else:
            batches |= "ByShard" >> beam.ParDo(ByShardFn(self.shards)).with_output_types(tuple[int, pa.RecordBatch])
            fn = StateFn(self.horizon_s, self.max_ids, self.shards)
        doors = batches | "Deduplicate" >> beam.ParDo(fn).with_output_types(
            pa.RecordBatch, duplicates=pa.RecordBatch
        ).with_outputs("duplicates", main="batches")
        return Deduplicated(doors.batches, doors.duplicates)


class _HereFn(beam.DoFn):
    def __init__(self, run_id: str, horizon_s: float, max_ids: int) -> None:
        self._run_id = run_id
        self._horizon_s = horizon_s
        self._max_ids = max_ids

    def process(self, batch: pa.RecordBatch) -> Iterator[Any]:
        if not self._horizon_s:
            yield batch
            return
        remembered = remembered_here(self._run_id, self._horizon_s, self._max_ids)
        for done in deduplicate(batch, remembered, repeats_pass=True):
            yield from doors(done, self._max_ids)


_HERE: dict[str, Remembered] = {}
_HERE_LOCK = threading.Lock()


def remembered_here(run_id: str, horizon_s: float, max_ids: int) -> Remembered:
    """Return what a run remembers in this process: one node."""
    with _HERE_LOCK:
        if run_id not in _HERE:
            _HERE[run_id] = Remembered(horizon_s, max_ids)
        return _HERE[run_id]
