"""Section `identity`: which events link two ids to one person."""

import yaml

from millrace.config.yaml_page import Page
from millrace.transforms.link import ALIAS, IDENTIFY, LinkRule

_MEMBERS = ("link_on", "remember_days")
_MOST_DAYS = 3_650
_DAY_S = 86_400


def read_identity(page: Page, node: yaml.Node) -> LinkRule:
    """Read the section; nothing in it (`identity: {}`, or `identity:` alone) means its defaults."""
    rule = LinkRule()
    if isinstance(node, yaml.ScalarNode) and not node.value:
        return rule
    of = page.members(node, "identity", _MEMBERS)
    days = page.number(of.get("remember_days"), "identity: remember_days", _MOST_DAYS)
    words = [
        page.choice(item, "identity: link_on", (IDENTIFY, ALIAS))
        for item in page.items(of.get("link_on"), "identity: link_on")
    ]
    if "link_on" in of and not words and isinstance(of["link_on"], yaml.SequenceNode):
        page.wrong(of["link_on"], "identity: link_on: is empty, so nothing would link; remove the section instead")
    return LinkRule(
        link_on=tuple(dict.fromkeys(word for word in words if word)) or rule.link_on,
        remember_s=rule.remember_s if days is None else days * _DAY_S,
    )
