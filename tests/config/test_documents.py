"""docs/config.md, docs/transforms.md and docs/expressions.md say what is so."""

import re
import sys
import types
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from millrace.config import transforms
from millrace.config.columns import known_columns
from millrace.config.expressions import compile_expression
from millrace.config.job import read_job
from millrace.testing import run_transform, track
from millrace.transforms.custom.declare import LookupTransform, kind_of

DOCS = Path(__file__).parents[2] / "docs"


def keys(document: str, heading: str) -> list[str]:
    section = (DOCS / document).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*`) \|", section, re.MULTILINE)
    return [key for cell in cells for key in re.findall(r"`([a-z_]+)`", cell)]


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / document).read_text(encoding="utf-8"), re.DOTALL)


def test_every_key_of_an_entry_is_in_the_documents():
    entry, limits = list(transforms._ENTRY), list(transforms._OF_LOOKUPS)
    assert keys("transforms.md", "An entry") == entry
    assert keys("transforms.md", "A lookup") == limits
    assert keys("config.md", "transforms") == [*entry, *limits]


def test_the_defaults_of_lookups_are_those_of_the_document():
    section = (DOCS / "transforms.md").read_text(encoding="utf-8").split("\n## A lookup\n")[1]
    rows = re.findall(r"^\| (`[^|]*`) \| ([0-9][^|]*) \|", section, re.MULTILINE)
    told = {
        key: float(value.replace(",", ""))
        for names, values in rows
        for key, value in zip(re.findall(r"`([a-z_]+)`", names), values.split(", "), strict=True)
    }
    assert told == {name: getattr(LookupTransform, name) for name in transforms._OF_LOOKUPS}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the document's code defines."""
    function, state, test = blocks("transforms.md", "python")
    module = types.ModuleType("shown")
    monkeypatch.setitem(sys.modules, "shown", module)
    names = module.__dict__
    exec(function, names)  # noqa: S102  it is what is tested
    exec(state.replace("class Orders", "from millrace.api import UserTransform\nclass Orders"), names)  # noqa: S102
    exec(test, names)  # noqa: S102
    return names


def test_the_code_that_is_shown_works(shown: dict[str, Any]):
    events = [
        track("Order Completed", properties={"total": 10}),
        track("Order Completed", at=1, properties={"test": True}),
    ]
    result = run_transform(shown["to_eur"], events, settings={"rate": 0.5})
    assert (result.column("total_eur"), result.dropped) == ({"m1": 5.0}, ("m2",))
    assert run_transform(shown["Orders"], events).column("orders") == {"m1": 1, "m2": 2}
    assert [kind_of(shown[name]) for name in ("to_eur", "Orders")] == ["event", "user"]
    compared: list[Any] = []
    shown["test_orders"](compared.append)
    assert compared[0][0]["total_eur"] == pytest.approx(9.2)


def test_the_configuration_that_is_shown_can_be_read(monkeypatch: pytest.MonkeyPatch):
    from millrace.transforms.custom import find

    for document in ("transforms.md", "config.md"):
        text = next(block for block in blocks(document, "yaml") if block.startswith("transforms:"))
        shown = text.replace("shop.transforms:to_eur", "tests.support.transforms:euros")
        (step,) = read_job(shown, document).transforms
        assert step.name == "euros"
    assert find.GROUP in "".join(blocks("transforms.md", "toml"))


def test_the_expressions_that_are_shown_are_some():
    text = (DOCS / "expressions.md").read_text(encoding="utf-8")
    schema = pa.schema([*known_columns(), pa.field("x", pa.string())])
    for expression in (
        re.findall(r"```\n(.*?)\n```", text, re.DOTALL)[0],
        *re.findall(r'`(event != "x"[^`]*)`', text),
        *re.findall(r"`(properties\.total > 100)`", text),
        'occurred_at >= "2026-12-31T18:00:00Z"',
    ):
        assert compile_expression(expression, schema).columns
