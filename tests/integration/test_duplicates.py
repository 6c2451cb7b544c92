"""Copies over a restart: the real job, killed, remembers by its archive what has passed."""

import json
from pathlib import Path
from typing import Any

import pytest

from millrace.sinks.delta import open_table
from millrace.sinks.tables import ARCHIVE, with_columns
from millrace.transforms.copies import ADDS
from tests.support.job import running_job
from tests.support.pubsub import PubSub, broker_process

pytestmark = pytest.mark.slow


def track(message_id: str, price: int) -> bytes:
    event: dict[str, Any] = {"type": "track", "event": "Bought", "messageId": message_id, "userId": "ann"}
    return json.dumps(event | {"properties": {"price": price}}).encode()


def test_a_job_that_was_killed_knows_copies_of_what_it_archived(tmp_path: Path) -> None:
    with broker_process(tmp_path / "broker") as server:
        pubsub = PubSub(server.address)
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)
        with running_job(tmp_path, server.address, subscription) as job:
            pubsub.publish(topic, track("m1", 1), track("m1", 2), track("m2", 1), track("m2", 1))
            job.wait_for(archived=3)
        with running_job(tmp_path, server.address, subscription) as job:
            pubsub.publish(topic, track("m1", 1), track("m1", 2), track("m1", 3), track("m2", 1), track("m3", 1))
            job.wait_for(archived=5)
            assert job.drain() == 0
    table = open_table(str(tmp_path / "archive"), with_columns(ARCHIVE, ADDS)).delta.to_pyarrow_table().to_pylist()
    found = sorted((row["duplicate_of"] or row["message_id"], row["properties"]) for row in table)
    assert found == [(id_, json.dumps({"price": price})) for id_, price in
                     [("m1", 1), ("m1", 2), ("m1", 3), ("m2", 1), ("m3", 1)]]  # fmt: skip
    assert [row["message_id"] for row in table if row["duplicate_of"] is None].count("m1") == 1
    copies = sorted(row["message_id"] for row in job.rows("duplicates").to_pylist())
    assert copies == ["m1", "m1", "m2", "m2"]
