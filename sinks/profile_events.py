"""Events of a delivery as profile.lua takes them."""

from collections.abc import Container, Sequence
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from millrace.sinks.sink import Delivery, SinkDownError

_traits = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_text = msgspec.json.Decoder(str).decode


def lacking(columns: Container[str], wanted: frozenset[str] | None) -> list[str]:
    """Return which columns a profile is made of that are not among these, under these names."""
    needed = ("type", "event", "occurred_at", *(("traits",) if _has_traits(wanted) else ()))
    return [name for name in needed if name not in columns]


def _has_traits(wanted: frozenset[str] | None) -> bool:
    return wanted is None or len(wanted) > 0


def profile_events(delivery: Delivery, wanted: frozenset[str] | None) -> list[Any]:
    """Return each row as profile.lua takes it; None where its traits cannot be read.

    Raises:
        SinkDownError: the route leaves out a column that a profile is made of.
    """
    rows = delivery.rows
    if lacks := lacking(rows.schema.names, wanted):
        raise SinkDownError(f"a profile is made of columns that the route leaves out: add {', '.join(lacks)} to it")
    # As text, 2026-11-25 12:00:00.000000Z: all of one length.
    times = rows.column("occurred_at").cast(pa.timestamp("us", tz="UTC")).cast(pa.string())
    times = pc.utf8_replace_slice(times, 10, 11, "T")
    names = rows.column("event").fill_null("").to_pylist()
    orders: Sequence[int | None] = [None] * len(delivery)
    if "order_index" in rows.schema.names:
        orders = rows.column("order_index").to_pylist()
    found: list[Any] = [
        (
            f"{position:019d}" if is_ordered else "",
            f"{order:019d}" if is_ordered and order is not None else "",
            message_id,
            at,
            kind,
            name,
            (),
        )
        for position, is_ordered, order, message_id, at, kind, name in zip(
            delivery.positions,
            delivery.is_ordered,
            orders,
            delivery.message_ids,
            times.to_pylist(),
            rows.column("type").to_pylist(),
            names,
            strict=True,
        )
    ]
    if _has_traits(wanted):
        identifies = pc.and_(pc.equal(rows.column("type"), "identify"), rows.column("traits").is_valid())
        for row in pc.indices_nonzero(identifies).to_pylist():
            try:
                given = _given(rows.column("traits")[row].as_py(), wanted)
            except (msgspec.DecodeError, RecursionError):
                found[row] = None
            else:
                found[row] = (*found[row][:-1], given)
    return found


def _given(traits: str, wanted: frozenset[str] | None) -> list[Any]:
    """Return names and values in turn: a text as it is, null as False, all else as its JSON.

    >>> _given('{"plan": "pro", "age": 7.50, "old": null, "tags": ["a"]}', None)
    ['plan', 'pro', 'age', '7.50', 'old', False, 'tags', '["a"]']

    Raises:
        msgspec.DecodeError: it is no JSON.
        RecursionError: it is nested too deeply.
    """
    found: list[Any] = []
    try:
        values = _traits(traits)
    except msgspec.ValidationError:  # no object
        return found
    for name, raw in values.items():
        if wanted is None or name in wanted:
            value: Any = bytes(raw).decode()
            if value == "null":
                value = False
            elif value.startswith('"'):
                value = _text(value)
            found += (name, value)
    return found
