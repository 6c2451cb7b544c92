"""Steps: what is done to ordered batches, one after the other: Millrace's enrichments, and users' own transforms.

A step sees batches of one shard, in order, window after window. What it remembers of a user (their session, their first
touch, a cart) it keeps in `Users`: in this process on one node, where it is read back from the archive at the start; in
the runner's state elsewhere.
"""

import abc
import dataclasses
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import FixedWindows, GlobalWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from millrace.schemas import dropped
from millrace.schemas.dead_letter import Reason
from millrace.transforms.batches import RecordBatchCoder, concat, int64s
from millrace.transforms.counts import count
from millrace.transforms.letters import letters_of
from millrace.transforms.receipts import LEDGER

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


class Stepped(NamedTuple):
    """The doors of RunSteps; batches are keyed by shard."""

    batches: beam.PCollection[tuple[int, pa.RecordBatch]]
    dead_letters: beam.PCollection[pa.RecordBatch]
    dropped: beam.PCollection[pa.RecordBatch]


@dataclasses.dataclass(eq=False)
class RunSteps(beam.PTransform):
    """Do some steps to each batch, in their order.

    In:      (shard, batch), as OrderPerUser gives them, in its windows
    Out:     batches with the steps' columns, the same key and window; dead_letters, schemas.dead_letter.BATCH;
             dropped, schemas.dropped.BATCH; every row given leaves by exactly one
    Window:  FixedWindows(window_s).  Order: kept.  Repeats: same batches in the same order, same rows.
    State:   where a step remembers users: one node: this process's memory; else one value for each shard.
    Errors:  a batch at which a step raises is given to it row by row; rows at which it still raises go on without its
             columns, are counted (`failed`), and logged once

    Args:
        steps: what to do; with none, batches pass as they are.
        stage: the name that metrics and dead letters carry.
        window_s: the windows' length.
        alone: one node: memory is kept in this process.
    """

    steps: Sequence[Step]
    stage: str
    window_s: float = 5.0
    alone: bool = True

    def __post_init__(self) -> None:
        names = [step.name for step in self.steps]
        if len(set(names)) != len(names):
            raise ValueError(f"steps need different names, got {names}")

    def expand(self, keyed: beam.PCollection[tuple[int, pa.RecordBatch]]) -> "Stepped":
        remembering = any(step.remembers_s for step in self.steps)
        fn = (_RememberFn if remembering else _RunFn)(tuple(self.steps), self.stage, alone=self.alone)
        if remembering:
            keyed |= "OneSequence" >> beam.WindowInto(GlobalWindows())
        doors = keyed | "Run" >> beam.ParDo(fn).with_output_types(
            tuple[int, pa.RecordBatch], dead_letters=pa.RecordBatch, dropped=pa.RecordBatch
        ).with_outputs("dead_letters", "dropped", main="batches")
        batches = doors.batches
        if remembering:
            batches |= "Window" >> beam.WindowInto(FixedWindows(self.window_s))
        return Stepped(batches, doors.dead_letters, doors.dropped)


class _RunFn(beam.DoFn):
    def __init__(self, steps: Sequence[Step], stage: str, *, alone: bool) -> None:
        self._steps = steps
        self._stage = stage
        self._alone = alone

    def setup(self) -> None:
        for step in self._steps:
            step.open()

    def process(self, keyed: tuple[int, pa.RecordBatch]) -> Iterator[Any]:
        shard, batch = keyed
        yield from self._run(shard, batch, {})

    def _run(self, shard: int, batch: pa.RecordBatch, memory: dict[str, Users]) -> Iterator[Any]:
        now_us = time.time_ns() // 1_000
        for step in self._steps:
            began_ns = time.perf_counter_ns()
            applied = run_step(step, batch, memory[step.name] if step.remembers_s else Users(), self._stage)
            count(self._stage, f"{step.name}_us", (time.perf_counter_ns() - began_ns) // 1_000)
            _expect_made(batch, applied)  # before any of them can be settled
            if applied.refused:
                count(self._stage, f"{step.name}_refused", len(applied.refused))
                letters = letters_of(batch, f"{self._stage}: {step.name}", applied.refused, now_us)
                yield beam.pvalue.TaggedOutput("dead_letters", letters)
            if len(applied.dropped):
                count(self._stage, f"{step.name}_dropped", len(applied.dropped))
                records = dropped.records(batch, applied.dropped, step.name, now_us)
                yield beam.pvalue.TaggedOutput("dropped", records)
            batch = applied.batch
        if batch.num_rows:
            yield shard, batch


def _expect_made(given: pa.RecordBatch, applied: Applied) -> None:
    """Have the receipts wait for the rows that a step made, too: these may leave by another door, or later."""
    gone = [each.row for each in applied.refused] + list(applied.dropped)
    if applied.batch.num_rows + len(gone) == given.num_rows:
        return  # each row is one row
    leaving = [applied.batch.column("receipt"), given.column("receipt").take(pa.array(gone, pa.int64()))]
    before = dict(zip(*_plain(given.column("receipt")), strict=True))
    receipts, counts = _plain(pa.concat_arrays(leaving))
    more = [(receipt, amount - before.get(receipt, amount)) for receipt, amount in zip(receipts, counts, strict=True)]
    more = [(receipt, amount) for receipt, amount in more if receipt >= 0 and amount > 0]
    LEDGER.expect_more(np.array([each for each, _ in more], np.int64), np.array([each for _, each in more], np.int64))


def _plain(receipts: pa.Array) -> tuple[list[int], list[int]]:
    distinct, counts = np.unique(int64s(receipts), return_counts=True)
    return distinct.tolist(), counts.tolist()


class _RememberFn(_RunFn):
    """Takes a shard's batches in the order of their windows, which Beam alone does not promise: each waits for a timer.

    A timer may find earlier batches that still wait, where a runner fires them in another order: all go, oldest first.
    """

    USERS = ReadModifyWriteStateSpec("users", beam.coders.BytesCoder())
    WAITING = BagStateSpec("waiting", beam.coders.TupleCoder((beam.coders.VarIntCoder(), RecordBatchCoder())))
    DUE = TimerSpec("due", TimeDomain.WATERMARK)

    def process(
        self,
        keyed: tuple[int, pa.RecordBatch],
        at: Any = beam.DoFn.TimestampParam,
        waiting: Any = beam.DoFn.StateParam(WAITING),  # noqa: B008
        due: Any = beam.DoFn.TimerParam(DUE),  # noqa: B008
    ) -> Iterator[Any]:
        waiting.add((at.micros, keyed[1]))
        due.set(at, dynamic_timer_tag=str(at.micros))
        return iter(())

    @on_timer(DUE)  # type: ignore[untyped-decorator]  # Beam's
    def when_due(
        self,
        shard: Any = beam.DoFn.KeyParam,
        now: Any = beam.DoFn.TimestampParam,
        waiting: Any = beam.DoFn.StateParam(WAITING),  # noqa: B008
        stored: Any = beam.DoFn.StateParam(USERS),  # noqa: B008
    ) -> Iterator[Any]:
        """Run the steps on what is due."""
        batches = sorted(waiting.read(), key=_time_of)
        waiting.clear()
        for later in [each for each in batches if each[0] > now.micros]:
            waiting.add(later)
        batches = [each for each in batches if each[0] <= now.micros]
        if not batches:
            return
        memory = self._recalled(shard, stored)
        for at_us, batch in batches:
            for each in self._run(shard, batch, memory):
                yield _stamped(each, Timestamp(micros=at_us))
        self._keep(memory, batches[-1][0], stored)

    def _recalled(self, shard: int, stored: Any) -> dict[str, Users]:
        remembering = [step for step in self._steps if step.remembers_s]
        if self._alone:
            return {step.name: users_here(step, shard) for step in remembering}
        encoded: dict[str, bytes] = msgspec.msgpack.decode(stored.read() or _EMPTY)
        return {step.name: Users.from_bytes(encoded.get(step.name)) for step in remembering}

    def _keep(self, memory: dict[str, Users], now_us: int, stored: Any) -> None:
        for step in self._steps:
            if step.remembers_s:
                memory[step.name].sweep(now_us, round(step.remembers_s * 1_000_000))
        if not self._alone:
            stored.write(msgspec.msgpack.encode({name: users.to_bytes() for name, users in memory.items()}))


_EMPTY = msgspec.msgpack.encode({})


def _stamped(output: Any, at: Timestamp) -> Any:
    if isinstance(output, beam.pvalue.TaggedOutput):
        return beam.pvalue.TaggedOutput(output.tag, TimestampedValue(output.value, at))
    return TimestampedValue(output, at)


def _time_of(waiting: tuple[int, pa.RecordBatch]) -> int:
    return waiting[0]


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


def run_step(step: Step, batch: pa.RecordBatch, users: Users, stage: str) -> Applied:
    """Do a step to a batch; where it raises, row by row, and at last without its columns."""
    try:
        return step.apply(batch, users)
    except Exception:  # noqa: BLE001  it is told row by row below
        if batch.num_rows <= 1:
            count(stage, f"{step.name}_failed", batch.num_rows)
            _LOG.exception("%s: %s failed on an event; it goes on without its columns", stage, step.name)
            return Applied(_with_nulls(batch, step.adds))
    # Which row was it? Slow, and rare.
    parts = [run_step(step, batch.slice(row, 1), users, stage) for row in range(batch.num_rows)]
    return Applied(
        concat([part.batch for part in parts]),
        [each._replace(row=row) for row, part in enumerate(parts) for each in part.refused],
        [row for row, part in enumerate(parts) if len(part.dropped)],
    )


def _with_nulls(batch: pa.RecordBatch, fields: Sequence[pa.Field]) -> pa.RecordBatch:
    for field in fields:
        if field.name not in batch.schema.names:
            batch = batch.append_column(field, pa.nulls(batch.num_rows, field.type))
    return batch


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
