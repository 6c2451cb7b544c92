"""The currency example."""

import sys
from pathlib import Path

import pytest

from millrace.config.job import load_job
from millrace.testing import check_properties, identify, run_transform, track
from millrace.testing.run import run_over
from millrace.transforms.steps import CannotOpenError
from tests.examples.names import FOLDER, example

RATES = {"rates": str(FOLDER / "currency" / "rates.csv")}
USE = "currency:ConvertCurrency"
EVENTS = [
    track("Order Completed", user="ann", at=0, properties={"total": 10, "currency": "USD"}),
    track("Order Completed", user="ann", at=1, properties={"total": 10, "currency": "EUR", "items": [{"total": 1}]}),
    track("Order Completed", user="bob", at=2, properties={"total": 10}),
    track("Product Viewed", user="bob", at=8, properties={"total": 3, "currency": "GBP"}),
    identify(user="bob", at=9),
]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    example(monkeypatch, "currency")


def test_totals_are_converted_by_the_rates_of_the_file():
    result = run_transform(USE, EVENTS, settings=RATES)
    assert result.column("total_eur") == {"m1": 9.2, "m2": 10.0, "m3": None, "m4": 3.51, "m5": None}


def test_a_currency_without_a_rate_is_said_and_takes_no_other_with_it():
    unknown = track("Order Completed", user="ann", at=3, properties={"total": 1, "currency": "XXX"})
    result = run_transform(USE, [*EVENTS, unknown], settings=RATES)
    assert list(result.dead_letters) == ["m6"]
    assert len(result.rows) == 5


def test_it_has_the_properties_of_a_transform():
    assert check_properties(USE, EVENTS, settings=RATES).us_per_event < 1_000


def test_its_section_of_the_configuration(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(FOLDER / "currency")
    (step,) = load_job("millrace.yaml").transforms
    from millrace.testing import batches_of

    result = run_over(step, batches_of(EVENTS))
    assert result.column("total_eur") == {"m1": 9.2, "m2": 10.0, "m3": None, "m4": None, "m5": None}


def test_a_missing_file_of_rates_ends_the_start():
    with pytest.raises(CannotOpenError, match="convert_currency cannot be opened: FileNotFoundError"):
        run_transform(USE, EVENTS, settings={"rates": "nowhere.csv"})


def test_it_is_the_example_that_is_run():
    run_transform(USE, [], settings=RATES)
    assert Path(str(sys.modules["currency"].__file__)).parent == FOLDER / "currency"
