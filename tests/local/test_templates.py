"""Prepared requests: whole events, new by id and time in every request."""

import uuid
from datetime import datetime
from typing import Any

import msgspec
import pytest
from google.pubsub_v1.types import PublishRequest

from millrace.local.templates import PreparedRequests
from millrace.schemas import envelope

TOPIC = "projects/local/topics/events"
_PublishRequest: Any = type(PublishRequest.pb(PublishRequest()))


@pytest.mark.parametrize(("events_a_message", "messages"), [(1, 40), (7, 10)])
def test_prepared_events_are_new_each_time(events_a_message: int, messages: int) -> None:
    prepared = PreparedRequests(TOPIC, events_a_message, messages, users=30)
    now_s = 1_764_158_400.5
    ids: list[str] = []
    users: set[str] = set()
    for number in range(10):
        request = prepared.take(now_s + number)
        read = _PublishRequest.FromString(request.payload)
        assert (read.topic, len(read.messages), request.events) == (TOPIC, messages, messages * events_a_message)
        for message in read.messages:
            received = datetime.fromisoformat(message.attributes[envelope.RECEIVED_AT])
            assert received.timestamp() == now_s + number
            whole = msgspec.json.decode(message.data)
            events = [whole] if events_a_message == 1 else whole["batch"]
            assert len(events) == events_a_message
            for event in events:
                original = event["originalTimestamp"] if "originalTimestamp" in event else event["timestamp"]
                lag = datetime.fromisoformat(event["sentAt"]) - datetime.fromisoformat(original)
                assert 0 <= lag.total_seconds() < 2
                assert (received - datetime.fromisoformat(event["sentAt"])).total_seconds() == pytest.approx(0.03)
                ids.append(event["messageId"])
                users.add(event.get("userId") or event["anonymousId"])
    assert len(set(ids)) == len(ids) == 10 * messages * events_a_message
    assert all(uuid.UUID(message_id).version == 4 for message_id in ids)
    assert len(users) > 10


@pytest.mark.parametrize(("events_a_message", "messages"), [(0, 1), (1, 0), (1, 1_001)])
def test_prepared_requests_have_a_size_that_the_broker_takes(events_a_message: int, messages: int) -> None:
    with pytest.raises(ValueError, match="need 1 event and 1 to 1,000 messages"):
        PreparedRequests(TOPIC, events_a_message, messages)
