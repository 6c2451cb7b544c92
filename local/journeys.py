"""Journeys: what a shopper does on one device, session after session, until they put it away."""

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from millrace.local import catalogue
from millrace.local.catalogue import Product
from millrace.local.shoppers import Device, Happening


class _Line(NamedTuple):
    product: Product
    quantity: int


def happenings(device: Device, rng: random.Random) -> Iterator[Happening]:
    """Yield what happens on a device, without end; logs the shopper in (`device.user_id`) when they do."""
    while True:
        yield from _Session(device, rng).happenings()


class _Session:
    """One visit: from the landing page to leaving, or to an order."""

    def __init__(self, device: Device, rng: random.Random) -> None:
        self._device = device
        self._rng = rng
        self._cart: list[_Line] = []
        self._campaign = rng.choice(catalogue.CAMPAIGNS) if rng.random() < 0.15 else None
        self._page = self._page_at("/", catalogue.SHOP_NAME, rng.choice(catalogue.REFERRERS))

    def happenings(self) -> Iterator[Happening]:
        rng = self._rng
        if self._device.mobile:
            opened = {"from_background": rng.random() < 0.6, "version": self._device.context["app"]["version"]}
            yield self._track("Application Opened", opened, think_s=0.5)
        yield self._view("Home", "/", think_s=0.6)
        if self._device.user_id is None and rng.random() < 0.35:
            yield from self._log_in()
        while rng.random() < 0.82:
            yield from rng.choice((self._search, self._browse, self._browse, self._look_at))()
            if self._cart and rng.random() < 0.3:
                yield from self._check_out()
                break
        if self._device.user_id is not None and rng.random() < 0.03:
            yield from self._log_out()

    def _log_in(self) -> Iterator[Happening]:
        rng, shopper = self._rng, self._device.shopper
        yield self._view("Login", "/login")
        anonymous, self._device.user_id = self._device.anonymous_id, shopper.user_id
        if rng.random() < 0.05:
            yield self._call("alias", previous_id=anonymous, think_s=0.1)
        first, _, last = shopper.name.partition(" ")
        traits = {"email": shopper.email, "firstName": first, "lastName": last, "plan": shopper.plan,
                  "address": {"city": shopper.place.city, "country": shopper.place.country},
                  "newsletter": rng.random() < 0.4}  # fmt: skip
        yield self._call("identify", traits=traits, think_s=0.1)
        if rng.random() < 0.06:
            company = rng.randrange(len(catalogue.COMPANIES))
            traits = {"name": catalogue.COMPANIES[company], "employees": 5 * (company + 1), "plan": "business"}
            yield self._call("group", group_id=f"g-{company}", traits=traits, think_s=0.2)
        yield self._track("Signed In", {"method": rng.choice(("password", "google", "apple"))}, think_s=0.1)

    def _log_out(self) -> Iterator[Happening]:
        yield self._track("Signed Out", {}, think_s=1.0)
        self._device.user_id = None

    def _search(self) -> Iterator[Happening]:
        query = self._rng.choice(catalogue.SEARCHES)
        yield self._view("Search", "/search", search=f"?q={query.replace(' ', '+')}")
        found = self._rng.randrange(40)
        yield self._track("Products Searched", {"query": query, "results": found, "sort": "relevance"}, think_s=0.3)
        if found:
            yield from self._look_at()

    def _browse(self) -> Iterator[Happening]:
        title, slug = self._rng.choice(catalogue.CATEGORIES)
        yield self._view(title, f"/c/{slug}")
        shown = {"list_id": slug, "category": title, "page": 1 + int(self._rng.expovariate(1.5))}
        yield self._track("Product List Viewed", shown, think_s=0.4)
        if self._rng.random() < 0.7:
            yield from self._look_at()

    def _look_at(self) -> Iterator[Happening]:
        rng = self._rng
        # Squared: the first products of the list sell best.
        product = catalogue.PRODUCTS[int(len(catalogue.PRODUCTS) * rng.random() ** 2)]
        yield self._view(product.name, f"/p/{product.product_id}")
        yield self._track("Product Viewed", self._of(product), think_s=0.2)
        if rng.random() < 0.3:
            line = _Line(product, rng.choice((1, 1, 1, 2, 3)))
            self._cart.append(line)
            yield self._track("Product Added", {**self._of(product), "quantity": line.quantity}, think_s=6.0)
            if rng.random() < 0.1:
                self._cart.pop()
                yield self._track("Product Removed", self._of(product), think_s=4.0)

    def _check_out(self) -> Iterator[Happening]:
        rng = self._rng
        order_id, value = (
            f"o-{rng.getrandbits(40):010x}",
            sum(line.product.price * line.quantity for line in self._cart),
        )
        yield self._view("Checkout", "/checkout")
        yield self._track("Checkout Started", {"order_id": order_id, "value": round(value, 2), "currency": "EUR"})
        if self._device.user_id is None:
            yield from self._log_in()
        if rng.random() < 0.25:
            return  # changed their mind
        yield self._track("Payment Info Entered", {"order_id": order_id, "payment_method": "card"}, think_s=9.0)
        lines = [{"product_id": line.product.product_id, "price": line.product.price, "quantity": line.quantity}
                 for line in self._cart]  # fmt: skip
        order: dict[str, Any] = {
            "order_id": order_id, "total": round(value * 1.19, 2), "revenue": round(value, 2), "shipping": 4.9,
            "tax": round(value * 0.19, 2), "currency": "EUR", "products": lines,
        }  # fmt: skip
        if rng.random() < 0.2:
            order["coupon"] = rng.choice(catalogue.COUPONS)
        yield self._track("Order Completed", order, think_s=3.0)
        yield self._view("Thank you", "/thanks")

    def _of(self, product: Product) -> dict[str, Any]:
        return {**product._asdict(), "currency": "EUR", "position": self._rng.randint(1, 24)}

    def _track(self, event: str, properties: dict[str, Any], think_s: float = 2.0) -> Happening:
        return self._call("track", event=event, properties=properties, think_s=think_s)

    def _view(self, title: str, path: str, search: str = "", think_s: float = 4.0) -> Happening:
        """Move to a page (a screen, in the app)."""
        if self._device.mobile:
            return self._call("screen", event=title, properties={"path": path}, think_s=think_s)
        self._page = self._page_at(path, title, self._page["url"], search)
        return self._call("page", event=title, properties={"path": path}, think_s=think_s)

    def _call(self, kind: str, event: str | None = None, think_s: float = 2.0, **more: Any) -> Happening:
        page = None if self._device.mobile else self._page
        return Happening(kind, event, page=page, campaign=self._campaign, think_s=think_s, **more)

    def _page_at(self, path: str, title: str, referrer: str, search: str = "") -> dict[str, str]:
        url = f"{catalogue.SHOP_URL}{path}{search}"
        page = {"url": url, "path": path, "referrer": referrer, "search": search, "title": title}
        return {key: value for key, value in page.items() if value}
