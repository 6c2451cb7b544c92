"""Letters: events that a stage behind decode refuses become dead letters; their payload is the event, written anew.

The bytes that came are gone by then: they are columns. `encode_events` writes them as the wire format has them, so that
decode makes the same columns of it again.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from millrace.schemas import dead_letter
from millrace.schemas.dead_letter import MESSAGE_CHARACTERS, Reason

_TEXTS = {"messageId": "message_id", "type": "type", "userId": "user_id", "anonymousId": "anonymous_id"}
_TIMES = {"originalTimestamp": "original_timestamp", "sentAt": "sent_at", "receivedAt": "received_at"}
_OBJECTS = {"properties": "properties", "traits": "traits"}
_NAMED = ("page", "screen")
_CONTEXT = {"locale": "locale", "timezone": "timezone", "ip": "ip", "user_agent": "userAgent"}


class HasReason(Protocol):
    """Which row of a batch is refused, and why."""

    @property
    def row(self) -> int: ...
    @property
    def reason(self) -> Reason: ...
    @property
    def message(self) -> str: ...


def encode_events(batch: pa.RecordBatch) -> list[bytes]:
    """Return events as the JSON objects that decode makes the same columns of.

    Args:
        batch: schemas.event.BATCH, or rows of the archive; columns that stages have added are left out.
    """
    return [msgspec.json.encode(_event(row)) for row in batch.to_pylist()]


def _event(row: Mapping[str, Any]) -> dict[str, Any]:
    event: dict[str, Any] = {key: row[name] for key, name in _TEXTS.items() if row[name] is not None}
    event |= {key: _time(row[name]) for key, name in _TIMES.items() if row[name] is not None}
    event |= {key: msgspec.Raw(row[name].encode()) for key, name in _OBJECTS.items() if row[name] is not None}
    if row["event"] is not None:
        event["name" if row["type"] in _NAMED else "event"] = row["event"]
    context = _context(row)
    if context:
        event["context"] = context
    rest = msgspec.json.decode(row["rest"], type=dict[str, msgspec.Raw]) if row["rest"] else {}
    return event | rest


def _context(row: Mapping[str, Any]) -> dict[str, Any]:
    context: dict[str, Any] = {}
    for name, value in row.items():
        if value is None or not name.startswith("context_") or name == "context_rest":
            continue
        key = name.removeprefix("context_")
        if key in _CONTEXT:
            context[_CONTEXT[key]] = value
        else:
            outer, _, inner = key.partition("_")
            context.setdefault(outer, {})[inner] = value
    if row["context_rest"]:
        for key, value in msgspec.json.decode(row["context_rest"], type=dict[str, msgspec.Raw]).items():
            if key in context and bytes(value).startswith(b"{"):
                context[key] |= msgspec.json.decode(value, type=dict[str, msgspec.Raw])
            else:
                context[key] = value
    return context


def _time(at: dt.datetime) -> str:
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def letters_of(batch: pa.RecordBatch, stage: str, refused: Sequence[HasReason], now_us: int) -> pa.RecordBatch:
    """Return the dead letters of some rows of a batch of events.

    Args:
        batch: schemas.event.BATCH, and whatever stages have added.
        stage: which one refuses them.
        refused: which rows, and why.
        now_us: the job's clock, µs since the epoch.
    """
    rows = batch.take(pa.array([each.row for each in refused], pa.int64()))
    size = rows.num_rows
    attributes = [
        msgspec.json.encode({"source_id": source}).decode() if source else None
        for source in rows.column("source_id").to_pylist()
    ]
    columns = {
        "payload": encode_events(rows),
        "attributes": attributes,
        "stage": [stage] * size,
        "reason": [each.reason.value for each in refused],
        "message": [each.message[:MESSAGE_CHARACTERS] for each in refused],
        "source_id": rows.column("source_id"),
        "envelope_id": rows.column("envelope_id"),
        "envelope_index": rows.column("envelope_index"),
        "published_at": rows.column("published_at"),
        "refused_at": pc.cast(pa.array([now_us] * size, pa.int64()), dead_letter.BATCH.field("refused_at").type),
        "date": pa.array([now_us // 86_400_000_000] * size, pa.int32()).cast(pa.date32()),
        "receipt": rows.column("receipt"),
    }
    schema = dead_letter.BATCH
    arrays = [
        values if isinstance(values, pa.Array) else pa.array(values, field.type)
        for field, values in ((field, columns[field.name]) for field in schema)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
