"""The section `transforms:`: what it makes, and for every mistake the line and what to do."""

import importlib.metadata
import pickle
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from millrace.config.job import ConfigError, JobConfig, load_job, read_job
from millrace.pipelines import events
from millrace.transforms.custom.step import CustomStep
from millrace.transforms.run_steps import RunSteps
from millrace.transforms.steps import CannotOpenError, Users
from tests.support.batches import event
from tests.support.custom import MODULE, configured, ordered, run

WHOLE = f"""
transforms:
  - use: {MODULE}:euros
    name: to_euros
    with: {{rate: 3}}
    when: event == "Order Completed"
    on_error: pass
    error_text: true
  - use: {MODULE}:plan
    timeout_ms: 250
    concurrency: 4
  - use: {MODULE}:Numbered
"""


def test_a_section_becomes_steps_in_its_order_and_columns_of_the_archive():
    config = read_job(WHOLE, "millrace.yaml")
    euros, plan, numbered = config.transforms
    assert isinstance(euros, CustomStep)
    assert isinstance(plan, CustomStep)
    assert (euros.name, euros.kind, euros.version, dict(euros.settings)) == ("to_euros", "event", "3", {"rate": 3})
    assert (str(euros.when), euros.passes, euros.with_text) == ('event == "Order Completed"', True, True)
    assert plan.limits is not None
    assert (plan.name, plan.passes, plan.limits.timeout_ms, plan.limits.concurrency) == ("plan", True, 250, 4)
    assert (plan.limits.budget_ms, plan.limits.cache_size) == (2_000, 100_000)
    assert (numbered.name, numbered.remembers_s) == ("numbered", 3_600.0)
    lineage = ["config_hash", "lineage"]
    assert [field.name for field in config.added] == [*lineage, "total_eur", "transform_errors", "plan", "number"]
    assert all(field.nullable for field in config.added)


def test_one_transform_may_be_listed_twice_for_other_rows():
    steps = configured(
        "euros, when: event == 'a'; with: {rate: 3}", "euros, name: second; when: event == 'b'", "lengths"
    )
    assert [[field.name for field in step.adds] for step in steps] == [["total_eur"], [], ["length"]]
    rows = [event(name, event=name, properties='{"total": 1}') for name in "abc"]
    assert [row["total_eur"] for row in run(steps, rows).rows] == [3.0, 2.0, None]


def test_steps_travel_without_what_is_opened():
    steps = read_job(WHOLE, "millrace.yaml").transforms
    rows = ordered([event("1", event="Order Completed", properties='{"total": 1}')])
    before = [step.apply(rows, Users()).batch for step in steps]
    again = pickle.loads(pickle.dumps(RunSteps(steps, "transform").steps))  # noqa: S301  our own
    assert [step.apply(rows, Users()).batch for step in again] == before


MISTAKES = {
    "- name: x": "2: transforms: use is missing; write module:Name of your transform",
    "- use: nowhere.at_all:x": "2: transforms: use: there is no module 'nowhere.at_all'; install its package, or start "
    "where the file is",
    f"- use: {MODULE}:euro": f"2: transforms: use: {MODULE} has no 'euro'; it has ",
    f"- use: {MODULE}:not_a_transform": f"2: transforms: use: {MODULE}:not_a_transform is no transform; decorate the "
    "function with on_event, on_batch or on_lookup, or derive the class from EventTransform, BatchTransform, "
    "UserTransform, LookupTransform (millrace.api)",
    "- use: euros": "2: transforms: use: 'euros' is no entry point in millrace.transforms (none is installed); write "
    "module:Name, or install it",
    f"- use: {MODULE}:euros\n    naem: x": "3: transforms: 'naem' is not known here; did you mean name?",
    f"- use: {MODULE}:euros\n    name: To Euros": "3: transforms: 'To Euros' is no name; take a-z, 0-9 and _, and a "
    "letter first",
    f"- use: {MODULE}:lengths\n  - use: {MODULE}:lengths": "3: transforms: lengths is there already; give this one a "
    "`name` of its own",
    f"- use: {MODULE}:euros\n  - use: {MODULE}:Euros\n    name: e": "3: e: adds total_eur, which euros adds already; "
    "take another name",
    f"- use: {MODULE}:euros\n    with: {{rat: 3}}": "3: euros: with: rat is not a setting of euros; there are: rate",
    f"- use: {MODULE}:euros\n    with:\n      rate: 'x'": "4: euros: with: rate: Expected `float`, got `str`; euros "
    "takes rate: float",
    f"- use: {MODULE}:Euros\n    with: {{rate: -1}}": "3: euros: Euros refuses its settings: ValueError: rate must be "
    "above 0",
    f"- use: {MODULE}:euros\n    when: evnt == 'x'": "3: euros: when: \"evnt == 'x'\", column 1: evnt is not a column; "
    "did you mean event?",
    f"- use: {MODULE}:euros\n    on_error: drop": "3: euros: on_error: 'drop' is not one of its values; there are: "
    "dead_letter, pass",
    f"- use: {MODULE}:euros\n    timeout_ms: 3": "3: euros: timeout_ms is for lookups only, and this is a transform of "
    "kind event; remove it",
    f"- use: {MODULE}:plan\n    timeout_ms: 0": "3: plan: timeout_ms: has to be a number above 0, up to 600,000, ",
    f"- use: {MODULE}:takes_a_column": "2: takes_a_column: adds user_key, which is a column of Millrace's; take "
    "another name",
    f"- use: {MODULE}:bad_name": "2: bad_name: adds 'Bad Name'; take a-z, 0-9 and _ for a column's name, and not "
    "context_ in front",
    f"- use: {MODULE}:bad_type": "2: bad_type: adds a_time as timestamp[ns]; take string, ",
    f"- use: {MODULE}:bad_adds": "2: bad_adds: 'total_eur' in adds is no column: write pa.field(NAME, TYPE), or "
    "{NAME: TYPE}",
    f"- use: {MODULE}:Forgetful": "2: forgetful: Forgetful has no remembers_s; say for how many seconds a user is "
    "remembered",
    f"- use: {MODULE}:BadKey": "2: bad_key: BadKey.key: column 1: acount is not a column; ",
    "x": "1: transforms: has to be a list, such as [one, two], not 'x'",
}


@pytest.mark.parametrize("section", MISTAKES)
def test_a_mistake_says_its_line_and_what_to_do(section: str):
    with pytest.raises(ConfigError) as caught:
        read_job("transforms: x" if section == "x" else f"transforms:\n  {section}", "millrace.yaml")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"millrace.yaml:{MISTAKES[section]}")


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        read_job(f"transforms:\n  - use: {MODULE}:nix\n  - use: {MODULE}:euros\n    with: {{a: 1, b: 2}}", "m.yaml")
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["2", "4", "4"]


NEEDY = """
from millrace.api import on_event

@on_event()
def needy(event, *, url: str, retries: int = 3, **more):
    return event
"""


def test_a_setting_that_is_needed_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "needy_transform.py").write_text(NEEDY)
    monkeypatch.syspath_prepend(tmp_path)
    entry = "transforms:\n  - use: needy_transform:needy"
    with pytest.raises(ConfigError) as caught:
        read_job(entry, "m.yaml")
    assert str(caught.value) == "m.yaml:2: needy: with: url is missing, which needy needs; add it"
    (step,) = read_job(f"{entry}\n    with: {{url: x, other: [1]}}", "m.yaml").transforms
    assert isinstance(step, CustomStep)
    assert dict(step.settings) == {"url": "x", "other": [1]}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import not_there_at_all", "broken_transform needs the module 'not_there_at_all', which is not installed"),
        ("1 / 0", "broken_transform cannot be imported: ZeroDivisionError: division by zero"),
        ("def", "broken_transform cannot be imported: SyntaxError: invalid syntax"),
        ("raise SystemExit(3)", "broken_transform cannot be imported: SystemExit: 3"),
    ],
)
def test_a_module_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, problem: str):
    (tmp_path / "broken_transform.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as caught:
        read_job("transforms: [{use: 'broken_transform:x'}]", "m.yaml")
    assert str(caught.value).startswith(f"m.yaml:1: transforms: use: {problem}")


def test_a_module_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here_transform.py").write_text(NEEDY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    (step,) = read_job("transforms: [{use: 'here_transform:needy', with: {url: x}}]", "m.yaml").transforms
    assert run([step], [event("1")]).rows[0]["message_id"] == "1"


def test_a_package_offers_transforms_as_entry_points(monkeypatch: pytest.MonkeyPatch):
    point = importlib.metadata.EntryPoint("shop-euros", f"{MODULE}:euros", "millrace.transforms")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: importlib.metadata.EntryPoints([point]))
    (step,) = read_job("transforms: [{use: shop-euros}]", "m.yaml").transforms
    assert (step.name, step.adds) == ("shop_euros", (pa.field("total_eur", pa.float64()),))


def test_a_worker_without_the_package_says_so():
    (step,) = configured("euros")
    step.use = "nowhere_at_all:euros"
    with pytest.raises(
        CannotOpenError, match=r"transform euros: there is no module 'nowhere_at_all'.*On workers it has"
    ):
        step.open()


def test_a_transform_that_lacks_what_it_needs_ends_the_start():
    (step,) = configured("Unopened")
    with pytest.raises(CannotOpenError, match=r"transform unopened cannot be opened: FileNotFoundError: rates.csv"):
        step.open()


def test_the_job_on_one_node_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = tmp_path / "millrace.yaml"
    config.write_text(f"transforms:\n  - use: {MODULE}:Unopened")
    subscription = "projects/my-project/subscriptions/orders"
    assert events.main([f"--subscription={subscription}", f"--config={config}", f"--archive={tmp_path}/a"]) == 2
    line = "millrace events: transform unopened cannot be opened: FileNotFoundError: rates.csv\n"
    assert capsys.readouterr() == ("", line)
    assert [path.name for path in tmp_path.iterdir()] == ["millrace.yaml"]


def test_an_enrichment_s_name_is_taken(monkeypatch: pytest.MonkeyPatch):
    from millrace.config import job

    monkeypatch.setitem(job.READERS, "enrich", lambda *_: tuple(configured("lengths, name: euros")))
    with pytest.raises(ConfigError) as caught:
        read_job(f"enrich: []\ntransforms: [{{use: '{MODULE}:euros'}}]", "m.yaml")
    assert str(caught.value) == "m.yaml: transforms: euros is the name of an enrichment; give yours another `name`"


def test_no_file_is_no_transforms():
    assert load_job("") == JobConfig()
