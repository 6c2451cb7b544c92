"""Decode: the row tells everything that the event said."""

import json
from typing import Any

import msgspec
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from millrace.schemas import wire
from millrace.transforms import clock
from millrace.transforms.pending import Decoding
from tests.support.decoding import body, decode, rows

TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=8)
NOT_BLANK = TEXT.filter(lambda text: bool(text.strip()))
SCALARS = (
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
TIMES = (
    st.datetimes().map(lambda time: time.isoformat() + "Z") | NOT_BLANK | st.just("2026-11-23T10:00:00.123456+02:00")
)


def objects(kind: type[msgspec.Struct], **columns: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Objects of the wire format with some of their columns, some of their other listed keys, and unlisted ones."""
    optional = dict.fromkeys(wire.keys(kind, columns=True).values(), TEXT) | columns
    optional |= {key: VALUES for key in wire.keys(kind, columns=False).values() if key not in columns}
    listed = st.fixed_dictionaries({}, optional=optional)
    unlisted = st.dictionaries(TEXT.filter(lambda key: key not in optional and key != "batch"), VALUES, max_size=2)
    return st.builds(lambda first, second: {**first, **second}, listed, unlisted)


CONTEXTS = objects(wire.Context, **{name: objects(kind) for name, kind in wire.CONTEXT_OBJECTS.items()})
TEXT_OR_NUMBER = NOT_BLANK | st.integers(0, 10**12)
EVENTS = st.builds(
    lambda fields, kind, user: {**fields, "type": kind, "userId": user},
    objects(
        wire.Event,
        context=CONTEXTS,
        anonymousId=NOT_BLANK,
        messageId=TEXT_OR_NUMBER,
        name=NOT_BLANK,
        properties=st.dictionaries(TEXT, VALUES, max_size=3),
        traits=st.dictionaries(TEXT, VALUES, max_size=3),
        **dict.fromkeys(("originalTimestamp", "timestamp", "sentAt", "receivedAt"), TIMES),
    ),
    st.sampled_from(["identify", "track", "group", "alias", "page", "screen"]),
    TEXT_OR_NUMBER,
)


def instant(text: str) -> int:
    return int(clock.read_times(pa.array([text]))[0])


def expected(event: dict[str, Any]) -> dict[str, Any]:
    """What must be found again: instants for the times, texts for ids; nothing where a known object held nothing."""
    kept = dict(event)
    for key in ("userId", "messageId"):
        if key in kept:
            kept[key] = str(kept[key])
    for key in ("originalTimestamp", "timestamp", "sentAt", "receivedAt"):
        if key in kept and instant(kept[key]) != clock.NO_TIME:
            kept[key] = instant(kept[key])
    if "context" in kept:
        context = dict(kept.pop("context"))
        for name in wire.CONTEXT_OBJECTS:
            if not context.get(name, True):
                del context[name]
        if context:
            kept["context"] = context
    return kept


def rebuilt(row: dict[str, Any], event: dict[str, Any]) -> dict[str, Any]:  # noqa: PLR0912  one branch for each thing that a column may change
    """The event, from its row; `event` only says which of two spellings a column came by."""
    found = {"type": row["type"], "userId": row["user_id"]}
    for column, key in (("anonymous_id", "anonymousId"), ("message_id", "messageId"), ("event", "event")):
        if row[column] is not None:
            found[key] = row[column]
    if row["type"] in ("page", "screen") and "event" in found:
        found["name"] = found.pop("event")
        if "name" not in event:  # it stands in the properties
            assert json.loads(row["properties"])["name"] == found.pop("name")
    if "messageId" not in event:
        assert found.pop("messageId") == "e0/0"
    rest = json.loads(row["rest"] or "{}")
    if row["original_timestamp"] is not None:
        found["originalTimestamp" if "originalTimestamp" in event else "timestamp"] = row["original_timestamp"]
    if row["sent_at"] is not None:
        found["sentAt"] = row["sent_at"]
    if "receivedAt" in event and "receivedAt" not in rest:
        found["receivedAt"] = row["received_at"]
    for key in ("timestamp", "receivedAt"):
        if key in rest and instant(rest[key]) != clock.NO_TIME:
            rest[key] = instant(rest[key])
    for key in ("properties", "traits"):
        if row[key] is not None:
            found[key] = json.loads(row[key])
    context = json.loads(row["context_rest"] or "{}")
    for attribute, key in wire.keys(wire.Context, columns=True).items():
        if attribute not in wire.CONTEXT_OBJECTS and row[f"context_{attribute}"] is not None:
            context[key] = row[f"context_{attribute}"]
    for name, kind in wire.CONTEXT_OBJECTS.items():
        for attribute, key in wire.keys(kind, columns=True).items():
            if row[f"context_{name}_{attribute}"] is not None:
                context.setdefault(name, {})[key] = row[f"context_{name}_{attribute}"]
    assert not found.keys() & rest.keys()
    whole: dict[str, Any] = found | rest | ({"context": context} if context else {})
    return whole


@given(st.lists(EVENTS, min_size=1, max_size=3))
def test_no_leaf_of_an_event_is_lost(events: list[dict[str, Any]]) -> None:
    decoding = decode(*([event] for event in events))
    assert decoding.letters.to_pylist() == []
    batch = decoding.batch
    for name in ("original_timestamp", "sent_at", "received_at"):  # as numbers: what a time was, to the microsecond
        batch = batch.set_column(batch.schema.get_field_index(name), name, batch.column(name).cast("int64"))
    found = {row["envelope_id"]: row for row in batch.drop_columns(["occurred_at"]).to_pylist()}
    for number, event in enumerate(events):
        row = found[f"e{number}"] | {"message_id": found[f"e{number}"]["message_id"].replace(f"e{number}/", "e0/")}
        assert rebuilt(row, event) == expected(event)


@given(st.lists(EVENTS, max_size=4))
def test_one_by_one_or_together_the_rows_are_the_same(events: list[dict[str, Any]]) -> None:
    def known(decoding: Decoding) -> list[dict[str, Any]]:
        return [
            {k: v for k, v in row.items() if k not in ("envelope_id", "envelope_index", "arrived_at", "receipt")}
            for row in rows(decoding)
        ]

    events = [event | {"messageId": f"m{number}"} for number, event in enumerate(events)]
    together = decode(events or [{}], b"\n".join(map(body, events)) or b"{}")
    singly = decode(*events, *events)
    assert sorted(map(str, known(together))) == sorted(map(str, known(singly)))
