"""The reader's hands: bounded, patient, and exact about leases and acknowledgements."""

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from millrace.transforms import subscriber as module
from millrace.transforms.receipts import Ledger
from millrace.transforms.subscriber import Limits, Pulled, Subscriber
from tests.support.batches import NOON_US
from tests.support.pubsub import wait_until
from tests.support.subscription import Clock, RpcError, Subscription, message

Start = Callable[..., Subscriber]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "_BACKOFF_S", (0.001,))
    return clock


@pytest.fixture
def client() -> Subscription:
    return Subscription()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def start(client: Subscription, ledger: Ledger, clock: Clock) -> Iterator[Start]:
    """Starts a subscriber; it is closed at the end."""
    started: list[Subscriber] = []

    def begin(pullers: int = 1, ack_deadline_s: int = 10, **limits: Any) -> Subscriber:
        given = Limits()._replace(**limits)
        client_: Any = client
        started.append(Subscriber(client_, ledger, pullers=pullers, limits=given, ack_deadline_s=ack_deadline_s))
        started[-1].start()
        return started[-1]

    yield begin
    for one in started:
        one.stop_pulling()
        client.end()
        one.close(hand_back=False)
        for thread in one._pullers:
            thread.join(60)
            assert not thread.is_alive()


def taken(subscriber: Subscriber) -> Pulled:
    pulled = wait_until(subscriber.take, 90, "a pull")
    assert isinstance(pulled, Pulled)
    return pulled


def ids(pulled: Pulled) -> list[str]:
    return [each.ack_id for each in pulled.messages]


def settle(ledger: Ledger, *receipts: int) -> None:
    """Say that messages of one record each are safe."""
    ones = np.ones(len(receipts), np.int64)
    ledger.expect(np.array(receipts, np.int64), ones)
    ledger.settle(np.array(receipts, np.int64), ones)


def test_messages_come_by_pull_with_their_receipts_and_times(start: Start, client: Subscription, ledger: Ledger):
    subscriber = start()
    assert subscriber.take() is None
    client.give([message("a", 2, b"12"), message("b", 1, b"345")], [message("c", 3, b"")])
    first, second = taken(subscriber), taken(subscriber)
    assert (ids(first), first[1:]) == (["a", "b"], (0, 5, NOON_US + 1_000_000, NOON_US + 2_000_000))
    assert (ids(second), second[1:]) == (["c"], (2, 0, NOON_US + 3_000_000, NOON_US + 3_000_000))
    assert (subscriber.take(), ledger.open_messages, ledger.open_bytes) == (None, 3, 5)


@pytest.mark.parametrize("limit", [{"queued_messages": 3}, {"queued_bytes": 300}], ids=["messages", "bytes"])
def test_the_queue_is_bounded_and_every_message_comes(start: Start, client: Subscription, limit: dict[str, int]):
    pulls = [[message(f"{pull}-{number}", body=b"x" * 100) for number in range(2)] for pull in range(12)]
    client.give(*pulls)
    holder: list[Subscriber] = []
    client.watch = lambda: (holder[0]._queued_messages, holder[0]._queued_bytes) if holder else (0, 0)
    holder.append(start(**limit))
    found = [ids(taken(holder[0])) for _ in pulls]
    assert found == [[each.ack_id for each in pull] for pull in pulls]
    assert max(client.seen) < (3, 300)
    assert (holder[0]._queued_messages, holder[0]._queued_bytes) == (0, 0)


@pytest.mark.parametrize("limit", [{"open_messages": 3}, {"open_bytes": 300}], ids=["messages", "bytes"])
def test_it_reads_no_further_than_what_may_be_open(
    start: Start, client: Subscription, ledger: Ledger, limit: dict[str, int]
):
    client.watch = lambda: (ledger.open_messages, ledger.open_bytes)
    client.give(*([message(f"{pull}-{number}", body=b"x" * 100) for number in range(2)] for pull in range(8)))
    subscriber = start(**limit)
    for _ in range(8):
        pulled = taken(subscriber)
        settle(ledger, pulled.first_receipt, pulled.first_receipt + 1)
    assert max(client.seen) < (3, 300)


def test_past_the_open_limit_it_reads_on_once_nothing_was_committed_for_a_while(
    start: Start, client: Subscription, ledger: Ledger, clock: Clock
):
    client.watch = lambda: clock.now_s
    client.give(*([message(str(pull))] for pull in range(3)))
    subscriber = start(open_messages=2)
    settled_s = 0.0

    def third() -> bool:
        nonlocal settled_s
        clock.now_s += 0.5
        if clock.now_s == 20:  # a sign of life: it waits anew
            settle(ledger, 0)
            settled_s = clock.now_s
            client.give([message("more")], [message("yet more")])
        return len(client.asked) >= 4

    wait_until(third)
    assert client.seen[0] == 0
    assert client.seen[2] >= settled_s  # the room that the settled one left
    assert client.seen[3] >= settled_s + 30
    assert [ids(taken(subscriber)) for _ in range(4)] == [["0"], ["1"], ["2"], ["more"]]


def test_leases_are_extended_while_a_message_is_open_and_not_after(
    start: Start, client: Subscription, ledger: Ledger, clock: Clock
):
    client.give([message("a"), message("b")])
    pulled = taken(start(ack_deadline_s=20))
    clock.now_s = 11
    wait_until(lambda: client.extended, 90, "an extension")
    settle(ledger, pulled.first_receipt)
    wait_until(lambda: client.acknowledged == [["a"]], 90, "an acknowledgement")
    clock.now_s = 22
    wait_until(lambda: len(client.extended) == 2, 90, "another extension")
    assert client.extended == [(["a", "b"], 20), (["b"], 20)]


def test_a_short_ack_deadline_becomes_the_shortest_lease_that_is_safe(start: Start, client: Subscription, clock: Clock):
    client.give([message("a")])
    taken(start(ack_deadline_s=0))
    clock.now_s = 6
    wait_until(lambda: client.extended == [(["a"], 10)])


def test_leases_that_could_not_be_extended_are_tried_again_at_once(
    start: Start, client: Subscription, clock: Clock, caplog: pytest.LogCaptureFixture
):
    client.give([message("a")])
    client.extend_errors = [RpcError(), RpcError()]
    taken(start())
    clock.now_s = 6
    wait_until(lambda: client.extended == [(["a"], 10)] * 3, 90, "two failures and a success, on one reading")
    assert caplog.messages == ["cannot extend 1 leases yet, will go on trying: UNAVAILABLE"]


def test_what_is_settled_is_acknowledged_once(start: Start, client: Subscription, ledger: Ledger):
    client.give([message("a"), message("b")])
    taken(start())
    settle(ledger, 1)
    wait_until(lambda: client.acknowledged == [["b"]])
    settle(ledger, 0)
    wait_until(lambda: len(client.acknowledged) == 2)
    assert client.acknowledged == [["b"], ["a"]]


def test_acknowledgements_that_fail_are_kept_and_sent_again(start: Start, client: Subscription, ledger: Ledger):
    client.give([message("a"), message("b")])
    client.ack_errors = [RpcError(), RpcError(grpc.StatusCode.DEADLINE_EXCEEDED)]
    taken(start())
    settle(ledger, 0)
    wait_until(lambda: client.acknowledged)
    settle(ledger, 1)
    wait_until(lambda: sorted(itertools.chain(*client.acknowledged[2:])) == ["a", "b"])  # after the two that failed
    assert client.acknowledged[0] == ["a"]
    assert client.acknowledged[1] in (["a"], ["a", "b"])


def test_errors_are_waited_out_with_one_complaint(start: Start, client: Subscription, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    codes = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INTERNAL] * 3
    client.give(*map(RpcError, codes), [message("a")])
    assert ids(taken(start())) == ["a"]
    assert caplog.messages == [
        f"cannot pull from {client.subscription}, will go on trying: UNAVAILABLE",
        "reading again after 9 failed calls",
    ]


def test_a_long_outage_is_mentioned_now_and_then(
    start: Start, client: Subscription, clock: Clock, caplog: pytest.LogCaptureFixture
):
    client.give(RpcError(), RpcError())
    start()
    wait_until(lambda: client.waiting)
    clock.now_s = 31
    client.give(RpcError(grpc.StatusCode.CANCELLED), RpcError())
    wait_until(lambda: len(client.asked) == 5)
    said = f"cannot pull from {client.subscription}, will go on trying: "
    assert caplog.messages == [said + "UNAVAILABLE", said + "CANCELLED"]


def test_large_messages_are_pulled_few_at_a_time(start: Start, client: Subscription):
    subscriber = start(queued_bytes=1 << 40)
    for number in range(30):
        client.give([message(str(number), body=b"x" * 4_000_000)])
        taken(subscriber)
    wait_until(lambda: len(client.asked) == 31)
    assert client.asked[0] == 1_000
    assert client.asked == sorted(client.asked, reverse=True)
    assert client.asked[-1] == 2


def test_close_acknowledges_what_is_settled_and_hands_back_the_rest(start: Start, client: Subscription, ledger: Ledger):
    client.give([message("a"), message("b")], [message("c")])
    subscriber = start()
    taken(subscriber)
    wait_until(lambda: ledger.open_messages == 3)
    settle(ledger, 1)
    subscriber.close(hand_back=True)
    assert (client.acknowledged, client.extended) == ([["b"]], [(["a", "c"], 0)])
    assert ledger.open_messages == 0


def test_close_ends_though_pub_sub_is_gone(start: Start, client: Subscription, ledger: Ledger):
    client.give([message("a"), message("b")])
    subscriber = start()
    taken(subscriber)
    client.ack_errors, client.extend_errors = [RpcError()] * 99, [RpcError()]
    settle(ledger, 0)
    subscriber.close(hand_back=True)
    assert set(map(tuple, client.acknowledged)) == {("a",)}
    assert client.extended == [(["b"], 0)]


def test_it_has_given_its_last_message_when_it_was_stopped_and_all_are_taken(start: Start, client: Subscription):
    client.give([message("a")], [message("b")])
    subscriber = start()
    wait_until(lambda: len(client.asked) == 3)
    assert not subscriber.stopped_and_empty()
    subscriber.stop_pulling()
    client.give([message("c")])  # the answer to the pull that was under way
    wait_until(lambda: not any(thread.is_alive() for thread in subscriber._pullers))
    for name in "abc":
        assert not subscriber.stopped_and_empty()
        assert ids(taken(subscriber)) == [name]
    assert subscriber.stopped_and_empty()


def test_it_is_idle_only_when_every_pull_waits(start: Start, client: Subscription, clock: Clock):
    subscriber = start(pullers=2)
    wait_until(lambda: client.waiting == 2)
    assert subscriber.idle_for_s() == 0
    clock.now_s = 3
    assert subscriber.idle_for_s() == 3
    client.give([message("a")])
    wait_until(lambda: len(client.asked) == 3)
    assert subscriber.idle_for_s() == 0  # one waits in the queue
    taken(subscriber)
    assert subscriber.idle_for_s() == 0  # one pull has only begun
    clock.now_s = 4
    assert subscriber.idle_for_s() == 1


def test_an_answer_without_messages_does_not_end_the_idleness(start: Start, client: Subscription, clock: Clock):
    subscriber = start()
    wait_until(lambda: client.waiting)
    clock.now_s = 5
    client.give([])
    wait_until(lambda: len(client.asked) == 2)
    assert subscriber.idle_for_s() == 5


def test_a_broken_line_is_no_idleness(start: Start, client: Subscription, clock: Clock):
    subscriber = start()
    wait_until(lambda: client.waiting)
    clock.now_s = 5
    client.give(RpcError())
    wait_until(lambda: len(client.asked) == 2 and client.waiting)
    assert subscriber.idle_for_s() == 0
    assert subscriber.oldest_unread_us(NOON_US) == 0
