"""Steps: what is done to ordered batches, one after the other: Millrace's enrichments, and users' own transforms.

A step sees batches of one shard, in order, window after window. What it remembers of a user (their session, their first
touch, a cart) it keeps in `Users`: in this process on one node, where it is read back from the archive at the start; in
the runner's state elsewhere.
"""

import abc
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.schemas.dead_letter import Reason
from millrace.transforms.batches import concat
from millrace.transforms.counts import count

_LOG = logging.getLogger(__name__)


class Refused(NamedTuple):
    """A row that cannot go on."""

    row: int
    """Of the batch that the step was given."""
    reason: Reason
    message: str


class Applied(NamedTuple):
    """What a step made of a batch; each row given leaves by one door."""

    batch: pa.RecordBatch
    """The rows that go on, with the step's columns added. A row made of another has its receipt, too."""
    refused: Sequence[Refused] = ()
    dropped: Sequence[int] = ()
    """Rows of the batch given that shall not go on, by the step's rule."""


class Users:
    """What one step remembers of one shard's users: plain values (tuples, numbers, texts), each until it is past.

    Not shared between threads.
    """

    def __init__(self) -> None:
        self._values: dict[str, tuple[int, Any]] = {}
        self._swept_us = 0

    def get(self, user_key: str) -> Any:
        """Return what was put for a user; None where there is nothing."""
        found = self._values.get(user_key)
        return None if found is None else found[1]

    def put(self, user_key: str, value: Any, at_us: int) -> None:
        """Remember a value, in force at at_us (event time, µs since the epoch)."""
        self._values[user_key] = (at_us, value)

    def forget(self, user_key: str) -> None:
        """Forget a user, if known."""
        self._values.pop(user_key, None)

    def sweep(self, now_us: int, keep_us: int) -> None:
        """Forget what is older than keep_us; done in full only now and then, so that it costs nothing per batch."""
        if now_us - self._swept_us < keep_us // 8:
            return
        self._swept_us = now_us
        kept = now_us - keep_us
        self._values = {user: value for user, value in self._values.items() if value[0] >= kept}

    def trim(self, most: int) -> None:
        """Forget those that were put the longest ago, once there are more than most; then an eighth of them at once."""
        if len(self._values) <= most:
            return
        newest = sorted(self._values.items(), key=lambda item: item[1][0], reverse=True)
        self._values = dict(newest[: most - most // 8])

    def __len__(self) -> int:
        return len(self._values)

    def values(self) -> Iterator[Any]:
        """Yield what is remembered, of one user after the other."""
        return (value for _, value in list(self._values.values()))

    def to_bytes(self) -> bytes:
        """Return all of it, for a runner's state."""
        return msgspec.msgpack.encode((self._swept_us, self._values))

    @classmethod
    def from_bytes(cls, encoded: bytes | None) -> "Users":
        """Return what to_bytes wrote; None: nothing yet. Tuples come back as lists."""
        users = cls()
        if encoded:
            users._swept_us, values = msgspec.msgpack.decode(encoded)
            users._values = {user: (at_us, value) for user, (at_us, value) in values.items()}
        return users


class Step(abc.ABC):
    """One thing done to batches. Pickled with the graph, so it holds settings; what is heavy is loaded in `open`."""

    name: str
    """Unique among a job's steps: metrics, messages and memory hang on it."""
    adds: Sequence[pa.Field] = ()
    """The columns that it appends; all of them nullable. They become columns of the archive."""
    remembers_s: float = 0.0
    """How long a user is remembered after what was last put for them; 0: no memory, and `users` stays empty."""
    recalls: Sequence[str] = ()
    """The columns of the archive that `recall` needs."""

    def open(self) -> None:  # noqa: B027  most need nothing
        """Load what is heavy, in the process that runs it; once before the first batch.

        Raises:
            CannotOpenError: it cannot be had; one sentence that says what to do.
        """

    @abc.abstractmethod
    def apply(self, batch: pa.RecordBatch, users: Users) -> Applied:
        """Do it to a batch of one shard, ordered by (user_key, order_index)."""

    def versions(self) -> Mapping[str, str]:
        """Name the packages and databases that its latest batch hangs on, with their versions: they go into lineage."""
        return {}

    def recall(self, batch: pa.RecordBatch, users: Users) -> None:  # noqa: B027
        """Remember again what archived rows say of their users: one node, at the start.

        Args:
            batch: the columns of `recalls`, with user_key, order_index and released_at, of some users of one shard, in
                order.
            users: what is remembered of others; nothing yet of the users in the batch.
        """


class CannotOpenError(Exception):
    """A step lacks what it needs. One sentence, for a person."""


_HERE: dict[tuple[str, int], Users] = {}
_HERE_LOCK = threading.Lock()


def users_here(step: Step, shard: int) -> Users:
    """Return what a step remembers of a shard's users in this process: one node."""
    with _HERE_LOCK:
        return _HERE.setdefault((step.name, shard), Users())


def all_here(name: str) -> list[Users]:
    """Return what the step of this name remembers in this process, of all shards."""
    with _HERE_LOCK:
        return [users for (step, _), users in _HERE.items() if step == name]


def forget_here() -> None:
    """Forget all that is remembered in this process."""
    with _HERE_LOCK:
        _HERE.clear()


def with_columns(batch: pa.RecordBatch, fields: Sequence[pa.Field], columns: Sequence[Any]) -> pa.RecordBatch:
    """Append columns to a batch, or put them in the place of those of the same name."""
    arrays = list(batch.columns)
    names = list(batch.schema)
    for field, values in zip(fields, columns, strict=True):
        array = values if isinstance(values, pa.Array) else pa.array(values, field.type)
        at = batch.schema.get_field_index(field.name)
        if at >= 0:
            arrays[at], names[at] = array, field
        else:
            arrays.append(array)
            names.append(field)
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(names))


def user_runs(batch: pa.RecordBatch) -> Iterator[tuple[str, int, int]]:
    """Yield (user_key, first row, row after the last) of each user in an ordered batch."""
    if not batch.num_rows:
        return
    encoded = pc.dictionary_encode(batch.column("user_key"))
    numbers = encoded.indices.to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    keys = encoded.dictionary.to_pylist()
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(numbers)], strict=True):
        yield keys[numbers[start]], start, end


def run_step(step: Step, batch: pa.RecordBatch, users: Users, stage: str) -> Applied:
    """Do a step to a batch; where it raises, row by row, and at last without its columns."""
    try:
        return step.apply(batch, users)
    except Exception:  # noqa: BLE001  it is told row by row below
        if batch.num_rows <= 1:
            count(stage, f"{step.name}_failed", batch.num_rows)
            _LOG.exception("%s: %s failed on an event; it goes on without its columns", stage, step.name)
            return Applied(with_nulls(batch, step.adds))
    # Which row was it? Slow, and rare.
    parts = [run_step(step, batch.slice(row, 1), users, stage) for row in range(batch.num_rows)]
    return Applied(
        concat([part.batch for part in parts]),
        [each._replace(row=row) for row, part in enumerate(parts) for each in part.refused],
        [row for row, part in enumerate(parts) if len(part.dropped)],
    )


def with_nulls(batch: pa.RecordBatch, fields: Sequence[pa.Field]) -> pa.RecordBatch:
    """Append the columns that a batch lacks, empty."""
    for field in fields:
        if field.name not in batch.schema.names:
            batch = batch.append_column(field, pa.nulls(batch.num_rows, field.type))
    return batch
