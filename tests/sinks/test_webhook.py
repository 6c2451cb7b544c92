"""The webhook against a real receiver (Node.js): HTTP/2, HTTP/1.1 with TLS, and HTTP/1.1 without."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
import uvloop

from millrace.sinks.signature import request_id
from millrace.sinks.sink import DELIVERED, Delivery, Fault, Outcome, Rejected, Retry, SinkDownError
from millrace.sinks.webhook import Webhook
from tests.support.node import UnavailableError
from tests.support.webhooks import HOST, SECRET, NoMemory, Received, Receiver, delivery, receiving

REFERENCE = "env:HOOK_SECRET"
KINDS = ("h2", "h1", "plain")


@pytest.fixture(scope="module")
def _receivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Receiver]]:
    with contextlib.ExitStack() as stack:
        try:
            yield {kind: stack.enter_context(receiving(tmp_path_factory.mktemp(kind), kind)) for kind in KINDS}
        except UnavailableError as error:
            pytest.skip(str(error))


@pytest.fixture(
    params=[("h2", asyncio), ("h2", uvloop), ("h1", uvloop), ("plain", asyncio)],
    ids=lambda each: f"{each[0]}-{each[1].__name__}",
)
def receiver(request: pytest.FixtureRequest, _receivers: dict[str, Receiver], monkeypatch) -> Receiver:
    """A receiver of each kind, shared by the tests of this file: each looks at what came since it began."""
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    kind, loops = request.param
    monkeypatch.setattr(asyncio, "run", loops.run)
    found = _receivers[kind]
    found.log.write_text("")
    return found


def _run(sink: Webhook, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        await sink.open(NoMemory())
        try:
            return await work()
        finally:
            await sink.close()

    return asyncio.run(run())


def _deliver(sink: Webhook, *deliveries: Delivery) -> list[Sequence[Outcome]]:
    async def work() -> list[Sequence[Outcome]]:
        return [await sink.deliver(each) for each in deliveries]

    found: list[Sequence[Outcome]] = _run(sink, work)
    return found


def _ids(requests: Sequence[Received]) -> list[list[str]]:
    return [each.ids for each in requests]


@pytest.mark.parametrize("settings", [{}, {"format": "ndjson"}, {"gzip": True}, {"single": True}])
def test_receivers_of_every_kind_can_check_who_sent_a_request(receiver: Receiver, settings: dict[str, Any]):
    sink = receiver.hook("/ok?a=1", secret=REFERENCE, headers={"X-Shop": "shoes & more"}, **settings)
    sent = delivery(["m-1", "m-2", "m-3"], properties={"m-2": {"name": "Größe 42"}})
    assert _deliver(sink, sent) == [[DELIVERED] * 3]
    requests = receiver.requests()
    events = (
        b'{"message_id":"m-1","user_id":"user of m-1"}',
        '{"message_id":"m-2","user_id":"user of m-2","properties":{"name": "Größe 42"}}'.encode(),
        b'{"message_id":"m-3","user_id":"user of m-3"}',
    )
    bodies = {
        "single": sorted(events), "format": [b"\n".join(events) + b"\n"]
    }.get(next(iter(settings), ""), [b"[" + b",".join(events) + b"]"])  # fmt: skip
    assert sorted(each.json for each in requests) == bodies
    version, sni = {"h2": ("2.0", HOST), "h1": ("1.1", HOST), "plain": ("1.1", None)}[receiver.kind]
    for each in requests:
        standardwebhooks.Webhook(SECRET).verify(
            each.json, dict(each.headers), json_parse=False
        )  # raises, where it is wrong
        assert abs(int(each.headers["webhook-timestamp"]) - time.time()) < 60
        assert each.headers["idempotency-key"] == each.headers["webhook-id"]
        assert each.headers["webhook-id"] == request_id(each.ids)
        assert (each.method, each.url, each.host) == ("POST", "/ok?a=1", f"{HOST}:{receiver.port}")
        assert (each.headers["x-shop"], each.version, each.sni) == ("shoes & more", version, sni)


def test_the_old_secret_is_still_good_while_both_are_there(receiver: Receiver, tmp_path: Path):
    old = tmp_path / "old"
    old.write_bytes(b"any bytes will do, too\n")
    sink = receiver.hook("/ok", secret=REFERENCE, old_secret=f"file:{old}")
    assert _deliver(sink, delivery(["m-1"])) == [[DELIVERED]]
    (request,) = receiver.requests()
    for secret in (SECRET, b"any bytes will do, too"):
        standardwebhooks.Webhook(secret).verify(request.body, dict(request.headers), json_parse=False)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(b"another secret altogether").verify(request.body, dict(request.headers))


def test_a_resend_has_the_same_id_and_a_later_timestamp_is_signed_anew(receiver: Receiver):
    sink = receiver.hook("/flaky", secret=REFERENCE, single=True)
    sent = delivery([f"{receiver.kind}-1", f"{receiver.kind}.2\r\nx: y", "ü" * 300])
    failed = Retry(Fault.FAILED, "the receiver answers 503")
    assert _deliver(sink, sent, sent) == [[failed] * 3, [DELIVERED] * 3]
    by_id: dict[str, list[str]] = {}
    for each in receiver.requests():
        by_id.setdefault(each.headers["webhook-id"], []).extend(each.ids)
        standardwebhooks.Webhook(SECRET).verify(each.body, dict(each.headers))
    assert sorted(by_id.values()) == sorted([each] * 2 for each in sent.message_ids)
    assert f"{receiver.kind}-1" in by_id


def test_connections_are_kept(receiver: Receiver):
    sink = receiver.hook("/ok")
    assert _deliver(sink, *[delivery([f"m-{n}"]) for n in range(20)]) == [[DELIVERED]] * 20
    assert len({each.connection for each in receiver.requests()}) == 1


@pytest.mark.parametrize(
    ("path", "outcome"),
    [
        ("/status/204", DELIVERED),
        ("/status/400", Rejected(Fault.REJECTED, "the receiver answers 400")),
        ("/status/404", Rejected(Fault.REJECTED, "the receiver answers 404")),
        ("/status/408", Retry(Fault.TIMED_OUT, "the receiver answers 408")),
        ("/status/429?retry-after=7", Retry(Fault.THROTTLED, "the receiver answers 429", 7.0)),
        ("/status/500", Retry(Fault.FAILED, "the receiver answers 500")),
        ("/status/503?retry-after=99999999", Retry(Fault.FAILED, "the receiver answers 503", 3600.0)),
        ("/stall", Retry(Fault.TIMED_OUT, "the receiver gave no whole answer in 0.3 s")),
        ("/endless", DELIVERED),
    ],
)
def test_each_answer_has_its_outcome(receiver: Receiver, path: str, outcome: Outcome):
    sink = receiver.hook(path, timeout_s=0.3 if path == "/stall" else 60.0)
    assert _deliver(sink, delivery(["m-1"]), delivery(["m-2"])) == [[outcome], [outcome]]


@pytest.mark.parametrize("path", ["/cut", "/drop"])
def test_an_answer_that_breaks_off_is_tried_again_and_the_connection_is_not_used_further(receiver: Receiver, path: str):
    sink = receiver.hook(path)
    for outcomes in _deliver(sink, delivery(["m-1"]), delivery(["m-2"])):
        assert [type(each) for each in outcomes] == [Retry]
        assert [each.fault for each in outcomes if isinstance(each, Retry)] == [Fault.FAILED]
    assert _ids(receiver.requests()) == [["m-1"], ["m-2"]]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed_and_blames_no_event(receiver: Receiver, status: int):
    sink = receiver.hook(f"/status/{status}?location=http://127.0.0.1:{receiver.port}/ok")
    with pytest.raises(SinkDownError) as told:
        _deliver(sink, delivery(["m-1", "m-2"]))
    assert told.value.detail.startswith(f"the receiver answers {status}, a redirect: redirects are never followed")
    assert len(receiver.requests()) == 1


def test_a_status_can_stand_for_a_receiver_that_does_not_work(receiver: Receiver):
    with pytest.raises(SinkDownError, match="the receiver answers 401, which down_on takes"):
        _deliver(receiver.hook("/status/401", down_on=(401, 403)), delivery(["m-1", "m-2"]))
    assert len(receiver.requests()) == 1


def test_in_a_refused_batch_only_the_event_to_blame_is_rejected(receiver: Receiver):
    sent = delivery(["m-1", "m-2", "m-3", "m-4"], properties={"m-2": {"bad": 422}})
    rejected = Rejected(Fault.REJECTED, "the receiver answers 422")
    assert _deliver(receiver.hook("/poison"), sent) == [[DELIVERED, rejected, DELIVERED, DELIVERED]]
    first, *rest = _ids(receiver.requests())
    assert (first, sorted(rest)) == (["m-1", "m-2", "m-3", "m-4"], [["m-1"], ["m-2"], ["m-3"], ["m-4"]])


def test_a_batch_that_is_too_large_arrives_event_by_event_each_users_in_order(receiver: Receiver):
    ids = [f"m-{n}" for n in range(30)]
    users = [f"u{n // 10}" for n in range(30)]
    assert _deliver(receiver.hook("/small"), delivery(ids, users)) == [[DELIVERED] * 30]
    alone = [each for each in _ids(receiver.requests()) if len(each) == 1]
    for user in range(3):
        assert [each for (each,) in alone if int(each[2:]) // 10 == user] == ids[user * 10 : user * 10 + 10]


def test_behind_an_event_that_has_to_be_tried_again_its_user_waits_in_a_refused_batch(receiver: Receiver):
    bad = {"m-1": {"bad": 400}, "m-2": {"bad": 503}}
    sent = delivery(["m-0", "m-1", "m-2", "m-3", "m-4"], ["u", "u", "u", "u", "v"], bad)
    (outcomes,) = _deliver(receiver.hook("/poison"), sent)
    assert outcomes == [
        DELIVERED,
        Rejected(Fault.REJECTED, "the receiver answers 400"),
        Retry(Fault.FAILED, "the receiver answers 503"),
        Retry(Fault.FAILED, "the receiver refused its batch, and it was not sent by itself yet"),
        DELIVERED,
    ]
    assert ["m-3"] not in _ids(receiver.requests())


def test_of_events_without_order_all_are_sent_by_themselves(receiver: Receiver):
    sent = delivery(
        ["m-1", "m-2", "m-3"], ["u", "u", "u"], {"m-2": {"bad": 503}, "m-1": {"bad": 400}}, is_ordered=False
    )
    (outcomes,) = _deliver(receiver.hook("/poison"), sent)
    assert [type(each) for each in outcomes] == [Rejected, Retry, type(DELIVERED)]


@pytest.mark.parametrize("status", [200, 207])
def test_a_verdict_on_each_event_is_obeyed(receiver: Receiver, status: int):
    bad: dict[str, dict[str, Any]] = {
        "m-2": {"bad": 429},
        "m-3": {"bad": 422},
        "m-4": {"silent": True},
        "m-5": {"bad": 500},
    }
    sent = delivery(["m-1", "m-2", "m-3", "m-4", "m-5"], properties=bad)
    (outcomes,) = _deliver(receiver.hook(f"/verdicts/{status}", verdicts=True), sent)
    unsaid = DELIVERED if status == 200 else Retry(Fault.FAILED, "the receiver answers 207 without a verdict on it")
    assert outcomes == [
        DELIVERED,
        Retry(Fault.THROTTLED, "the receiver answers 429", 9.0),
        Rejected(Fault.REJECTED, "the receiver answers 422"),
        unsaid,
        Retry(Fault.FAILED, "the receiver answers 500", 9.0),
    ]
    assert len(receiver.requests()) == 1


def test_a_batch_whose_events_are_all_rejected_by_verdict_is_not_sent_again(receiver: Receiver):
    sent = delivery(["m-1", "m-2"], properties={"m-1": {"bad": 422}, "m-2": {"bad": 422}})
    (outcomes,) = _deliver(receiver.hook("/verdicts/207"), sent)
    assert outcomes == [Rejected(Fault.REJECTED, "the receiver answers 422")] * 2
    assert len(receiver.requests()) == 1


def test_connections_that_the_receiver_ends_break_no_request(receiver: Receiver):
    """GOAWAY under way, `connection: close`, and connections that close just when a request is written."""
    sink = receiver.hook("/goodbye", single=True, max_connections=8)
    sent = [delivery([f"m-{part}-{n}" for n in range(50)]) for part in range(8)]

    async def work() -> list[Sequence[Outcome]]:
        return await asyncio.gather(*map(sink.deliver, sent))

    assert _run(sink, work) == [[DELIVERED] * 50] * 8
    arrived = [each for ids in _ids(receiver.requests()) for each in ids]
    assert sorted(arrived) == sorted(each for part in sent for each in part.message_ids)  # none of them twice
    assert len({each.connection for each in receiver.requests()}) >= 4


def test_large_batches_wait_for_the_receivers_windows(receiver: Receiver):
    """Bodies of 2 MB each, side by side, where a window of HTTP/2 is 64 KB."""
    sink = receiver.hook("/ok")
    sent = [delivery([f"m-{n}"], properties={f"m-{n}": {"text": "x" * 2_000_000}}) for n in range(4)]

    async def work() -> list[Sequence[Outcome]]:
        return await asyncio.gather(*map(sink.deliver, sent))

    assert _run(sink, work) == [[DELIVERED]] * 4
    assert sorted(_ids(receiver.requests())) == [["m-0"], ["m-1"], ["m-2"], ["m-3"]]
    assert min(len(each.body) for each in receiver.requests()) > 2_000_000


def test_a_delivery_that_is_cancelled_leaves_nothing_behind(receiver: Receiver):
    sink = receiver.hook("/slow/60000", single=True, max_connections=5)

    async def work() -> Sequence[Outcome]:
        task = asyncio.create_task(sink.deliver(delivery([f"m-{n}" for n in range(20)])))
        while not receiver.requests():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        pool = sink._senders[0].pool
        assert not [each for each in pool._all if each.is_open and each._taken]
        object.__setattr__(sink._senders[0], "timeout_s", 1.0)
        return await sink.deliver(delivery(["last"]))

    outcomes = _run(sink, work)
    assert outcomes == [Retry(Fault.TIMED_OUT, "the receiver gave no whole answer in 1 s")]
    assert receiver.requests()[-1].ids == ["last"]
