"""The section `routes:` of `millrace.yaml`: which events go to which sink, and as what."""

import re
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import yaml

from millrace.config.columns import archived_columns, columns_before_order
from millrace.config.expressions import Expression, ExpressionError, compile_expression
from millrace.config.privacy import STRATEGIES
from millrace.config.yaml_page import Page, line_of, meant, shown
from millrace.sinks.sink import Sink
from millrace.transforms.route import Route

ROUTE = ("to", "name", "when", "columns", "sample", "sample_by", "rate", "consent", "order", "target")
CONSENT = ("required", "strategy")

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_AT_SINK = re.compile(r"[^\x00-\x1f\x7f]{1,200}")
_MOST_A_SECOND = 1_000_000


def read_routes(
    page: Page, node: yaml.Node | None, sinks: Mapping[str, Sink | None], own: pa.Schema
) -> tuple[Route, ...]:
    """Read the section; what is wrong is noted, and left out.

    Args:
        page: the file.
        node: the section; None: there is none.
        sinks: those that there are, made, by name; None: one that has mistakes itself.
        own: the columns that the transforms of the file add.
    """
    routes: dict[str, tuple[Route, yaml.Node]] = {}
    before = len(page.mistakes)
    for item in page.items(node, "routes"):
        route = _route(page, item, sinks, own)
        if route is None:
            continue
        if route.name in routes:
            line = line_of(routes[route.name][1])
            page.wrong(
                item, f"routes: {route.name} is there already, at line {line}; give this one a `name` of its own"
            )
            continue
        routes[route.name] = route, item
    if len(page.mistakes) == before:
        _unreachable(page, list(routes.values()))
    return tuple(route for route, _ in routes.values())


def _unreachable(page: Page, routes: Sequence[tuple[Route, yaml.Node]]) -> None:
    """Note routes before which another one takes every event."""
    taken: dict[tuple[str, bool], tuple[Route, yaml.Node]] = {}
    for route, item in routes:
        lane = route.to, route.is_ordered
        if lane in taken:
            first, at = taken[lane]
            page.wrong(
                item,
                f"routes: {route.name} never gets an event: {first.name}, at line {line_of(at)}, takes all that may go "
                f"to {route.to}; put this one before it",
            )
        elif route.when is None and route.sample == 1 and not route.consent:
            taken[lane] = route, item


def _route(page: Page, item: yaml.Node, sinks: Mapping[str, Sink | None], own: pa.Schema) -> Route | None:
    of = page.members(item, "routes", ROUTE)
    to = page.text(of.get("to"), "routes: to")
    if to is None:
        if "to" not in of and isinstance(item, yaml.MappingNode):
            page.wrong(item, "routes: to is missing; write the name of one of the sinks")
        return None
    if to not in sinks:
        said = meant(to, list(sinks)) if sinks else "there is none; add it to `sinks:`"
        page.wrong(of["to"], f"routes: there is no sink {shown(of['to'])}; {said}")
    name = page.text(of.get("name"), f"{to}: name") or to
    if "name" in of and not _NAME.fullmatch(name):
        page.wrong(of["name"], f"routes: {name!r} is no name; take a-z, 0-9, _ and -, and a letter first")
    is_ordered = page.choice(of.get("order"), f"{name}: order", ("user", "none")) != "none"
    columns = _Known(archived_columns(own), columns_before_order(own), is_ordered)
    required, strategy = _consent(page, of.get("consent"), f"{name}: consent")
    if "sample_by" in of and "sample" not in of:
        page.wrong(of["sample_by"], f"{name}: sample_by means nothing without sample; add it")
    before = len(page.mistakes)
    chosen = _columns(page, of.get("columns"), f"{name}: columns", columns)
    target = page.text(of.get("target"), f"{name}: target") or ""
    sink = sinks.get(to)
    if sink is not None and len(page.mistakes) == before:
        at_sink = {at: column for column, at in chosen} or {each: each for each in columns.there.names}
        _ask(page, of.get("columns", item), f"{name}: columns", lambda: sink.check_columns(at_sink))
        if target:
            _ask(page, of["target"], f"{name}: target", lambda: sink.check_target(target))
    return Route(
        name=name,
        to=to,
        when=_when(page, of.get("when"), f"{name}: when", columns),
        columns=chosen,
        sample=page.number(of.get("sample"), f"{name}: sample", 1) or 1.0,
        sample_by=page.choice(of.get("sample_by"), f"{name}: sample_by", ("user", "event")) or "user",
        rate=page.number(of.get("rate"), f"{name}: rate", _MOST_A_SECOND),
        is_ordered=is_ordered,
        target=target,
        consent=required,
        strategy=strategy,
    )


def _ask(page: Page, node: yaml.Node, where: str, check: Callable[[], None]) -> None:
    """Note what a sink has against a part of a route."""
    try:
        check()
    except ValueError as error:
        page.wrong(node, f"{where}: {error}")
    except Exception as error:  # noqa: BLE001  a class of a user's own may raise anything
        page.wrong(node, f"{where}: the sink's code fails at it: {type(error).__name__}: {error}")


class _Known:
    """The columns that a route may name."""

    def __init__(self, archived: pa.Schema, before_order: pa.Schema, is_ordered: bool) -> None:
        self.archived = archived
        self.there = archived if is_ordered else before_order

    def problem(self, name: str) -> str | None:
        """Say what is wrong with a column; None: nothing."""
        if name in self.there.names:
            return None
        if name in self.archived.names:
            return (
                f"{name} is known only once events are in order, and this route has `order: none`; remove it, or write "
                "`order: user`"
            )
        return f"{name!r} is not a column; {meant(name, self.there.names) if _near(name, self.there) else _LIST}"


_LIST = "docs/event_model.md lists them"


def _near(name: str, schema: pa.Schema) -> bool:
    return meant(name, schema.names).startswith("did you mean")


def _when(page: Page, node: yaml.Node | None, where: str, columns: _Known) -> Expression | None:
    text = page.text(node, where)
    if node is None or text is None:
        return None
    try:
        found = compile_expression(text, columns.archived)
    except ExpressionError as error:
        page.wrong(node, f"{where}: {shown(node)}, {error}")
        return None
    for problem in filter(None, map(columns.problem, found.columns)):
        page.wrong(node, f"{where}: {problem}")
    return found


def _columns(page: Page, node: yaml.Node | None, where: str, columns: _Known) -> tuple[tuple[str, str], ...]:
    """Read a list of names, and of {column: its name at the sink}."""
    found: dict[str, tuple[str, yaml.Node]] = {}
    items = page.items(node, where)
    if isinstance(node, yaml.SequenceNode) and not items:
        page.wrong(node, f"{where} is empty; write what the sink shall get, or remove it for every column")
    for item in items:
        for word, name in _named(page, item, where):
            problem = columns.problem(word.value)
            if problem is not None:
                page.wrong(word, f"{where}: {problem}")
            elif not _AT_SINK.fullmatch(name):
                page.wrong(item, f"{where}: {name!r} is no name for a column at a sink; take 1 to 200 letters")
            elif name in found:
                before, at = found[name]
                page.wrong(
                    item, f"{where}: {name} is there already, of {before} at line {line_of(at)}; give one another name"
                )
            else:
                found[name] = word.value, item
    return tuple((column, name) for name, (column, _) in found.items())


def _named(page: Page, item: yaml.Node, where: str) -> Sequence[tuple[yaml.ScalarNode, str]]:
    if isinstance(item, yaml.MappingNode):
        pairs = ((word, page.text(name, f"{where}: {word.value}")) for word, name in page.pairs(item, where))
        return [(word, name) for word, name in pairs if name is not None]
    name = page.text(item, where)
    return [(item, name)] if name is not None and isinstance(item, yaml.ScalarNode) else []


def _consent(page: Page, node: yaml.Node | None, where: str) -> tuple[tuple[str, ...], str]:
    of: Mapping[str, yaml.Node] = {}
    listed = node
    if isinstance(node, yaml.MappingNode):
        of = page.members(node, where, CONSENT)
        listed = of.get("required")
        if listed is None:
            page.wrong(node, f"{where}: required is missing; write {{required: [marketing], strategy: or}}")
    words = [page.text(item, where) for item in page.items(listed, where)]
    if isinstance(listed, yaml.SequenceNode) and not words:
        page.wrong(listed, f"{where} is empty; write the categories that are needed, or remove it")
    strategy = page.choice(of.get("strategy"), f"{where}: strategy", STRATEGIES) or "and"
    return tuple(dict.fromkeys(word for word in words if word is not None)), strategy
