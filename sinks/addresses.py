"""Addresses: where a webhook may go. Only what every host on the internet could reach, unless its settings allow more.

A name is looked up here, every address of it is judged, and the connection is made to exactly such an address: between
the look and the connection nothing is asked again (DNS rebinding), and where the look fails nothing is sent
(https://gitlab.com/gitlab-org/gitlab-foss/-/issues/63959: a check that was left out when the look failed).
"""

import asyncio
import dataclasses
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

LookUp = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port -> the addresses, as text, the best first. Raises OSError."""

# The special-purpose registries of IANA (https://www.iana.org/assignments/iana-ipv4-special-registry and
# .../iana-ipv6-special-registry), as of 2026; written out, since ipaddress.is_global differs between patch releases of
# Python (CVE-2024-4032). What a registry lists is refused as a whole, the few globally reachable parts too.
_NOT_PUBLIC_4 = tuple(
    ipaddress.IPv4Network(each)
    for each in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)  # fmt: skip
_PUBLIC_6 = ipaddress.IPv6Network("2000::/3")  # all that is given out as global unicast
_NOT_PUBLIC_6 = tuple(
    ipaddress.IPv6Network(each) for each in ("2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20")
)
# Addresses that carry an IPv4 address, which is where the packets end: (prefix, bits to the right of it).
_CARRIERS = (
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),  # v4-mapped
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # NAT64, RFC 6052
    (ipaddress.IPv6Network("2002::/16"), 80),  # 6to4, RFC 3056
)

_URL = re.compile(r"[!-\[\]-~]+")  # printable ASCII without blanks and backslashes, over which parsers disagree
_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*")
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)", re.IGNORECASE)


class NotAllowedError(Exception):
    """The name leads to an address that a webhook may not go to; one sentence."""


@dataclasses.dataclass(frozen=True, slots=True)
class Destination:
    """A URL, taken apart."""

    is_tls: bool
    host: str
    """In lower case; an IPv6 address without its brackets."""
    port: int
    authority: str
    """What the header Host says."""
    path: str = dataclasses.field(repr=False)
    """With the query; may hold a token, so it is never shown."""

    @property
    def place(self) -> str:
        """The destination for people."""
        return self.authority if self.authority.endswith(f":{self.port}") else f"{self.authority}:{self.port}"


def read_url(url: str, *, allow_http: bool, allow_private: bool) -> Destination:
    """Take a URL apart; strictly, since what two parsers read differently is how checks are passed.

    >>> read_url("https://crm.example/hook?a=1", allow_http=False, allow_private=False).place
    'crm.example:443'

    Raises:
        ValueError: one sentence; it never repeats the URL, whose path may be a secret.
    """
    if not _URL.fullmatch(url):
        raise ValueError("url has to be printable ASCII without blanks and backslashes (a name in its xn-- form)")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("url is no URL: it looks like https://host/path") from None
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise ValueError("url has to start with https:// and a host")
    if parts.scheme == "http" and not allow_http:
        raise ValueError("url has to be https:// (allow_http: true sends events without encryption)")
    if "@" in parts.netloc:
        raise ValueError("url may not hold a user or password: give them as the header authorization, by reference")
    if parts.fragment or url.endswith("#"):
        raise ValueError("url may not have a fragment (#...)")
    if port == 0 or parts.netloc.endswith(":"):
        raise ValueError("url has a port that does not exist")
    address = read_host(parts.hostname, is_bracketed="[" in parts.netloc)
    if address is not None and not allow_private and not is_public(address):
        raise ValueError(f"url: {address} is no public address (allow_private: true allows it)")
    path = parts.path or "/"
    is_tls = parts.scheme == "https"
    return Destination(
        is_tls=is_tls,
        host=parts.hostname,
        port=port or (443 if is_tls else 80),
        authority=parts.netloc.lower(),
        path=f"{path}?{parts.query}" if parts.query else path,
    )


def read_host(host: str, *, is_bracketed: bool = False) -> Address | None:
    """Return the address that a host is; None: it is a name.

    Raises:
        ValueError: neither: 127.1, 0x7f.1, 2130706433, 0177.0.0.1, a name with a dot at its end ...
    """
    if is_bracketed:
        try:
            address = ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError("url has no IPv6 address in its brackets") from None
        if address.scope_id is not None:
            raise ValueError("url may not name a zone (%...) of this machine")
        return address
    if _NUMBER.fullmatch(host.rpartition(".")[2]):  # as browsers do: what ends in a number is an address or wrong
        try:
            return ipaddress.IPv4Address(host)
        except ValueError:
            raise ValueError("url: an IPv4 address is four decimal numbers from 0 to 255") from None
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise ValueError("url has no valid host name (letters, digits, hyphens; no dot at its end)")
    return None


def is_public(address: Address) -> bool:
    """Say whether an address is one that every host on the internet could reach.

    >>> is_public(ipaddress.ip_address("169.254.169.254")), is_public(ipaddress.ip_address("64:ff9b::808:808"))
    (False, True)
    """
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in each for each in _NOT_PUBLIC_4)
    for carrier, shift in _CARRIERS:
        if address in carrier:
            return is_public(ipaddress.IPv4Address(int(address) >> shift & 0xFFFF_FFFF))
    return address in _PUBLIC_6 and not any(address in each for each in _NOT_PUBLIC_6)


async def look_up(host: str, port: int) -> Sequence[str]:
    """Ask the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


async def addresses(destination: Destination, look: LookUp, *, allow_private: bool) -> list[str]:
    """Return the addresses that may be connected to now, the best first; never none.

    Raises:
        NotAllowedError: one of them is not public: whoever mixes these in may be after the others.
        OSError: the name cannot be looked up.
    """
    fixed = read_host(destination.host, is_bracketed=":" in destination.host)
    texts = [str(fixed)] if fixed is not None else await look(destination.host, destination.port)
    found: dict[str, None] = {}
    for text in texts:
        address = ipaddress.ip_address(text)
        if not allow_private and not is_public(address):
            raise NotAllowedError(
                f"{destination.host} leads to {address}, which is no public address: nothing is sent there "
                "(allow_private: true allows it)"
            )
        found[str(address)] = None
    if not found:
        raise OSError(f"{destination.host} has no address")
    return list(found)
