"""The client's address: which one to believe, and how much of it may be kept.

Only `X-Forwarded-For` is read, never RFC 7239's `Forwarded`: the load balancers in use (Google's, AWS's, nginx, Envoy,
Cloudflare) write the former and pass the latter on as the client sent it, so whoever read both could be told anything.
"""

import functools
import ipaddress
import re
from collections.abc import Sequence
from enum import Enum

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

KEPT_BITS_IPV4 = 24
KEPT_BITS_IPV6 = 48
"""What TRUNCATE leaves, as Google Analytics did: it set the last octet of IPv4 and the last 80 bits of IPv6 to zero
(support.google.com/analytics/answer/2763052)."""

_LONGEST = 80  # an IPv6 address with brackets, zone and port has fewer
_REMEMBERED = 4_096  # reading an address costs some 10 us, a good part of a request; most clients send more than one

_BRACKETED = re.compile(r"\[([^\[\]]*)\](?::[0-9]{1,5})?")
_WITH_PORT = re.compile(r"([0-9.]+):[0-9]{1,5}")


class IpPolicy(Enum):
    """What is kept of a client's address, in anything that is stored."""

    DROP = "drop"
    TRUNCATE = "truncate"
    KEEP = "keep"


def address(text: str) -> Address | None:
    """Read one address as proxies write them: with a port, in brackets, with a zone; IPv4 in IPv6 becomes IPv4.

    >>> address("[2001:db8::1]:443"), address("::ffff:192.0.2.7"), address("unknown")
    (IPv6Address('2001:db8::1'), IPv4Address('192.0.2.7'), None)
    """
    return _read(text) if len(text) <= _LONGEST else None


@functools.lru_cache(maxsize=_REMEMBERED)
def _read(text: str) -> Address | None:
    text = text.strip().strip('"')
    found = _BRACKETED.fullmatch(text) or _WITH_PORT.fullmatch(text)
    try:
        parsed = ipaddress.ip_address((found[1] if found else text).partition("%")[0])
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed


def client_ip(peer: str, forwarded_for: str, trusted: Sequence[Network]) -> Address | None:
    """Find the client: the right-most address that is no trusted proxy; each proxy adds its own peer on the right.

    Args:
        peer: the other end of the connection.
        forwarded_for: the value of X-Forwarded-For; of several such headers, all values in order, joined by commas.
        trusted: the proxies whose word counts. With none the peer is the client.

    Returns:
        The client's address; of trusted ones only the left-most; None where a trusted proxy wrote what is no address.
    """
    found = address(peer)
    hops = forwarded_for
    while found is not None and hops and any(found in network for network in trusted):
        hops, _, last = hops.rpartition(",")
        if last.strip():  # a list may have empty places (RFC 9110, 5.6.1)
            found = address(last)
    return found


@functools.lru_cache(maxsize=_REMEMBERED)
def kept_ip(ip: Address | None, policy: IpPolicy) -> str | None:
    """Give what may be stored of an address, or None for nothing.

    >>> kept_ip(address("192.0.2.77"), IpPolicy.TRUNCATE), kept_ip(address("2001:db8:1:2::3"), IpPolicy.TRUNCATE)
    ('192.0.2.0', '2001:db8:1::')
    """
    if ip is None or policy is IpPolicy.DROP:
        return None
    if policy is IpPolicy.KEEP:
        return str(ip)
    dropped = ip.max_prefixlen - (KEPT_BITS_IPV4 if ip.version == 4 else KEPT_BITS_IPV6)
    return str(type(ip)(int(ip) >> dropped << dropped))
