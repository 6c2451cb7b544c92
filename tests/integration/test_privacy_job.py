"""Privacy in a running job, on Prism: nothing private in its tables or its log, and every message is acknowledged."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from millrace.broker import protocol as pb
from tests.support.job import running_job
from tests.support.privacy import RING, SECRETS, keys, set_secrets
from tests.support.pubsub import PubSub, broker_process, wait_until

pytestmark = pytest.mark.slow

IP = "203.0.113.77"
CONFIG = f"""
privacy:
  {RING}
  fields:
    - {{field: context_ip, policy: truncate}}
    - {{field: user_id, policy: hash}}
  suppression: {{file: FILE}}
"""


def an_event(user: str, **more: Any) -> bytes:
    return json.dumps({"type": "track", "event": "Tried", "messageId": user, "userId": user, **more}).encode()


def test_what_is_private_stays_out_and_what_is_left_out_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_secrets(monkeypatch)
    (tmp_path / "ids").write_text("suppressed-user\n")
    config = tmp_path / "millrace.yaml"
    config.write_text(CONFIG.replace("FILE", str(tmp_path / "ids")))
    sent = [
        an_event("private-user"),
        an_event("suppressed-user"),
        an_event("broken-user", context={"ip": IP})[:-1],
        gzip.compress(an_event("packed-user"))[:-9],
    ]
    with broker_process() as server:
        pubsub = PubSub(server.address)
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)
        with running_job(tmp_path / "data", server.address, subscription, f"--config={config}") as job:
            for body in sent:
                pubsub.publish(topic, pb.PubsubMessage(data=body, attributes={"ip": IP}))
            job.wait_for(archived=1, dead_letters=2)
            wait_until(lambda: job.rows("dropped").num_rows == 1, 90, "the suppressed event among the dropped")
            assert job.drain() == 0
            assert pubsub.drain(subscription) == []
            (row,) = job.rows("archive").to_pylist()
            assert (row["user_key"], row["context_ip"]) == (keys().hash("private-user"), "203.0.113.0")
            (record,) = job.rows("dropped").to_pylist()
            assert (record["message_id"], record["rule"]) == ("suppressed-user", "suppression")
            letters = str(job.rows("dead_letters").to_pylist())
            assert IP not in letters
            assert keys().hash("broken-user") in letters
            for private in (IP, "private-user", "broken-user", "packed-user", "suppressed-user", *SECRETS.values()):
                assert private not in job.log()
