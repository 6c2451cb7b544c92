"""Validate: each violation by each policy; one verdict in whatever batch; what keeps its contract stays as it is."""

import functools
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.schemas import dead_letter
from millrace.schemas.contracts import ADDED, Contracts, Policy, SourcePolicy
from millrace.schemas.dead_letter import Reason
from millrace.schemas.violations import MOST, Kind
from millrace.transforms.batches import concat
from millrace.transforms.validate import ValidateEvents
from millrace.transforms.validation import validate
from tests.support.batches import batch, event
from tests.support.plans import contract, plan, record

LINE = record("Line", product_id="string", price="double")
ORDER = record(
    "Order",
    order_id="string",
    total="double",
    coupon=["null", "string"],
    products={"type": "array", "items": LINE},
)
ORDER_1 = record("Order", order_id="string", products=("int", 0))
PLAN = (
    contract("order_completed", ORDER_1, "1"),
    contract("order_completed", ORDER, "2"),
    contract("_identify", record("Identify", email="string", age=["null", "int"])),
)
LINE_1 = {"product_id": "p", "price": 1}
GOOD: dict[str, Any] = {"order_id": "o-1", "total": 9.5, "products": [LINE_1]}


def order(message_id: str = "m", *, name: str | None = "Order Completed", at_s: float = 0.0, **more: Any) -> Any:
    properties = more.pop("properties", GOOD)
    text = properties if isinstance(properties, str | None) else json.dumps(properties)
    return event(message_id, at_s, event=name, properties=text, **more)


def run(rows: Sequence[dict[str, Any]], contracts: Contracts | Policy = Policy.FLAG) -> Any:
    settings = contracts if isinstance(contracts, Contracts) else plan(*PLAN, policy=contracts, unplanned=contracts)
    return validate(batch(rows), settings)


def one(row: dict[str, Any], contracts: Contracts | Policy = Policy.FLAG) -> dict[str, Any]:
    """Return the row as it goes on, its violations read."""
    (kept,) = run([row], contracts).batch.to_pylist()
    return {**kept, "violations": json.loads(kept["violations"]) if kept["violations"] else None}


def violation(kind: str, field: str, found: str, expected: str, action: str = "kept") -> dict[str, str]:
    return {"kind": kind, "field": field, "found": found, "expected": expected, "action": action}


def changed(**more: Any) -> dict[str, Any]:
    return {**GOOD, **more}


MISSING = ({name: GOOD[name] for name in ("order_id", "products")},
           violation("missing_field", "properties.total", "missing", "double"),
           {"order_id": "o-1", "products": GOOD["products"]})  # fmt: skip
WRONG = (changed(total="9.5"), violation("wrong_type", "properties.total", "string", "double", "nulled"),
         changed(total=None))  # fmt: skip
NULL = (changed(order_id=None), violation("wrong_type", "properties.order_id", "null", "string", "nulled"),
        changed(order_id=None))  # fmt: skip
EXTRA = (changed(margin=0.4), violation("extra_field", "properties.margin", "number", "no such field", "removed"), GOOD)
INSIDE = (changed(products=[LINE_1, {"product_id": "q", "price": True}]),
          violation("wrong_type", "properties.products[1].price", "boolean", "double", "nulled"),
          changed(products=[LINE_1, {"product_id": "q", "price": None}]))  # fmt: skip
ITEM = (changed(products=["p"]), violation("wrong_type", "properties.products[0]", "string", "record Line", "nulled"),
        changed(products=[None]))  # fmt: skip
WHOLE = ([1], violation("wrong_type", "properties", "array", "record Order", "nulled"), None)
CASES: dict[str, tuple[Any, dict[str, str], Any]] = {
    "missing": MISSING, "wrong": WRONG, "null": NULL, "extra": EXTRA, "inside": INSIDE, "item": ITEM, "whole": WHOLE,
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_flag_keeps_the_event_as_it_came_and_says_what_is_wrong(case: str):
    properties, expected, _ = CASES[case]
    row = one(order(properties=properties))
    assert json.loads(row["properties"]) == properties
    assert row["violations"] == [{**expected, "action": "kept"}]
    assert row["contract"] == "order_completed/2"


@pytest.mark.parametrize("case", CASES)
def test_strip_takes_out_what_is_wrong_and_says_so(case: str):
    properties, expected, stripped = CASES[case]
    row = one(order(properties=properties), Policy.STRIP)
    assert (json.loads(row["properties"]) if row["properties"] else None) == stripped
    assert row["violations"] == [expected]


@pytest.mark.parametrize("case", CASES)
def test_dead_letter_refuses_it_with_the_first_violation_in_the_message(case: str):
    properties, expected, _ = CASES[case]
    found = run([order(properties=properties)], Policy.DEAD_LETTER)
    assert found.batch.num_rows == 0
    said = "{kind} {field}: found {found}, expected {expected}".format_map(expected)
    assert found.refused == [(0, Reason.CONTRACT_VIOLATED, f"order_completed/2: {said}")]


@pytest.mark.parametrize("case", CASES)
def test_off_looks_at_nothing(case: str):
    row = one(order(properties=CASES[case][0]), Policy.OFF)
    assert (row["violations"], row["contract"]) == (None, None)


@pytest.mark.parametrize("name", ["Order Complete", "", None])
def test_an_unplanned_event_is_flagged_or_refused_but_has_nothing_to_strip(name: str | None):
    found = "string" if name else "missing"
    expected = violation("unplanned_event", "event", found, "an event of the plan")
    for policy in (Policy.FLAG, Policy.STRIP):
        row = one(order(name=name), policy)
        assert (row["violations"], row["contract"], json.loads(row["properties"])) == ([expected], None, GOOD)
    refused = run([order(name=name)], Policy.DEAD_LETTER).refused
    said = f"no contract: unplanned_event event: found {found}, expected an event of the plan"
    assert refused == [(0, Reason.CONTRACT_VIOLATED, said)]
    assert one(order(name=name), plan(*PLAN, unplanned=Policy.OFF))["violations"] is None


def test_an_event_whose_name_is_nearly_one_of_the_plan_is_told_so():
    (found,) = one(order(name="order completed"))["violations"]
    assert found["expected"] == "an event of the plan, such as Order Completed"


def test_types_without_a_contract_of_their_own_are_not_planned():
    rows = [event(kind, type=kind, event="Home", properties="{}") for kind in ("page", "screen", "group", "alias")]
    found = run(rows).batch
    assert found.column("violations").null_count == found.column("contract").null_count == len(rows)


def test_several_violations_stand_in_the_order_of_the_schema_and_then_of_the_event():
    row = one(order(properties={"z": 1, "products": {}, "a": [], "total": 1}))
    assert [(each["kind"], each["field"]) for each in row["violations"]] == [
        ("missing_field", "properties.order_id"), ("wrong_type", "properties.products"),
        ("extra_field", "properties.z"), ("extra_field", "properties.a"),
    ]  # fmt: skip
    (refused,) = run([order(properties={"total": 1})], Policy.DEAD_LETTER).refused
    assert refused.message.endswith("expected string; 1 more")


def test_an_event_without_properties_lacks_what_the_contract_needs():
    row = one(order(properties=None))
    assert [each["kind"] for each in row["violations"]] == ["missing_field"] * 3
    assert row["properties"] is None


def test_the_version_that_an_event_names_counts_else_the_newest():
    def row(version: Any, **more: Any) -> dict[str, Any]:
        rest = json.dumps({"screen": {"width": 1}, "protocols": {"event_version": version}})
        return one(order(properties={"order_id": "o"}, context_rest=rest, **more))

    for version in (1, "1", "1.0", 1.0, "1.0.0"):
        assert (row(version)["contract"], row(version)["violations"]) == ("order_completed/1", None)
    assert [each["kind"] for each in row(2)["violations"]] == ["missing_field"] * 2
    for version in (3, "x", "", "-1", 10**30, "9" * 400):
        found = row(version)
        unknown = violation("unplanned_event", "context.protocols.event_version", "unknown version", "one of 1, 2")
        assert (found["contract"], found["violations"]) == (None, [unknown])
    nothing: list[Any] = [None, {}, [1], True]
    for version in nothing:
        assert row(version)["contract"] == "order_completed/2"
    elsewhere = json.dumps({"event_version": 1, "protocols": [{"event_version": 1}]})
    assert one(order(context_rest=elsewhere))["contract"] == "order_completed/2"


def test_an_identify_is_held_by_its_traits_wherever_the_sdk_puts_them():
    bad, good = {"email": 1, "age": 7}, {"email": None, "age": 7}
    expected = [violation("wrong_type", "traits.email", "number", "string", "nulled")]
    segment = one(event("s", type="identify", traits=json.dumps(bad)), Policy.STRIP)
    assert (json.loads(segment["traits"]), segment["violations"]) == (good, expected)
    rest = {"screen": {"width": 1}, "traits": bad}
    rudder = one(event("r", type="identify", context_rest=json.dumps(rest)), Policy.STRIP)
    assert (json.loads(rudder["context_rest"]), rudder["violations"]) == ({**rest, "traits": good}, expected)
    assert rudder["traits"] is None
    neither = one(event("n", type="identify", context_rest='{"traits":null}'))
    assert [each["kind"] for each in neither["violations"]] == ["missing_field"]


def test_the_narrowest_policy_counts_and_a_source_s_goes_before_an_event_s():
    contracts = plan(
        *PLAN,
        policy=Policy.FLAG,
        unplanned=Policy.DEAD_LETTER,
        events=(("Order Completed", Policy.STRIP),),
        sources=(
            ("tills", SourcePolicy(Policy.DEAD_LETTER, events=(("_identify", Policy.OFF),))),
            ("old", SourcePolicy(Policy.OFF)),
            ("app", SourcePolicy(unplanned=Policy.FLAG)),
        ),
    )
    bad = json.dumps(changed(total="x"))
    rows = [
        order(f"{source} {kind} {name}", source_id=source, type=kind, name=name, properties=bad, traits='{"email":1}')
        for source in ("shop", "tills", "old", "app")
        for kind, name in (("track", "Order Completed"), ("identify", None), ("track", "Else"))
    ]
    found = run(rows, contracts)
    actions = {
        row["message_id"]: json.loads(row["violations"])[0]["action"] if row["violations"] else None
        for row in found.batch.to_pylist()
    }
    assert actions == {
        "shop track Order Completed": "nulled", "shop identify None": "kept",
        "tills identify None": None,
        "old track Order Completed": None, "old identify None": None, "old track Else": None,
        "app track Order Completed": "nulled", "app identify None": "kept", "app track Else": "kept",
    }  # fmt: skip
    assert [rows[each.row]["message_id"] for each in found.refused] == [
        "shop track Else", "tills track Order Completed", "tills track Else",
    ]  # fmt: skip


def test_what_keeps_its_contract_is_the_same_batch_with_two_columns_more():
    rows = [order("1"), order("2", properties=changed(coupon="X")), order("3", properties=changed(coupon=None))]
    found = run(rows, Policy.STRIP)
    assert found.batch.schema == pa.schema([*batch([]).schema, *ADDED])
    assert found.batch.select(batch([]).schema.names) == batch(rows)
    assert found.batch.column("violations").null_count == 3
    assert not found.kinds
    assert run([]).batch.num_rows == 0


def test_stripping_leaves_the_bytes_of_what_is_right():
    text = '{ "order_id" : "\\u00e9", "total":1.10, "x": 1, "products":[{"product_id":"🏕","price":1e2}]}'
    row = one(order(properties=text), Policy.STRIP)
    assert row["properties"] == ('{"order_id":"\\u00e9","total":1.10,"products":[{"product_id":"🏕","price":1e2}]}')


HOSTILE = [
    "",
    "null",
    "{",
    '"text"',
    "[" * 5_000 + "]" * 5_000,
    '{"order_id":' * 5_000 + "1" + "}" * 5_000,
    '{"order_id":"a","order_id":1,"total":1,"products":[]}',
    '{"order_id":1,"order_id":"a","total":1,"products":[]}',
    '{"' + "k" * 100_000 + '":1}',
    '{"total":' + "9" * 400 + "}",
    '{"total":1e308,"order_id":"a","products":[]}',
    json.dumps({f"k{number}": number for number in range(10_000)}),
    json.dumps({"a.b": 1, 'c"]': 2, "": 3, "日本": 4, "order_id\\": 5}),
    '{"products":' + json.dumps([1] * 10_000) + "}",
]


@pytest.mark.parametrize("policy", [Policy.FLAG, Policy.STRIP, Policy.DEAD_LETTER])
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_properties_harm_neither_the_stage_nor_their_neighbours(number: int, policy: Policy):
    found = run([order("1"), order("bad", properties=HOSTILE[number]), order("2")], policy)
    rows = {row["message_id"]: row for row in found.batch.to_pylist()}
    assert rows["1"]["violations"] is rows["2"]["violations"] is None
    assert found.batch.num_rows + len(found.refused) == 3
    if "bad" in rows and rows["bad"]["violations"]:
        listed = json.loads(rows["bad"]["violations"])
        assert 1 <= len(listed) <= MOST
        assert max(len(each["field"]) for each in listed) <= 200
        if policy is Policy.STRIP and rows["bad"]["properties"] is not None:
            json.loads(rows["bad"]["properties"])


def test_a_path_says_which_key_is_meant():
    row = one(order(properties={**GOOD, "a.b": 1, 'c"]': 2, "": 3, "日本": 4}))
    assert [each["field"] for each in row["violations"]] == [
        'properties["a.b"]', 'properties["c\\"]"]', 'properties[""]', 'properties["日本"]',
    ]  # fmt: skip


properties_ = st.one_of(
    *(st.just(json.dumps(case[0])) for case in CASES.values()),
    *(st.just(text) for text in HOSTILE[:10]),
    st.just(json.dumps(GOOD)),
)
rows_ = st.lists(
    st.tuples(
        properties_, st.sampled_from(["Order Completed", "Else", None]), st.sampled_from(["shop", "tills"]),
        st.sampled_from([None, '{"protocols":{"event_version":1}}', '{"protocols":{"event_version":7}}']),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


@settings(deadline=None)
@given(given_rows=rows_, data=st.data())
def test_any_order_repetition_and_split_gives_each_event_the_same_and_the_counts_close(
    given_rows: list[Any], data: st.DataObject
):
    contracts = plan(*PLAN, policy=Policy.STRIP, sources=(("tills", SourcePolicy(Policy.DEAD_LETTER)),))
    rows = [
        order(str(number), properties=text, name=name, source_id=source, context_rest=rest)
        for number, (text, name, source, rest) in enumerate(given_rows)
    ]

    def outcome(parts: Sequence[pa.RecordBatch]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for part in parts:
            kept, refused, _ = validate(part, contracts)
            assert kept.num_rows + len(refused) == part.num_rows
            ids = part.column("message_id").to_pylist()
            found |= {ids[each.row]: each.message for each in refused} | {
                row["message_id"]: row for row in kept.to_pylist()
            }
        return found

    whole = outcome([batch(rows)])
    assert len(whole) == len(rows)
    again = data.draw(st.permutations(rows)) + data.draw(st.lists(st.sampled_from(rows), max_size=4))
    cut = data.draw(st.integers(0, len(again)))
    both = batch(again)
    assert outcome([both.slice(0, cut), both.slice(cut)]) == whole
    assert outcome([concat([batch([row]) for row in again])]) == whole


_FOUND: dict[str, list[dict[str, Any]]] = {}


def _keep(door: str, batches: Sequence[pa.RecordBatch]) -> None:
    _FOUND[door] = [row for each in batches for row in each.to_pylist()]


def test_the_stage_lets_each_event_out_by_one_door_with_its_receipt():
    rows = [order("good", receipt=1), order("bad", properties=changed(total="x"), receipt=2)]
    contracts = plan(*PLAN, policy=Policy.DEAD_LETTER)
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        given_ = pipeline | beam.Create([batch(rows)]).with_output_types(pa.RecordBatch)
        doors = given_ | ValidateEvents(contracts)
        assert_that(doors.batches, functools.partial(_keep, "batches"), label="batches")
        assert_that(doors.dead_letters, functools.partial(_keep, "letters"), label="letters")
    (kept,), (letter,) = _FOUND.pop("batches"), _FOUND.pop("letters")
    assert (kept["message_id"], kept["receipt"], kept["contract"]) == ("good", 1, "order_completed/2")
    assert list(letter) == dead_letter.BATCH.names
    assert (letter["stage"], letter["reason"], letter["receipt"]) == ("validate", "contract_violated", 2)
    assert json.loads(letter["payload"])["properties"] == changed(total="x")


def test_the_kinds_are_counted():
    found = run([order(properties=properties) for properties, *_ in CASES.values()] + [order(name="Else")])
    assert found.kinds == Counter(
        {Kind.WRONG_TYPE: 5, Kind.MISSING_FIELD: 1, Kind.EXTRA_FIELD: 1, Kind.UNPLANNED_EVENT: 1}
    )
