"""The cart abandonment example."""

from typing import Any

import pytest

from millrace.config.job import load_job
from millrace.testing import batches_of, check_properties, run_transform, track
from millrace.testing.run import run_over
from tests.examples.names import FOLDER, example

USE = "carts:CartAbandonment"
MINUTE = 60


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    example(monkeypatch, "carts")


def added(product: str, price: float, user: str, minute: float, **more: Any) -> Any:
    return track(
        "Product Added", user=user, at=minute * MINUTE, properties={"product_id": product, "price": price, **more}
    )


EVENTS = [
    added("a", 10, "ann", 0),
    added("b", 2.5, "ann", 1, quantity=2),
    added("c", 7, "bob", 2),
    track("Order Completed", user="bob", at=10 * MINUTE),
    track("Product Viewed", user="ann", at=20 * MINUTE),
    track("Product Viewed", user="ann", at=32 * MINUTE),
    track("Product Viewed", user="bob", at=90 * MINUTE),
    added("d", 1, "ann", 95),
]


def test_an_abandoned_cart_is_an_event_behind_the_next_one_of_its_user():
    result = run_transform(USE, EVENTS)
    abandoned = [row for row in result.rows if row.get("event") == "Cart Abandoned"]
    assert [(row["message_id"], row["user_key"], row["cart_value"], row["properties"]) for row in abandoned] == [
        ("m6/cart_abandonment/1", "ann", 15.0,
         '{"products":["a","b"],"value":15.0,"left_at":"2026-01-05T12:01:00+00:00"}'),
    ]  # fmt: skip
    assert result.column("cart_value") == {
        "m1": 10.0, "m2": 15.0, "m3": 7.0, "m4": None, "m5": 15.0, "m6": None, "m6/cart_abandonment/1": 15.0,
        "m7": None, "m8": 1.0,
    }  # fmt: skip
    of_ann = [row["message_id"] for row in result.rows if row["user_key"] == "ann"]
    assert of_ann == ["m1", "m2", "m5", "m6", "m6/cart_abandonment/1", "m8"]


def test_the_time_is_a_setting():
    result = run_transform(USE, EVENTS, settings={"minutes": 60})
    assert [row["message_id"] for row in result.rows if row.get("event") == "Cart Abandoned"] == [
        "m8/cart_abandonment/1"
    ]


def test_it_has_the_properties_of_a_transform():
    check_properties(USE, EVENTS)


def test_its_section_of_the_configuration():
    (step,) = load_job(str(FOLDER / "carts" / "millrace.yaml")).transforms
    assert len(run_over(step, batches_of(EVENTS)).rows) == 9
    assert step.recalls == ("event", "type", "occurred_at", "properties", "message_id")
