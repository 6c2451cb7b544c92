"""`millrace schema`: what is inferred fits what was seen; what a change would break is counted and named."""

import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.cli import main
from millrace.config.plan import read_plan
from millrace.local.shop import Shop
from millrace.pipelines import infer
from millrace.pipelines.break_check import Broken, Said, examine, incompatibilities
from millrace.schemas.avro_json import read_schema
from millrace.schemas.contracts import Contract, Contracts, Policy
from millrace.schemas.envelope import Envelope
from millrace.transforms.decode import decode_envelopes
from millrace.transforms.validation import validate
from tests.support.archives import write_archive
from tests.support.batches import NOON_US, batch, event
from tests.support.plans import contract, plan, record, write_plan

EXAMPLE = Path(__file__).parents[2] / "examples" / "plan"
DAY_S = 86_400.0


def order(number: int, at_s: float = 0.0, **properties: Any) -> dict[str, Any]:
    return event(f"m{number}", at_s, event="Order Completed", properties=json.dumps(properties))


def schemas_of(rows: Sequence[dict[str, Any]], required_share: float = 1.0) -> dict[str, Any]:
    seen = infer.see([batch(rows)])
    folders = infer.folders_of(seen)
    return {
        folder: infer.propose(seen[subject], folder, subject[1], required_share) for subject, folder in folders.items()
    }


def test_types_and_optionality_are_those_seen():
    rows = [
        order(1, a=1, b=1, c="x", d=None, e=[1], at="2026-11-25T10:00:00Z", f={"x": True}),
        order(2, a=2, b=1.5, c=2, d=None, e=[], at="2026-11-25T10:00:01Z", f={"x": None, "y-z": 1}),
        order(3, a=3, b=2**70, c=None, e=[None], at="2026-11-25T10:00:02+01:00", g=1),
    ]
    inner = {
        "type": "record", "name": "OrderCompletedF", "fields": [
            {"name": "x", "type": ["null", "boolean"], "default": None, "doc": "In 50.0 % of 2."},
            {"name": "y_z", "key": "y-z", "type": ["null", "long"], "default": None, "doc": "In 50.0 % of 2."},
        ],
    }  # fmt: skip
    assert schemas_of(rows) == {"order_completed": {
        "type": "record", "name": "OrderCompleted", "event": "Order Completed", "doc": "Proposed from 3 events.",
        "fields": [
            {"name": "a", "type": "long", "doc": "In 100 % of 3."},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}, "doc": "In 100 % of 3."},
            {"name": "b", "type": "double", "doc": "In 100 % of 3."},
            {"name": "c", "type": ["null", "long", "string"], "default": None, "doc": "In 66.7 % of 3."},
            {"name": "d", "type": ["null", "string"], "default": None, "doc": "In 0.0 % of 3."},
            {"name": "e", "type": {"type": "array", "items": ["null", "long"]}, "doc": "In 100 % of 3."},
            {"name": "f", "type": ["null", inner], "default": None, "doc": "In 66.7 % of 3."},
            {"name": "g", "type": ["null", "long"], "default": None, "doc": "In 33.3 % of 3."},
        ],
    }}  # fmt: skip
    needed = {each["name"] for each in schemas_of(rows, 0.6)["order_completed"]["fields"] if "default" not in each}
    assert needed == {"a", "at", "b", "c", "e", "f"}


def test_keys_that_are_data_become_a_map():
    rows = [order(number, stock={f"p-{number}": number}) for number in range(infer.MOST_KEYS + 1)]
    (field,) = schemas_of(rows)["order_completed"]["fields"]
    assert field["type"] == {"type": "map", "values": "long"}
    top = schemas_of([order(number, **{f"p-{number}": number}) for number in range(infer.MOST_KEYS + 1)])
    assert (top["order_completed"]["open"], top["order_completed"]["fields"]) == (True, [])


def test_events_whose_folders_would_be_the_same_get_their_own():
    rows = [
        event("1", event=name, properties="{}") for name in ("Order Completed", "order completed", "order-completed")
    ]
    found = schemas_of([*rows, event("2", type="identify", traits='{"a":1}'), event("3", type="alias")])
    assert {folder: schema.get("event") for folder, schema in found.items()} == {
        "order_completed": "Order Completed", "order_completed_2": "order completed",
        "order_completed_3": "order-completed", "_identify": None,
    }  # fmt: skip


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT
    | st.just("2026-11-25T10:00:00Z"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT | st.sampled_from("ab"), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(deadline=None)
@given(objects=st.lists(st.dictionaries(_TEXT | st.sampled_from("abc"), _VALUES, max_size=4), min_size=1, max_size=6),
       data=st.data())  # fmt: skip
def test_what_was_seen_keeps_the_contract_inferred_from_it_and_its_order_does_not_matter(
    objects: list[Any], data: st.DataObject
):
    rows = [order(number, **each) for number, each in enumerate(objects)]
    proposed = schemas_of(rows)["order_completed"]
    assert schemas_of(data.draw(st.permutations(rows))) == {"order_completed": proposed}
    read_schema(proposed)
    with tempfile.TemporaryDirectory() as folder:  # as a file: names and all are valid Avro
        read = read_plan(write_plan(Path(folder), order_completed=proposed))
    found = validate(batch(rows), Contracts(read))
    assert found.batch.column("violations").null_count == len(rows)


def test_a_map_is_the_same_in_whatever_order_its_keys_came():
    values: list[Any] = [{f"k{number}": number if number % 3 else "x" for number in range(start, start + 90)}
                         for start in (0, 60, 300, 350)]  # fmt: skip
    found = []
    for order_ in itertools.permutations(values):
        seen = infer.Seen()
        for value in order_:
            seen.add({"stock": value})
        found.append(infer.propose(seen, "a", "A", 1.0))
    assert all(each == found[0] for each in found)
    assert found[0]["fields"][0]["type"] == {"type": "map", "values": ["long", "string"]}


V1 = record("Order", order_id="string", price=["null", "double"])
V2 = record("Order", order_id="string", price="double")


def test_only_what_the_newest_version_breaks_is_told_with_its_share_and_an_example():
    contracts = (contract("order_completed", V1, "1"), contract("order_completed", V2, "2"))
    named = '{"protocols":{"event_version":1}}'
    rows = [
        *(order(number, order_id="o", price=1) for number in range(10)),
        order(11, order_id="o", price=None),
        order(10, order_id="o", price=None),
        order(12, order_id="o"),
        order(13, order_id=1, price=None),  # the version before was violated already
        order(14, order_id="o", price=None) | {"context_rest": named},  # not held against the newest
        event("u", event="Else"),
    ]
    report = examine(contracts, [batch(rows[:7]), batch(rows[7:])])
    (verdict,) = report.verdicts
    assert (verdict.events, verdict.broken) == (14, 3)
    assert verdict.ways == {
        Said("price", "is null, expected double"): Broken(2, "m10"),
        Said("price", "is missing, expected double"): Broken(1, "m12"),
    }
    assert report.unplanned == {"Else": 1}


def test_items_of_a_list_are_told_as_one_field():
    lines = {"type": "array", "items": record("Line", price="double", tags={"type": "array", "items": "string"})}
    contracts = (contract("order_completed", record("Order", products=lines)),)
    rows = [order(1, products=[{"price": None, "tags": [1, "a"]}, {"price": None, "tags": []}]),
            order(2, products=[{"price": 1, "tags": ["a", "b", 3]}])]  # fmt: skip
    (verdict,) = examine(contracts, [batch(rows)]).verdicts
    assert (verdict.broken, verdict.ways) == (2, {
        Said("products[].price", "is null, expected double"): Broken(1, "m1"),
        Said("products[].tags[]", "is number, expected string"): Broken(2, "m1"),
    })  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ({"a": "string"}, {"a": "string", "b": ["null", "long"]}, None),  # a new field with a default
        ({"a": "string", "b": "long"}, {"a": "string"}, None),  # a field less
        ({"a": "int"}, {"a": "double"}, None),  # a wider number
        ({"a": "double"}, {"a": ["null", "double"]}, None),
        ({"a": "string"}, {"a": "string", "b": "long"}, "b: is new and has no default"),
        ({"a": "double"}, {"a": "long"}, "a: type mismatch"),
        ({"a": ["null", "double"]}, {"a": "double"}, "a: type mismatch"),
        ({"a": {"type": "enum", "name": "E", "symbols": ["X", "Y"]}},
         {"a": {"type": "enum", "name": "E", "symbols": ["X"]}},
         "a: missing enum symbols"),
    ],
)  # fmt: skip
def test_compatibility_is_avro_s_backward(before: Any, after: Any, why: str | None):
    found = incompatibilities(contract("a", record("R", **after), "2"), contract("a", record("R", **before), "1"))
    assert [each.partition(" (")[0] for each in found] == ([] if why is None else [why])


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """1,000 orders of ten days, the oldest and the newest without a price."""
    rows = [order(number, number * DAY_S / 100, order_id="o", price=1.5) for number in range(1, 999)]
    write_archive(
        tmp_path / "archive", [order(0, order_id="o", price=None), *rows, order(999, 9.99 * DAY_S, order_id="o")]
    )
    return tmp_path / "archive"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str]]:
    code = main(["schema", *map(str, arguments)])
    said = capsys.readouterr()
    return code, (said.out + said.err).splitlines()


def test_check_prints_what_breaks_and_ends_with_1(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_plan(tmp_path / "plan", order_completed=V1, order_completed__2=V2)
    code, said = run(capsys, "check", archive, folder)
    assert code == 1
    assert said == [
        "event              version      events         would break  backward compatible",
        "order_completed     1 -> 2       1,000           2 (0.2 %)  NO",
        "    not compatible: price: type mismatch (reader type: double not compatible with writer type: null)",
        "    0.1 % of order_completed: price is missing, expected double (1 events, such as m999)",
        "    0.1 % of order_completed: price is null, expected double (1 events, such as m0)",
        "",
        f"1 of 1 contracts would break: 1,000 events of the archive's last 30d held against {folder}.",
    ]


def test_check_looks_back_so_far_and_tolerates_so_much(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = write_plan(tmp_path / "plan", order_completed=V2)
    code, said = run(capsys, "check", archive, folder, "--since", "5d")
    assert code == 1
    assert [line for line in said if "price" in line] == [
        "    0.2 % of order_completed: price is missing, expected double (1 events, such as m999)"
    ]
    assert run(capsys, "check", archive, folder, "--allow_share", "0.002")[0] == 0
    assert run(capsys, "check", archive, folder, "--allow_share", "0.0019")[0] == 1
    code, said = run(
        capsys, "check", archive, write_plan(tmp_path / "good", order_completed=V1), "--event", "Order Completed"
    )
    assert (code, said[1].split()[-3:], said[-1]) == (
        0, ["-", "first", "version"],
        f"Nothing would break: 1,000 events of the archive's last 30d held against {tmp_path / 'good'}.",
    )  # fmt: skip


def test_infer_writes_what_check_finds_nothing_wrong_with_and_writes_it_once(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "plan"
    code, said = run(capsys, "infer", archive, "--out", folder)
    file = folder / "order_completed" / "1.avsc"
    assert (code, said[0].split()) == (
        0, f"order_completed 1,000 events: 2 fields, written to {file}".split(),
    )  # fmt: skip
    before = file.read_bytes()
    assert before.decode() == (
        '{\n  "type": "record",\n  "name": "OrderCompleted",\n  "event": "Order Completed",\n'
        '  "doc": "Proposed from 1,000 events.",\n  "fields": [\n'
        '    {"name": "order_id", "type": "string", "doc": "In 100 % of 1,000."},\n'
        '    {"name": "price", "type": ["null", "double"], "default": null, "doc": "In 99.8 % of 1,000."}\n  ]\n}\n'
    )
    assert run(capsys, "check", archive, folder)[0] == 0
    code, said = run(capsys, "infer", archive, "--out", folder, "--since", "1d")
    assert (code, said[0].split()[3:]) == (0, ["as", "its", "newest", "version", "says"])
    code, said = run(capsys, "infer", archive, "--out", folder, "--required_share", "0.9")
    assert (code, file.read_bytes()) == (0, before)
    assert json.loads((folder / "order_completed" / "2.avsc").read_bytes())["fields"][1]["type"] == "double"
    assert run(capsys, "check", archive, folder)[0] == 1
    code, said = run(capsys, "infer", archive, "--out", tmp_path / "none", "--min_events", "1001")
    assert said[0].endswith("too few, left out")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("arguments", [["check", "nowhere", EXAMPLE], ["check", "ARCHIVE", "nowhere"]])
def test_what_is_not_there_is_said_in_a_line(
    arguments: list[str],
    archive: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    code, said = run(capsys, *(archive if each == "ARCHIVE" else each for each in arguments))
    assert (code, len(said)) == (2, 1)
    assert "nowhere" in said[0]


@pytest.mark.parametrize(
    "arguments", [["check", "a", "--since", "7"], ["check", "a", "--allow_share", "2"], [], ["infer"]]
)
def test_arguments_that_cannot_be_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["schema", *arguments])
    assert caught.value.code == 2
    assert "usage: millrace schema" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["infer", "check"])
def test_help_says_what_it_does(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["schema", command, "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert "--since" in said
    assert all(len(line) <= 120 for line in said.splitlines())


def test_the_example_plan_fits_the_sample_shop():
    ticks = itertools.count()
    shop = Shop(7, users=200, clock=lambda: NOON_US / 1_000_000 + next(ticks) / 20)
    sents = [next(shop) for _ in range(1_500)]
    envelopes = [Envelope(each.body, each.attributes, f"e{n}", NOON_US, NOON_US) for n, each in enumerate(sents)]
    events = decode_envelopes(envelopes, NOON_US).batch
    plan_: tuple[Contract, ...] = read_plan(EXAMPLE)
    found = validate(events, Contracts(plan_, unplanned=Policy.OFF)).batch
    assert found.column("violations").null_count == found.num_rows
    held = set(found.column("contract").drop_null().to_pylist())
    assert held == {each.name for each in plan_} - {"order_completed/1"}
    assert [incompatibilities(plan_[3], plan_[2]), plan_[3].name] == [(), "order_completed/2"]
    assert plan(*plan_) == Contracts(plan_)
