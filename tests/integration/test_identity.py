"""Order across login on Prism: real messages, a job that is killed between two logins, one sequence."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_job import iso, now_ms
from tests.support.job import running_job
from tests.support.pubsub import PubSub, broker_process

pytestmark = pytest.mark.slow


def happened(message_id: str, at_ms: int, **more: Any) -> bytes:
    at = {"type": "track", "event": "Tried", "messageId": message_id, "originalTimestamp": iso(at_ms)}
    return json.dumps(at | more).encode()


def login(message_id: str, at_ms: int, web: str, user: str) -> bytes:
    return happened(message_id, at_ms, type="identify", anonymousId=web, userId=user)


def test_a_person_is_one_sequence_across_logins_devices_and_a_killed_job(tmp_path: Path) -> None:
    config = tmp_path / "millrace.yaml"
    config.write_text("identity: {}\n")
    with broker_process(tmp_path / "broker") as server, PubSub(server.address) as pubsub:
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic, ack_deadline_seconds=10)
        at_ms = now_ms()
        first = [
            happened("2", at_ms + 1, anonymousId="web"),
            login("3", at_ms + 2, "web", "ann"),
            happened("1", at_ms, anonymousId="web"),
            happened("4", at_ms + 3, userId="ann"),
            *(happened(f"other-{number}", at_ms + number, userId=f"user-{number}") for number in range(20)),
        ]
        with running_job(tmp_path, server.address, subscription, f"--config={config}") as job:
            for body in reversed(first):
                pubsub.publish(topic, body)
            job.wait_for(archived=len(first))
        at_ms = now_ms()
        second = [
            happened("5", at_ms + 1, anonymousId="phone"),
            login("6", at_ms + 2, "phone", "ann"),
            happened("7", at_ms + 3, anonymousId="web"),
            happened("8", at_ms + 4, anonymousId="phone"),
            happened("9", at_ms + 5, userId="ann"),
        ]
        with running_job(tmp_path, server.address, subscription, f"--config={config}") as job:
            for body in reversed(second):
                pubsub.publish(topic, body)
            job.wait_for(archived=len(first) + len(second))
            assert job.drain() == 0, job.log()[-3_000:]
            rows = job.rows("archive").sort_by([("user_key", "ascending"), ("order_index", "ascending")]).to_pylist()
            identities = job.rows("identities").to_pylist()
    others = [(f"user-{number}", f"other-{number}") for number in range(20)]
    assert [(row["user_key"], row["message_id"]) for row in rows] == [
        ("phone", "5"), *sorted(others), *(("web", id_) for id_ in "12346789"),
    ]  # fmt: skip
    assert sorted((row["id"], row["user_id"], row["user_key"], row["message_id"]) for row in identities) == [
        ("ann", "ann", "web", "3"), ("phone", "ann", "web", "6"), ("web", "ann", "web", "3"),
    ]  # fmt: skip
