"""One call of each kind, and the row that each has to become when it comes from a given server SDK."""

import dataclasses
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.sdks.stand import Row
from tests.support.node import environment, node

SENDERS = Path(__file__).parent / "senders"
RICH_CONTEXT: Mapping[str, Any] = {
    "ip": "203.0.113.9",
    "app": {"name": "Quay", "version": "2.1", "build": 7, "namespace": "example.quay"},
    "campaign": {"name": "spring", "source": "mail", "medium": "email", "term": "coffee", "content": "banner"},
    "device": {"id": "d-1", "manufacturer": "Google", "model": "Pixel 8", "name": "husky", "type": "android"},
    "locale": "de-DE",
    "os": {"name": "Android", "version": "15"},
    "page": {"path": "/cup", "referrer": "", "search": "?q=1", "title": "Cup", "url": "https://quay.example/cup?q=1"},
    "screen": {"width": 390, "density": 2.5},
    "timezone": "Europe/Berlin",
    "userAgent": "Quay/2.1 (Android 15)",
}
RICH_COLUMNS: Mapping[str, Any] = {
    "context_ip": "203.0.113.9",
    "context_user_agent": "Quay/2.1 (Android 15)",
    "context_locale": "de-DE",
    "context_timezone": "Europe/Berlin",
    "context_app_build": "7",
    **{
        f"context_{group}_{name}": RICH_CONTEXT[group][name]
        for group in ("app", "campaign", "device", "os", "page")
        for name in RICH_CONTEXT[group]
        if (group, name) != ("app", "build")
    },
}
GIVEN_TIME = "2026-11-20T08:00:00.123Z"

# In the words of the Node SDKs.
_CALLS: Sequence[Mapping[str, Any]] = (
    {
        "type": "identify",
        "userId": "ann",
        "traits": {"name": "Änn ☕", "visits": 3, "tags": ["a", None]},
        "context": RICH_CONTEXT,
    },
    {
        "type": "track",
        "userId": "ann",
        "event": "Order Completed",
        "timestamp": GIVEN_TIME,
        "properties": {"total": 59.9, "products": [{"id": "cup-01", "quantity": 2}], "gift": False, "note": None},
    },
    {
        "type": "page",
        "userId": "ann",
        "category": "Shop",
        "name": "Basket",
        "properties": {"url": "https://quay.example"},
    },
    {"type": "screen", "userId": "ann", "category": "App", "name": "Main", "properties": {"variant": "b"}},
    {"type": "group", "userId": "ann", "groupId": "club-1", "traits": {"plan": "monthly"}},
    {"type": "alias", "userId": "ann", "previousId": "visitor-7"},
    {"type": "track", "anonymousId": "visitor-8", "event": "Looked"},
)


class NotSentError(Exception):
    """An SDK could not send."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sdk:
    """A server SDK, and what it puts around a call."""

    name: str
    """Of its script in senders/, and of its test."""
    package: str
    library: str
    agent: str
    """With {version} for its version."""
    rest: Mapping[str, Any]
    """What is in each event and has no column."""
    traits_in: tuple[str, ...] = ("traits",)
    """Columns that hold the traits of an identify."""
    without_properties: Mapping[str, Any] | None = dataclasses.field(default_factory=dict)
    """The properties of a track that was given none."""
    category_in_properties: bool = False
    """Of a page."""
    stamps_rest: bool = False
    """It sends `timestamp` beside an originalTimestamp: the call's, else the batch's. It is kept in rest."""

    @property
    def in_node(self) -> bool:
        return self.name.endswith("_node")

    def __str__(self) -> str:
        return self.name


SDKS = (
    Sdk(
        "rudder_python",
        "rudder-sdk-python",
        "analytics-python",
        "analytics-python/{version}",
        {"channel": "server", "integrations": {"All": True}},
        traits_in=("context_rest",),
    ),
    Sdk(
        "segment_python",
        "segment-analytics-python",
        "analytics-python",
        "analytics-python/{version}",
        {"integrations": {}},
    ),
    Sdk(
        "rudder_node",
        "@rudderstack/rudder-sdk-node",
        "analytics-node",
        "analytics-node/{version}",
        {"channel": "server", "_metadata": {"nodeVersion": "{node}"}},
        traits_in=("traits", "context_rest"),
        without_properties=None,
        stamps_rest=True,
    ),
    Sdk(
        "segment_node",
        "@segment/analytics-node",
        "@segment/analytics-node",
        "analytics-node-next/latest",
        {"integrations": {}, "_metadata": {"jsRuntime": "node", "nodeVersion": "v{node}"}},
        category_in_properties=True,
    ),
)


def calls_of(prefix: str) -> Sequence[Mapping[str, Any]]:
    """Return the calls; their message ids begin with prefix."""
    return [{**call, "messageId": f"{prefix}-{number}"} for number, call in enumerate(_CALLS)]


def send(sdk: Sdk, url: str, key: str, calls: Sequence[Mapping[str, Any]], packages: Path | None) -> None:
    """Make the calls in a process of the SDK's own.

    Raises:
        NotSentError: the SDK says that something was not sent; its own words.
    """
    script = SENDERS / (sdk.name + (".cjs" if sdk.in_node else ".py"))
    command = [node() if sdk.in_node else sys.executable, str(script)]
    done = subprocess.run(
        command,
        input=json.dumps({"url": url, "key": key, "calls": calls}),
        env=environment(packages) if packages else None,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    if done.returncode or done.stderr:
        raise NotSentError(f"exit code {done.returncode}: {done.stderr}")


def expected_row(sdk: Sdk, call: Mapping[str, Any], packages: Path | None) -> Row:
    """Return what the row of a call tells (stand.told), where the SDK sent it to the source `server`."""
    version = _version(sdk, packages)
    row: Row = {
        "message_id": call["messageId"],
        "type": call["type"],
        "source_id": "server",
        "user_key": call.get("userId") or call["anonymousId"],
        "context_library_name": sdk.library,
        "context_library_version": version,
        "context_ip": "127.0.0.0",  # the request's, its last part dropped: the policy of a source that names none
        "context_user_agent": sdk.agent.format(version=version),
        "rest": json.loads(json.dumps(sdk.rest).replace("{node}", _node_version() if sdk.in_node else "")),
    }
    columns = {"userId": "user_id", "anonymousId": "anonymous_id", "event": "event", "name": "event"}
    row |= {column: call[name] for name, column in columns.items() if name in call}
    row["rest"] |= {name: call[name] for name in ("category", "groupId", "previousId") if name in call}
    if "context" in call:
        row |= {**RICH_COLUMNS, "context_rest": {"screen": call["context"]["screen"]}}
    if call["type"] == "identify":
        for column in sdk.traits_in:
            row |= {column: call["traits"]} if column == "traits" else {}
            row |= {column: {**row[column], "traits": call["traits"]}} if column == "context_rest" else {}
    elif "traits" in call:
        row["traits"] = call["traits"]
    properties = call.get("properties", sdk.without_properties if call["type"] == "track" else None)
    if properties is not None:
        category = {"category": call["category"]} if sdk.category_in_properties and call["type"] == "page" else {}
        row["properties"] = {**properties, **category}
    return row


def _version(sdk: Sdk, packages: Path | None) -> str:
    if not sdk.in_node:
        return importlib.metadata.version(sdk.package)
    assert packages is not None
    version: str = json.loads((packages / sdk.package / "package.json").read_text())["version"]
    return version


def _node_version() -> str:
    done = subprocess.run([node(), "--version"], capture_output=True, text=True, check=True)
    return done.stdout.strip().removeprefix("v")
