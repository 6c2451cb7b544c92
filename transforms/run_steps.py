"""Run steps: the steps of a job, done to each ordered batch, one after the other, with what they remember of users."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import FixedWindows, GlobalWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from millrace.schemas import dropped
from millrace.transforms.batches import count_by_receipt
from millrace.transforms.counts import count
from millrace.transforms.in_beam import RecordBatchCoder
from millrace.transforms.letters import letters_of
from millrace.transforms.receipts import LEDGER
from millrace.transforms.steps import Applied, Step, Users, run_step, users_here, with_nulls


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
        is_archived: says which rows of a batch the archive holds already: messages that come again after a crash. What
            remembers users must not see them again: they go on as they are, for the committer to leave out.
    """

    steps: Sequence[Step]
    stage: str
    window_s: float = 5.0
    alone: bool = True
    is_archived: Callable[[pa.RecordBatch], npt.NDArray[np.bool_]] | None = None

    def __post_init__(self) -> None:
        names = [step.name for step in self.steps]
        if len(set(names)) != len(names):
            raise ValueError(f"steps need different names, got {names}")

    def expand(self, keyed: beam.PCollection[tuple[int, pa.RecordBatch]]) -> "Stepped":
        remembering = any(step.remembers_s for step in self.steps)
        is_archived = self.is_archived if remembering else None
        fn = (_RememberFn if remembering else _RunFn)(
            tuple(self.steps), self.stage, alone=self.alone, is_archived=is_archived
        )
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
    def __init__(
        self,
        steps: Sequence[Step],
        stage: str,
        *,
        alone: bool,
        is_archived: Callable[[pa.RecordBatch], npt.NDArray[np.bool_]] | None = None,
    ) -> None:
        self._steps = steps
        self._stage = stage
        self._alone = alone
        self._is_archived = is_archived

    def setup(self) -> None:
        for step in self._steps:
            step.open()

    def process(self, keyed: tuple[int, pa.RecordBatch]) -> Iterator[Any]:
        shard, batch = keyed
        yield from self._run(shard, batch, {})

    def _run(self, shard: int, batch: pa.RecordBatch, memory: dict[str, Users]) -> Iterator[Any]:
        now_us = time.time_ns() // 1_000
        again = batch.slice(0, 0)
        if self._is_archived is not None and batch.num_rows:
            archived = self._is_archived(batch)
            if archived.any():
                again, batch = batch.filter(pa.array(archived)), batch.filter(pa.array(~archived))
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
        for step in self._steps if again.num_rows else ():
            again = with_nulls(again, step.adds)
        if again.num_rows:
            yield shard, again
        if batch.num_rows:
            yield shard, batch


def _expect_made(given: pa.RecordBatch, applied: Applied) -> None:
    """Have the receipts wait for the rows that a step made, too: these may leave by another door, or later."""
    gone = [each.row for each in applied.refused] + list(applied.dropped)
    if applied.batch.num_rows + len(gone) == given.num_rows:
        return  # each row is one row
    leaving = [applied.batch.column("receipt"), given.column("receipt").take(pa.array(gone, pa.int64()))]
    before = dict(zip(*(each.tolist() for each in count_by_receipt(given)), strict=True))
    receipts, counts = count_by_receipt(pa.record_batch([pa.concat_arrays(leaving)], ["receipt"]))
    more = counts - np.array(
        [before.get(*each) for each in zip(receipts.tolist(), counts.tolist(), strict=True)], np.int64
    )
    LEDGER.expect_more(receipts[more > 0], more[more > 0])


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
