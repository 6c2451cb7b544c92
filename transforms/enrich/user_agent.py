"""User agent: which browser, system and device the header means, by the rules of uap-core.

Source: https://github.com/ua-parser/uap-core, through the package ua-parser with its core in Rust (Apache-2.0).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from ua_parser import Domain
from ua_parser.core import PartialResult
from ua_parser.loaders import load_builtins
from ua_parser.regex import Resolver

from millrace.transforms.enrich.enrichment import Enrichment, declared, version_of


def describe(user_agent: str | None) -> tuple[str | None, ...]:
    """Return browser, its version, system, its version, and the device's family, brand and model.

    >>> describe("Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0")
    ('Firefox', '132.0', 'Ubuntu', None, None, None, None)
    """
    if not user_agent:
        return (None,) * 7
    found: PartialResult = _resolver()(user_agent, Domain.ALL)
    browser, system, device = found.user_agent, found.os, found.device
    return (
        browser.family if browser else None,
        _version(browser.major, browser.minor, browser.patch, browser.patch_minor) if browser else None,
        system.family if system else None,
        _version(system.major, system.minor, system.patch, system.patch_minor) if system else None,
        device.family if device else None,
        device.brand if device else None,
        device.model if device else None,
    )


def is_spider(user_agent: str) -> bool:
    """Tell whether uap-core has the sender for a crawler."""
    device = _resolver()(user_agent, Domain.DEVICE).device
    return device is not None and device.family == "Spider"


def versions() -> dict[str, str]:
    """Return the versions of what the answers hang on."""
    return {"ua-parser": version_of("ua-parser"), "uap-core": version_of("ua-parser-builtins")}


@dataclasses.dataclass(frozen=True)
class UserAgent(Enrichment):
    """Describe `context_user_agent`.

    In:      any batch.  Out: the columns of schemas/added/user_agent.avsc; null where the rules know nothing.
    State:   none but a bounded cache.  Repeats: same header, same columns, for the versions in `lineage`.
    Errors:  none
    """

    name = "user_agent"
    adds = declared("user_agent")
    reads = ("context_user_agent",)

    def open(self) -> None:
        """Compile the rules: a fifth of a second, once a process."""
        _resolver()

    def look_up(self, *values: Any) -> Sequence[Any]:
        """See describe."""
        return describe(*values)

    def versions(self) -> Mapping[str, str]:
        """Name the rules' versions."""
        return versions()


@functools.cache
def _resolver() -> Resolver:
    return Resolver(load_builtins())


def _version(*parts: str | None) -> str | None:
    """Join what there is, up to the first part that lacks."""
    known = parts[: parts.index(None)] if None in parts else parts
    return ".".join(filter(None, known)) or None
