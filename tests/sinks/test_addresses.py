"""Where a webhook may go: judged against Python's own table, and every way known to write an address."""

import asyncio
import doctest
import ipaddress
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from millrace.sinks import addresses as module
from millrace.sinks.addresses import Destination, NotAllowedError, addresses, is_public, read_host, read_url

PUBLIC = ("1.1.1.1", "8.8.8.8", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e")
NOT_PUBLIC = (
    "0.0.0.0",  # noqa: S104
    "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.254",
    "169.254.169.254",
    "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1", "203.0.113.9", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::7f00:1", "::a9fe:a9fe", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0:7f00:1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808", "100::1", "2001::1", "2001:db8::1", "2001:20::1",
    "2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:c0a8:101::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254",
    "fe80::1", "fec0::1", "ff02::1", "4000::1",
)  # fmt: skip

v4 = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)
v4_near_a_border = st.builds(
    lambda network, which, step: ipaddress.IPv4Address((int(network[which]) + step) % 2**32),
    st.sampled_from(module._NOT_PUBLIC_4),
    st.sampled_from([0, -1]),
    st.integers(-2, 2),
)
v6 = st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address)
v6_global = st.integers(0x2 << 124, (0x4 << 124) - 1).map(ipaddress.IPv6Address)


def _place(host: str) -> Destination:
    return read_url(f"https://{host}/", allow_http=False, allow_private=True)


@pytest.mark.parametrize("text", PUBLIC)
def test_public(text: str):
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_not_public(text: str):
    assert not is_public(ipaddress.ip_address(text))


@settings(deadline=None)
@given(v4 | v4_near_a_border)
@example(ipaddress.IPv4Address("192.0.0.9"))
def test_what_python_holds_for_private_is_never_public(address: ipaddress.IPv4Address):
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert not is_public(address)


@settings(deadline=None)
@given(v4)
def test_nearly_all_that_python_holds_for_global_is_public(address: ipaddress.IPv4Address):
    """But for the anycast parts of the registry, which serve networks, not receivers."""
    listed = [ipaddress.ip_network(each) for each in ("192.0.0.0/24", "192.31.196.0/24", "192.52.193.0/24",
                                                      "192.88.99.0/24", "192.175.48.0/24")]  # fmt: skip
    if address.is_global and not address.is_multicast and not any(address in each for each in listed):
        assert is_public(address)


@settings(deadline=None)
@given(v4 | v4_near_a_border)
def test_an_address_inside_another_is_judged_by_itself(address: ipaddress.IPv4Address):
    number = int(address)
    for outer in (0xFFFF << 32 | number, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80 | 1):
        assert is_public(ipaddress.IPv6Address(outer)) == is_public(address)


@settings(deadline=None)
@given(v6 | v6_global)
def test_no_ipv6_address_is_public_that_python_holds_for_private(address: ipaddress.IPv6Address):
    inner = address.ipv4_mapped or address.sixtofour
    if is_public(address):
        assert inner is not None or (address.is_global and not address.is_multicast and not address.is_reserved)
        assert address.teredo is None


@pytest.mark.parametrize(
    "url",
    [
        "https://127.1/", "https://0x7f.1/", "https://0x7f000001/", "https://2130706433/", "https://0177.0.0.1/",
        "https://127.0.0.1./", "https://127.0.0.01/", "https://1.2.3/", "https://1.2.3.4.5/", "https://256.1.1.1/",
        "https://crm.example./hook", "https://user@crm.example/", "https://user:pass@crm.example/",
        "https://crm.example\\@127.0.0.1/", "https://crm.example@127.0.0.1/", "https://crm.example#@127.0.0.1/",
        "https://127.0.0.1/", "https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/",
        "https://[fe80::1%25eth0]/", "https://[fe80::1%eth0]/", "https://169.254.169.254/latest/meta-data/",
        "https://①②⑦.0.0.1/", "https://crm。example/", "https://crm.example/a b", "https://crm.example/\r\nx: y",
        "https://crm.example/\tx", "https://crm.exa\nmple/", "https://crm.example:0/", "https://crm.example:65536/",
        "https://crm.example:/", "https://crm.example:44x/", "https://", "https:///path", "https:crm.example",
        "//crm.example/", "crm.example", "http://crm.example/", "ftp://crm.example/", "file:///etc/passwd",
        "gopher://127.0.0.1:6379/", "https://[::1/", "https://::1/", "https://a..b/", "https://-a.b/",
        "https://" + "a." * 130 + "b/", "https://crm%2eexample/", "https://127.0.0.1%00.crm.example/", "",
        "https://crm.example/#part", "https://crm.example/#", "https://[1.2.3.4]/", "https://1.2.3.4:443:1/",
    ],
)  # fmt: skip
def test_a_url_that_two_parsers_could_read_differently_is_refused(url: str):
    with pytest.raises(ValueError, match=r"^url[ :]"):
        read_url(url, allow_http=False, allow_private=False)


@pytest.mark.parametrize("start", ["http://crm.example", "https://10.0.0.1", "https://u:hush@crm.example", "ftp://a"])
def test_what_is_wrong_with_a_url_is_said_without_its_path(start: str):
    with pytest.raises(ValueError, match=r"^url") as told:
        read_url(f"{start}/hush?hush", allow_http=False, allow_private=False)
    assert "hush" not in str(told.value)


@pytest.mark.parametrize(
    ("url", "host", "port", "authority", "path"),
    [
        ("https://crm.example", "crm.example", 443, "crm.example", "/"),
        ("https://CRM.example:8443/a/b?c=d&e=%20", "crm.example", 8443, "crm.example:8443", "/a/b?c=d&e=%20"),
        ("https://93.184.215.14/x", "93.184.215.14", 443, "93.184.215.14", "/x"),
        ("https://[2606:4700:4700::1111]:444/x", "2606:4700:4700::1111", 444, "[2606:4700:4700::1111]:444", "/x"),
        ("https://xn--mnchen-3ya.example/", "xn--mnchen-3ya.example", 443, "xn--mnchen-3ya.example", "/"),
        ("https://my_bucket.example/", "my_bucket.example", 443, "my_bucket.example", "/"),
    ],
)
def test_a_url_is_taken_apart(url: str, host: str, port: int, authority: str, path: str):
    found = read_url(url, allow_http=False, allow_private=False)
    assert found == Destination(True, host, port, authority, path)
    assert path == "/" or path not in repr(found)


@settings(deadline=None)
@given(v4)
def test_only_four_decimal_numbers_are_an_ipv4_address(address: ipaddress.IPv4Address):
    assert read_host(str(address)) == address
    number = int(address)
    a, b, c, d = address.packed
    others = [f"{number}", f"0x{number:x}", f"0{number:o}", f"{a}.{number & 0xFFFFFF}", f"{a}.{b}.{number & 0xFFFF}",
              f"0x{a:x}.{b}.{c}.{d}", f"{a}.{b}.{c}.0{d}", f"{a}.{b}.{c}.0x{d:x}", f"{address}."]  # fmt: skip
    for text in others:
        with pytest.raises(ValueError, match=r"four decimal numbers|no valid host name"):
            read_host(text)


@pytest.mark.parametrize("found", [["8.8.8.8", "127.0.0.1"], ["::1"], ["fe80::1%2"], ["8.8.8.8", "64:ff9b::a00:1"]])
def test_a_name_with_one_address_that_is_not_public_is_refused_as_a_whole(found: list[str]):
    async def look(_host: str, _port: int) -> Sequence[str]:
        return found

    with pytest.raises(NotAllowedError, match=r"crm\.example leads to .* no public address: nothing is sent there"):
        asyncio.run(addresses(_place("crm.example"), look, allow_private=False))


def test_a_literal_address_is_judged_again_and_nobody_is_asked_for_it():
    async def look(host: str, _port: int) -> Sequence[str]:
        raise AssertionError(host)

    with pytest.raises(NotAllowedError):
        asyncio.run(addresses(_place("[::ffff:10.0.0.1]"), look, allow_private=False))
    assert asyncio.run(addresses(_place("8.8.8.8"), look, allow_private=False)) == ["8.8.8.8"]


@pytest.mark.parametrize("found", [[], ["not an address"], ["127.1"]])
def test_an_answer_that_is_no_address_is_none(found: list[str]):
    async def look(_host: str, _port: int) -> Sequence[str]:
        return found

    with pytest.raises((OSError, ValueError)):
        asyncio.run(addresses(_place("crm.example"), look, allow_private=True))


def test_the_systems_resolver_gives_addresses():
    assert "127.0.0.1" in asyncio.run(module.look_up("localhost", 443)) or "::1" in asyncio.run(
        module.look_up("localhost", 443)
    )


def test_the_examples_in_its_docstrings_hold():
    assert doctest.testmod(module).failed == 0
