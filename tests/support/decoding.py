"""Builders for the tests of decode."""

import json
from typing import Any

from millrace.schemas.envelope import Envelope
from millrace.transforms.decode import decode_envelopes
from millrace.transforms.pending import Decoding, Limits

NOW_US = 1_795_428_000_000_000  # 2026-11-23T10:00:00Z
NOW = "2026-11-23T10:00:00Z"


def event(**fields: Any) -> dict[str, Any]:
    """Return a small event; a field given as None is left out."""
    base = {"type": "track", "event": "Viewed", "messageId": "m1", "userId": "u1", "originalTimestamp": NOW}
    return {key: value for key, value in (base | fields).items() if value is not None}


def body(value: Any) -> bytes:
    """Return JSON; bytes stay as they are."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def envelope(value: Any, number: int = 0, /, **attributes: str) -> Envelope:
    """Return an envelope published NOW."""
    named = {key.replace("content_encoding", "content-encoding"): text for key, text in attributes.items()}
    return Envelope(body(value), named, f"e{number}", NOW_US, NOW_US + number, number)


def decode(*values: Any, **attributes: str) -> Decoding:
    """Decode bodies, one envelope each, within the default limits."""
    return decode_within(Limits(), *values, **attributes)


def decode_within(limits: Limits, *values: Any, **attributes: str) -> Decoding:
    """Decode bodies, one envelope each."""
    return decode_envelopes([envelope(v, n, **attributes) for n, v in enumerate(values)], NOW_US, limits)


def rows(decoding: Decoding, *columns: str) -> list[Any]:
    """Return the rows in the order of their envelopes: of one column its values, of several tuples, of none dicts."""
    found = sorted(decoding.batch.to_pylist(), key=lambda row: (row["envelope_id"], row["envelope_index"]))
    if not columns:
        return [{key: value for key, value in row.items() if value is not None} for row in found]
    return [row[columns[0]] if len(columns) == 1 else tuple(row[name] for name in columns) for row in found]


def refusals(decoding: Decoding) -> list[tuple[str, int, str, bytes]]:
    """Return (envelope_id, envelope_index, reason, payload) of the dead letters."""
    names = ("envelope_id", "envelope_index", "reason", "payload")
    return sorted(tuple(letter[name] for name in names) for letter in decoding.letters.to_pylist())
