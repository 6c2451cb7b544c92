"""Traffic: what the broker got is what the counts say, through refusals, silence and restarts."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.pubsub_v1.types import PublishRequest, PublishResponse

from millrace.local import traffic
from millrace.local.publish import Publisher
from millrace.local.send import Counts, Request, SendError
from millrace.local.shop import Expected, Habits, Sent, Shop
from millrace.local.templates import PreparedRequests
from millrace.local.traffic import PreparedSource, ShopRequests, Traffic
from tests.support.pubsub import PubSub, Server, bodies

TOPIC = "projects/local/topics/events"
_PublishRequest: Any = type(PublishRequest.pb(PublishRequest()))
_PublishResponse: Any = type(PublishResponse.pb(PublishResponse()))


def until(condition: Callable[[], Any], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {timeout_s} s"
        time.sleep(0.01)


class Broker:
    """A Publisher service that records all requests, and answers by script, then by OK.

    A step of the script: a status code to answer with, or None to keep the request and never answer.
    """

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.calls = 0
        self.script: list[grpc.StatusCode | None] = []
        self.port = 0
        self._silence = threading.Event()
        self._lock = threading.Lock()
        self._server: grpc.Server | None = None

    def start(self) -> None:
        self._silence.clear()
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        handler = grpc.unary_unary_rpc_method_handler(self._publish)
        service = grpc.method_handlers_generic_handler("google.pubsub.v1.Publisher", {"Publish": handler})
        self._server.add_generic_rpc_handlers((service,))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._silence.set()
            self._server.stop(None).wait()
            self._server = None

    def _publish(self, serialised: bytes, context: grpc.ServicerContext) -> bytes:
        with self._lock:
            self.calls += 1
            step = self.script.pop(0) if self.script else grpc.StatusCode.OK
            if step in {None, grpc.StatusCode.OK}:
                messages = _PublishRequest.FromString(serialised).messages
                ids = [str(len(self.bodies) + number) for number in range(len(messages))]
                self.bodies += [message.data for message in messages]
        if step is None:
            self._silence.wait()
        elif step is not grpc.StatusCode.OK:
            context.abort(step, "as scripted")
        answer: bytes = _PublishResponse(message_ids=ids).SerializeToString()
        return answer


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    made = Broker()
    made.start()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"127.0.0.1:{made.port}")
    yield made
    made.stop()


class Recorded(Iterator[Sent]):
    """A shop that remembers what it handed out."""

    def __init__(self) -> None:
        self.shop = Shop(3, users=50)
        self.by_body: dict[bytes, Sent] = {}

    def __next__(self) -> Sent:
        # An empty body occurs more than once; these tests look bodies up.
        sent = next(sent for sent in self.shop if sent.body not in self.by_body)
        self.by_body[sent.body] = sent
        return sent


def total(shop: Recorded, bodies: list[bytes]) -> Expected:
    expected = Expected()
    for body in bodies:
        expected.add(shop.by_body[body])
    return expected


def shop_traffic(shop: Recorded, rate: float, **more: Any) -> Traffic:
    return Traffic(ShopRequests(shop, TOPIC), TOPIC, rate, remember=True, **more)


def test_what_is_acknowledged_is_what_the_broker_holds(broker: Broker) -> None:
    shop = Recorded()
    running = shop_traffic(shop, 3_000).start()
    until(lambda: running.counts().events > 2_000)
    counts = running.stop()
    held = total(shop, broker.bodies)
    assert running.acknowledged == held
    assert (counts.events, counts.messages) == (held.records, len(broker.bodies))
    assert (counts.maybe_events, counts.unsent_events, counts.retries) == (0, 0, 0)
    assert running.maybe == Expected()


def test_the_brokers_answer_comes_with_what_it_answers(broker: Broker) -> None:
    answered: list[tuple[int, bytes]] = []
    source = ShopRequests(Recorded(), TOPIC)
    running = Traffic(
        source, TOPIC, 1_000, on_acknowledged=lambda request, answer: answered.append((len(request.tag), answer))
    )
    running.start()
    until(lambda: running.counts().events > 200)
    counts = running.stop()
    assert sum(published for published, _ in answered) == counts.messages == len(broker.bodies)
    for published, answer in answered:
        assert len(_PublishResponse.FromString(answer).message_ids) == published


def test_a_real_broker_hands_out_what_was_published(pubsub_server: Server) -> None:
    with PubSub(pubsub_server.address) as pubsub:
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)
        shop = Recorded()
        running = Traffic(ShopRequests(shop, topic), topic, 1_000, remember=True).start()
        until(lambda: running.counts().events > 500)
        counts = running.stop()
        received = pubsub.pull_until(subscription, counts.messages)
        assert pubsub.pull(subscription, at_once=True) == []
    assert total(shop, bodies(received)) == running.acknowledged
    for message in (one.message for one in received):
        assert dict(message.attributes) == shop.by_body[message.data].attributes


def test_an_answer_of_unavailable_is_retried_and_may_have_arrived(broker: Broker) -> None:
    broker.script = [grpc.StatusCode.UNAVAILABLE] * 3
    shop = Recorded()
    running = shop_traffic(shop, 500, in_flight=1).start()
    until(lambda: running.counts().events > 200)
    counts = running.stop()
    assert running.acknowledged == total(shop, broker.bodies)
    assert counts.retries == 3
    assert counts.maybe_events > 0
    assert running.maybe.message_ids <= running.acknowledged.message_ids


def test_silence_is_counted_as_maybe_and_sent_again(broker: Broker) -> None:
    broker.script = [None]
    publisher = Publisher(TOPIC, in_flight=1, deadline_s=1.0)
    request = PublishRequest.pb(PublishRequest(topic=TOPIC))
    request.messages.add(data=b"once more")
    payload = request.SerializeToString()
    assert publisher.submit(Request(payload, messages=1, events=7))
    until(lambda: publisher.counts().events == 7)
    assert publisher.close() == Counts(messages=1, events=7, bytes=len(payload), maybe_events=7, retries=1)
    assert broker.bodies == [b"once more", b"once more"]


def test_traffic_outlives_the_broker_and_loses_nothing(broker: Broker) -> None:
    shop = Recorded()
    running = shop_traffic(shop, 1_000).start()
    until(lambda: running.counts().events > 300)
    broker.stop()
    before = running.counts()
    until(lambda: running.counts().retries >= before.retries + 4)
    broker.start()
    until(lambda: running.counts().events > before.events + 300)
    counts = running.stop()
    held = Counter(broker.bodies)
    assert running.acknowledged.message_ids <= total(shop, list(held)).message_ids
    assert counts.events <= sum(shop.by_body[body].events * times for body, times in held.items())
    assert counts.events + counts.maybe_events >= sum(shop.by_body[body].events * n for body, n in held.items())
    assert counts.unsent_events == 0


def test_no_connection_is_certainly_nothing_sent(broker: Broker) -> None:
    broker.stop()
    publisher = Publisher(TOPIC, in_flight=1)
    publisher.submit(Request(b"", messages=1, events=5))
    until(lambda: publisher.counts().retries >= 2)
    counts = publisher.close(grace_s=0.1)
    assert (counts.events, counts.maybe_events, counts.unsent_events) == (0, 0, 5)


def test_giving_up_on_a_silent_broker_is_prompt_and_says_maybe(broker: Broker) -> None:
    broker.script = [None]
    publisher = Publisher(TOPIC, in_flight=1, deadline_s=60)
    publisher.submit(Request(b"", messages=1, events=5))
    until(lambda: broker.calls == 1)
    began_s = time.monotonic()
    assert publisher.close(grace_s=0.2) == Counts(maybe_events=5, unsent_events=5, retries=1)
    assert time.monotonic() - began_s < 40


def test_a_refusal_for_good_ends_the_traffic(broker: Broker) -> None:
    broker.script = [grpc.StatusCode.NOT_FOUND]
    running = shop_traffic(Recorded(), 1_000, in_flight=1).start()
    assert running.wait(90)
    with pytest.raises(SendError, match=r"^projects/local/topics/events: NOT_FOUND: as scripted$"):
        running.stop()
    assert broker.bodies == []


def test_the_command_says_what_the_broker_refuses(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    broker.script = [grpc.StatusCode.NOT_FOUND] * 9
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert traffic.main(["--topic", TOPIC, "--rate", "100"]) == 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert capsys.readouterr().err == "traffic: projects/local/topics/events: NOT_FOUND: as scripted\n"


def test_a_stall_is_not_made_up_for_by_a_burst(broker: Broker) -> None:
    made: list[tuple[float, int]] = []

    class Noted(ShopRequests):
        def take(self, events: int) -> Request:
            request = super().take(events)
            made.append((time.monotonic(), request.events))
            return request

    broker.script = [None]
    running = Traffic(Noted(Recorded(), TOPIC), TOPIC, 1_000, in_flight=1, deadline_s=3.0).start()
    until(lambda: running.counts().retries == 1)
    silent_until_s = time.monotonic()
    until(lambda: made[-1][0] > silent_until_s + 1)
    running.stop()
    # 1,000 a second, and at most the second that is forgiven; the three of silence are gone.
    assert sum(events for at_s, events in made if silent_until_s < at_s < silent_until_s + 1) < 2_600


class Ticks(threading.Event):
    """A clock that only waiting moves, for a pace that no busy machine changes."""

    now_s = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        self.now_s += timeout or 0.0
        return self.is_set()


def test_the_rate_is_kept(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    running, ticks = shop_traffic(Recorded(), 800, seconds=2), Ticks()
    monkeypatch.setattr("millrace.local.pace.time", SimpleNamespace(monotonic=lambda: ticks.now_s))
    running._stopping = ticks
    assert running.start().wait(90)
    assert running.stop(90).events == pytest.approx(1_600, abs=20)
    assert len(broker.bodies) > 100


def test_a_negative_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="rate must be 0 or more, got -1"):
        Traffic(ShopRequests(Shop(), TOPIC), TOPIC, -1)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_as_a_process_it_prints_its_counts_and_ends_cleanly(broker: Broker, ending: signal.Signals) -> None:
    command = [sys.executable, "-m", "millrace.local.traffic", "--topic", TOPIC, "--rate", "2000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        process.send_signal(ending)
        last = json.loads(process.stdout.readlines()[-1])
        assert process.wait(90) == 0
    assert (first["done"], last["done"]) == (False, True)
    assert last["messages"] == len(broker.bodies)
    assert last["events"] >= last["messages"]
    assert (last["maybe_events"], last["unsent_events"], last["retries"]) == (0, 0, 0)


def test_prepared_traffic_counts_as_the_broker_does(broker: Broker) -> None:
    source = PreparedSource(PreparedRequests(TOPIC, events_a_message=20, messages=5))
    running = Traffic(source, TOPIC, 5_000).start()
    until(lambda: running.counts().events >= 2_000)
    counts = running.stop()
    assert counts.events == 20 * len(broker.bodies) == 20 * counts.messages


def test_a_request_stays_within_what_the_broker_takes() -> None:
    shop = Shop(1, users=50, habits=Habits(broken=0))
    request = ShopRequests(itertools.cycle([next(shop)]), TOPIC).take(1_000_000)
    assert request.messages == 500
    big = next(shop)._replace(body=b"x" * 3_000_000)
    request = ShopRequests(itertools.cycle([big]), TOPIC).take(1_000_000)
    assert (request.messages, len(request.payload) < 10_000_000) == (2, True)
