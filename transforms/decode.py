"""Decode: envelopes become batches of events; what cannot be read becomes a dead letter, and takes nothing with it."""

import collections
import concurrent.futures
import dataclasses
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from millrace.schemas.envelope import Envelope
from millrace.transforms import in_beam as _in_beam  # noqa: F401  registers how batches travel
from millrace.transforms.contexts import Contexts
from millrace.transforms.counts import count
from millrace.transforms.decode_process import decode_pool
from millrace.transforms.pending import (
    MAX_BODY_BYTES,
    MAX_EVENT_BYTES,
    MAX_EVENTS,
    STAGE,
    Decoding,
    Limits,
    Pending,
    decode_all,
)
from millrace.transforms.receipts import LEDGER


def decode_envelopes(envelopes: Iterable[Envelope], now_us: int, limits: Limits = Limits()) -> Decoding:  # noqa: B008
    """Decode envelopes; no content of one raises.

    Args:
        envelopes: as Pub/Sub delivered them.
        now_us: this job's clock, µs since the epoch, for the dead letters.
        limits: what one envelope may hold.
    """
    return decode_all(envelopes, now_us, limits)


_REQUEST_BYTES = 8 * 1024 * 1024
"""Bodies that go to a decode process at once: some ten thousand events, which every stage behind has as one batch."""


class Decoded(NamedTuple):
    """The doors out."""

    batches: beam.PCollection[pa.RecordBatch]
    dead_letters: beam.PCollection[pa.RecordBatch]


@dataclasses.dataclass(eq=False)
class DecodeEnvelopes(beam.PTransform):
    """Turn envelopes into batches of events.

    In:      list[Envelope], as many as the reader likes to hand over at once
    Out:     batches, schemas.event.BATCH; dead_letters, schemas.dead_letter.BATCH, payload untouched; every event
             leaves by exactly one, an envelope that holds none as one dead letter
    Window:  global; a batch is stamped with the oldest arrived_at in it.
    Order:   none promised.  State: none.  Repeats: same envelope, same rows (but for the time of refusal).
    Errors:  ValueError when built with a size <= 0; reasons: all of schemas.dead_letter.Reason
    Source:  docs/event_model.md

    Args:
        batch_rows: events after which a batch leaves before its bundle ends; whole envelopes, so it may be more.
        max_body_bytes: of one envelope, unpacked.
        max_event_bytes: of one event.
        max_events: in one envelope.
        processes: how many decode beside this one (transforms/decode_process.py); 0: this one does. With some, a batch
            is what one list of envelopes holds.
    """

    batch_rows: int = 8_192
    max_body_bytes: int = MAX_BODY_BYTES
    max_event_bytes: int = MAX_EVENT_BYTES
    max_events: int = MAX_EVENTS
    processes: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_rows", "max_body_bytes", "max_event_bytes", "max_events"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def expand(self, envelopes: beam.PCollection[list[Envelope]]) -> "Decoded":
        limits = Limits(self.max_body_bytes, self.max_event_bytes, self.max_events)
        fn = _DecodeBesideFn(limits, self.processes) if self.processes else _DecodeFn(self.batch_rows, limits)
        doors = envelopes | "Decode" >> beam.ParDo(fn).with_output_types(
            pa.RecordBatch, dead_letters=pa.RecordBatch
        ).with_outputs("dead_letters", main="batches")
        return Decoded(doors.batches, doors.dead_letters)


class _DecodeFn(beam.DoFn):
    def __init__(self, batch_rows: int, limits: Limits) -> None:
        self._batch_rows = batch_rows
        self._limits = limits
        self._contexts = Contexts()  # outlives bundles: the same users come again

    def start_bundle(self) -> None:
        self._pending = Pending(self._limits, self._contexts)

    def process(self, envelopes: list[Envelope]) -> Iterator[Any]:
        for envelope in envelopes:
            self._pending.add(envelope)
            if self._pending.is_full(self._batch_rows):
                yield from _out(self._pending.take(time.time_ns() // 1_000))

    def finish_bundle(self) -> Iterator[Any]:
        yield from _out(self._pending.take(time.time_ns() // 1_000))


class _DecodeBesideFn(beam.DoFn):
    """Has processes beside this one do the work; reads on meanwhile."""

    def __init__(self, limits: Limits, processes: int) -> None:
        self._limits = limits
        self._processes = processes

    def start_bundle(self) -> None:
        self._gathered: list[Envelope] = []
        self._gathered_bytes = 0
        self._ahead: collections.deque[concurrent.futures.Future[Decoding]] = collections.deque()

    def process(self, envelopes: list[Envelope]) -> Iterator[Any]:
        for envelope in envelopes:
            self._gathered.append(envelope)
            self._gathered_bytes += len(envelope.body)
            if self._gathered_bytes >= _REQUEST_BYTES:
                self._send()
        while self._ahead and (self._ahead[0].done() or len(self._ahead) > 2 * self._processes):
            yield from _out(self._ahead.popleft().result())

    def finish_bundle(self) -> Iterator[Any]:
        self._send()
        while self._ahead:
            yield from _out(self._ahead.popleft().result())

    def _send(self) -> None:
        if self._gathered:
            self._ahead.append(decode_pool(self._processes).submit(self._gathered, self._limits))
            self._gathered, self._gathered_bytes = [], 0


def _out(decoding: Decoding) -> Iterator[Any]:
    """Yield what some envelopes became, each by its door, once the ledger expects it."""
    batch, letters, counts, envelopes = decoding
    if not envelopes:
        return
    receipts = np.array([each.receipt for each in envelopes], np.int64)
    held = receipts >= 0
    if held.any():
        LEDGER.expect(receipts[held], counts[held])  # before any of them can be settled
    if batch.num_rows:
        count(STAGE, "events_out", batch.num_rows)
        yield _stamped(batch, pc.min(batch["arrived_at"].cast(pa.int64())).as_py())
    if letters.num_rows:
        count(STAGE, "dead_letters", letters.num_rows)
        for each in pc.value_counts(letters["reason"]).to_pylist():
            count(STAGE, f"rejected_{each['values']}", each["counts"])
        # Stamped with the oldest of all the envelopes here: no later than any that a letter came from.
        yield beam.pvalue.TaggedOutput("dead_letters", _stamped(letters, min(each.arrived_us for each in envelopes)))


def _stamped(batch: pa.RecordBatch, arrived_us: int) -> WindowedValue:
    return WindowedValue(batch, Timestamp(micros=arrived_us), [GlobalWindow()])
