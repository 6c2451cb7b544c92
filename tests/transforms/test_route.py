"""Routes: which event takes which, with what; and explain says the same, in words."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.config.columns import archived_columns, known_columns
from millrace.config.expressions import compile_expression
from millrace.sinks.json_rows import JSON
from millrace.transforms.route import Route, columns_for, integration, route_rows, rows_for, shares
from millrace.transforms.route_explain import Condition, Verdict, explain
from tests.support.batches import batch, event

SCHEMA = archived_columns(pa.schema([]))


def rows(*given: dict[str, Any]) -> pa.RecordBatch:
    """Return events, m0, m1 ..., with a column of what their users have denied."""
    denied = [each.pop("denied", None) for each in given]
    whole = batch([event(f"m{number}", **each) for number, each in enumerate(given)])
    return whole.append_column("consent_denied", pa.array(denied, pa.string()))


def when(text: str) -> Any:
    return compile_expression(text, SCHEMA)


def test_an_event_takes_the_first_route_that_it_fits():
    routes = [
        Route("orders", "crm", when=when('event == "Order Completed"')),
        Route("dear", "crm", when=when("properties.total > 10")),
        Route("pages", "crm", when=when('type == "page"')),
    ]
    given = rows(
        {"event": "Order Completed", "properties": '{"total": 12}'},
        {"event": "Refunded", "properties": '{"total": 12}'},
        {"event": "Refunded", "properties": '{"total": "12"}'},
        {"type": "page"},
        {"event": None},
    )
    taken = route_rows(given, routes)
    assert taken.dtype == np.int16
    assert taken.tolist() == [0, 1, -1, 2, -1]
    assert route_rows(given, [Route("all", "crm")]).tolist() == [0] * 5
    assert route_rows(given, []).tolist() == [-1] * 5
    assert route_rows(given.slice(0, 0), routes).tolist() == []


@pytest.mark.parametrize(
    ("integrations", "goes"),
    [
        ("{}", True),
        ('{"All":true}', True),
        ('{"All":false}', False),
        ('{"All":false,"CRM":true}', True),
        ('{"all":false,"crm":{"list":7}}', True),
        ('{"All":false,"crm":{}}', True),
        ('{"Crm":false}', False),
        ('{"All":true,"crm":false}', False),
        ('{"crm":true,"CRM":false}', False),
        ('{"other":false}', True),
        ('{"All":false,"other":true}', False),
        ('{"crm":null,"All":"false"}', True),
        ('{"All":false,"crm":"yes"}', False),
        ("[false]", True),
        ('"crm"', True),
    ],
)
def test_integrations_are_segments(integrations: str, goes: bool):
    spelled = [
        f'{{"channel":"web","integrations":{integrations}}}',
        f'{{"\\u0069ntegrations":{integrations}}}',
    ]
    given = rows(*({"rest": text} for text in spelled), {"rest": '{"channel":"web"}'}, {"rest": None})
    assert route_rows(given, [Route("crm", "crm")]).tolist() == [0 if goes else -1] * 2 + [0, 0]
    assert integration(spelled[0], "crm")[0] is goes


def test_a_rest_that_is_no_json_stops_nothing():
    given = rows({"rest": '{"integrations":{"All":false}'}, {"rest": '"integrations"'}, {"rest": "[" * 9_000})
    assert route_rows(given, [Route("crm", "crm")]).tolist() == [0, 0, 0]


def test_consent_is_needed_as_the_strategy_says_and_an_archive_without_the_column_denies_nothing():
    given = rows({"denied": '["ads"]'}, {"denied": '["ads","mail"]'}, {"denied": "[]"}, {})
    every = Route("crm", "crm", consent=("ads", "mail"))
    one = Route("crm", "crm", consent=("ads", "mail"), strategy="or")
    assert route_rows(given, [every]).tolist() == [-1, -1, 0, 0]
    assert route_rows(given, [one]).tolist() == [0, -1, 0, 0]
    assert route_rows(given.drop_columns(["consent_denied"]), [every]).tolist() == [0, 0, 0, 0]


@given(st.lists(st.text(max_size=9), min_size=1, max_size=30), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_larger_share_keeps_those_that_were_in_and_a_user_is_in_or_out_whole(
    users: list[str], one: float, other: float
):
    given = rows(*({"user": user} for user in users))
    small, large = (
        route_rows(given, [Route("crm", "crm", sample=share)]) == 0 for share in sorted((min(one, 1), min(other, 1)))
    )
    assert not (small & ~large).any()
    assert all(len({bool(large[at]) for at, user in enumerate(users) if user == each}) == 1 for each in users)
    again = route_rows(given.slice(len(users) // 2), [Route("another", "sink", sample=max(one, other))]) == 0
    assert again.tolist() == large[len(users) // 2 :].tolist()


def test_a_share_is_about_that_share_and_the_same_everywhere():
    given = rows(*({"user": f"u{number}"} for number in range(20_000)))
    for by in ("user", "event"):
        route = Route("crm", "crm", sample=0.1, sample_by=by)
        assert 0.09 < (route_rows(given, [route]) == 0).mean() < 0.11
    assert shares(given.slice(0, 2), "user").round(6).tolist() == [0.204302, 0.616213]
    assert shares(given.slice(1, 1), "event").round(6).tolist() == [0.956752]


def test_what_is_sent_has_the_chosen_columns_under_their_names_and_knows_its_json():
    given = rows({"properties": '{"a":1}', "user_id": "ann"}, {})
    route = Route(
        "crm", "crm", columns=(("properties", "payload"), ("message_id", "id"), ("geo_lat", "lat"), ("mine", "mine"))
    )
    sent = rows_for(given, route)
    assert sent.to_pylist() == [
        {"payload": '{"a":1}', "id": "m0", "lat": None, "mine": None},
        {"payload": None, "id": "m1", "lat": None, "mine": None},
    ]
    assert [(field.type, field.metadata) for field in sent.schema] == [
        (pa.string(), JSON),
        (pa.string(), None),
        (pa.float64(), None),
        (pa.string(), None),
    ]


def test_without_columns_everything_that_is_archived_is_sent():
    sent = rows_for(rows({}), Route("crm", "crm"))
    assert sent.schema.names == [name for name in rows({}).schema.names if name not in {"arrived_at", "receipt"}]
    assert [f.name for f in sent.schema if f.metadata] == [
        *("properties", "traits", "context_rest", "rest", "consent_denied"),
    ]


def test_a_follower_reads_only_what_its_routes_need():
    there = [name for name in known_columns().names if name != "arrived_at"]
    always = ["message_id", "user_key", "released_at", "order_index", "rest"]
    plain = Route("a", "crm", columns=(("event", "event"),), when=when("properties.total > 1 and geo_country == 'DE'"))
    assert columns_for([plain], there) == [
        name for name in there if name in {*always, "event", "properties", "geo_country"}
    ]
    consent = Route("b", "crm", columns=(("type", "t"),), consent=("ads",))
    assert columns_for([consent], ["type", "message_id", "consent_denied"]) == ["type", "message_id", "consent_denied"]
    assert columns_for([plain, Route("c", "crm")], there) == there


EVENTS = st.fixed_dictionaries(
    {
        "user": st.sampled_from(["ann", "bob", "cid", "dan", "eve"]),
        "event": st.sampled_from(["a", "b", None]),
        "properties": st.sampled_from(['{"n":1}', '{"n":5}', None, "x"]),
        "rest": st.sampled_from(
            [None, '{"integrations":{"All":false}}', '{"integrations":{"All":false,"crm":true}}', '{"channel":1}']
        ),
        "denied": st.sampled_from([None, "[]", '["ads"]', '["ads","mail"]']),
    }
)
ROUTES = st.builds(
    Route,
    st.uuids().map(str),
    st.just("crm"),
    when=st.sampled_from(
        [None, *map(when, ('event == "a"', "properties.n > 2 or event is null", 'not (event == "b")'))]
    ),
    sample=st.sampled_from([1.0, 0.5]),
    sample_by=st.sampled_from(["user", "event"]),
    consent=st.sampled_from([(), ("ads",), ("ads", "mail")]),
    strategy=st.sampled_from(["and", "or"]),
)


@given(st.lists(EVENTS, min_size=1, max_size=12), st.lists(ROUTES, max_size=4))
def test_explain_says_what_happens_and_one_row_is_like_many(events: list[dict[str, Any]], routes: list[Route]):
    given = rows(*(dict(each) for each in events))
    taken = route_rows(given, routes).tolist()
    for row, number in enumerate(taken):
        one = given.slice(row, 1)
        assert route_rows(one, routes).tolist() == [number]
        assert [verdict.goes for verdict in explain(one, routes)] == [at == number for at in range(len(routes))]


def test_explain_names_each_condition_in_turn():
    given = rows(
        {
            "event": "Order Completed",
            "properties": '{"total": 5}',
            "rest": '{"integrations":{"All":false,"CRM":{}}}',
            "denied": '["ads"]',
        }
    )
    first = Route("orders", "crm", when=when('event == "Order Completed" and properties.total > 10'), consent=("mail",))
    second = Route("some", "crm", sample=0.9, sample_by="event")
    third = Route("rest", "crm")
    other = Route("profile", "profile", sample=0.1)
    crm = Condition("integrations", True, "CRM is an object, which allows it")
    assert explain(given, [first, second, third, other]) == [
        Verdict(
            first,
            (
                crm,
                Condition("consent", True, "needs mail; the user has denied ads"),
                Condition(
                    "when",
                    False,
                    'event == "Order Completed" and properties.total > 10; event is "Order Completed", '
                    "properties.total is 5",
                ),
            ),
        ),
        Verdict(second, (crm, Condition("sample", True, "90 % of the events; m0 stands at 31.17 %"))),
        Verdict(third, (crm, Condition("first", False, "some, before it, takes the event"))),
        Verdict(
            other,
            (
                Condition("integrations", False, "All is false, and profile is not named"),
                Condition("sample", False, "10 % of the users; ann stands at 28.19 %"),
            ),
        ),
    ]


@pytest.mark.parametrize(
    ("text", "goes"),
    [
        ("session_index > 1", None),
        ("session_index is null", None),
        ("not (session_index is null)", None),
        ('session_index > 1 and event == "b"', False),
        ('session_index > 1 or event == "a"', True),
        ('event == "b"', False),
    ],
)
def test_what_hangs_on_the_past_may_go_unless_the_event_alone_decides_it(text: str, goes: bool | None):
    routes = [Route("one", "crm", when=when(text)), Route("two", "crm")]
    one, two = explain(rows({"event": "a"}), routes, {"session_index"})
    assert one.goes is goes
    assert two.goes is (None if goes is None else not goes)


def test_the_user_of_a_share_may_be_another_where_links_are_followed():
    (verdict,) = explain(rows({}), [Route("crm", "crm", sample=0.5)], {"user_key"})
    assert verdict.conditions[1] == Condition(
        "sample", None, "50 % of the users; ann stands at 28.19 %, if that is the user_key"
    )


def test_columns_that_a_route_looks_at_may_be_missing():
    given = rows({"event": "a"}).select(["message_id", "user_key", "event"])
    assert route_rows(given, [Route("crm", "crm", when=when("session_index is null"))]).tolist() == [0]
