"""Each chaos switch does what it says, and breaks no promise of Pub/Sub."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from millrace.broker import Broker, Chaos
from millrace.broker import protocol as pb
from tests.support.pubsub import PubSub, bodies, wait_until

SENT = [b"%d" % number for number in range(400)]


def backlog(own: PubSub, **fields: Any) -> str:
    topic = own.create_topic()
    subscription = own.create_subscription(topic, **fields)
    own.publish(topic, *SENT)
    return subscription


def test_dropped_acks_bring_messages_again(broker: Broker, own: PubSub) -> None:
    subscription = backlog(own, ack_deadline_seconds=2)
    broker.chaos.drop_acks = 0.3
    first = own.pull_until(subscription, len(SENT))
    own.ack(subscription, *first)
    broker.chaos.drop_acks = 0
    again: list[bytes] = []

    def all_back() -> bool:
        received = own.pull(subscription, timeout_s=4)
        if received:
            own.ack(subscription, *received)
        again.extend(bodies(received))
        return not received

    wait_until(all_back)
    assert 0.15 < len(again) / len(SENT) < 0.45
    assert set(again) <= set(SENT)
    assert len(set(again)) == len(again)


def test_duplicates_come_once_more_though_acknowledged(broker: Broker, own: PubSub) -> None:
    subscription = backlog(own)
    broker.chaos.duplicate = 0.3
    first = own.pull(subscription)
    own.ack(subscription, *first)
    copies = own.drain(subscription)
    assert bodies(first) == SENT
    assert 0.15 < len(copies) / len(SENT) < 0.45
    assert {one.message.message_id for one in copies} <= {one.message.message_id for one in first}
    assert not {one.ack_id for one in copies} & {one.ack_id for one in first}
    assert own.pull(subscription, at_once=True) == []


def test_reorder_changes_the_order_and_loses_nothing(broker: Broker, own: PubSub) -> None:
    broker.chaos.reorder = 0.3
    subscription = backlog(own)
    first = own.pull(subscription)
    assert bodies(first) != sorted(bodies(first), key=int)
    assert len(first) < len(SENT)  # the others are held back for later pulls
    rest = own.pull_until(subscription, len(SENT) - len(first))
    assert sorted(bodies([*first, *rest]), key=int) == SENT


def test_reorder_leaves_a_keys_order_alone(broker: Broker, own: PubSub) -> None:
    broker.chaos.reorder = 0.5
    topic = own.create_topic()
    subscription = own.create_subscription(topic, enable_message_ordering=True)
    own.publish(topic, *(pb.PubsubMessage(data=data, ordering_key="k") for data in SENT))
    assert bodies(own.pull(subscription)) == SENT


def test_failed_publishes_are_unavailable_and_lose_nothing_that_was_accepted(broker: Broker, own: PubSub) -> None:
    topic = own.create_topic()
    subscription = own.create_subscription(topic)
    broker.chaos.fail_publish = 0.4
    accepted, failed = [], []
    for data in SENT[:100]:
        try:
            own.publish(topic, data)
            accepted.append(data)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            failed.append(data)
    assert 20 < len(failed) < 60
    delivered = set(bodies(own.drain(subscription)))
    assert set(accepted) <= delivered
    # Of every second one only the answer was lost: a publisher that tries again makes a duplicate.
    assert delivered - set(accepted) == set(failed[1::2])


@pytest.mark.parametrize("switch", ["delay_publish_ms", "delay_pull_ms"])
def test_delays_delay(broker: Broker, own: PubSub, switch: str) -> None:
    topic = own.create_topic()
    subscription = own.create_subscription(topic)
    setattr(broker.chaos, switch, 300)
    started = time.monotonic()
    own.publish(topic, b"x") if switch == "delay_publish_ms" else own.pull(subscription, at_once=True)
    assert 0.3 <= time.monotonic() - started < 30


def test_a_stall_holds_every_call_until_it_ends(broker: Broker, own: PubSub) -> None:
    topic = own.create_topic()
    subscription = own.create_subscription(topic)
    own.publish(topic, b"x")
    broker.chaos.stall = True
    with pytest.raises(grpc.RpcError) as refused:
        own.pull(subscription, at_once=True, timeout_s=0.3)
    assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    with ThreadPoolExecutor(1) as threads:
        publishing = threads.submit(own.publish, topic, b"y")
        with pytest.raises(TimeoutError):
            publishing.result(timeout=0.2)
        broker.chaos.stall = False
        assert len(publishing.result(timeout=60)) == 1
    assert bodies(own.pull_until(subscription, 2)) == [b"x", b"y"]


def test_the_same_seed_makes_the_same_trouble() -> None:
    def losses(seed: int) -> list[int]:
        with Broker(chaos=Chaos(seed=seed, drop_acks=0.5)) as broker, PubSub(broker.address) as own:
            subscription = backlog(own)
            received = own.pull(subscription)
            own.ack(subscription, *received)
            own.modify(subscription, 0, *received)
            return [int(body) for body in bodies(own.pull(subscription))]

    first = losses(1)
    assert first == losses(1) != losses(2)


def test_switches_are_read_from_text() -> None:
    expected = Chaos(seed=7, drop_acks=0.25, delay_pull_ms=20, stall=True)
    assert Chaos.parse("drop_acks=0.25,delay_pull_ms=20,stall=true,seed=7") == expected
    assert Chaos.parse("") == Chaos()


@pytest.mark.parametrize(
    "text", ["drop_acks=2", "drop_acks=-0.1", "drop_acks=x", "drop_acks", "speed=1", "delay_pull_ms=0.5"]
)
def test_a_bad_switch_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Chaos.parse(text)
