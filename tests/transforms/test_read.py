"""Read: watermarks that keep a backlog in order, marks, draining, and what a runner is given."""

import datetime as dt
import itertools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp

from millrace.schemas.envelope import Envelope
from millrace.transforms import pubsub, read, subscriber
from millrace.transforms.read import Mark, PubSubReader, PubSubSource, ReadEnvelopes, _WrapFn
from millrace.transforms.receipts import Ledger
from millrace.transforms.subscriber import Limits
from tests.support.batches import NOON_US
from tests.support.pubsub import wait_until
from tests.support.subscription import Clock, RpcError, Subscription, message

SLACK_S = 0.5
Start = Callable[..., PubSubReader]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (subscriber, read):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(subscriber, "_BACKOFF_S", (0.001,))
    return clock


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    ledger = Ledger()
    monkeypatch.setattr(read, "LEDGER", ledger)
    return ledger


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, clock: Clock, ledger: Ledger) -> Iterator[Subscription]:
    """The one subscription, and a process without a past."""
    client = Subscription()
    monkeypatch.setattr(read, "_SUBSCRIBERS", {})
    monkeypatch.setattr(read, "_COVERED", {})
    monkeypatch.setattr(read, "_DRAIN", read.Drain(*(type(part)() for part in read._DRAIN)))
    monkeypatch.setattr(pubsub, "open_channel", lambda: None)
    monkeypatch.setattr(pubsub, "SubscriptionClient", lambda *_: client)
    yield client
    started = [shared.subscriber for shared in read._SUBSCRIBERS.values()]
    for each in started:
        each.stop_pulling()
    client.end()
    read.close_subscribers(hand_back=False)
    for each in started:
        for thread in each._pullers:
            thread.join(60)


def source(ack_after: str = "commit", readers: int = 1) -> PubSubSource:
    return PubSubSource(
        subscription="projects/tests/subscriptions/s",
        ack_after=ack_after,
        readers=readers,
        pulls=readers,
        slack_us=round(SLACK_S * 1e6),
        limits=Limits(),
    )


def reader(ack_after: str = "commit", readers: int = 1) -> PubSubReader:
    return source(ack_after, readers).create_reader(None, None)


def after_noon(timestamp: Timestamp) -> float:
    return float(timestamp.micros - NOON_US) / 1e6


def advanced(reader: PubSubReader) -> list[Envelope]:
    """Wait until a pull's messages are there; check what Beam relies on; return them."""
    seen = reader.get_watermark()
    wait_until(reader.advance, 90, "messages")
    found = reader.get_current()
    assert reader.get_current_timestamp() >= seen
    assert reader.get_current_timestamp().micros == min(envelope.arrived_us for envelope in found)
    assert reader.get_watermark() >= seen
    return found


def arrivals(envelopes: list[Envelope]) -> list[float]:
    return [(envelope.arrived_us - NOON_US) / 1e6 for envelope in envelopes]


def test_a_pull_becomes_a_list_of_envelopes(client: Subscription):
    client.give([message("a", 2, b"body", source_id="web"), message("b", 1)])
    one = reader()
    found = advanced(one)
    assert found == [
        Envelope(b"body", {"source_id": "web"}, "id-a", NOON_US + 2_000_000, NOON_US + 2_000_000, 0),
        Envelope(b"x", {}, "id-b", NOON_US + 1_000_000, NOON_US + 1_000_000, 1),
    ]
    assert type(found[0].attributes) is dict
    assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301  our own
    assert after_noon(one.get_current_timestamp()) == 1


def test_advance_never_waits_though_the_pull_does(client: Subscription):
    one = reader()
    wait_until(lambda: client.waiting)
    assert [one.start(), *(one.advance() for _ in range(1_000))] == [False] * 1_001
    assert client.waiting == 1


def test_a_backlog_arrives_when_it_was_published_and_the_watermark_follows_it(client: Subscription):
    times = [-3_600 + number * 36 for number in range(100)]
    client.give(*([message(str(at), at), message(f"{at} late", at - SLACK_S)] for at in times))
    one = reader()
    assert one.get_watermark() in (MIN_TIMESTAMP, Timestamp(micros=NOON_US - 3_601 * 1_000_000))
    watermarks = []
    for at in times:
        assert arrivals(advanced(one)) == [at, at - SLACK_S]
        watermarks.append(after_noon(one.get_watermark()))
        assert watermarks[-1] <= at + 36 - 2 * SLACK_S  # what comes next is not behind it
    assert watermarks == sorted(watermarks)
    assert watermarks[-1] == times[-1] - SLACK_S


def test_a_slow_pull_of_a_backlog_is_not_taken_for_an_empty_subscription(client: Subscription, clock: Clock):
    client.give([message("a", -3_600)])
    one = reader()
    advanced(one)
    wait_until(lambda: client.waiting)
    clock.now_s = 1.5  # 8 MB over a thin line
    assert after_noon(one.get_watermark()) == -3_600 - SLACK_S
    client.give([message("b", -3_599)])
    assert arrivals(advanced(one)) == [-3_599]


def test_once_idle_the_watermark_follows_the_clock(client: Subscription, clock: Clock):
    one = reader()
    wait_until(lambda: client.waiting)
    assert one.get_watermark() == MIN_TIMESTAMP
    clock.now_s = 2.5
    assert after_noon(one.get_watermark()) == 2
    clock.now_s = 60
    assert not one.advance()
    assert after_noon(one.get_watermark()) == 59.5


def test_live_events_wait_a_fifth_of_a_second_for_the_watermark(client: Subscription, clock: Clock):
    client.give([message("a", -0.1)])
    one = reader()
    advanced(one)
    wait_until(lambda: client.waiting)
    assert after_noon(one.get_watermark()) == -0.1 - SLACK_S
    clock.now_s = 0.2
    assert after_noon(one.get_watermark()) == pytest.approx(0.2 - SLACK_S)


def test_a_broken_line_does_not_move_the_watermark(client: Subscription, clock: Clock):
    client.give([message("a", 0)], RpcError(), RpcError())
    one = reader()
    advanced(one)
    wait_until(lambda: len(client.asked) == 4 and client.waiting)
    clock.now_s = 3_600
    client.give(RpcError())
    wait_until(lambda: len(client.asked) == 5 and client.waiting)
    assert after_noon(one.get_watermark()) == -SLACK_S
    client.give([message("b", 1)])
    assert arrivals(advanced(one)) == [1]


def test_an_old_message_that_comes_again_arrives_at_the_watermark(client: Subscription, clock: Clock):
    one = reader()
    wait_until(lambda: client.waiting)
    clock.now_s = 100
    assert after_noon(one.get_watermark()) == 99.5
    client.give([message("old", -500), message("new", 99.9)])
    found = advanced(one)
    assert arrivals(found) == [99.5, 99.9]
    assert [envelope.published_us - NOON_US for envelope in found] == [-500_000_000, 99_900_000]
    assert after_noon(one.get_current_timestamp()) == 99.5


def test_draining_ends_only_when_all_that_was_pulled_is_taken(client: Subscription):
    client.give([message("a")], [message("b")])
    one = reader()
    wait_until(lambda: len(client.asked) == 3)
    read.draining().request(until_empty=False)
    assert one.get_watermark() != MAX_TIMESTAMP
    client.give([message("c")])  # the answer to the pull that was under way
    for name in ("id-a", "id-b", "id-c"):
        assert one.get_watermark() != MAX_TIMESTAMP
        assert [envelope.envelope_id for envelope in advanced(one)] == [name]
    wait_until(lambda: one.get_watermark() == MAX_TIMESTAMP)
    assert not one.advance()
    assert len(client.asked) == 3


def test_draining_until_empty_reads_what_the_subscription_still_holds(client: Subscription, clock: Clock):
    client.give([message("a")])
    one = reader()
    read.draining().request(until_empty=True)
    advanced(one)
    client.give(*([message(str(number))] for number in range(5)))
    assert [advanced(one)[0].envelope_id for _ in range(5)] == [f"id-{number}" for number in range(5)]
    wait_until(lambda: client.waiting)
    clock.now_s = 1
    assert one.get_watermark() != MAX_TIMESTAMP
    clock.now_s = 1.1
    one.get_watermark()
    client.end()
    wait_until(lambda: one.get_watermark() == MAX_TIMESTAMP)


def test_several_readers_share_the_messages_of_one_subscriber(client: Subscription):
    parts = source(readers=3).split(20)
    readers = [part.create_reader(None, None) for part in pickle.loads(pickle.dumps(parts))]  # noqa: S301  our own
    wait_until(lambda: client.waiting == 3)
    client.give(*([message(str(number))] for number in range(30)))
    found: list[list[str]] = [[], [], []]
    for number in range(30):
        found[number % 3] += [envelope.envelope_id for envelope in advanced(readers[number % 3])]
    assert sorted(itertools.chain(*found)) == sorted(f"id-{number}" for number in range(30))
    assert [len(each) for each in found] == [10, 10, 10]
    assert len(read._SUBSCRIBERS) == 1


def test_it_splits_into_as_many_readers_as_are_wanted_and_allowed():
    assert [len(source(readers=wanted).split(allowed)) for wanted, allowed in [(1, 20), (4, 20), (4, 2), (4, 0)]] == [
        1,
        4,
        2,
        1,
    ]
    assert len({pickle.dumps(part) for part in source(readers=4).split(20)}) == 4


def test_marks_are_unique_across_rounds_and_readers_and_survive_their_coder(client: Subscription):
    coder = source().get_checkpoint_mark_coder()
    marks: list[Any] = [one.get_checkpoint_mark() for one in (reader(), reader()) for _ in range(50)]
    assert len({coder.encode(mark) for mark in marks}) == 100
    assert all(vars(coder.decode(coder.encode(mark))) == vars(mark) for mark in marks)


def test_after_a_commit_nothing_is_settled_by_a_checkpoint(client: Subscription, ledger: Ledger):
    client.give([message("a")])
    one = reader("commit")
    advanced(one)
    for mark in [one.get_checkpoint_mark() for _ in range(3)]:
        mark.finalize_checkpoint()
    assert (ledger.open_messages, client.acknowledged) == (1, [])


def test_a_checkpoint_acknowledges_what_the_one_before_it_covered(client: Subscription, ledger: Ledger):
    one = reader("checkpoint")
    client.give([message("a"), message("b")], [message("c")])
    assert [envelope.receipt for envelope in advanced(one)] == [-1, -1]
    first = one.get_checkpoint_mark()
    advanced(one)
    second, third = one.get_checkpoint_mark(), one.get_checkpoint_mark()
    first.finalize_checkpoint()
    assert ledger.open_messages == 3
    for mark in (second, pickle.loads(pickle.dumps(second)), first):  # noqa: S301  our own
        mark.finalize_checkpoint()
        assert ledger.open_messages == 1
    wait_until(lambda: client.acknowledged == [["a", "b"]])
    third.finalize_checkpoint()
    assert ledger.open_messages == 0
    wait_until(lambda: client.acknowledged == [["a", "b"], ["c"]])


def test_a_mark_of_another_process_settles_nothing(client: Subscription, ledger: Ledger):
    Mark("1-0", 7).finalize_checkpoint()
    assert (ledger.settled, client.acknowledged) == (0, [])


@pytest.mark.parametrize("wrong", [{"readers": 0}, {"pulls": 0}, {"ack_after": "delivery"}])
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be .*, got "):
        ReadEnvelopes("projects/tests/subscriptions/s", **wrong)


def test_the_runner_s_own_read_gives_the_same_envelopes():
    published = dt.datetime(2026, 11, 25, 12, 0, 0, 123_457, dt.UTC)
    native = PubsubMessage._from_proto_str(PubsubMessage(b"body", {"source_id": "web"}, "7", published)._to_proto_str())
    ((early,),) = _WrapFn().process(native, Timestamp(micros=NOON_US))
    assert early == Envelope(b"body", {"source_id": "web"}, "7", NOON_US + 123_457, NOON_US + 123_457)
    ((again,),) = _WrapFn().process(native, Timestamp(micros=NOON_US + 9_000_000))
    assert again.arrived_us == NOON_US + 9_000_000
    ((bare,),) = _WrapFn().process(PubsubMessage(b"", None), Timestamp(micros=NOON_US))
    assert bare == Envelope(b"", {}, "", NOON_US, NOON_US)


def test_a_broker_that_is_away_when_a_reader_starts_is_waited_for(client: Subscription):
    client.get_errors = [RpcError()]
    reader = source().create_reader(None, None)
    assert not reader.start()
    client.give(RpcError(), [message("a")])
    wait_until(reader.advance)
    assert [envelope.envelope_id for envelope in reader.get_current()] == ["id-a"]


def test_what_no_waiting_mends_ends_the_start(client: Subscription):
    client.get_errors = [RpcError(grpc.StatusCode.NOT_FOUND)]
    with pytest.raises(RpcError):
        source().create_reader(None, None)
