"""The sections `sinks:` and `routes:`: what they make, and for every mistake the line and what to do."""

import pickle
from pathlib import Path

import pytest

from millrace.collector import check
from millrace.config.fanout import FanoutError, load_fanout, read_fanout, unused
from millrace.config.job import read_job
from millrace.delivery.retry import RetryPolicy
from millrace.delivery.settings import Fanout, SinkSettings
from millrace.transforms.route import Route

SINKS = "tests.support.sinks"
TRANSFORMS = "tests.support.transforms"

WHOLE = f"""
privacy: {{consent: {{}}}}
transforms:
  - {{use: "{TRANSFORMS}:euros", with: {{rate: 3}}}}
sinks:
  crm:
    use: {SINKS}:Kept
    with: {{url: https://crm.example, topics: [a]}}
    retry: {{first: 500ms, longest: 5m, tries: 4, for: 2h}}
    max_events: 100
    max_in_flight: 4
    deadline: 10s
    hot_user_events: 2_000
    max_waiting: 10_000
  profile: {{use: console}}
routes:
  - to: crm
    name: orders
    when: event == "Order Completed" and total_eur > 10 and session_index > 1
    columns: [message_id, {{properties: payload, total_eur: total}}]
    sample: 0.1
    sample_by: event
    rate: 100
    consent: {{required: [marketing, ads], strategy: or}}
    target: orders
  - {{to: crm, order: none, when: "violations is not null", consent: [ads]}}
  - {{to: profile}}
"""


def test_the_sections_become_sinks_routes_and_lanes():
    fanout = read_fanout(WHOLE, "millrace.yaml")
    crm, profile = fanout.sinks
    assert crm == SinkSettings(
        name="crm",
        use=f"{SINKS}:Kept",
        given={"url": "https://crm.example", "topics": ["a"]},
        retry=RetryPolicy(0.5, 300.0, 4, 7_200.0),
        max_events=100,
        max_in_flight=4,
        deadline_s=10.0,
        hot_user_events=2_000,
        max_waiting=10_000,
    )
    assert profile == SinkSettings("profile", "console")
    orders, plain, all_ = fanout.routes
    assert orders == Route(
        name="orders",
        to="crm",
        when=orders.when,
        columns=(("message_id", "message_id"), ("properties", "payload"), ("total_eur", "total")),
        sample=0.1,
        sample_by="event",
        rate=100.0,
        is_ordered=True,
        target="orders",
        consent=("marketing", "ads"),
        strategy="or",
    )
    assert str(orders.when) == 'event == "Order Completed" and total_eur > 10 and session_index > 1'
    assert plain == Route("crm", "crm", when=plain.when, is_ordered=False, consent=("ads",))
    assert all_ == Route("profile", "profile")
    assert [(lane.name, [route.name for route in lane.routes]) for lane in fanout.lanes] == [
        ("crm", ["orders"]),
        ("crm.unordered", ["crm"]),
        ("profile", ["profile"]),
    ]
    assert pickle.loads(pickle.dumps(fanout)) == fanout  # noqa: S301  our own


def test_a_file_without_the_sections_has_no_sinks(tmp_path: Path):
    assert read_fanout("sessions: {}", "m.yaml") == read_fanout("", "m.yaml") == load_fanout("") == Fanout()
    with pytest.raises(FanoutError, match=r"nix\.yaml: cannot be read: "):
        load_fanout(str(tmp_path / "nix.yaml"))


def test_sinks_to_which_no_route_leads_are_told():
    assert unused(read_fanout("sinks: {a: {use: console}, b: {use: console}}\nroutes: [{to: b}]", "m.yaml")) == ["a"]


SINK_MISTAKES = {
    "Crm: {use: console}": "sinks: 'Crm' is no name; take a-z, 0-9, _ and -, and a letter first",
    "all: {use: console}": "sinks: all means every sink; take another name",
    "a: console": "a: has to be `name: value` lines, not 'console'",
    "a: {}": "a: use is missing; write a built-in sink's name, or module:Name of your own",
    "a: {use: consol}": "a: use: there is no sink 'consol'; there are: console, files, ",
    "a: {use: console, usee: 1}": "a: 'usee' is not known here; did you mean use?",
    "a: {use: console, with: {x: 1}}": "a: with: x is not a setting of Console; there are: names_route",
    f"a: {{use: '{SINKS}:Kept'}}": "a: with: url is missing, which Kept needs; add it",
    f"a: {{use: '{SINKS}:Kept', with: {{url: 3}}}}": "a: with: url: Expected `str`, got `int`; Kept takes url: str",
    f"a: {{use: '{SINKS}:Kept', with: {{url: http://a}}}}": "a: with: Kept refuses its settings: url has to begin with "
    "https://, not 'http://a'",
    "a: {use: console, retry: {first: 5}}": "a: retry: first: has to be a duration such as 500ms, 1s, 5m or 1h, up to "
    "2,592,000 s, not '5'",
    "a: {use: console, retry: {first: 5m, longest: 1m}}": "a: retry: longest is shorter than first, 300 s; make it at "
    "least that",
    "a: {use: console, retry: {longest: 500ms}}": "a: retry: longest is shorter than first, 1 s; make it at least that",
    "a: {use: console, deadline: 2h}": "a: deadline: has to be a duration such as 500ms, 1s, 5m or 1h, up to 3,600 s, "
    "not '2h'",
    "a: {use: console, max_events: 0}": "a: max_events: has to be a whole number from 1 to 100,000, not '0'",
}


@pytest.mark.parametrize("sink", SINK_MISTAKES)
def test_a_mistake_in_a_sink_says_its_line_and_what_to_do(sink: str):
    with pytest.raises(FanoutError) as caught:
        read_fanout(f"sinks:\n  {sink}", "m.yaml")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"m.yaml:2: {SINK_MISTAKES[sink]}")


def test_a_refusal_points_at_the_argument_that_it_names():
    with pytest.raises(FanoutError) as caught:
        read_fanout(
            f"sinks:\n  a:\n    use: {SINKS}:Kept\n    with:\n      timeout_s: 3\n      url: http://a", "m.yaml"
        )
    assert str(caught.value).startswith("m.yaml:6: a: with: Kept refuses its settings: url has to begin with")


ROUTE_MISTAKES = {
    "{name: x}": "routes: to is missing; write the name of one of the sinks",
    "{to: nix}": "routes: there is no sink 'nix'; there are: a, b",
    "{to: aa}": "routes: there is no sink 'aa'; did you mean a?",
    "{to: a, name: A b}": "routes: 'A b' is no name; take a-z, 0-9, _ and -, and a letter first",
    "{to: a, whn: x}": "routes: 'whn' is not known here; did you mean when?",
    "{to: a, when: evnt == 'x'}": "a: when: \"evnt == 'x'\", column 1: evnt is not a column; did you mean event?",
    "{to: a, when: session_index > 1, order: none}": "a: when: session_index is known only once events are in order, "
    "and this route has `order: none`; remove it, or write `order: user`",
    "{to: a, columns: [order_index], order: none}": "a: columns: order_index is known only once events are in order, "
    "and this route has `order: none`; remove it, or write `order: user`",
    "{to: a, columns: [total_eur, page_host, number], order: none}": "a: columns: number is known "
    "only once events are in order, ",
    "{to: a, columns: [evnt]}": "a: columns: 'evnt' is not a column; did you mean event?",
    "{to: a, columns: [qqq]}": "a: columns: 'qqq' is not a column; docs/event_model.md lists them",
    "{to: a, columns: [receipt]}": "a: columns: 'receipt' is not a column; ",
    "{to: a, columns: []}": "a: columns is empty; write what the sink shall get, or remove it for every column",
    "{to: a, columns: [event, {type: event}]}": "a: columns: event is there already, of event at line 5; give one "
    "another name",
    "{to: a, columns: [event, event]}": "a: columns: event is there already, of event at line 5; give one another name",
    '{to: a, columns: [{event: "a\\nb"}]}': "a: columns: 'a\\nb' is no name for a column at a sink; take 1 to 200 ",
    "{to: a, columns: event}": "a: columns: has to be a list, such as [one, two], not 'event'",
    "{to: a, sample: 0}": "a: sample: has to be a number above 0, up to 1, not '0'",
    "{to: a, sample: 1.5}": "a: sample: has to be a number above 0, up to 1, not '1.5'",
    "{to: a, sample_by: event}": "a: sample_by means nothing without sample; add it",
    "{to: a, sample: 0.5, sample_by: users}": "a: sample_by: 'users' is not one of its values; did you mean user?",
    "{to: a, rate: 0}": "a: rate: has to be a number above 0, up to 1,000,000, not '0'",
    "{to: a, order: event}": "a: order: 'event' is not one of its values; there are: user, none",
    "{to: a, consent: []}": "a: consent is empty; write the categories that are needed, or remove it",
    "{to: a, consent: {strategy: or}}": "a: consent: required is missing; write {required: [marketing], strategy: or}",
    "{to: a, consent: {required: [x], strategy: xor}}": "a: consent: strategy: 'xor' is not one of its values; did you "
    "mean or?",
    "{to: a, target: x}": "a: target: Console has no targets, so it would mean nothing: remove it",
    "{to: a, target: [x]}": "a: target: has to be a text; put a list in quotes if it is meant so",
}


@pytest.mark.parametrize("route", ROUTE_MISTAKES)
def test_a_mistake_in_a_route_says_its_line_and_what_to_do(route: str):
    both = f"{{use: '{TRANSFORMS}:euros'}}, {{use: '{TRANSFORMS}:Numbered'}}"
    head = f"transforms: [{both}]\nprivacy: {{consent: {{}}}}\n"
    with pytest.raises(FanoutError) as caught:
        read_fanout(f"{head}sinks: {{a: {{use: console}}, b: {{use: console}}}}\nroutes:\n  - {route}", "m.yaml")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"m.yaml:5: {ROUTE_MISTAKES[route]}")


UNFIT = {
    "redis, with: {url: redis://r}": {
        "columns: [message_id, {type: kind}, traits]": "5: a: columns: a profile is made of columns that the route "
        "leaves out: add type, event, occurred_at",
        "target: x": "5: a: target: Redis has no targets, so it would mean nothing: remove it",
    },
    "webhook, with: {url: 'https://a.example'}": {
        "target: x": "5: a: target: Webhook has no targets, so it would mean "
    },
    "files, with: {folder: x}": {
        "target: x": "5: a: target: the files' name lacks {target}, so it would mean nothing: "
    },
    "postgres, with: {dsn: 'postgresql://p/x'}": {
        "target: a.b.c": "5: a: target: the table 'a.b.c' has to be a name or schema.name, ",
        "columns: [{user_key: message_id}]": "5: a: columns: message_id is the key of the table, and in this route it "
        "is user_key, not message_id: give that column another name, or set the sink's key",
    },
    "postgres, with: {dsn: 'postgresql://p/x', key: event}": {
        "rate: 1": "4: a: columns: event is the key of the table, and in this route it is event, not message_id: ",
    },
    "bigquery, with: {table: pro-ject.d.t}": {
        "target: a.b.c.d": "5: a: target: a table is named project.dataset.table, "
    },
    "pubsub, with: {topic: projects/shop/topics/all, attributes: [plan, type]}": {
        "columns: [{event: type}]": "5: a: columns: the sink's attributes are columns, which the route leaves out: "
        "add plan",
        "columns: [{event: type}, {user_id: plan}]\n    target: a b": "6: a: target: a topic is projects/PROJECT/"
        "topics/TOPIC, or TOPIC alone, got 'a b'",
    },
    "kafka, with: {brokers: k, topic: t, format: avro, schemas: x}": {
        "target: a b": "5: a: target: a topic has 1 to 249 letters, digits, dots, _ or -, got 'a b'",
        "columns: [{event: its name}]": "5: a: columns: the column 'its name' has no Avro name (letters, digits and ",
    },
    f"'{SINKS}:Picky'": {
        "columns: [event]": "5: a: columns: it needs user_id: add it",
        "target: x": "5: a: target: the sink's code fails at it: KeyError: 'x'",
    },
}


@pytest.mark.parametrize(("use", "route"), [(use, route) for use, routes in UNFIT.items() for route in routes])
def test_a_route_that_its_sink_can_do_nothing_with_says_its_line_and_what_to_do(use: str, route: str):
    with pytest.raises(FanoutError) as caught:
        read_fanout(f"sinks:\n  a: {{use: {use}}}\nroutes:\n  - to: a\n    {route}", "m.yaml")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"m.yaml:{UNFIT[use][route]}")


def test_targets_and_columns_that_the_sinks_take_are_no_mistakes():
    fanout = read_fanout(
        """
sinks:
  p: {use: postgres, with: {dsn: "postgresql://p/x", key: id}}
  q: {use: pubsub, with: {topic: projects/shop/topics/all, attributes: [kind]}}
  f: {use: files, with: {folder: x, name: "{target}/{date}"}}
  r: {use: redis, with: {url: redis://r, traits: []}}
routes:
  - {to: p, columns: [{message_id: id}, event], target: shop.orders}
  - {to: q, columns: [{type: kind}], target: projects/other/topics/all}
  - {to: f, target: "eu/orders"}
  - {to: r, columns: [type, event, occurred_at]}
""",
        "m.yaml",
    )
    assert [route.target for route in fanout.routes] == ["shop.orders", "projects/other/topics/all", "eu/orders", ""]


def test_routes_that_can_get_no_event_or_have_the_name_of_another_are_told():
    head = "sinks: {a: {use: console}}\nroutes:\n"
    with pytest.raises(FanoutError) as caught:
        read_fanout(f"{head}  - {{to: a}}\n  - {{to: a, name: b, when: is_late}}\n", "m.yaml")
    assert str(caught.value) == (
        "m.yaml:4: routes: b never gets an event: a, at line 3, takes all that may go to a; put this one before it"
    )
    with pytest.raises(FanoutError) as caught:
        read_fanout(f"{head}  - {{to: a, when: is_late}}\n  - {{to: a}}\n", "m.yaml")
    assert str(caught.value) == ("m.yaml:4: routes: a is there already, at line 3; give this one a `name` of its own")
    assert read_fanout(f"{head}  - {{to: a}}\n  - {{to: a, name: b, order: none}}\n", "m.yaml").routes


def test_consent_that_nothing_reads_is_a_mistake():
    text = "sinks: {a: {use: console}}\nroutes:\n  - {to: a, consent: [ads]}\n"
    with pytest.raises(FanoutError) as caught:
        read_fanout(text, "m.yaml")
    assert str(caught.value) == (
        "m.yaml:3: routes: consent: nothing reads what users have denied, so this would hold back no event; add "
        "`privacy: {consent: {}}`"
    )
    assert read_fanout(f"privacy: {{consent: {{}}}}\n{text}", "m.yaml").routes[0].consent == ("ads",)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(FanoutError) as caught:
        read_fanout("sinks:\n  a: {use: x}\n  b: {}\nroutes:\n  - {to: c}\n  - {to: a, rate: x, sample: 7}", "m.yaml")
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["2", "3", "5", "6", "6"]


def test_the_hash_of_the_job_hangs_on_nothing_of_delivery():
    job = "sessions: {gap_min: 5}\n"
    plain, routed = (
        read_job(job + more, "m.yaml") for more in ("", "sinks: {a: {use: console}}\nroutes: [{to: a, rate: 3}]\n")
    )
    assert plain.lineage is not None
    assert plain.lineage == routed.lineage
    assert read_job("sinks: {}\nroutes: []", "m.yaml").lineage is None


def test_check_reads_sinks_and_routes_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "millrace.yaml"
    file.write_text(
        "sessions: {}\nsinks: {a: {use: console}, b: {use: console}}\n"
        "routes:\n  - {to: a, columns: [session_id, page_host, fingerprint], when: geo_country == 'DE'}\n"
    )
    assert check.main([str(file)]) == 0
    assert capsys.readouterr().out == (
        f"{file}: the job's sections: sessions; 2 sinks (a, b); 1 route; no route leads to b; a names what is null in "
        "every event, since its stage is off: page_host, geo_country\n"
    )
    file.write_text("sinks: {a: {use: console}}\nroutes: [{to: b}]\ntransforms:\n  - use: nowhere:x\n")
    assert check.main([str(file)]) == 2
    assert capsys.readouterr().out == (
        f"{file}:4: transforms: use: there is no module 'nowhere'; install its package, or start where the file is\n"
        f"{file}:2: routes: there is no sink 'b'; there are: a\n"
    )
