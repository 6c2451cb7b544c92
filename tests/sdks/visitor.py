"""A visitor of the demo shop, in Chromium; and the row that each event which the browser sent has to become."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from playwright.sync_api import BrowserContext, Request

from millrace.schemas.event import ARCHIVE
from tests.sdks.stand import Row, Stand

READY = "body[data-ready]"
_CONTEXT_COLUMNS = [name for name in ARCHIVE.names if name.startswith("context_") and name != "context_rest"]
_GROUPS = ("page", "campaign", "library", "device", "os", "app")
_ALONE = {
    "context_ip": "ip",
    "context_locale": "locale",
    "context_timezone": "timezone",
    "context_user_agent": "userAgent",
}
_COLUMNS = {
    "messageId": "message_id",
    "type": "type",
    "event": "event",
    "userId": "user_id",
    "anonymousId": "anonymous_id",
    "properties": "properties",
    "traits": "traits",
}
_TOLD_ELSEWHERE = ("originalTimestamp", "timestamp", "sentAt", "writeKey", "userId")
"""The times have columns of their own, the key has done its work, and a blank user is none."""


class Visitor:
    """Somebody with a browser of their own, so that their anonymous id tells their events from all others."""

    def __init__(self, context: BrowserContext, stand: Stand, mode: str) -> None:
        self.stand = stand
        self.faults: list[str] = []
        """Errors in the page, and requests to any other server."""
        self.context = context
        context.set_default_timeout(90_000)
        context.on("request", self._check)
        self.page = context.new_page()
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.open(f"/demo?key={stand.keys['web']}&sdk={mode}")
        self.anonymous_id: str = self.page.evaluate(
            "new Promise(done => { const ask = () => {"
            "  const id = anonymousId(analytics); id ? done(id) : setTimeout(ask, 20); }; ask(); })"
        )

    def _check(self, request: Request) -> None:
        if not request.url.startswith(f"{self.stand.url}/"):
            self.faults.append(f"{request.method} {request.url}")

    def open(self, path: str) -> None:
        """Open a page of the shop and wait until it can be used."""
        self.page.goto(self.stand.url + path)
        self.page.wait_for_selector(READY)

    def click(self, selector: str) -> None:
        self.page.click(selector)

    def follow(self, selector: str, path: str) -> None:
        """Click on what leads to another page; wait until that can be used."""
        self.page.click(selector)
        self.page.wait_for_url(f"**{path}")
        self.page.wait_for_selector(READY)

    def wait_until_listed(self, count: int) -> None:
        """Wait until the page lists so many events as sent."""
        self.page.locator("#sent tr:not(.whole)").nth(count - 1).wait_for()

    def rows_until(self, names: Sequence[str], timeout_s: float = 90.0) -> Sequence[Row]:
        """Return this visitor's rows, once there is one for each of these events; copies by message id left out."""

        def enough(rows: Sequence[Row]) -> bool:
            return Counter(names) <= Counter(map(name_of, self._own(rows)))

        return self._own(self.stand.rows_until(enough, timeout_s))

    def _own(self, rows: Sequence[Row]) -> Sequence[Row]:
        own = {row["message_id"]: row for row in rows if row["anonymous_id"] == self.anonymous_id}
        return list(own.values())

    def sent(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Return the events that the page saw the SDK send, by message id; more than one where it sent it again."""
        found: dict[str, list[Mapping[str, Any]]] = {}
        for line in json.loads(self.page.evaluate("sessionStorage.getItem('sent')")):
            event = json.loads(line["body"])
            found.setdefault(event["messageId"], []).append(event)
        return found


def name_of(row: Row) -> str:
    """Return what tells an event from the others of the journey.

    >>> name_of({"type": "track", "event": "Product Added"}), name_of({"type": "alias", "event": None})
    ('track Product Added', 'alias')
    """
    return f"{row['type']} {row['event']}" if row["event"] else row["type"]


def row_of(event: Mapping[str, Any]) -> Row:
    """Return what the row of an event of the web tells (stand.told), by the words of docs/event_model.md."""
    rest = json.loads(json.dumps(event))
    context = rest.pop("context")
    row: Row = {"source_id": "web", "context_ip": "127.0.0.0"}
    for column in _CONTEXT_COLUMNS:
        group, _, name = column.removeprefix("context_").partition("_")
        holder = context.get(group, {}) if group in _GROUPS else context
        key = name if group in _GROUPS else _ALONE[column]
        if key in holder:
            row[column] = holder.pop(key)
    row["context_rest"] = {name: value for name, value in context.items() if value or name not in _GROUPS}
    row |= {column: rest.pop(name) for name, column in _COLUMNS.items() if rest.get(name)}
    if rest.get("name"):
        row["event"] = rest.pop("name")
    row["user_key"] = row.get("user_id") or row["anonymous_id"]
    row["rest"] = {name: value for name, value in rest.items() if name not in _TOLD_ELSEWHERE}
    return row
