"""Sessions and touches end to end: a job that is killed in the middle, twice, tells what one that never died would."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from millrace.sinks.delta import open_table
from millrace.sinks.tables import ARCHIVE
from tests.integration.test_job import now_ms, track
from tests.support.along import Row, micros, sessions_of, touches_of
from tests.support.job import Job
from tests.support.pubsub import PubSub, broker_process, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

GAP_MIN = 0.05  # 3 s, more than the order wait
CONFIG = f"sessions:\n  gap_min: {GAP_MIN}\ntouch:\n"


class Visitors:
    """Seven users who come for some seconds and stay away for some, who send a part late, each in their own way."""

    def __init__(self, pubsub: PubSub, topic: str, seed: int) -> None:
        self._pubsub = pubsub
        self._topic = topic
        self._chance = random.Random(seed)  # noqa: S311
        self._began_ms = self._last_ms = now_ms()
        self.sent: dict[str, int] = {}
        """When each event occurred, in ms, by message_id."""

    def act(self) -> None:
        """Publish what happens now; nothing, if something did less than 100 ms ago."""
        if now_ms() - self._last_ms < 100:
            return
        self._last_ms = now_ms()
        passed_s = (self._last_ms - self._began_ms) / 1_000
        for user in range(7):
            if int(passed_s / (3.5 + user)) % 2 == 0:
                self._publish(f"user-{user}", self._last_ms - self._chance.choice([0, 50, 0, 6_000, 0, 15_000]))
        if int(passed_s / 4) % 2 == 0:
            self._publish("sdk", self._last_ms, context={"sessionId": 1_000 + int(passed_s / 11)})
            self._publish("sdk", self._last_ms - 20)

    def _publish(self, user: str, at_ms: int, **more: Any) -> None:
        message_id = f"m{len(self.sent)}"
        if self._chance.random() < 0.05:
            more["context"] = {"campaign": {"source": f"source-{message_id}"}}
        self._pubsub.publish(self._topic, json.dumps(track(message_id, at_ms, user, **more)).encode())
        self.sent[message_id] = at_ms


def archived(job: Job) -> list[Row]:
    rows: list[Row] = open_table(f"{job.data}/archive", ARCHIVE).delta.to_pyarrow_table().to_pylist()
    return rows


def test_after_two_kills_every_row_has_its_session_and_its_touches(tmp_path: Path):
    config = tmp_path / "millrace.yaml"
    config.write_text(CONFIG)
    with broker_process(tmp_path / "broker") as server, PubSub(server.address) as pubsub:
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic, ack_deadline_seconds=10)
        visitors = Visitors(pubsub, topic, seed=7)
        job = Job(tmp_path / "data", server.address, subscription, f"--config={config}", "--drain_until_empty")
        job.start()
        try:
            for _ in range(2):
                goal = job.rows("archive").num_rows + 400 if (tmp_path / "data" / "archive").exists() else 400
                wait_until(lambda goal=goal: acted(visitors, job, goal), 120, f"{goal} rows; {job.log()[-2_000:]}")  # type: ignore[misc]
                job.kill()
                job.start()
            goal = job.rows("archive").num_rows + 400
            wait_until(lambda: acted(visitors, job, goal), 120, f"{goal} rows; {job.log()[-2_000:]}")
            job.wait_for(archived=len(visitors.sent))
            assert job.drain() == 0, job.log()[-3_000:]
        finally:
            job.kill()
    rows = archived(job)
    assert {row["message_id"]: micros(row["occurred_at"]) // 1_000 for row in rows} == visitors.sent
    assert len(rows) == len(visitors.sent)
    found = {row["message_id"]: (row["session_index"], micros(row["session_start"]), row["session_by"]) for row in rows}
    assert found == sessions_of(rows, gap_min=GAP_MIN)
    assert {row["message_id"]: (row["first_touch_source"], row["last_touch_source"]) for row in rows} == touches_of(
        rows
    )
    assert {by for _, _, by in found.values()} == {"gap", "late", "sdk"}
    assert max(index for index, _, _ in found.values()) > 5


def acted(visitors: Visitors, job: Job, goal: int) -> bool:
    visitors.act()
    assert job.ended() is None, job.log()[-3_000:]
    return len(visitors.sent) >= goal and job.rows("archive").num_rows >= goal
