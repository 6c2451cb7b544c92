"""Cart abandonment: who puts things into a cart and does not order gets an event that says so.

A user's silence is noticed at their next event, whatever it is: that is when the state is looked at.
"""

import datetime as dt
from typing import Any

import pyarrow as pa

from millrace.api import Event, UserTransform


class CartAbandonment(UserTransform):
    """Put a track event `Cart Abandoned` behind the first event that comes minutes after the cart was last touched.

    Args:
        minutes: a cart that was not touched for so long, and not ordered, is abandoned.
    """

    adds = {"cart_value": pa.float64()}
    version = "1"
    remembers_s = 30 * 86_400.0
    recalls = ("event", "type", "occurred_at", "properties")

    def __init__(self, minutes: float = 30) -> None:
        self._gap = dt.timedelta(minutes=minutes)

    def each(self, event: Event, state: dict[Any, Any]) -> list[Event]:
        events = [event]
        if state and event.occurred_at - state["at"] > self._gap:
            left = {"products": state["products"], "value": state["value"], "left_at": state["at"].isoformat()}
            events.append(event.copy(type="track", event="Cart Abandoned", properties=left, cart_value=state["value"]))
            state.clear()
        if event.name == "Product Added":
            state.setdefault("products", []).append(event.properties.get("product_id"))
            price, number = event.properties.get("price", 0), event.properties.get("quantity", 1)
            state["value"] = round(state.get("value", 0.0) + price * number, 2)
            state["at"] = event.occurred_at
        elif event.name == "Order Completed":
            state.clear()
        if state:
            event["cart_value"] = state["value"]
        return events
