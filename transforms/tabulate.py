"""Tabulate: decoded events become one batch of columns, with what the envelope knows of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millrace.schemas import wire
from millrace.schemas.envelope import IP, RECEIVED_AT, SOURCE_ID, USER_AGENT, Envelope
from millrace.schemas.event import BATCH
from millrace.transforms import clock
from millrace.transforms.rescue import MAX_DEPTH
from millrace.transforms.rest import Column, Leftovers, Rest, is_absent, join, keep, refused, rest_texts

_REST = {a: k for a, k in wire.keys(wire.Event, columns=False).items() if a not in ("properties", "traits")}
_CONTEXT_REST = wire.keys(wire.Context, columns=False)
_CONTEXT_TEXTS = [name for name in wire.keys(wire.Context, columns=True) if name not in wire.CONTEXT_OBJECTS]
_OBJECTS = [
    (name, kind, kind(), wire.keys(kind, columns=True), wire.keys(kind, columns=False))
    for name, kind in wire.CONTEXT_OBJECTS.items()
]
_CHUNK = 256
"""Tuples alive at a time while structs become columns: some thousand would set off the garbage collector."""
_NAMED = ("page", "screen")


class Rows(NamedTuple):
    """Events on their way into columns, row by row."""

    events: Sequence[wire.Event]
    envelopes: Sequence[Envelope]
    envelope_of: npt.NDArray[np.int64]
    """Which of `envelopes` each row came in."""
    indexes: npt.NDArray[np.int32]
    """Each row's position in its envelope."""
    rests: Mapping[int, Rest]
    """By row, of the events that did not come by the fast path."""


class Tabulated(NamedTuple):
    """A batch, and the rows in it that may not go on; these want a closer look (transforms/rescue.py)."""

    batch: pa.RecordBatch
    refused: npt.NDArray[np.bool_]


def tabulate(rows: Rows) -> Tabulated:
    """Return rows as a batch of schemas.event.BATCH.

    Refused are rows without a user, rows whose properties or traits are no objects, and what check_value refuses in
    the texts that msgspec took unread; never those in `rests`, which were read with care.
    """
    size = len(rows.events)
    fields = _transpose(wire.Event, rows.events)
    columns, context_rest = _context_columns(fields["context"], size)
    context_rest = rest_texts(context_rest, {row: rest.context_rest for row, rest in rows.rests.items()}, {})
    envelope = _EnvelopeColumns(rows)
    times, leftovers = _times(fields, envelope)
    events = _event_names(fields, leftovers)
    rest = rest_texts(join(_REST, fields, size), {row: rest.rest for row, rest in rows.rests.items()}, leftovers)
    properties, traits = _texts(fields["properties"]), _texts(fields["traits"])
    user_ids, anonymous_ids = (_not_blank(_strings(fields[name])) for name in ("user_id", "anonymous_id"))
    user_keys = pc.coalesce(user_ids, anonymous_ids)
    columns |= {
        "message_id": _message_ids(fields["message_id"], rows),
        "type": _strings(fields["type"]),
        "event": _strings(events),
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
        "properties": _strings(properties),
        "traits": _strings(traits),
        "context_rest": _strings(context_rest),
        "rest": _strings(rest),
        "envelope_id": envelope.ids(),
        "envelope_index": pa.array(rows.indexes),
        "arrived_at": clock.timestamps(envelope.of(each.arrived_us for each in rows.envelopes)),
        "receipt": pa.array(envelope.of(each.receipt for each in rows.envelopes)),
    }
    for name, attribute in (("context_ip", IP), ("context_user_agent", USER_AGENT)):
        columns[name] = pc.coalesce(columns[name], envelope.attribute(attribute))
    wrong = user_keys.is_null().to_numpy(zero_copy_only=False).copy()
    for texts, levels, repeats in (
        (properties, MAX_DEPTH - 1, False),
        (traits, MAX_DEPTH - 1, False),
        (context_rest, MAX_DEPTH - 1, True),
        (rest, MAX_DEPTH, True),
    ):
        wrong[refused(texts, levels, repeats=repeats)] = True
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
        return _strings([each.attributes.get(name) for each in self._envelopes]).take(self._take)

    def ids(self) -> pa.StringArray:
        return _strings([each.envelope_id for each in self._envelopes]).take(self._take)

    def received(self) -> clock.Micros:
        texts = _strings([each.attributes.get(RECEIVED_AT) for each in self._envelopes])
        received: clock.Micros = clock.read_times(texts)[self._rows]
        return received


def _times(fields: Mapping[str, Column], envelope: _EnvelopeColumns) -> tuple[clock.Times, Leftovers]:
    firsts, seconds, sents, receiveds = (
        fields[name] for name in ("original_timestamp", "timestamp", "sent_at", "received_at")
    )
    originals = _strings(seconds if is_absent(firsts) else firsts)
    if not is_absent(firsts):
        originals = pc.coalesce(originals, _strings(seconds))
    own = clock.read_times(_strings(receiveds))
    times = clock.tell_times(originals, _strings(sents), [envelope.received(), own], envelope.published)
    leftovers: Leftovers = {}
    keep(leftovers, "originalTimestamp", firsts, times.original == clock.NO_TIME)
    second_told = np.array([first is None for first in firsts]) & (times.original != clock.NO_TIME)
    keep(leftovers, "timestamp", seconds, ~second_told)
    keep(leftovers, "sentAt", sents, times.sent == clock.NO_TIME)
    keep(leftovers, "receivedAt", receiveds, own != times.received)
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
    column = _not_blank(_strings(ids))
    if not column.null_count:
        return column
    # The same at every delivery of the envelope, so a redelivered event is known for a copy.
    derived = [
        f"{rows.envelopes[envelope].envelope_id}/{index}"
        for envelope, index in zip(rows.envelope_of.tolist(), rows.indexes.tolist(), strict=True)
    ]
    return pc.coalesce(column, pa.array(derived))


def _context_columns(contexts: Column, size: int) -> tuple[dict[str, pa.Array], Column]:
    """Return the context_* columns, and the members of what has none."""
    fields = _transpose(wire.Context, _filled(contexts, wire.Context()))
    columns = {f"context_{name}": _strings(fields[name]) for name in _CONTEXT_TEXTS}
    rests: dict[str, Column] = {name: fields[name] for name in _CONTEXT_REST}
    keys = dict(_CONTEXT_REST)
    for name, kind, empty, told, untold in _OBJECTS:
        if is_absent(fields[name]):
            columns |= {f"context_{name}_{attribute}": pa.nulls(size, pa.string()) for attribute in told}
            continue
        members = _transpose(kind, _filled(fields[name], empty))
        columns |= {f"context_{name}_{attribute}": _strings(members[attribute]) for attribute in told}
        inner = join(untold, members, size)
        if not is_absent(inner):
            keys[name] = name
            rests[name] = inner
    return columns, join(keys, rests, size)


def _texts(values: Column) -> Column:
    """Return the bytes of JSON values; null counts as absent."""
    if is_absent(values):
        return values
    texts = [None if value is None else bytes(value) for value in values]
    return [None if text == b"null" else text for text in texts] if b"null" in texts else texts


def _transpose(kind: type[msgspec.Struct], structs: Sequence[msgspec.Struct]) -> dict[str, Column]:
    columns: list[list[Any]] = [[] for _ in kind.__struct_fields__]
    for start in range(0, len(structs), _CHUNK):
        rows = map(msgspec.structs.astuple, structs[start : start + _CHUNK])
        for column, values in zip(columns, zip(*rows, strict=True), strict=True):
            column.extend(values)
    return dict(zip(kind.__struct_fields__, columns, strict=True))


def _filled(values: Column, empty: msgspec.Struct) -> Column:
    return [empty if value is None else value for value in values]


def _strings(values: Column) -> pa.StringArray:
    return pa.nulls(len(values), pa.string()) if is_absent(values) else pa.array(values, pa.string())


def _not_blank(texts: pa.StringArray) -> pa.StringArray:
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(texts), ""), None, texts)
