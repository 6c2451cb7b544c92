"""Protect: what may not be stored is dropped, cut, hashed or encrypted, before an event meets any door out."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.utils.shared import Shared

from millrace.config.privacy import Privacy
from millrace.transforms import in_beam as _in_beam  # noqa: F401  registers how batches travel
from millrace.transforms.counts import count
from millrace.transforms.fields import STAGE
from millrace.transforms.protection import Protection


class Doors(NamedTuple):
    """The doors of ProtectEvents."""

    batches: beam.PCollection[pa.RecordBatch]
    dead_letters: beam.PCollection[pa.RecordBatch]
    dropped: beam.PCollection[pa.RecordBatch]


@dataclasses.dataclass(eq=False)
class ProtectEvents(beam.PTransform):
    """Let no more of an event be stored than the settings allow.

    In:      (batches, dead letters) of decode
    Out:     batches, with the columns of Privacy.adds; dead_letters, schemas.dead_letter.BATCH, as many as came;
             dropped, schemas.dropped.BATCH; every row leaves by exactly one
    Window:  the input's.  Order: none promised.  State: none.  Repeats: same rows, same rows; of what is protected
             already, nothing changes.
    Errors:  SecretError, SuppressionError when a worker starts; an event that cannot be protected is left out
    Source:  docs/privacy.md
    """

    settings: Privacy

    def expand(self, decoded: Any) -> "Doors":  # two collections: Beam has no type for that
        batches, letters = decoded
        shared = Shared()
        doors = batches | "Protect" >> beam.ParDo(_ProtectFn(self.settings, shared)).with_output_types(
            pa.RecordBatch, dropped=pa.RecordBatch
        ).with_outputs("dropped", main="batches")
        protect_letters = beam.ParDo(_ProtectLettersFn(self.settings, shared))
        protected = letters | "ProtectLetters" >> protect_letters.with_output_types(pa.RecordBatch)
        return Doors(doors.batches, protected, doors.dropped)


class _ProtectionFn(beam.DoFn):
    """Loads secrets where it runs, and never travels with them; once for all that run in a process."""

    def __init__(self, settings: Privacy, shared: Shared) -> None:
        self._settings = settings
        self._shared = shared

    def setup(self) -> None:
        self._protection: Protection = self._shared.acquire(lambda: Protection(self._settings))


class _ProtectFn(_ProtectionFn):
    def process(self, batch: pa.RecordBatch) -> Iterator[Any]:
        began_ns = time.perf_counter_ns()
        protected = self._protection.protect(batch, time.time_ns() // 1_000)
        count(STAGE, "us", (time.perf_counter_ns() - began_ns) // 1_000)
        for records in protected.dropped:
            count(STAGE, f"dropped_{records.column('rule')[0].as_py()}", records.num_rows)
            yield beam.pvalue.TaggedOutput("dropped", records)
        if protected.batch.num_rows:
            count(STAGE, "events_out", protected.batch.num_rows)
            yield protected.batch


class _ProtectLettersFn(_ProtectionFn):
    def process(self, letters: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        yield self._protection.protect_letters(letters)
