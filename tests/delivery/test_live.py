"""The feed of a lane without order, over real Pub/Sub servers: what it gives, and when a message is acknowledged."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from millrace.broker import protocol as pb
from millrace.config.expressions import compile_expression
from millrace.delivery.feed import CannotReadError
from millrace.delivery.ledger import Mark, Trying
from millrace.delivery.live import Memory, live_feed
from millrace.delivery.puller import Bounds
from millrace.delivery.settled import settled_envelopes
from millrace.schemas.event import BATCH
from millrace.sinks.json_rows import json_rows
from millrace.transforms.route import Route
from tests.support.live import ALL, body, hand_lane, ids
from tests.support.pubsub import PubSub, Server
from tests.transforms.test_decode_hostile import BAD_EVENTS


@pytest.fixture
def pubsub(pubsub_server: Server) -> Iterator[PubSub]:
    with PubSub(pubsub_server.address) as calls:
        yield calls


@pytest.fixture
def topic(pubsub: PubSub) -> str:
    return pubsub.create_topic()


@pytest.fixture
def short_leases(pubsub: PubSub, topic: str) -> None:
    """For tests that open a lane twice: Google's emulator gives what is handed back to a pull that was cancelled."""
    pubsub.create_subscription(topic, "own", ack_deadline_seconds=10)


@pytest.mark.usefixtures("short_leases")
def test_events_come_as_their_route_sends_them_and_the_message_is_acknowledged_once_all_are_settled(
    pubsub: PubSub, topic: str, tmp_path: Path
) -> None:
    route = Route(
        "crm", "crm", columns=(("message_id", "id"), ("properties", "what"), ("user_id", "who")), is_ordered=False
    )
    with hand_lane(pubsub, topic, tmp_path / "ledger", routes=(route,)) as lane:
        pubsub.publish(topic, body("a", "b", properties={"price": 3}), body("c"))
        events = sorted(lane.read(3), key=lambda each: each.message_id)
        sent = [json.loads(json_rows(each.payload.rows.slice(each.payload.at, 1))[0]) for each in events]
        assert sent == [
            {"id": "a", "what": {"price": 3}, "who": "user-a"},
            {"id": "b", "what": {"price": 3}, "who": "user-b"},
            {"id": "c", "who": "user-c"},
        ]
        assert [(each.user_key, each.payload.user_key, each.route, each.attempts) for each in events] == [
            (None, f"user-{name}", 0, 0) for name in "abc"
        ]
        assert len({each.position for each in events}) == 3
        assert [each.size for each in events] == [43, 43, 31]  # their texts, and eight bytes a column
        lane.settle([events[0], events[2]])
        assert lane.ledger.totals() == {"routed": 1, "delivered": 1}  # of messages of which all is settled
        assert lane.feed.lag_us(events[0].payload.message.published_us + 5_000_000) >= 4_000_000
    with hand_lane(pubsub, topic, tmp_path / "ledger", routes=(route,)) as lane:
        again = lane.read(2)
        assert ids(again) == ["a", "b"]  # whole messages: at least once
        assert min(each.position for each in again) > max(each.position for each in events)
        lane.settle(again[:1], Mark.DEAD)
        lane.settle(again[1:], Mark.SKIPPED)
        assert lane.ledger.totals() == {"routed": 3, "delivered": 1, "dead": 1, "skipped": 1}
    assert pubsub.drain(pubsub.subscription_name("own")) == []


def test_what_takes_no_route_or_cannot_go_on_is_acknowledged_and_counted(
    pubsub: PubSub, topic: str, tmp_path: Path
) -> None:
    when = compile_expression('event == "Bought"', BATCH)
    with hand_lane(pubsub, topic, tmp_path / "ledger", routes=(Route("crm", "crm", when, is_ordered=False),)) as lane:
        hostile = [text for text, _ in BAD_EVENTS.values()]
        packed = pb.PubsubMessage(data=gzip.compress(body("zip"))[:-5], attributes={"content-encoding": "gzip"})
        pubsub.publish(topic, *hostile, packed, body("other", event="Looked"), body("good"), body("", type="nothing"))
        events = lane.read_until({"refused": len(hostile) + 2})
        assert ids(events) == ["good"]
        lane.settle(events)
        assert lane.ledger.totals() == {"refused": len(hostile) + 2, "routed": 1, "delivered": 1}
        settled = settled_envelopes(lane.ledger)
        assert settled is not None
        assert settled.envelopes.events.tolist() == [1]  # those without anything for the lane are not on record
    assert pubsub.drain(pubsub.subscription_name("own")) == []


def test_copies_are_dropped_and_another_event_with_a_taken_id_has_its_own(
    pubsub: PubSub, topic: str, tmp_path: Path
) -> None:
    with hand_lane(pubsub, topic, tmp_path / "ledger") as lane:
        pubsub.publish(topic, body("a", "a", "b"))
        first = lane.read(2)
        pubsub.publish(topic, body("b"), body("a", event="Looked"))
        other = lane.read(1)
        assert ids(first) == ["a", "b"]
        assert ids(other)[0].startswith("a~")
        lane.settle([*first, *other])
        lane.read_until({"routed": 3, "delivered": 3, "copies": 2})


@pytest.mark.usefixtures("short_leases")
def test_what_is_parked_is_kept_for_good_and_its_message_acknowledged(
    pubsub: PubSub, topic: str, tmp_path: Path
) -> None:
    with hand_lane(pubsub, topic, tmp_path / "ledger") as lane:
        pubsub.publish(topic, body("a", "b"), body("c"))
        events = {each.message_id: each for each in lane.read(3)}
        lane.settle([events["a"], events["c"]], Mark.PARKED)
        assert lane.ledger.totals() == {"routed": 1, "parked": 1}
        assert lane.feed.bring_back("event:nobody") == []
    with hand_lane(pubsub, topic, tmp_path / "ledger") as lane:  # b was not settled: its message comes again
        (b,) = lane.read(1)
        assert b.message_id == "b"
        lane.settle([b])
        assert lane.ledger.totals() == {"routed": 3, "parked": 2, "delivered": 1}
        (back,) = lane.feed.bring_back("user:user-c")
        assert lane.feed.bring_back("user:user-c") == []
        assert json.loads(json_rows(back.payload.rows)[0])["message_id"] == "c"
        lane.settle([back], Mark.PARKED)
        assert lane.ledger.totals()["parked"] == 2
        assert ids(lane.feed.bring_back("all")) == ["a", "c"]
    assert pubsub.drain(pubsub.subscription_name("own")) == []
    with hand_lane(pubsub, topic, tmp_path / "ledger") as lane:  # brought back and not settled: still parked
        lane.settle(lane.feed.bring_back("all"))
        assert lane.ledger.totals() == {"routed": 3, "parked": 0, "delivered": 3}
        assert lane.ledger.parked() == []
        assert lane.feed.bring_back("all") == []


@pytest.mark.usefixtures("short_leases")
def test_an_event_that_is_being_tried_has_been_tried_after_a_restart_too(
    pubsub: PubSub, topic: str, tmp_path: Path
) -> None:
    tried = Trying(0, "", "b", 4, 1_000, 2_000, "failed", "HTTP 500", 0)
    with hand_lane(pubsub, topic, tmp_path / "ledger") as lane:
        pubsub.publish(topic, body("a", "b"))
        lane.read(2)
        lane.save(tried)
        assert lane.ledger.trying() == [tried]
    with hand_lane(pubsub, topic, tmp_path / "ledger") as lane:
        lane.save()  # before it comes again
        assert lane.ledger.trying() == [tried]
        found = {each.message_id: (each.attempts, each.first_us, each.next_us, each.detail) for each in lane.read(2)}
        assert found == {"a": (0, 0, 0, ""), "b": (4, 1_000, 2_000, "HTTP 500")}
        lane.save()
        assert lane.ledger.trying() == []


def test_beyond_its_bounds_a_lane_pulls_nothing_and_the_backlog_stays_in_pubsub(
    pubsub: PubSub, topic: str, tmp_path: Path
) -> None:
    bounds, memory = Bounds(read_messages=50, open_messages=200), Memory(rows_bytes=400_000)
    with hand_lane(pubsub, topic, tmp_path / "ledger", bounds=bounds, memory=memory) as lane:
        for first in range(0, 4_000, 500):
            pubsub.publish(
                topic, *(body(f"m{number}", properties={"n": "x" * 3_000}) for number in range(first, first + 500))
            )
        events = lane.read(100)
        for _ in range(20):  # a sink that never answers: what is in hand has a bound, in bytes and messages
            events += lane.feed.read()
        held = sum(each.size for each in events)
        assert 400_000 <= held <= 400_000 + 51 * 4_000
        assert lane.feed.behind() < 200 + 1_000  # and at most one more pull
        seen = Counter(each.message_id for each in events)
        while len(seen) < 4_000:
            lane.settle(events)
            events = lane.read(1)
            seen.update(each.message_id for each in events)
        lane.settle(events)
        assert seen == dict.fromkeys((f"m{number}" for number in range(4_000)), 1)
        assert lane.ledger.totals() == {"routed": 4_000, "delivered": 4_000}


def test_of_a_batch_of_which_little_waits_little_is_kept(pubsub: PubSub, topic: str, tmp_path: Path) -> None:
    memory = Memory(rows_bytes=2_500_000)
    with hand_lane(pubsub, topic, tmp_path / "ledger", memory=memory) as lane:
        stuck: dict[str, Any] = {}
        for number in range(20):  # ten times as much as may be in memory, and of each batch one event never ends
            pubsub.publish(topic, body(*(f"{number}-{each}" for each in range(400)), properties={"n": "x" * 3_000}))
            events = lane.read(400)
            stuck |= {each.message_id: each for each in events if each.message_id.endswith("-7")}
            lane.settle([each for each in events if not each.message_id.endswith("-7")])
        rows = [json.loads(json_rows(each.payload.rows.slice(each.payload.at, 1))[0]) for each in stuck.values()]
        assert [row["message_id"] for row in rows] == [f"{number}-7" for number in range(20)] == list(stuck)


def test_the_subscription_is_made_as_a_lane_needs_it_and_another_topics_is_refused(
    pubsub: PubSub, topic: str, tmp_path: Path
) -> None:
    with hand_lane(pubsub, topic, tmp_path / "ledger"):
        made = pubsub.get_subscription(pubsub.subscription_name("own"))
        assert (made.topic, made.ack_deadline_seconds) == (topic, 20)
        assert made.message_retention_duration.seconds == 7 * 86_400
        assert not made.expiration_policy.ttl.seconds
    other = pubsub.create_topic()
    problem = rf"belongs to {topic}, not to {other}: give the lane another"
    with pytest.raises(CannotReadError, match=problem), hand_lane(pubsub, other, tmp_path / "ledger"):
        pass


def test_a_missing_subscription_or_topic_is_told_with_what_to_type(pubsub: PubSub, topic: str, tmp_path: Path) -> None:
    command = (
        f"gcloud pubsub subscriptions create own --project={pubsub.project} --topic=TOPIC --ack-deadline=20 "
        "--message-retention-duration=7d --expiration-period=never"
    )
    problem = f"does not exist at the emulator at .*: give --topic to have it created, or type `{command}`"
    with pytest.raises(CannotReadError, match=problem), hand_lane(pubsub, "", tmp_path / "ledger"):
        pass
    problem = r"nothing does not exist at the emulator at .*: create it, or correct --topic"
    nowhere = pubsub.topic_name("nothing")
    with pytest.raises(CannotReadError, match=problem), hand_lane(pubsub, nowhere, tmp_path / "ledger"):
        pass


def test_a_lane_says_what_it_lacks_before_it_asks_anybody(tmp_path: Path) -> None:
    config = tmp_path / "millrace.yaml"
    config.write_text("privacy: {keys: [{version: v1, secret: env:MILLRACE_TEST_NONE}], fields: "
                      "[{field: user_id, policy: hash}]}")  # fmt: skip
    settings: Any = type("Settings", (), {"name": "crm.unordered", "routes": ALL})()
    ledger: Any = None
    for topic, problem in (
        ("", "give it as --topic=projects/PROJECT/topics/NAME"),
        ("events", "'events' is no topic: write projects/PROJECT/topics/NAME"),
        ("projects/p/topics/t", "MILLRACE_TEST_NONE"),
    ):
        with pytest.raises(CannotReadError, match=problem):
            live_feed(settings, ledger, config=str(config), topic=topic, prefix="millrace-")
