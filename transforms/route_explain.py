"""Explain: where one event goes, and why, condition by condition, in words."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from millrace.config import expression_tree as tree
from millrace.config.expressions import Expression
from millrace.config.privacy import CONSENT_DENIED
from millrace.transforms.consent import blocked
from millrace.transforms.route import REST, Route, integration, shares

_SHOWN_CHARACTERS = 60
_encode = msgspec.json.Encoder(enc_hook=str).encode


@dataclasses.dataclass(frozen=True)
class Condition:
    """One thing that an event has to fulfil for a route."""

    name: str
    holds: bool | None
    """None: it cannot be told from the event alone."""
    why: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether an event takes a route."""

    route: Route
    conditions: tuple[Condition, ...]

    @property
    def goes(self) -> bool | None:
        """Whether it goes; None: it may."""
        holds = [condition.holds for condition in self.conditions]
        return False if False in holds else None if None in holds else True


def explain(event: pa.RecordBatch, routes: Sequence[Route], unknown: Collection[str] = ()) -> list[Verdict]:
    """Say for each route whether an event takes it, as route_rows does, and why.

    Args:
        event: one row; see route_rows.
        routes: to any sinks.
        unknown: columns whose value in the job cannot be told from the event alone.
    """
    verdicts: list[Verdict] = []
    for route in routes:
        found = [_integrations(event, route)]
        if route.consent:
            found.append(_consent(event, route))
        if route.sample < 1:
            found.append(_sample(event, route, unknown))
        if route.when is not None:
            found.append(_when(event, route.when, unknown))
        before = [each for each in verdicts if (each.route.to, each.route.is_ordered) == (route.to, route.is_ordered)]
        verdicts.append(Verdict(route, (*found, *_before(before))))
    return verdicts


def _integrations(event: pa.RecordBatch, route: Route) -> Condition:
    rest = event.column(REST)[0].as_py() if REST in event.schema.names else None
    return Condition("integrations", *integration(rest or "", route.to))


def _consent(event: pa.RecordBatch, route: Route) -> Condition:
    needs = f"needs {f' {route.strategy} '.join(route.consent)}"
    denied = event.column(CONSENT_DENIED.name)[0].as_py() if CONSENT_DENIED.name in event.schema.names else None
    if denied is None:
        return Condition("consent", True, f"{needs}; the event says nothing of consent")
    said = ", ".join(map(str, msgspec.json.decode(denied))) or "nothing"
    allowed = not blocked(event, route.consent, route.strategy)[0]
    return Condition("consent", allowed, f"{needs}; the user has denied {said}")


def _sample(event: pa.RecordBatch, route: Route, unknown: Collection[str]) -> Condition:
    column, whose = ("message_id", "events") if route.sample_by == "event" else ("user_key", "users")
    key = event.column(column)[0].as_py()
    at = shares(event, route.sample_by)[0]
    why = f"{route.sample * 100:g} % of the {whose}; {key} stands at {at * 100:.2f} %"
    if column in unknown:
        return Condition("sample", None, f"{why}, if that is the {column}")
    return Condition("sample", bool(at < route.sample), why)


def _when(event: pa.RecordBatch, when: Expression, unknown: Collection[str]) -> Condition:
    nodes = list(tree.walk(when.root))
    operands = {str(node): node for node in nodes if isinstance(node, tree.Column | tree.Path)}
    rows = tree.Rows(event, when.root)
    parts = [
        f"{name} cannot be told" if node.column in unknown else f"{name} is {_shown(node.values(rows)[0])}"
        for name, node in operands.items()
    ]
    # What is not known is null here, and null makes neither true nor false, but of what asks for null.
    asks = any(isinstance(node, tree.IsNull) and node.left.column in unknown for node in nodes)
    selected = None if asks else when.root.value(rows)[0].as_py()
    if not set(when.columns) & set(unknown):
        selected = bool(selected)
    return Condition("when", selected, f"{when}; {', '.join(parts)}")


def _shown(value: Any) -> str:
    text = _encode(value).decode()
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _before(verdicts: Sequence[Verdict]) -> list[Condition]:
    """Return the condition that no earlier route to the sink takes the event, where one does or may."""
    for verdict in verdicts:
        if verdict.goes:
            return [Condition("first", False, f"{verdict.route.name}, before it, takes the event")]
    may = [verdict.route.name for verdict in verdicts if verdict.goes is None]
    return [Condition("first", None, f"{', '.join(may)}, before it, may take the event")] if may else []
