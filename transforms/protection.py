"""Protection: what may not be stored is dropped, cut, hashed or encrypted; for all that reads the job's queue."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millrace.config.privacy import CONSENT_DENIED, KEYED, USER_COLUMNS, Privacy
from millrace.schemas import dropped
from millrace.transforms.batches import concat
from millrace.transforms.consent import blocked, denied
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
