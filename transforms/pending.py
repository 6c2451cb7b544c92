"""Pending: envelopes on their way into batches: read one by one, given out as columns and dead letters."""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millrace.schemas import dead_letter, wire
from millrace.schemas.dead_letter import Reason, Rejected
from millrace.schemas.envelope import EVENT_TYPE, REJECTED, REJECTED_BECAUSE, SOURCE_ID, Envelope
from millrace.schemas.event import BATCH
from millrace.transforms.check import MAX_DEPTH, check_text, check_value
from millrace.transforms.contexts import Contexts
from millrace.transforms.members import merge_contexts
from millrace.transforms.rescue import rescue_event
from millrace.transforms.tabulate import Rows, tabulate
from millrace.transforms.unpack import split_events, unpack_body

STAGE = "decode"
COLLECTOR = "collect"
"""The stage of what the collector refused and sent on as such."""

MAX_BODY_BYTES = 10 * 1024 * 1024
"""Pub/Sub's own limit for a message."""
MAX_EVENT_BYTES = 1024 * 1024
MAX_EVENTS = 50_000
"""Events in one envelope. Ten megabytes of `{}` are five million dead letters."""

_BATCH_BYTES = 32 * 1024 * 1024
"""Bytes of events after which a batch leaves: a few events of a megabyte weigh as much as thousands of others."""
_BATCH_KEY_WITHIN = 256
"""Where `"batch"` must begin for a body to be tried as a batch at once; later, and it is read with more care."""
_CHUNK_ROWS = 2_048
"""Events decoded before their columns are built: what waits as objects should fit the processor's cache."""
_NO_EVENTS = pa.RecordBatch.from_pylist([], schema=BATCH)
_NO_LETTERS = pa.RecordBatch.from_pylist([], schema=dead_letter.BATCH)

_read_event = msgspec.json.Decoder(wire.Event).decode
_read_lines = msgspec.json.Decoder(wire.Event).decode_lines
_read_events = msgspec.json.Decoder(list[wire.Event]).decode
_read_batch = msgspec.json.Decoder(wire.Batch).decode


class Limits(NamedTuple):
    """What one envelope may hold."""

    body_bytes: int = MAX_BODY_BYTES
    """Unpacked."""
    event_bytes: int = MAX_EVENT_BYTES
    events: int = MAX_EVENTS


class Letter(NamedTuple):
    """A dead letter to be."""

    number: int
    """Which of the envelopes in hand it came from."""
    envelope: Envelope
    position: int
    payload: bytes
    reason: Reason
    message: str
    stage: str


class Decoding(NamedTuple):
    """What some envelopes became."""

    batch: pa.RecordBatch
    """schemas.event.BATCH"""
    letters: pa.RecordBatch
    """schemas.dead_letter.BATCH"""
    counts: npt.NDArray[np.int64]
    """Records (events and dead letters) of each envelope, at least 1."""
    envelopes: Sequence[Envelope]


class Pending:
    """Envelopes that were read and not yet handed on."""

    def __init__(self, limits: Limits, contexts: Contexts) -> None:
        self._limits = limits
        self._contexts = contexts
        self._clear()

    def _clear(self) -> None:
        self._bytes = 0
        self._envelopes: list[Envelope] = []
        self._letters: list[Letter] = []
        self._batches: list[pa.RecordBatch] = []
        self._counts: list[int] = []  # events of each envelope
        self._rows = 0
        self._forget_chunk()

    def _forget_chunk(self) -> None:
        self._chunk_start = len(self._counts)
        self._events: list[wire.Event] = []
        self._indexes: list[int] = []
        self._rests: dict[int, bytes | None] = {}

    def is_full(self, batch_rows: int) -> bool:
        """Say whether there is enough for a batch, in records or in bytes."""
        records = self._rows + len(self._events) + len(self._letters)
        return records >= batch_rows or self._bytes >= _BATCH_BYTES

    def add(self, envelope: Envelope, *, carefully: bool = False) -> None:
        """Read one envelope: all of it at once where it is clean, else event by event."""
        before = len(self._events)
        if REJECTED in envelope.attributes:
            self._add_rejected(envelope)
        else:
            self._add_events(envelope, carefully)
        self._envelopes.append(envelope)
        self._counts.append(len(self._events) - before)
        if len(self._events) >= _CHUNK_ROWS:
            self._tabulate()

    def _add_events(self, envelope: Envelope, carefully: bool) -> None:
        try:
            text = unpack_body(envelope.body, envelope.attributes, self._limits.body_bytes)
            self._bytes += len(text)
            events = None if carefully else _read_clean(text, self._limits)
            if events is None:
                self._add_each(envelope, text)
            else:
                self._events += events
                self._indexes += range(len(events))
        except Rejected as rejected:
            self._refuse(envelope, -1, envelope.body, rejected)

    def _add_rejected(self, envelope: Envelope) -> None:
        """Make a dead letter of each record that the collector refused, or of the body where none can be told apart."""
        rejected = _refusal(envelope.attributes)
        try:
            text = unpack_body(envelope.body, envelope.attributes, self._limits.body_bytes)
            payloads = split_events(text).events
        except Rejected:
            payloads = []
        if not 0 < len(payloads) <= self._limits.events:
            self._refuse(envelope, -1, envelope.body, rejected, COLLECTOR)
            return
        for index, payload in enumerate(payloads):
            self._bytes += len(payload)
            self._refuse(envelope, index, payload, rejected, COLLECTOR)

    def _add_each(self, envelope: Envelope, text: bytes) -> None:
        payloads, defaults = split_events(text)
        if len(payloads) > self._limits.events:
            raise Rejected(Reason.TOO_LARGE, f"{len(payloads)} events, the cap is {self._limits.events}")
        if defaults:
            check_text(msgspec.json.encode(defaults))
        event_type = envelope.attributes.get(EVENT_TYPE)
        if event_type:
            defaults.setdefault("type", msgspec.Raw(msgspec.json.encode(event_type)))
        for index, payload in enumerate(payloads):
            try:
                event, rest = rescue_event(payload, defaults, self._limits.event_bytes, self._contexts)
            except Rejected as rejected:
                self._refuse(envelope, index, payload, rejected)
            else:
                self._rests[len(self._events)] = rest
                self._events.append(event)
                self._indexes.append(index)

    def _refuse(self, envelope: Envelope, index: int, payload: bytes, rejected: Rejected, stage: str = STAGE) -> None:
        letter = Letter(len(self._envelopes), envelope, index, payload, rejected.reason, rejected.message, stage)
        self._letters.append(letter)

    def take(self, now_us: int) -> Decoding:
        """Return what the envelopes so far became, and forget them."""
        self._tabulate()
        batch = pa.concat_batches(self._batches) if self._batches else _NO_EVENTS
        counts = np.array(self._counts, np.int64)
        np.add.at(counts, [letter.number for letter in self._letters], 1)
        decoding = Decoding(batch, _letters(self._letters, now_us), counts, self._envelopes)
        self._clear()
        return decoding

    def _tabulate(self) -> None:
        """Build columns of the events in hand; read again with care the envelopes in which these show a fault."""
        start = self._chunk_start
        if self._events:
            envelopes, counts = self._envelopes[start:], self._counts[start:]
            envelope_of = np.repeat(np.arange(len(counts)), counts)
            indexes = np.array(self._indexes, np.int32)
            batch, refused = tabulate(Rows(self._events, envelopes, envelope_of, indexes, self._rests), self._contexts)
            faulty = np.unique(envelope_of[refused])
            if faulty.size:
                batch = batch.filter(pa.array(~np.isin(envelope_of, faulty)))
                self._add_again((faulty + start).tolist())
            self._batches.append(batch)
            self._rows += batch.num_rows
        self._forget_chunk()

    def _add_again(self, numbers: Sequence[int]) -> None:
        again = Pending(self._limits, self._contexts)
        for number in numbers:
            again.add(self._envelopes[number], carefully=True)
        again._tabulate()
        for number, count_again in zip(numbers, again._counts, strict=True):
            self._counts[number] = count_again
        self._letters += [letter._replace(number=numbers[letter.number]) for letter in again._letters]
        self._batches += again._batches
        self._rows += again._rows


def decode_all(envelopes: Iterable[Envelope], now_us: int, limits: Limits) -> Decoding:
    """Decode envelopes that stand alone, with contexts of their own; no content of one raises."""
    pending = Pending(limits, Contexts())
    for envelope in envelopes:
        pending.add(envelope)
    return pending.take(now_us)


def _read_clean(text: bytes, limits: Limits) -> list[wire.Event] | None:
    """Read all events of a body in one go; None where anything in it asks for more care."""
    if len(text) > limits.event_bytes:
        return None
    try:
        if not text.isascii():
            text.decode()  # msgspec does not look into what it leaves raw
        if b"\\" in text and b"\\u0000" in text:
            return None
        events = _read_body(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, Rejected):
        return None
    return events if 0 < len(events) <= limits.events else None


def _read_body(text: bytes) -> list[wire.Event]:
    if text.startswith(b"["):
        return _read_events(text)
    if b'"batch"' not in text[:_BATCH_KEY_WITHIN]:
        return _read_lines(text) if b"}\n" in text else [_read_event(text)]
    whole = _read_batch(text)
    sent_at, write_key, integrations = whole.sent_at, whole.write_key, whole.integrations
    if sent_at is not None or write_key is not None or integrations is not None:
        for event in whole.batch:
            if event.sent_at is None:
                event.sent_at = sent_at
            if event.write_key is None:
                event.write_key = write_key
            if event.integrations is None:
                event.integrations = integrations
    if whole.context is not None:
        _pass_on_context(whole.context, whole.batch)
    return whole.batch


def _pass_on_context(context: msgspec.Raw, events: Sequence[wire.Event]) -> None:
    """Give each event the batch's context under its own; each distinct pair is merged once."""
    check_value(bytes(context), MAX_DEPTH - 1)
    merged: dict[bytes, msgspec.Raw] = {b"null": context}
    for event in events:
        own = b"null" if event.context is None else bytes(event.context)
        if own not in merged:
            merged[own] = msgspec.Raw(merge_contexts(context, own))
        event.context = merged[own]


def _refusal(attributes: Mapping[str, str]) -> Rejected:
    """Return why the collector refused an envelope; of a newer one the reason may be none of ours."""
    reason, because = attributes[REJECTED], attributes.get(REJECTED_BECAUSE, "")
    try:
        return Rejected(Reason(reason), because)
    except ValueError:
        return Rejected(Reason.OTHER, f"{reason}: {because}")


def _letters(letters: Sequence[Letter], now_us: int) -> pa.RecordBatch:
    if not letters:
        return _NO_LETTERS
    now = dt.datetime.fromtimestamp(now_us // 1_000_000, dt.UTC)
    columns = {
        "payload": [letter.payload for letter in letters],
        "attributes": [
            msgspec.json.encode(dict(letter.envelope.attributes)) if letter.envelope.attributes else None
            for letter in letters
        ],
        "stage": [letter.stage for letter in letters],
        "reason": [letter.reason.value for letter in letters],
        "message": [letter.message for letter in letters],
        "source_id": [letter.envelope.attributes.get(SOURCE_ID, "") for letter in letters],
        "envelope_id": [letter.envelope.envelope_id for letter in letters],
        "envelope_index": [letter.position for letter in letters],
        "published_at": [letter.envelope.published_us for letter in letters],
        "refused_at": [now_us] * len(letters),
        "date": [now.date()] * len(letters),
        "receipt": [letter.envelope.receipt for letter in letters],
    }
    schema = dead_letter.BATCH
    return pa.RecordBatch.from_arrays([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
