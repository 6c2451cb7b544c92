"""Origins: which web pages may send with a browser source's key."""

import re
from collections.abc import Iterable

_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<wild>\*\.)?(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?)(?::(?P<port>[0-9]{1,5}))?"
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class Origins:
    """A set of patterns: exact ones, `https://*.shop.example` (any subdomain, not shop.example), `null`, `*`.

    Raises:
        ValueError: one is no pattern; says what to write.
    """

    __slots__ = ("_exact", "_suffixes", "any", "patterns")

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self.patterns = tuple(patterns)
        self.any = "*" in self.patterns
        """Any page of any site."""
        read = [_read(pattern) for pattern in self.patterns if pattern not in ("*", "null")]
        self._exact = {scheme + host for scheme, wild, host in read if not wild} | ({"null"} & {*self.patterns})
        self._suffixes = tuple((scheme, "." + host) for scheme, wild, host in read if wild)

    def allow(self, origin: str) -> bool:
        """Say whether one of the patterns holds for a request's Origin header.

        >>> Origins(["https://*.shop.example"]).allow("https://www.shop.example")
        True
        """
        if self.any:
            return True
        if origin in self._exact:
            return True
        try:
            scheme, wild, host = _read(origin)
        except ValueError:
            return False
        if wild:
            return False
        return scheme + host in self._exact or any(
            scheme == s and host.endswith(suffix) for s, suffix in self._suffixes
        )

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Origins) and self.patterns == other.patterns

    def __hash__(self) -> int:
        return hash(self.patterns)

    def __repr__(self) -> str:
        return f"Origins({list(self.patterns)})"


def _read(text: str) -> tuple[str, bool, str]:
    """Split a pattern or an origin: `https://`, whether it is wild, and the host, with its port unless the default."""
    lower = text.lower()
    found = _ORIGIN.fullmatch(lower)
    if not found:
        raise ValueError(f"{text!r} is no origin: write scheme and host, such as https://shop.example, with no path")
    port = found["port"] if found["port"] != _DEFAULT_PORTS.get(found["scheme"]) else None
    return f"{found['scheme']}://", bool(found["wild"]), found["host"] + (f":{port}" if port else "")
