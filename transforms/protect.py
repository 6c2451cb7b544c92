"""Protect: what may not be stored is dropped, cut, hashed or encrypted, before an event meets any door out."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.utils.shared import Shared

from millrace.config.privacy import CONSENT_DENIED, KEYED, USER_COLUMNS, Privacy
from millrace.schemas import dropped
from millrace.transforms.batches import concat
from millrace.transforms.consent import blocked, denied
from millrace.transforms.counts import count
from millrace.transforms.fields import STAGE, Fields
from millrace.transforms.policies import Keys
from millrace.transforms.protect_letters import Letters
from millrace.transforms.steps import with_columns
from millrace.transforms.suppression import Suppression

_LOG = logging.getLogger(__name__)

SUPPRESSION = "suppression"
CONSENT = "consent"
FAILED = "privacy"
"""The rules that `dropped` names; FAILED: what could not be protected may not go on."""


class Protected(NamedTuple):
    """What became of a batch; each row given is in exactly one of the two."""

    batch: pa.RecordBatch
    dropped: Sequence[pa.RecordBatch]
    """schemas.dropped.BATCH"""


class Protection:
    """A job's privacy settings, with the secrets and lists that they name; not pickled.

    Threads may share one: what it remembers are caches, in which the worst race is to do a thing twice.
    """

    def __init__(self, settings: Privacy) -> None:
        """Load what the settings name.

        Raises:
            SecretError, SuppressionError: it cannot be had; one sentence that says what to do.
        """
        keys = Keys.load(settings.keys)
        self._consent = settings.consent
        self._suppression = Suppression(settings.suppression, _forms(settings, keys)) if settings.suppression else None
        self._fields = Fields(settings.rules, keys)
        self._letters = Letters(settings, keys, self._suppression)

    def protect(self, batch: pa.RecordBatch, now_us: int) -> Protected:
        """Leave out whose events may not be kept, and protect the others'; no content of an event raises.

        Args:
            batch: schemas.event.BATCH.
            now_us: the job's clock, µs since the epoch, for the records of what is left out.
        """
        try:
            return self._protect(batch, now_us)
        except Exception as error:  # noqa: BLE001  which row was it? Slow, and never seen
            if batch.num_rows <= 1:
                # Neither the event nor the error's text, which may repeat it.
                _LOG.error("%s: an event could not be protected, so it is left out: %s", STAGE, type(error).__name__)
                return Protected(batch.slice(0, 0), [dropped.records(batch, range(batch.num_rows), FAILED, now_us)])
        parts = [self.protect(batch.slice(row, 1), now_us) for row in range(batch.num_rows)]
        return Protected(concat([part.batch for part in parts]), [each for part in parts for each in part.dropped])

    def protect_letters(self, letters: pa.RecordBatch) -> pa.RecordBatch:
        """Protect decode's dead letters; see transforms/protect_letters.py."""
        if self._suppression is not None:
            self._suppression.refresh()
        return self._letters.protect(letters)

    def _protect(self, batch: pa.RecordBatch, now_us: int) -> Protected:
        records: list[pa.RecordBatch] = []
        if self._suppression is not None:
            self._suppression.refresh()
            rows = self._suppression.rows([batch.column(name) for name in USER_COLUMNS])
            batch = _leave_out(batch, rows, SUPPRESSION, now_us, records)
        if self._consent is not None:
            batch = with_columns(batch, [CONSENT_DENIED], [denied(batch.column("context_rest"))])
            required, strategy = self._consent.required, self._consent.strategy
            rows = blocked(batch, required, strategy, silent=self._consent.silent == "drop")
            batch = _leave_out(batch, rows, CONSENT, now_us, records)
        return Protected(self._fields.protect(batch), records)


def _forms(settings: Privacy, keys: Keys) -> Callable[[str], Sequence[str]]:
    """Return how the ids of users may come a second time: as they were protected before."""
    used = {rule.policy for rule in settings.rules if rule.path.column in USER_COLUMNS} & set(KEYED)
    ways = [way for policy, way in (("hash", keys.hashes), ("encrypt", keys.encryptions)) if policy in used]
    return lambda user: [form for way in ways for form in way(user)]


def _leave_out(
    batch: pa.RecordBatch, rows: npt.NDArray[np.bool_], rule: str, now_us: int, records: list[pa.RecordBatch]
) -> pa.RecordBatch:
    if not rows.any():
        return batch
    records.append(dropped.records(batch, np.flatnonzero(rows).tolist(), rule, now_us))
    return batch.filter(pa.array(~rows))


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
