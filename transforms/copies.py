"""Copies: which events of a batch go on, under which id, and what record the others leave."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millrace.schemas import avro, duplicate
from millrace.transforms.batches import int64s
from millrace.transforms.fingerprint import fingerprints
from millrace.transforms.recent_ids import Hashes
from millrace.transforms.remembered import COPY, OTHER, REPEAT, Facts, Judged, Remembered
from millrace.transforms.steps import with_columns

_DAY_US = 86_400_000_000

ADDS: tuple[pa.Field, ...] = tuple(avro.arrow_schema(avro.load("added/deduplicate")))


def added(horizon_s: float) -> tuple[pa.Field, ...]:
    """Return the columns that a stage with this horizon adds to the archive."""
    return ADDS if horizon_s else ()


class Unique(NamedTuple):
    """What a batch became; each row is in one of the two, or was a repeat that ends here."""

    batch: pa.RecordBatch
    """With the columns of ADDS."""
    duplicates: pa.RecordBatch
    """schemas.duplicate.BATCH"""
    synthetic: int
    """How many rows go on under a derived id, seen for the first time."""
    repeats: int
    """How many rows were delivered before."""


class Remembering(NamedTuple):
    """A batch that has passed, and what that changed in the memory."""

    unique: Unique
    judged: Judged
    at_us: int
    forgotten: int
    """Older events that had to go before their time."""


def deduplicate(batch: pa.RecordBatch, remembered: Remembered, *, repeats_pass: bool) -> Iterator[Remembering]:
    """Part the first copies from the others, and remember them; in parts by their time of arrival, mostly one.

    Args:
        batch: schemas.event.BATCH, and whatever columns stages before have added.
        remembered: what has passed; other threads may use it, too.
        repeats_pass: whether a message that is delivered again goes on.
    """
    for at_us, part in remembered.by_bucket(batch, "arrived_at"):
        prints = fingerprints(part)
        facts = Facts.of(part, prints)
        with remembered.lock:
            judged = remembered.judge(part, facts, at_us, repeats_pass=repeats_pass)
            forgotten = remembered.add(judged.ids, judged.others, at_us)
        yield Remembering(split(part, prints, judged, repeats_pass=repeats_pass), judged, at_us, forgotten)


def split(batch: pa.RecordBatch, prints: Hashes, judged: Judged, *, repeats_pass: bool) -> Unique:
    """Part the rows by what they are.

    Args:
        batch: schemas.event.BATCH, and whatever columns stages before have added.
        prints: the rows' fingerprints.
        judged: what the rows are.
        repeats_pass: whether a message that is delivered again goes on.
    """
    verdicts, derived = judged.verdicts, judged.derived
    ids = _with_derived(batch.column("message_id"), prints, derived)
    is_copy, is_repeat = verdicts == COPY, verdicts == REPEAT
    duplicates = _records(batch, ids, prints, judged.kept, np.flatnonzero(is_copy))
    own = batch.column("message_id")
    nothing = pa.nulls(batch.num_rows, pa.string())
    kept = with_columns(
        with_columns(batch, [batch.schema.field("message_id")], [ids]),
        ADDS,
        [pa.array(prints.view(np.int64)), pc.if_else(pa.array(derived), own, None) if derived.any() else nothing],
    )
    leaves = is_copy if repeats_pass else is_copy | is_repeat
    kept = kept.filter(pa.array(~leaves)) if leaves.any() else kept
    return Unique(kept, duplicates, int((verdicts == OTHER).sum()), int(is_repeat.sum()))


def _with_derived(ids: pa.Array, prints: Hashes, derived: npt.NDArray[np.bool_]) -> pa.Array:
    """Return the ids under which events are kept: a derived one follows from the id and the content alone."""
    if not derived.any():
        return ids
    mask = pa.array(derived)
    pairs = zip(ids.filter(mask).to_pylist(), prints[derived].tolist(), strict=True)
    made = [f"{id_}~{print_:016x}" for id_, print_ in pairs]
    return pc.replace_with_mask(ids, mask, pa.array(made, ids.type))


def _records(
    batch: pa.RecordBatch, ids: pa.Array, prints: Hashes, kept: npt.NDArray[np.int64], copies: npt.NDArray[np.int64]
) -> pa.RecordBatch:
    rows = pa.array(copies)
    named = [name for name in duplicate.BATCH.names if name in batch.schema.names and name != "fingerprint"]
    of = batch.select(named).take(rows)
    columns = {name: of.column(name) for name in named}
    arrived = batch.column("arrived_at").take(rows)
    kept_rows = pa.array(kept[copies], mask=kept[copies] < 0)
    columns |= {
        "released_at": arrived,
        "date": pa.array((int64s(arrived) // _DAY_US).astype(np.int32)).cast(pa.date32()),
        "fingerprint": pa.array(prints[copies].view(np.int64)),
        "kept_message_id": ids.take(rows),
        "kept_envelope_id": batch.column("envelope_id").take(kept_rows),
        "kept_envelope_index": batch.column("envelope_index").take(kept_rows),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in duplicate.BATCH.names], schema=duplicate.BATCH)
