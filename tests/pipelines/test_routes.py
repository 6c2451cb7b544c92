"""`millrace routes`: what it prints for an event, to the letter, and what it cannot know."""

import io
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from millrace.collector import check
from millrace.config import fanout, routes
from millrace.pipelines.routes import main

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "sinks.md"
TRANSFORMS = "tests.support.transforms"

Captured = pytest.CaptureFixture[str]


def explained(
    tmp_path: Path, capsys: Captured, config: str, event: dict[str, Any] | bytes, *more: str, code: int = 0
) -> str:
    """Explain an event by a configuration; return what is printed."""
    (tmp_path / "millrace.yaml").write_text(config)
    body = event if isinstance(event, bytes) else json.dumps(event).encode()
    (tmp_path / "event.json").write_bytes(body)
    given = ["explain", str(tmp_path / "event.json"), "--config", str(tmp_path / "millrace.yaml"), *more]
    assert main(given) == code
    out, err = capsys.readouterr()
    return out if code == 0 else out + err


def test_the_examples_are_right_and_the_document_shows_what_they_print(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
):
    monkeypatch.chdir(ROOT)
    assert check.main(["examples/fanout.yaml"]) == 0
    assert capsys.readouterr().out == (
        "examples/fanout.yaml: the job's sections: privacy, enrich, sessions; 2 sinks (crm, audit); 3 routes\n"
    )
    shown = re.findall(r"```\n\$ millrace routes (.*)\n((?:.|\n)*?)```", DOCUMENT.read_text(encoding="utf-8"))
    assert [command.split()[0] for command, _ in shown] == ["explain", "list"]
    for command, output in shown:
        assert main(shlex.split(command)) == 0
        assert capsys.readouterr().out == output


def test_every_key_is_in_the_document():
    def keys(heading: str) -> list[str]:
        section = DOCUMENT.read_text(encoding="utf-8").split(f"# {heading}\n", 1)[1].split("\n#")[0]
        return re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE)

    assert keys("sinks") == list(fanout.SINK)
    assert keys("retry") == list(fanout.RETRY)
    assert keys("routes") == list(routes.ROUTE)


CONFIG = f"""
privacy: {{consent: {{}}, fields: [{{field: context_ip, policy: drop}}]}}
enrich: [url]
sessions: {{}}
transforms:
  - {{use: "{TRANSFORMS}:plan"}}
  - {{use: "{TRANSFORMS}:euros", with: {{rate: 3}}, when: event == "Order Completed"}}
sinks: {{a: {{use: files, with: {{folder: x, name: "{{target}}"}}}}, b: {{use: console}}}}
routes:
  - {{to: a, name: rich, when: total_eur > 100, columns: [message_id, total_eur, session_id, page_host, context_ip]}}
  - {{to: a, name: regulars, when: session_index > 3 and type == "track", columns: [message_id], rate: 5}}
  - {{to: a, name: paying, when: plan == "gold", columns: [message_id], target: gold}}
  - {{to: b, order: none, columns: [message_id, properties], sample: 0.5}}
"""


def order(**more: Any) -> dict[str, Any]:
    return {
        "type": "track",
        "event": "Order Completed",
        "messageId": "m1",
        "userId": "ann",
        "properties": {"total": 50},
        "context": {"page": {"url": "https://shop.example/x"}, "ip": "203.0.113.9"},
        **more,
    }


def test_stages_run_as_in_the_job_and_what_needs_the_past_or_a_service_cannot_be_told(tmp_path: Path, capsys: Captured):
    assert explained(tmp_path, capsys, CONFIG, order()) == (
        """track 'Order Completed' of ann (m1), as if it came in now, in time
  cannot be told: session_id, session_index (sessions: hangs on what the user did before)
  cannot be told: plan (plan: asks another service, which is not done here)

rich (to a), in order: goes
  integrations  yes  nothing is said against it
  when          yes  total_eur > 100; total_eur is 150.0
  sent (without session_id):
    {"message_id":"m1","total_eur":150.0,"page_host":"shop.example"}

regulars (to a), in order: does not go
  integrations  yes  nothing is said against it
  when          ?    session_index > 3 and type == "track"; session_index cannot be told, type is "track"
  first         no   rich, before it, takes the event

paying (to a), in order: does not go
  integrations  yes  nothing is said against it
  when          ?    plan == "gold"; plan cannot be told
  first         no   rich, before it, takes the event

b, without order: goes
  integrations  yes  nothing is said against it
  sample        yes  50 % of the users; ann stands at 28.19 %
  sent:
    {"message_id":"m1","properties":{"total": 50}}
"""
    )


def test_a_route_that_hangs_on_the_past_may_go(tmp_path: Path, capsys: Captured):
    told = explained(tmp_path, capsys, CONFIG, order(event="Order Refunded"))
    assert [line for line in told.splitlines() if line and not line.startswith(" ")][1:] == [
        "rich (to a), in order: does not go",
        "regulars (to a), in order: may go",
        "paying (to a), in order: may go",
        "b, without order: goes",
    ]
    assert "  rate               at most 5 events a second: it may wait\n  sent:\n" in told
    assert "  first         ?    regulars, before it, may take the event\n  sent to gold:\n" in told


def test_each_event_of_a_batch_is_explained_and_what_gets_nowhere_is_told(tmp_path: Path, capsys: Captured):
    text = "sinks: {a: {use: console}}\nroutes: [{to: a, columns: [message_id, source_id]}]"
    events = [order(messageId="x"), {"type": "track"}, order(messageId="y", integrations={"A": False})]
    told = explained(tmp_path, capsys, text, {"batch": events}, "--source", "shop")
    assert told.splitlines()[0] == "An event goes nowhere: dead letter (no_user): neither userId nor anonymousId"
    assert re.findall(r"\((.)\), as|: (goes|does not go)$", told, re.MULTILINE) == [
        *(("x", ""), ("", "goes"), ("y", ""), ("", "does not go")),
    ]
    assert '{"message_id":"x","source_id":"shop"}' in told


def test_what_a_transform_drops_or_refuses_goes_only_where_no_order_is_needed(tmp_path: Path, capsys: Captured):
    text = (
        f"transforms: [{{use: '{TRANSFORMS}:euros', with: {{rate: 3}}}}]\nsinks: {{a: {{use: console}}}}\n"
        "routes: [{to: a}, {to: a, name: raw, order: none, columns: [message_id]}]"
    )
    told = explained(tmp_path, capsys, text, order(properties={"total": "much"}))
    assert told.splitlines()[0].startswith("An event goes nowhere in order: dead letter (transform_failed): ")
    assert "a, in order: does not go: the event is there before the order only\n" in told
    assert "raw (to a), without order: goes\n" in told


def test_an_event_that_nothing_is_left_of_ends_with_2(tmp_path: Path, capsys: Captured):
    text = "sinks: {a: {use: console}}\nroutes: [{to: a}]"
    assert explained(tmp_path, capsys, text, b"{", code=2).startswith("An event goes nowhere: dead letter (not_json): ")
    assert explained(tmp_path, capsys, "routes: [{to: a}]", order(), code=2) == (
        f"{tmp_path}/millrace.yaml:1: routes: there is no sink 'a'; there is none; add it to `sinks:`\n"
    )
    keyed = "privacy: {keys: [{version: v1, secret: 'env:NOT_THERE'}], fields: [{field: user_id, policy: hash}]}"
    assert "NOT_THERE" in explained(tmp_path, capsys, keyed, order(), code=2)
    assert main(["explain", str(tmp_path / "nix.json"), "--config", str(tmp_path / "millrace.yaml")]) == 2
    assert capsys.readouterr().err == (
        f"millrace routes: {tmp_path}/nix.json cannot be read: No such file or directory\n"
    )


def test_a_source_that_the_file_does_not_list_is_a_mistake(tmp_path: Path, capsys: Captured):
    routes_of = "sinks: {a: {use: console}}\nroutes: [{to: a, columns: [source_id]}]\n"
    source = f"{{kind: server, keys: [{{begins: mrs_4fQx, sha256: {'1' * 64}}}]}}"
    listed = f"sources:\n  shop: {source}\n  app: {source.replace('4fQx', '5fQx').replace('111', '222')}\n{routes_of}"
    wrong = f"millrace routes: --source {{}}: {tmp_path}/millrace.yaml has no such source; {{}}\n"
    assert explained(tmp_path, capsys, listed, order(), "--source", "zz", code=2) == wrong.format(
        "zz", "there are: shop, app"
    )
    assert explained(tmp_path, capsys, listed, order(), "--source", "shopp", code=2) == wrong.format(
        "shopp", "did you mean shop?"
    )
    assert '{"source_id":"app"}' in explained(tmp_path, capsys, listed, order(), "--source", "app")
    # A job's file need not list the sources: the collector may have another.
    assert '{"source_id":"zz"}' in explained(tmp_path, capsys, routes_of, order(), "--source", "zz")
    broken = f"sources:\n  shop: {{kind: x}}\n{routes_of}"
    told = explained(tmp_path, capsys, broken, order(), "--source", "shop", code=2)
    assert told.startswith(f"{tmp_path}/millrace.yaml:2: ")


def test_an_event_may_come_from_standard_input_and_there_may_be_no_route(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
):
    (tmp_path / "m.yaml").write_text("sources: {}\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(order()).encode())))
    assert main(["explain", "-", "--config", str(tmp_path / "m.yaml")]) == 0
    assert capsys.readouterr().out == (
        "track 'Order Completed' of ann (m1), as if it came in now, in time\n\n"
        "There is no route: it goes nowhere but into the archive.\n"
    )
    assert main(["list", "--config", str(tmp_path / "m.yaml")]) == 0
    assert capsys.readouterr().out == "There is no route.\n"
