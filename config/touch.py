"""The section `touch` of `millrace.yaml`."""

from collections.abc import Sequence

import yaml

from millrace.config.enrich import read_hosts
from millrace.config.yaml_page import Page
from millrace.transforms.enrich.touch import Touch

_COLUMNS = ("source", "medium", "campaign", "click", "referrer_class")
_MEMBERS = (*_COLUMNS, "internal_hosts", "remember_days", "remember_users")
_DEFAULT = Touch()


def read_touch(page: Page, node: yaml.Node) -> Touch:
    """Read the section; with nothing in it, everything is at its default."""
    if isinstance(node, yaml.ScalarNode) and not node.value:
        return _DEFAULT
    of = page.members(node, "touch", _MEMBERS)
    columns = {name: _texts(page, of[name], f"touch: {name}") for name in _COLUMNS if name in of}
    hosts = read_hosts(page, of.get("internal_hosts"), "touch: internal_hosts")
    return Touch(
        **columns,
        internal_hosts=tuple(hosts),
        remember_days=page.number(of.get("remember_days"), "touch: remember_days", 3_650) or _DEFAULT.remember_days,
        remember_users=page.whole(of.get("remember_users"), "touch: remember_users", 100_000_000)
        or _DEFAULT.remember_users,
    )


def _texts(page: Page, node: yaml.Node | None, where: str) -> tuple[str, ...]:
    found: Sequence[str | None] = [page.text(item, where) for item in page.items(node, where)]
    return tuple(text for text in found if text)
