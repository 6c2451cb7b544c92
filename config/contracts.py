"""The section `contracts`: where the tracking plan is, and what becomes of events that violate it."""

from collections.abc import Collection
from pathlib import Path

import yaml

from millrace.config.plan import PlanError, read_plan
from millrace.config.yaml_page import Page
from millrace.schemas.contracts import Contract, Contracts, Policy, SourcePolicy

FOLDER = "schemas/events"
"""Where the plan is if the section does not say; from where the job is started."""

_MEMBERS = ("folder", "policy", "unplanned", "events", "sources")
_SOURCE_MEMBERS = ("policy", "unplanned", "events")
_POLICIES = tuple(policy.value for policy in Policy)
_UNPLANNED = (Policy.FLAG.value, Policy.DEAD_LETTER.value, Policy.OFF.value)


def read_contracts(page: Page, node: yaml.Node) -> Contracts | None:
    """Read the section, and the plan in its folder; notes mistakes of both. None where there were any in the plan."""
    of = page.members(node, "contracts", _MEMBERS)
    folder = page.text(of.get("folder"), "contracts: folder") or FOLDER
    contracts: tuple[Contract, ...] = ()
    try:
        contracts = read_plan(Path(folder))
    except PlanError as error:
        for mistake in error.mistakes:
            page.wrong(of.get("folder", node), f"contracts: folder: {mistake}")
    titles = None if not contracts else {each.title: None for each in contracts}.keys()
    sources = page.pairs(of["sources"], "contracts: sources") if "sources" in of else ()
    return Contracts(
        contracts,
        policy=_policy(page, of.get("policy"), "contracts: policy", _POLICIES) or Policy.FLAG,
        unplanned=_policy(page, of.get("unplanned"), "contracts: unplanned", _UNPLANNED) or Policy.FLAG,
        events=_events(page, of.get("events"), "contracts: events", titles),
        sources=tuple((name.value, _source(page, value, name.value, titles)) for name, value in sources),
    )


def _source(page: Page, node: yaml.Node, name: str, titles: Collection[str] | None) -> SourcePolicy:
    where = f"contracts: sources: {name}"
    if isinstance(node, yaml.ScalarNode):
        return SourcePolicy(_policy(page, node, where, _POLICIES))
    of = page.members(node, where, _SOURCE_MEMBERS)
    return SourcePolicy(
        policy=_policy(page, of.get("policy"), f"{where}: policy", _POLICIES),
        unplanned=_policy(page, of.get("unplanned"), f"{where}: unplanned", _UNPLANNED),
        events=_events(page, of.get("events"), f"{where}: events", titles),
    )


def _events(
    page: Page, node: yaml.Node | None, where: str, titles: Collection[str] | None
) -> tuple[tuple[str, Policy], ...]:
    if node is None:
        return ()
    read = [
        (name.value, _policy(page, value, f"{where}: {name.value}", _POLICIES))
        for name, value in page.pairs(node, where, titles)
    ]
    return tuple((name, policy) for name, policy in read if policy is not None)


def _policy(page: Page, node: yaml.Node | None, where: str, choices: Collection[str]) -> Policy | None:
    word = page.choice(node, where, choices)
    return None if word is None else Policy(word)
