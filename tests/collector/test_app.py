"""The application: 200 only once it is durable, 503 and never 500 where something is wrong, logs without user data."""

import asyncio
import dataclasses
import ipaddress
import json
import logging
from typing import Any

import pytest
import structlog

from millrace.collector import app as app_module
from millrace.collector.answers import Answer
from millrace.collector.app import App
from millrace.collector.delivery import NotDurableError, Undelivered
from millrace.collector.health import Health
from millrace.collector.limits import Limits
from millrace.collector.log import configure_logging
from millrace.collector.metrics import Metrics
from millrace.collector.sources import Source, Sources
from tests.support.asking import BROWSER_KEY, SERVER_KEY, SHOP, SOURCES, request
from tests.support.door import MemoryDelivery

PERSON = "ann.secret@shop.example"
EVENT = {"type": "track", "event": "Hello", "userId": PERSON}


class Rig:
    """An application with a delivery in memory."""

    def __init__(self, sources: Sources = SOURCES, *, limits: Limits = Limits(), with_demo: bool = False) -> None:  # noqa: B008
        self.delivery = MemoryDelivery()
        self.metrics = Metrics()
        self.health = Health(ready=True)
        self.app = App(sources, self.delivery, limits, self.metrics, lambda: self.health, with_demo=with_demo)

    def ask(
        self, method: str = "POST", path: str = "/v1/track", sent: Any = EVENT, query: bytes = b"", /,
        **headers: bytes | None,
    ) -> Answer:  # fmt: skip
        return asyncio.run(self.app.answer(request(method, path, sent, query, **headers)))

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"millrace_collector_{name}", labels) or 0.0


def test_200_is_said_when_the_events_are_durable_and_not_before():
    rig = Rig()

    async def story() -> Answer:
        durable = asyncio.Event()
        rig.delivery.before = lambda _: durable.wait()
        answer = asyncio.create_task(rig.app.answer(request("POST", "/v1/track", EVENT)))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not answer.done()
        durable.set()
        return await answer

    assert asyncio.run(story()).status == 200
    assert [json.loads(body) for body in rig.delivery.bodies] == [EVENT]
    assert rig.count("events_total", source="backend") == 1
    assert rig.count("requests_total", route="/v1/track", code="200") == 1


@pytest.mark.parametrize("reason", Undelivered)
def test_what_is_not_durable_is_503_with_the_time_to_come_back_readable_for_a_browser(reason):
    rig = Rig()

    def refuse(_):
        raise NotDurableError(reason, 7.0)

    rig.delivery.before = refuse
    answer = rig.ask("POST", "/v1/track", EVENT | {"writeKey": BROWSER_KEY}, authorization=None, origin=SHOP.encode())
    assert (answer.status, dict(answer.headers)[b"retry-after"]) == (503, b"7")
    assert dict(answer.headers)[b"access-control-allow-origin"] == SHOP.encode()
    assert rig.count("not_durable_total", reason=reason.value) == 1
    assert rig.count("events_total", source="shop") == 0


@pytest.mark.parametrize("broken", ["delivery", "protocol", "buckets"])
def test_a_bug_is_503_and_counted_and_logged_without_what_the_client_sent(broken, monkeypatch, capsys):
    configure_logging("json", "INFO")
    rig = Rig()

    def fail(*_):
        raise KeyError(PERSON)

    if broken == "delivery":
        rig.delivery.before = fail
    elif broken == "protocol":
        monkeypatch.setattr(app_module, "handle", fail)
    else:
        monkeypatch.setattr(rig.app._buckets, "take", fail)
    answer = rig.ask("POST", "/v1/track", EVENT | {"writeKey": BROWSER_KEY}, authorization=None, origin=SHOP.encode())
    assert answer.status == 503
    assert int(dict(answer.headers)[b"retry-after"]) >= 1
    assert b"access-control-allow-origin" in dict(answer.headers)
    assert rig.count("failures_total") == 1
    logged = capsys.readouterr().err
    line = json.loads(logged)
    assert (line["event"], line["error"], line["level"]) == ("a bug", "KeyError", "error")
    assert any("test_app.py" in frame for frame in line["where"])
    assert PERSON not in logged


def test_a_bug_while_a_head_is_judged_lets_the_body_come(monkeypatch):
    configure_logging("json", "CRITICAL")
    rig = Rig()
    monkeypatch.setattr(app_module, "admit", lambda *_: 1 / 0)
    assert rig.app.admit(request("POST", "/v1/track")) is None
    assert rig.count("failures_total") == 1
    assert rig.ask().status == 200


def test_a_source_past_its_rate_is_429_and_nothing_is_delivered():
    slow = Sources(tuple(
        Source(one.id, one.name, one.kind, one.keys, one.origins, rate=0.01, burst=2.0) for one in SOURCES.all
    ))  # fmt: skip
    rig = Rig(slow)
    statuses = [rig.ask().status for _ in range(4)]
    assert statuses == [200, 200, 429, 429]
    assert len(rig.delivery.messages) == 2
    assert rig.count("rate_limited_total", source="backend") == 2


def test_bad_events_are_counted_by_their_reason_and_go_on_as_dead_letters():
    rig = Rig()
    answer = rig.ask("POST", "/v1/batch", {"batch": [EVENT, {"type": "nonsense", "userId": "u"}]})
    assert answer.status == 200
    assert rig.count("rejected_events_total", reason="not_an_event") == 1
    assert rig.count("events_total", source="backend") == 1
    assert len(rig.delivery.messages) == 2


def test_every_request_has_an_id_of_its_own():
    rigs = [Rig(), Rig()]
    for rig in rigs:
        for _ in range(50):
            rig.ask()
    ids = [message.attributes["request_id"] for rig in rigs for message in rig.delivery.messages]
    assert len(set(ids)) == 100


def test_health_tells_strangers_no_more_than_a_load_balancer_has_to_know():
    rig = Rig()
    assert rig.ask("GET", "/health/live").body == b'{"live":true}'
    assert rig.app.admit(request("GET", "/health/ready")) is None
    assert rig.ask("GET", "/health/ready").body == b'{"ready":true}'
    rig.health = Health(ready=False, why="nowhere")
    answer = rig.ask("GET", "/health/ready")
    assert (answer.status, answer.body) == (503, b'{"ready":false,"why":"nowhere"}')
    assert rig.ask("GET", "/health/else").status == 404
    assert rig.count("requests_total", route="other", code="404") == 1


def test_the_demo_is_there_where_it_was_asked_for():
    assert Rig().ask("GET", "/demo").status == 404
    assert Rig(with_demo=True).ask("GET", "/demo").status == 200


@pytest.mark.parametrize(("peer", "said", "scheme"), [
    ("10.0.0.1", b"https", "https"), ("10.0.0.1", b"http, https", "https"), ("10.0.0.1", b"https, http", "http"),
    ("10.0.0.1", None, "http"), ("192.0.2.1", b"https", "http"), ("", b"https", "http"),
])  # fmt: skip
def test_only_a_trusted_proxy_is_believed_that_the_client_spoke_https(peer, said, scheme):
    trusting = dataclasses.replace(SOURCES, trusted_proxies=(ipaddress.ip_network("10.0.0.0/8"),))
    asked = request("GET", "/v1/projects/x/settings", x_forwarded_proto=said)._replace(peer=peer, scheme="http")
    assert app_module._with_scheme(asked, trusting).scheme == scheme


def test_the_standard_library_s_exceptions_are_logged_without_their_messages(capsys):
    configure_logging("json", "INFO", worker=3)
    try:
        int(PERSON)
    except ValueError:
        logging.getLogger("somebody").exception("it failed")
        structlog.get_logger("else").exception("it failed, too")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["error"], line["worker"]) for line in lines] == [
        ("it failed", "ValueError", 3), ("it failed, too", "ValueError", 3),
    ]  # fmt: skip
    assert PERSON not in json.dumps(lines)
    assert SERVER_KEY not in json.dumps(lines)
