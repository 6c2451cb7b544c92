"""The section `sessions` of `millrace.yaml`."""

import yaml

from millrace.config.yaml_page import Page
from millrace.transforms.enrich.sessions import Sessions

_MEMBERS = ("gap_min", "longest_h", "respect_sdk", "remember_days", "remember_users")
_DEFAULT = Sessions()


def read_sessions(page: Page, node: yaml.Node) -> Sessions:
    """Read the section; with nothing in it, everything is at its default."""
    if isinstance(node, yaml.ScalarNode) and not node.value:
        return _DEFAULT
    of = page.members(node, "sessions", _MEMBERS)
    respect = page.choice(of.get("respect_sdk"), "sessions: respect_sdk", ("true", "false"))
    read = Sessions(
        gap_min=page.number(of.get("gap_min"), "sessions: gap_min", 1_440) or _DEFAULT.gap_min,
        longest_h=page.number(of.get("longest_h"), "sessions: longest_h", 8_760) or _DEFAULT.longest_h,
        respect_sdk=respect != "false",
        remember_days=page.number(of.get("remember_days"), "sessions: remember_days", 3_650) or _DEFAULT.remember_days,
        remember_users=page.whole(of.get("remember_users"), "sessions: remember_users", 100_000_000)
        or _DEFAULT.remember_users,
    )
    # Else the memory would end a session before its gap does.
    if read.remember_days * 24 * 60 < read.gap_min:
        page.wrong(
            of.get("remember_days", node),
            f"sessions: remember_days is shorter than gap_min; write at least {read.gap_min / 1_440:.3g}",
        )
    return read
