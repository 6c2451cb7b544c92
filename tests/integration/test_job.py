"""The main job against real servers: real messages in, rows in order out, whatever comes."""

import gzip
import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from millrace.broker import protocol as pb
from tests.support.gcs import gcs_server
from tests.support.job import running_job
from tests.support.pubsub import PubSub, Server, broker_process, wait_until

pytestmark = pytest.mark.slow


def iso(at_ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_ms // 1000)) + f".{at_ms % 1000:03d}Z"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def track(message_id: str, at_ms: int, user: str = "ann", **more: Any) -> dict[str, Any]:
    return {
        "type": "track",
        "event": "Tried",
        "messageId": message_id,
        "userId": user,
        "originalTimestamp": iso(at_ms),
        **more,
    }


def test_an_empty_topic_then_a_first_event_then_a_second(pubsub_server: Server, tmp_path: Path) -> None:
    pubsub = PubSub(pubsub_server.address)
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic)
    with running_job(tmp_path, pubsub_server.address, subscription) as job:
        wait_until(lambda: job.log().count("archived 0") >= 3, 90, "three progress lines of nothing")
        pubsub.publish(topic, json.dumps(track("first", now_ms())).encode())
        job.wait_for(archived=1)
        pubsub.publish(topic, json.dumps(track("second", now_ms())).encode())
        job.wait_for(archived=2)
        assert job.drain() == 0
        assert job.rows("archive").sort_by("order_index").column("message_id").to_pylist() == ["first", "second"]


def test_a_backlog_from_before_the_start_comes_out_in_order_and_not_late(pubsub_server: Server, tmp_path: Path) -> None:
    pubsub = PubSub(pubsub_server.address)
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic)
    began_s = time.time()
    sent: list[tuple[str, int, str]] = []

    def publish_a_part() -> bool:
        part = []
        for number in range(5):
            at_ms = now_ms() - number * 370 % 1000  # up to a second out of order
            sent.append((f"m{len(sent)}", at_ms, f"user-{len(sent) % 3}"))
            part.append(json.dumps(track(*sent[-1])).encode())
        pubsub.publish(topic, *part)
        return time.time() - began_s > 8  # four order waits: by arrival at the job, all of it would be late

    wait_until(publish_a_part)
    with running_job(tmp_path, pubsub_server.address, subscription) as job:
        job.wait_for(archived=len(sent))
        rows = job.rows("archive").sort_by([("user_key", "ascending"), ("order_index", "ascending")])
    assert not any(rows.column("is_late").to_pylist())
    # Of one millisecond, the one that was received first, by fives as published; then by id.
    by_user = sorted(sent, key=lambda each: (each[2], each[1], int(each[0][1:]) // 5, each[0]))
    assert rows.column("message_id").to_pylist() == [id_ for id_, _, _ in by_user]


def test_hostile_payloads_become_dead_letters_and_the_job_goes_on(pubsub_server: Server, tmp_path: Path) -> None:
    pubsub = PubSub(pubsub_server.address)
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic)
    whole = json.dumps(track("m", now_ms())).encode()
    hostile = {
        "truncated": (whole[:-9], {}, "not_json"),
        "nested": (whole[:-1] + b',"properties":' + b'{"a":' * 500 + b"1" + b"}" * 501, {}, "too_deep"),
        "nan": (whole[:-1] + b',"properties":{"price":NaN}}', {}, "not_json"),
        "huge number": (whole[:-1] + b',"properties":{"price":1e999}}', {}, "number_out_of_range"),
        "not utf-8": (whole.replace(b"Tried", b"\xff\xfe"), {}, "not_utf8"),
        "nul": (whole.replace(b"Tried", b"\\u0000"), {}, "forbidden_character"),
        "surrogate": (whole.replace(b"Tried", b"\\ud800"), {}, "forbidden_character"),
        "bomb": (gzip.compress(b" " * 64 * 1024 * 1024), {"content-encoding": "gzip"}, "too_large"),
        "blank": (b" ", {}, "empty"),
        "large": (whole[:-1] + b',"properties":{"text":"' + b"x" * 9_900_000 + b'"}}', {}, "too_large"),
        "wrong type": (whole.replace(b'"Tried"', b"[1]"), {}, "not_an_event"),
        "nobody": (whole.replace(b"userId", b"useless"), {}, "no_user"),
    }
    with running_job(tmp_path, pubsub_server.address, subscription) as job:
        for body, attributes, _ in hostile.values():
            pubsub.publish(topic, pb.PubsubMessage(data=body, attributes=attributes))
        pubsub.publish(topic, json.dumps(track("good", now_ms())).encode())
        job.wait_for(archived=1, dead_letters=len(hostile))
        letters = job.rows("dead_letters")
        assert job.drain() == 0
    assert sorted(letters.column("reason").to_pylist()) == sorted(reason for _, _, reason in hostile.values())
    found = dict(zip(letters.column("payload").to_pylist(), letters.column("reason").to_pylist(), strict=True))
    assert found == {body: reason for body, _, reason in hostile.values()}
    assert job.rows("archive").column("message_id").to_pylist() == ["good"]


def test_a_lease_that_ran_out_neither_loses_nor_doubles_an_event(pubsub_server: Server, tmp_path: Path) -> None:
    pubsub = PubSub(pubsub_server.address)
    topic = pubsub.create_topic()
    subscription = pubsub.create_subscription(topic, ack_deadline_seconds=10)
    ids = [f"m{number}" for number in range(50)]
    pubsub.publish(topic, *(json.dumps(track(id_, now_ms())).encode() for id_ in ids))
    # Another reader takes them and dies: they come to the job once its leases have run out, and to it alone.
    taken = wait_until(lambda: pubsub.pull(subscription, 50))
    with running_job(tmp_path, pubsub_server.address, subscription, "--order_wait_s=15") as job:
        job.wait_for(archived=len(ids))
        assert len(taken) > 0
        assert job.drain() == 0
        rows = job.rows("archive")
    assert sorted(rows.column("message_id").to_pylist()) == sorted(ids)
    oldest, newest = min(rows.column("published_at").to_pylist()), max(rows.column("released_at").to_pylist())
    assert newest - oldest < timedelta(seconds=120)


def test_the_archive_may_be_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with broker_process(tmp_path / "broker") as server, gcs_server("millrace-test") as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.endpoint.removeprefix("http://"))
        pubsub = PubSub(server.address)
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)
        bodies = [json.dumps(track(f"m{number}", now_ms() + number)).encode() for number in range(20)]
        pubsub.publish(topic, *bodies, bodies[3], b"{")
        with running_job(tmp_path, server.address, subscription, root="gs://millrace-test/events") as job:
            job.wait_for(archived=20, dead_letters=1)
            assert job.drain() == 0
        archived = job.rows("archive").sort_by("order_index").column("message_id").to_pylist()
        assert archived == [f"m{number}" for number in range(20)]
        assert job.rows("duplicates").column("message_id").to_pylist() == ["m3"]
        assert job.rows("dead_letters").column("payload").to_pylist() == [b"{"]
