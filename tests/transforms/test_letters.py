"""Letters: a refused event is written so that decode makes the same columns of it again."""

import json
from typing import Any

import pyarrow as pa
import pytest

from millrace.schemas.envelope import Envelope
from millrace.transforms.decode import decode_envelopes
from millrace.transforms.letters import encode_events
from tests.support.batches import NOON_US

EVENTS: list[dict[str, Any]] = [
    {"type": "track", "event": "Bought", "messageId": "1", "userId": "ann", "properties": {"total": 1.50, "ä": [None]}},
    {"type": "page", "name": "Cart", "messageId": "2", "anonymousId": "d", "context": {
        "page": {"path": "/cart", "tab_url": "x"}, "screen": {"width": 3}, "library": {"name": "web", "version": "2"},
        "os": {"name": "iOS"}, "userAgent": "Mozilla", "ip": "192.0.2.1", "locale": "de", "traits": {"a": 1}}},
    {"type": "identify", "messageId": "3", "userId": "ann", "anonymousId": "d", "traits": {"plan": "pro"},
     "integrations": {"All": False}, "unknown": {"kept": [1, {"deep": True}]}, "groupId": "g"},
    {"type": "screen", "event": "not its name", "name": "Home", "messageId": "4", "userId": "u",
     "originalTimestamp": "2026-11-25T11:59:59.123456Z", "sentAt": "2026-11-25T12:00:00Z", "timestamp": "gone"},
    {"type": "track", "messageId": "5", "userId": "u", "originalTimestamp": "yesterday"},
]  # fmt: skip


def decoded(bodies: list[bytes]) -> pa.RecordBatch:
    attributes = {"source_id": "shop", "received_at": "2026-11-25T12:00:00.500Z"}
    envelopes = [Envelope(body, attributes, f"e{n}", NOON_US, NOON_US) for n, body in enumerate(bodies)]
    found = decode_envelopes(envelopes, NOON_US)
    assert found.letters.num_rows == 0, found.letters.to_pylist()
    return found.batch


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event["messageId"])
def test_decoded_again_it_is_the_same_row(event: dict[str, Any]):
    row = decoded([json.dumps(event).encode()])
    again = decoded(encode_events(row))
    as_values = [batch.to_pylist()[0] for batch in (row, again)]
    for each in as_values:  # JSON text may differ in its white space
        for name in ("properties", "traits", "rest", "context_rest"):
            each[name] = each[name] and json.loads(each[name])
    assert as_values[1] == as_values[0]
