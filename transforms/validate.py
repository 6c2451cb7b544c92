"""Validate: events are held against the contracts of the tracking plan; those that may not go on are dead letters."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa

from millrace.schemas.contracts import Contracts, compiled
from millrace.schemas.dead_letter import Reason
from millrace.transforms import in_beam as _in_beam  # noqa: F401  registers how batches travel
from millrace.transforms.counts import count
from millrace.transforms.letters import letters_of
from millrace.transforms.validation import validate

STAGE = "validate"


class Doors(NamedTuple):
    """The two doors of ValidateEvents."""

    batches: beam.PCollection[pa.RecordBatch]
    dead_letters: beam.PCollection[pa.RecordBatch]


@dataclasses.dataclass(eq=False)
class ValidateEvents(beam.PTransform):
    """Hold events against the contracts of the plan.

    In:      batches, schemas.event.BATCH
    Out:     batches with the columns of schemas/added/contracts.avsc; dead_letters, schemas.dead_letter.BATCH; every
             event leaves by exactly one
    Window:  the input's.  Order: kept.  State: none.  Repeats: same event, same verdict, in whatever batch.
    Errors:  reason CONTRACT_VIOLATED, where the policy is dead_letter
    Source:  docs/contracts.md
    """

    contracts: Contracts

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> "Doors":
        doors = batches | "Validate" >> beam.ParDo(_ValidateFn(self.contracts)).with_output_types(
            pa.RecordBatch, dead_letters=pa.RecordBatch
        ).with_outputs("dead_letters", main="batches")
        return Doors(doors.batches, doors.dead_letters)


class _ValidateFn(beam.DoFn):
    def __init__(self, contracts: Contracts) -> None:
        self._contracts = contracts

    def setup(self) -> None:
        compiled(self._contracts.contracts)

    def process(self, batch: pa.RecordBatch) -> Iterator[Any]:
        kept, refused, kinds = validate(batch, self._contracts)
        count(STAGE, "events_out", kept.num_rows)
        for kind, amount in kinds.items():
            count(STAGE, f"violated_{kind.value}", amount)
        if kept.num_rows:
            yield kept
        if refused:
            count(STAGE, f"rejected_{Reason.CONTRACT_VIOLATED.value}", len(refused))
            letters = letters_of(batch, STAGE, refused, time.time_ns() // 1_000)
            yield beam.pvalue.TaggedOutput("dead_letters", letters)
