"""A transform of one's own in the job on Prism: its columns, its events, its state after a restart."""

import json
from pathlib import Path
from typing import Any

import pytest

from millrace.sinks.delta import open_table
from millrace.sinks.tables import ARCHIVE
from tests.examples.names import FOLDER
from tests.integration.test_job import now_ms, track
from tests.support.job import Job, running_job
from tests.support.pubsub import PubSub, Server, broker_process

pytestmark = pytest.mark.slow

CONFIG = """
transforms:
  - use: carts:CartAbandonment
    with: { minutes: 1 }
"""


@pytest.fixture
def server() -> Any:
    with broker_process() as found:
        yield found


def rows(job: Job) -> list[dict[str, Any]]:
    table = open_table(f"{job.data}/archive", ARCHIVE).delta.to_pyarrow_table()
    found: list[dict[str, Any]] = table.sort_by([("user_key", "ascending"), ("order_index", "ascending")]).to_pylist()
    return found


def added(message_id: str, at_ms: int, price: float) -> bytes:
    event = track(message_id, at_ms, event="Product Added", properties={"product_id": message_id, "price": price})
    return json.dumps(event).encode()


def test_carts_that_are_left_are_told_of_and_a_restart_does_not_forget_them(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", str(FOLDER / "carts"))
    config = tmp_path / "millrace.yaml"
    config.write_text(CONFIG)
    pubsub = PubSub(server.address)
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic)
    began_ms = now_ms() - 600_000
    with running_job(tmp_path / "data", server.address, subscription, f"--config={config}") as job:
        pubsub.publish(topic, added("a", began_ms, 2.5))
        pubsub.publish(topic, json.dumps(track("b", began_ms + 90_000)).encode())
        pubsub.publish(topic, added("c", began_ms + 100_000, 4.0))
        job.wait_for(archived=4)
        assert job.drain() == 0
        assert "transform cart_abandonment: 3 events  p50 " in job.log()
        assert "bytes of 1 users" in job.log()
    with running_job(tmp_path / "data", server.address, subscription, f"--config={config}") as job:
        pubsub.publish(topic, json.dumps(track("d", began_ms + 300_000)).encode())
        job.wait_for(archived=6)
        assert job.drain() == 0
        columns = ("message_id", "event", "cart_value")
        assert [tuple(row[name] for name in columns) for row in rows(job)] == [
            ("a", "Product Added", 2.5),
            ("b", "Tried", None),
            ("b/cart_abandonment/1", "Cart Abandoned", 2.5),
            ("c", "Product Added", 4.0),
            ("d", "Tried", None),
            ("d/cart_abandonment/1", "Cart Abandoned", 4.0),
        ]


def test_a_transform_that_cannot_be_found_is_a_line_at_the_start(server: Server, tmp_path: Path):
    config = tmp_path / "millrace.yaml"
    config.write_text(CONFIG.replace("carts:", "no_carts:"))
    job = Job(tmp_path / "data", server.address, "projects/p/subscriptions/sub", f"--config={config}")
    job.start()
    assert job.process is not None
    assert job.process.wait(150) == 2
    assert job.log() == (
        f"{config}:3: transforms: use: there is no module 'no_carts'; install its package, or start where the file is\n"
    )
