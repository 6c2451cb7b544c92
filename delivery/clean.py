"""Clean: envelopes become what the job would archive of them, by the job's own pure functions, without order.

Decode, privacy, contracts, deduplication, then those steps that remember no users. Nothing is written here: the job
itself writes the records of what is refused, dropped, or a copy; here it is counted.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millrace.config.job import JobConfig
from millrace.schemas.envelope import Envelope
from millrace.schemas.event import ARCHIVE, BATCH
from millrace.schemas.identity import LINKED_AT
from millrace.transforms.batches import concat, count_by_receipt, int64s
from millrace.transforms.contexts import Contexts
from millrace.transforms.copies import deduplicate
from millrace.transforms.pending import Limits, Pending
from millrace.transforms.protection import Protection
from millrace.transforms.remembered import Remembered
from millrace.transforms.steps import Users, run_step, with_nulls
from millrace.transforms.validation import validate

STAGE = "live"

REFUSED, DROPPED, COPIES, REPEATS = "refused", "dropped", "copies", "repeats"
"""Why an event is not delivered: it would be a dead letter; a rule of privacy or a transform leaves it out; a copy of
one that was read; the same message once more."""

_UNKNOWN = [field.with_nullable(True) for field in ARCHIVE if field.name not in BATCH.names]
"""What is known only of an event that stands in order."""

Receipts = npt.NDArray[np.int64]


class Cleaned(NamedTuple):
    """What some envelopes became."""

    batch: pa.RecordBatch
    """The events that go on: the archive's columns; those that only the order or a user's past tell are null."""
    left_out: list[tuple[str, Receipts]]
    """Why, and the receipt of each event that does not go on."""

    def left_out_of(self) -> list[tuple[str, int, int]]:
        """Return (why, receipt, how many)."""
        found = []
        for why, receipts in self.left_out:
            distinct, counts = np.unique(receipts, return_counts=True)
            found += [(why, *each) for each in zip(distinct.tolist(), counts.tolist(), strict=True)]
        return found


class Cleaner:
    """Cleans as one configuration of the job says; holds its secrets, lists and databases. For one thread.

    Args:
        job: the sections of the job.
        horizon_s, max_ids: how long, and how many events are remembered to know copies; 16 bytes each.
        limits: what one envelope may hold.
    """

    def __init__(
        self,
        job: JobConfig,
        *,
        horizon_s: float = 3_600.0,
        max_ids: int = 2_000_000,
        limits: Limits = Limits(),  # noqa: B008
    ) -> None:
        """Load what the configuration names.

        Raises:
            SecretError, SuppressionError, CannotOpenError: it cannot be had; one sentence that says what to do.
        """
        self._limits = limits
        self._contexts = Contexts()
        self._protection = None if job.privacy is None else Protection(job.privacy)
        self._contracts = job.contracts
        self._remembered = Remembered(horizon_s, max_ids)
        self._steps = [*job.steps, *job.transforms]
        self._unknown = [*_UNKNOWN, *((LINKED_AT.with_nullable(True),) if job.identity is not None else ())]
        for step in self._steps:
            if not step.remembers_s:
                step.open()

    def clean(self, envelopes: Sequence[Envelope], now_us: int, *, again: bool = False) -> Cleaned:
        """Return what some envelopes became.

        Args:
            envelopes: with a receipt each; arrived_us is that of now.
            now_us: the clock, µs since the epoch.
            again: they were given before, and that failed half-way: their own events are no repeats.
        """
        left_out: list[tuple[str, Receipts]] = []
        pending = Pending(self._limits, self._contexts)
        for envelope in envelopes:
            pending.add(envelope)
        batch, letters, _, _ = pending.take(now_us)
        _note(left_out, REFUSED, letters)
        if self._protection is not None and batch.num_rows:
            batch, dropped = self._protection.protect(batch, now_us)
            for records in dropped:
                _note(left_out, DROPPED, records)
        if self._contracts is not None and batch.num_rows:
            kept, refused, _ = validate(batch, self._contracts)
            _note_rows(left_out, REFUSED, batch, [each.row for each in refused])
            batch = kept
        batch = self._first_copies(batch, left_out, again=again)
        return Cleaned(self._run_steps(batch, left_out), left_out)

    def _first_copies(
        self, batch: pa.RecordBatch, left_out: list[tuple[str, Receipts]], *, again: bool
    ) -> pa.RecordBatch:
        kept, copies, repeats = [], [], 0
        for done in deduplicate(batch, self._remembered, repeats_pass=again):
            kept.append(done.unique.batch)
            copies.append(done.unique.duplicates)
            repeats += 0 if again else done.unique.repeats
        if not kept:
            return batch
        unique = concat(kept) if len(kept) > 1 else kept[0]
        for records in copies:
            _note(left_out, COPIES, records)
        if repeats:
            left_out.append((REPEATS, _missing(batch, [unique, *copies])))
        return unique

    def _run_steps(self, batch: pa.RecordBatch, left_out: list[tuple[str, Receipts]]) -> pa.RecordBatch:
        batch = with_nulls(batch, self._unknown)
        for step in self._steps if batch.num_rows else ():
            if step.remembers_s:
                batch = with_nulls(batch, step.adds)
                continue
            applied = run_step(step, batch, Users(), STAGE)
            _note_rows(left_out, REFUSED, batch, [each.row for each in applied.refused])
            _note_rows(left_out, DROPPED, batch, applied.dropped)
            batch = applied.batch
        return batch


def _missing(given: pa.RecordBatch, doors: Sequence[pa.RecordBatch]) -> Receipts:
    """Return the receipt of each row that left by none of some doors."""
    left = dict(zip(*(each.tolist() for each in count_by_receipt(given)), strict=True))
    for door in doors:
        for receipt, count in zip(*(each.tolist() for each in count_by_receipt(door)), strict=True):
            left[receipt] -= count
    return np.repeat(np.array(list(left), np.int64), np.array(list(left.values()), np.int64))


def _note(left_out: list[tuple[str, Receipts]], why: str, records: pa.RecordBatch) -> None:
    if records.num_rows:
        left_out.append((why, int64s(records.column("receipt"))))


def _note_rows(left_out: list[tuple[str, Receipts]], why: str, batch: pa.RecordBatch, rows: Sequence[int]) -> None:
    if len(rows):
        left_out.append((why, int64s(batch.column("receipt"))[np.array(rows, np.int64)]))
