"""The section `contracts` and the plan's folder: every mistake with its file, its line and what to do."""

import json
import pickle
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from millrace.config.job import ConfigError, JobConfig, read_job
from millrace.config.plan import PlanError, read_plan
from millrace.schemas.contracts import ADDED, Contracts, Policy, SourcePolicy
from millrace.schemas.violations import Kind
from tests.support.plans import record, write_plan

DOCS = Path(__file__).parents[2] / "docs"
V1 = record("Order", order_id="string")
V2 = record("Order", order_id="string", total=["null", "double"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan in `events`, seen from where the job is started."""
    monkeypatch.chdir(tmp_path)
    write_plan(Path("events"), order_completed=V1, order_completed__2=V2, _identify=record("I", email="string"))
    return Path("events")


def read(section: str) -> JobConfig:
    return read_job("contracts:\n" + textwrap.indent(textwrap.dedent(section).strip("\n"), "  "), "F")


def mistakes(section: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(section)
    return [line.removeprefix("F:") for line in str(caught.value).splitlines()]


def test_without_the_section_there_are_no_contracts_and_no_columns():
    assert (read_job("", "F").contracts, read_job("", "F").added) == (None, ())


@pytest.mark.usefixtures("folder")
def test_every_setting_is_read_and_travels_inside_the_pickled_settings():
    config = read("""
        folder: events
        policy: strip
        unplanned: off
        events:
          Order Completed: dead_letter
          _identify: off
        sources:
          legacy: off
          app: {policy: flag, unplanned: dead_letter, events: {Order Completed: strip}}
    """)
    contracts = config.contracts
    assert contracts is not None
    assert [(each.name, each.type, each.event) for each in contracts.contracts] == [
        ("_identify/1", "identify", None), ("order_completed/1", "track", "Order Completed"),
        ("order_completed/2", "track", "Order Completed"),
    ]  # fmt: skip
    assert json.loads(contracts.contracts[2].schema) == V2
    assert contracts == Contracts(
        contracts.contracts,
        policy=Policy.STRIP,
        unplanned=Policy.OFF,
        events=(("Order Completed", Policy.DEAD_LETTER), ("_identify", Policy.OFF)),
        sources=(
            ("legacy", SourcePolicy(Policy.OFF)),
            ("app", SourcePolicy(Policy.FLAG, Policy.DEAD_LETTER, (("Order Completed", Policy.STRIP),))),
        ),
    )
    assert config.added[: len(ADDED)] == ADDED  # the lineage of any configured job follows
    again = pickle.loads(pickle.dumps(contracts))  # noqa: S301  as Beam does
    assert again == contracts
    assert hash(again) == hash(contracts)


@pytest.mark.usefixtures("folder")
def test_the_defaults_flag():
    contracts = read("folder: events").contracts
    assert contracts is not None
    assert (contracts.policy, contracts.unplanned) == (Policy.FLAG, Policy.FLAG)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("polic: flag", "3: contracts: 'polic' is not known here; did you mean policy?"),
        ("policy: strp", "3: contracts: policy: 'strp' is not one of its values; did you mean strip?"),
        ("policy: [flag]",
         "3: contracts: policy: a list is not one of its values; there are: flag, strip, dead_letter, off"),
        ("unplanned: strip",
         "3: contracts: unplanned: 'strip' is not one of its values; there are: flag, dead_letter, off"),
        ("events: {Order Complete: flag}",
         "3: contracts: events: 'Order Complete' is not known here; did you mean Order Completed?"),
        ("events: {Order Completed: x}",
         ("3: contracts: events: Order Completed: 'x' is not one of its values; "
          "there are: flag, strip, dead_letter, off")),
        ("events: [Order Completed]", "3: contracts: events: has to be `name: value` lines, not a list"),
        ("sources: shop", "3: contracts: sources: has to be `name: value` lines, not 'shop'"),
        ("sources: {shop: of}", "3: contracts: sources: shop: 'of' is not one of its values; did you mean off?"),
        ("sources: {shop: [off]}", "3: contracts: sources: shop: has to be `name: value` lines, not a list"),
        ("sources: {shop: {event: {}}}",
         "3: contracts: sources: shop: 'event' is not known here; did you mean events?"),
        ("sources: {shop: {events: {identify: off}}}",
         "3: contracts: sources: shop: events: 'identify' is not known here; did you mean _identify?"),
        ("sources: {shop: off, shop: flag}", "3: contracts: sources: 'shop' is there already, at line 3; keep one"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_section_is_named_with_its_line(line: str, said: str):
    assert mistakes(f"folder: events\n{line}") == [said]


def test_mistakes_of_the_plan_and_of_the_section_are_told_at_once(folder: Path):
    write_plan(folder, order_completed__3=record("Order", a="strin"))
    found = mistakes("policy: x\nfolder: events")
    assert [each.partition(";")[0] for each in found] == [
        "2: contracts: policy: 'x' is not one of its values",
        "3: contracts: folder: events/order_completed/3.avsc:7: a: the type strin is not known",
    ]
    (said,) = mistakes("policy: flag")
    assert said == (
        "2: contracts: folder: schemas/events: cannot be read: No such file or directory; give the folder that has a "
        "folder for each event"
    )


def text(name: str, content: str | bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


FIELD = '{\n "type": "record",\n "name": "R",\n "fields": [\n  {"name": "a", "type": %s}\n ]%s\n}'


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (text("a/1.avsc", "{\n\n 'x'}"),
         "a/1.avsc:3: not JSON: Expecting property name enclosed in double quotes; correct it there"),
        (text("a/1.avsc", ""), "a/1.avsc:1: not JSON: Expecting value; correct it there"),
        (text("a/1.avsc", "[" * 100_000), "a/1.avsc: nested too deeply; a contract is flatter"),
        (text("a/1.avsc", b"\xff"),
         ("a/1.avsc: cannot be read: 'utf-8' codec can't decode byte 0xff in position 0: "
          "invalid start byte; it has to be a text file in UTF-8")),
        (text("a/1.avsc", '"string"'),
         'a/1.avsc:1: a contract has to be a record: {"type": "record", "name": ..., "fields": [...]}'),
        (text("a/1.avsc", FIELD % ('"text"', "")),
         ("a/1.avsc:5: a: the type text is not known; there are: null, boolean, "
          "int, long, float, double, string, bytes, record, enum, array, map, fixed")),
        (text("a/1.avsc", FIELD.replace('"a"', '"a-b"') % ('"int"', "")),
         'a/1.avsc:5: a-b: no name that Avro allows; write "name": "a_b", "key": "a-b"'),
        (text("a/1.avsc", FIELD % ('["null", "int"], "default": "x"', "")),
         "a/1.avsc:5: a: its default is not of its type; correct one of them"),
        (text("a/1.avsc", FIELD % ('"int", "default": null', "")),
         "a/1.avsc:5: a: its default is not of its type; correct one of them"),
        (text("a/1.avsc", FIELD % ('{"type": "enum", "name": "E", "symbols": ["a-b"]}', "")),
         "a/1.avsc:5: a: Avro allows no symbol 'a-b'; make it a string"),
        (text("a/1.avsc", FIELD % ('"int"', ',\n "event": 7')),
         "a/1.avsc:7: `event` has to be a text: the exact name of the event"),
        (text("_identify/1.avsc", FIELD % ('"int"', ',\n "event": "x"')),
         "_identify/1.avsc:7: `event` means nothing in _identify, which is for every identify; remove it"),
        (text("a/new.avsc", FIELD % ('"int"', "")),
         "a/new.avsc: no version; call it 1.avsc, or 1.2.avsc: one to three numbers"),
        (text("A-b/1.avsc", FIELD % ('"int"', "")),
         "A-b: no name of an event's folder: a-z, 0-9 and single _; call it a_b"),
        (text("_alias/1.avsc", FIELD % ('"int"', "")),
         "_alias: no name of an event's folder: a-z, 0-9 and single _; call it alias"),
        (text("a.avsc", FIELD % ('"int"', "")), "a.avsc: lies beside the events' folders; move it to a/1.avsc"),
        (text("a/1.avsc", " " * (1 << 20) + "{}"), "a/1.avsc: more than 1,048,576 bytes; a contract is smaller"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_contract_names_file_line_and_what_to_do(
    tmp_path: Path, write: Callable[[Path], None], said: str
):
    write(tmp_path)
    with pytest.raises(PlanError) as caught:
        read_plan(tmp_path)
    assert [each.replace(f"{tmp_path}/", "") for each in caught.value.mistakes] == [said]


def test_an_empty_folder_is_a_mistake(tmp_path: Path):
    with pytest.raises(PlanError, match=r"holds no contract; write EVENT_NAME/1\.avsc, or let `millrace schema infer`"):
        read_plan(tmp_path)


def test_two_contracts_for_the_same_are_a_mistake_that_names_both(tmp_path: Path):
    write_plan(
        tmp_path,
        order_completed=V1,
        order_done={**V1, "event": "Order Completed"},
        page_seen={**V1, "event": "page_seen"},
        page_seen__2={**V1, "event": "Page Seen"},
    )
    (tmp_path / "order_completed" / "1.0.avsc").write_text(json.dumps(V1))
    with pytest.raises(PlanError) as caught:
        read_plan(tmp_path)
    assert [each.replace(f"{tmp_path}/", "") for each in caught.value.mistakes] == [
        "order_completed/1.avsc: is the same version as 1.0.avsc; keep one of the two",
        (
            "order_done/1.avsc: is for 'Order Completed', which has a folder already: order_completed; keep one of the "
            'two, or write "event": "EXACT NAME" into the schemas of the other'
        ),
        (
            "page_seen/2.avsc: is for 'Page Seen', but 1.avsc beside it for 'page_seen'; write the same `event` into "
            "both, or move it to a folder of its own"
        ),
    ]


def test_other_files_and_hidden_folders_are_not_looked_at(tmp_path: Path):
    write_plan(tmp_path, order_completed=V1)
    text("README.md", "x")(tmp_path)
    text("order_completed/notes.txt", "x")(tmp_path)
    text(".git/1.avsc", "x")(tmp_path)
    assert [each.name for each in read_plan(tmp_path)] == ["order_completed/1"]


def table(document: str, heading: str) -> list[str]:
    section = (DOCS / document).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([a-z0-9_]+)` \|", section, re.MULTILINE)


def test_the_documents_list_what_there_is():
    assert table("contracts.md", "What is wrong, and what becomes of it") == [
        *(kind.value for kind in Kind), *(policy.value for policy in Policy),
    ]  # fmt: skip
    assert table("config.md", "contracts") == ["folder", "policy", "unplanned", "events", "sources"]
    assert table("event_model.md", "Columns of contracts") == [field.name for field in ADDED]


@pytest.mark.parametrize("document", ["config.md", "contracts.md"])
def test_the_documents_examples_are_right(document: str, folder: Path):
    folder.rename("schemas_events")
    blocks = re.findall(r"```yaml\n(contracts:.*?)```", (DOCS / document).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        config = read_job(block.replace("schemas/events", "schemas_events"), "F")
        assert config.contracts is not None
        assert dict(config.contracts.events) == {"Order Completed": Policy.DEAD_LETTER}
