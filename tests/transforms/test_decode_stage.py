"""Decode: the stage in a graph."""

from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing import test_pipeline
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.utils.timestamp import Timestamp

from millrace.schemas import dead_letter
from millrace.schemas.envelope import Envelope
from millrace.schemas.event import BATCH
from millrace.transforms import decode
from millrace.transforms.decode import DecodeEnvelopes
from millrace.transforms.pending import Limits
from millrace.transforms.receipts import Counts
from tests.support.decoding import NOW_US, envelope, event


class Ledger:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], list[int]]] = []

    def expect(self, receipts: Counts, counts: Counts) -> None:
        self.calls.append((receipts.tolist(), counts.tolist()))


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    fake = Ledger()
    monkeypatch.setattr(decode, "LEDGER", fake)
    return fake


def run(fn: beam.DoFn, *bundle: list[Envelope]) -> list[Any]:
    fn.start_bundle()
    out = [value for envelopes in bundle for value in fn.process(envelopes)]
    return out + list(fn.finish_bundle())


def test_events_and_dead_letters_leave_by_their_doors() -> None:
    given = [
        [envelope([event(messageId="a"), event(messageId="b")], 5), envelope(b"", 3)],
        [envelope(event(messageId="c"), 4)],
    ]
    with test_pipeline.TestPipeline() as pipeline:
        found = pipeline | beam.Create(given).with_output_types(list) | DecodeEnvelopes()
        ids = found.batches | "Ids" >> beam.FlatMap(lambda batch: batch.column("message_id").to_pylist())
        reasons = found.dead_letters | "Reasons" >> beam.FlatMap(lambda batch: batch.column("reason").to_pylist())
        assert_that(ids, equal_to(["a", "b", "c"]), label="events")
        assert_that(reasons, equal_to(["empty"]), label="dead letters")


def test_a_batch_is_stamped_with_its_oldest_arrival_and_has_its_schema(ledger: Ledger) -> None:
    fn = decode._DecodeFn(100, Limits())
    events, letters = run(fn, [envelope([event(), {}], 7)], [envelope(b"", 3), envelope(event(), 5)])
    assert (events.timestamp, events.value.schema, events.value.num_rows) == (Timestamp(micros=NOW_US + 5), BATCH, 2)
    assert letters.tag == "dead_letters"
    assert letters.value.timestamp == Timestamp(micros=NOW_US + 3)
    assert isinstance(letters.value.value, pa.RecordBatch)
    assert letters.value.value.schema.equals(dead_letter.BATCH)


def test_the_ledger_hears_what_to_expect_before_anything_leaves(ledger: Ledger) -> None:
    fn = decode._DecodeFn(2, Limits())
    fn.start_bundle()
    unreceipted = envelope(event(), 9)._replace(receipt=-1)
    leaving = fn.process([envelope([event(), {}], 4), unreceipted, envelope(b"", 6), envelope(event(), 7)])
    next(leaving)
    assert ledger.calls == [([4], [2])]
    assert len(list(leaving)) + len(list(fn.finish_bundle())) == 4
    assert ledger.calls == [([4], [2]), ([6], [1]), ([7], [1])]


def test_a_bundle_is_given_out_in_batches_of_the_size_asked_for(ledger: Ledger) -> None:
    fn = decode._DecodeFn(5, Limits())
    out = run(fn, [envelope([event()] * 3, number) for number in range(5)])
    assert [batch.value.num_rows for batch in out] == [6, 6, 3]
    assert run(fn) == []


@pytest.mark.parametrize("name", ["batch_rows", "max_body_bytes", "max_event_bytes", "max_events"])
def test_a_size_that_makes_no_sense_is_refused_when_the_graph_is_built(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        DecodeEnvelopes(**{name: 0})
