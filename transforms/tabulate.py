"""Tabulate: decoded events become one batch of columns, with what the envelope knows of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millrace.schemas import wire
from millrace.schemas.envelope import IP, RECEIVED_AT, REQUEST_ID, SOURCE_ID, USER_AGENT, Envelope
from millrace.schemas.event import BATCH
from millrace.transforms import clock
from millrace.transforms.check import MAX_DEPTH
from millrace.transforms.contexts import Contexts
from millrace.transforms.rest import Column, Leftovers, is_absent, join, keep, refused, rest_texts, strings, transpose

_APART = ("context", "properties", "traits")
_REST = {a: k for a, k in wire.keys(wire.Event, columns=False).items() if a not in _APART}
_NAMED = ("page", "screen")


class Rows(NamedTuple):
    """Events on their way into columns, row by row."""

    events: Sequence[wire.Event]
    envelopes: Sequence[Envelope]
    envelope_of: npt.NDArray[np.int64]
    """Which of `envelopes` each row came in."""
    indexes: npt.NDArray[np.int32]
    """Each row's position in its envelope."""
    rests: Mapping[int, bytes | None]
    """By row, what is not listed of the events that did not come by the fast path, as JSON object text."""


class Tabulated(NamedTuple):
    """A batch, and the rows in it that may not go on; these want a closer look (transforms/rescue.py)."""

    batch: pa.RecordBatch
    refused: npt.NDArray[np.bool_]


def tabulate(rows: Rows, contexts: Contexts) -> Tabulated:
    """Return rows as a batch of schemas.event.BATCH.

    Refused are rows without a user, rows whose properties or traits are no objects, and what check_value refuses in
    the texts that msgspec took unread; never those in `rests`, which were read with care.
    """
    size = len(rows.events)
    fields = transpose(wire.Event, rows.events)
    columns, wrong = contexts.spread(fields["context"])
    envelope = _EnvelopeColumns(rows)
    times, leftovers = _times(fields, envelope)
    events = _event_names(fields, leftovers)
    keys = fields["write_key"]
    fields["write_key"] = _without_source(keys, rows)
    rest = rest_texts(join(_REST, fields, size), rows.rests, leftovers)
    properties, traits = _texts(fields["properties"]), _texts(fields["traits"])
    user_ids, anonymous_ids = (_not_blank(strings(fields[name])) for name in ("user_id", "anonymous_id"))
    user_keys = pc.coalesce(user_ids, anonymous_ids)
    columns |= {
        "message_id": _message_ids(fields["message_id"], rows),
        "type": strings(fields["type"]),
        "event": strings(events),
        "user_id": user_ids,
        "anonymous_id": anonymous_ids,
        "user_key": user_keys,
        "source_id": envelope.attribute(SOURCE_ID).fill_null(""),
        "original_timestamp": clock.timestamps(times.original),
        "sent_at": clock.timestamps(times.sent),
        "received_at": clock.timestamps(times.received),
        "published_at": clock.timestamps(envelope.published),
        "occurred_at": clock.timestamps(times.occurred),
        "clock_flag": pa.array(clock.FLAGS, pa.string()).take(pa.array(times.flags)),
        "properties": strings(properties),
        "traits": strings(traits),
        "rest": strings(rest),
        "envelope_id": envelope.ids(),
        "envelope_index": pa.array(rows.indexes),
        "arrived_at": clock.timestamps(envelope.of(each.arrived_us for each in rows.envelopes)),
        "receipt": pa.array(envelope.of(each.receipt for each in rows.envelopes)),
    }
    for name, attribute in (("context_ip", IP), ("context_user_agent", USER_AGENT)):
        columns[name] = pc.coalesce(columns[name], envelope.attribute(attribute))
    wrong = wrong | user_keys.is_null().to_numpy(zero_copy_only=False)
    for texts, levels in ((properties, MAX_DEPTH - 1), (traits, MAX_DEPTH - 1), (rest, MAX_DEPTH)):
        wrong[refused(texts, levels)] = True
    wrong[refused(join({"write_key": "writeKey"}, {"write_key": keys}, size), MAX_DEPTH)] = True
    wrong[list(rows.rests)] = False
    return Tabulated(pa.RecordBatch.from_arrays([columns[name] for name in BATCH.names], schema=BATCH), wrong)


class _EnvelopeColumns:
    """What the envelopes know, one value for each of their rows."""

    def __init__(self, rows: Rows) -> None:
        self._envelopes = rows.envelopes
        self._rows = rows.envelope_of
        self._take = pa.array(rows.envelope_of)
        self.published = self.of(each.published_us for each in rows.envelopes)

    def of(self, values: Iterable[int]) -> clock.Micros:
        each = np.fromiter(values, np.int64, len(self._envelopes))
        return each[self._rows]

    def attribute(self, name: str) -> pa.StringArray:
        return strings([each.attributes.get(name) for each in self._envelopes]).take(self._take)

    def ids(self) -> pa.StringArray:
        return strings([each.envelope_id for each in self._envelopes]).take(self._take)

    def received(self) -> clock.Micros:
        texts = strings([each.attributes.get(RECEIVED_AT) for each in self._envelopes])
        received: clock.Micros = clock.read_times(texts)[self._rows]
        return received


def _times(fields: Mapping[str, Column], envelope: _EnvelopeColumns) -> tuple[clock.Times, Leftovers]:
    firsts, seconds, sents, receiveds = (
        fields[name] for name in ("original_timestamp", "timestamp", "sent_at", "received_at")
    )
    first_texts, second_texts, sent_texts, own_texts = map(strings, (firsts, seconds, sents, receiveds))
    own = clock.read_times(own_texts)
    originals = pc.coalesce(first_texts, second_texts)
    times = clock.tell_times(originals, sent_texts, [envelope.received(), own], envelope.published)
    leftovers: Leftovers = {}
    unread = times.original == clock.NO_TIME
    has_first = _present(first_texts)
    keep(leftovers, "originalTimestamp", firsts, has_first & unread)
    keep(leftovers, "timestamp", seconds, _present(second_texts) & (has_first | unread))
    keep(leftovers, "sentAt", sents, _present(sent_texts) & (times.sent == clock.NO_TIME))
    keep(leftovers, "receivedAt", receiveds, _present(own_texts) & (own != times.received))
    return times, leftovers


class _Named(msgspec.Struct):
    name: Any = None


_read_named = msgspec.json.Decoder(_Named).decode


def _event_names(fields: Mapping[str, Column], leftovers: Leftovers) -> Column:
    """Return the event's name: of a page or screen, its name. What is not taken stays in the rest."""
    types, events, names = fields["type"], fields["event"], fields["name"]
    paged = [row for row, kind in enumerate(types) if kind in _NAMED]
    is_paged = np.zeros(len(types), np.bool_)
    is_paged[paged] = True
    keep(leftovers, "event", events, is_paged)
    keep(leftovers, "name", names, ~is_paged)
    if not paged:
        return events
    named = list(events)
    for row in paged:
        name = names[row]
        named[row] = name if name and not name.isspace() else _name_in(fields["properties"][row]) or name
    return named


def _name_in(properties: msgspec.Raw | None) -> str | None:
    try:
        name = _read_named(properties).name if properties is not None else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # refused, or about to be
        return None
    return name if isinstance(name, str) else None


def _message_ids(ids: Column, rows: Rows) -> pa.StringArray:
    column = _not_blank(strings(ids))
    if not column.null_count:
        return column
    # The same at every delivery of the envelope, and of one request in every envelope that a publisher's retries made
    # of it: so a copy is known for one.
    prefixes = [_id_prefix(envelope) for envelope in rows.envelopes]
    derived = [
        f"{prefixes[envelope]}{index}"
        for envelope, index in zip(rows.envelope_of.tolist(), rows.indexes.tolist(), strict=True)
    ]
    return pc.coalesce(column, pa.array(derived))


def _id_prefix(envelope: Envelope) -> str:
    request_id = envelope.attributes.get(REQUEST_ID)
    return f"{request_id}-" if request_id else f"{envelope.envelope_id}/"


def _without_source(keys: Column, rows: Rows) -> Column:
    """Return the write keys of envelopes without a source: of the others the key, a secret, has done its work."""
    if is_absent(keys):
        return keys
    known = [bool(each.attributes.get(SOURCE_ID)) for each in rows.envelopes]
    return [None if known[envelope] else key for key, envelope in zip(keys, rows.envelope_of.tolist(), strict=True)]


def _present(values: pa.Array) -> npt.NDArray[np.bool_]:
    present: npt.NDArray[np.bool_] = values.is_valid().to_numpy(zero_copy_only=False)
    return present


def _texts(values: Column) -> Column:
    """Return the bytes of JSON values; null counts as absent."""
    if is_absent(values):
        return values
    texts = [None if value is None else bytes(value) for value in values]
    return [None if text == b"null" else text for text in texts] if b"null" in texts else texts


def _not_blank(texts: pa.StringArray) -> pa.StringArray:
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(texts), ""), None, texts)
