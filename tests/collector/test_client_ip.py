"""The client's address: who is believed, what proxies write, how much of it is kept."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.collector.client_ip import IpPolicy, address, client_ip, kept_ip

PROXIES = [ipaddress.ip_network(network) for network in ("10.0.0.0/8", "2001:db8:ff::/48")]
IPV4 = st.ip_addresses(v=4)
IPV6 = st.ip_addresses(v=6)
OUTSIDE = IPV4.filter(lambda ip: ip not in PROXIES[0])
INSIDE = st.ip_addresses(network="10.0.0.0/8")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("  192.0.2.7\t", "192.0.2.7"),
        ("192.0.2.7:51234", "192.0.2.7"),
        ('"192.0.2.7:51234"', "192.0.2.7"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("[::ffff:c000:207]:80", "192.0.2.7"),
    ],
)
def test_an_address_is_read_as_proxies_write_it(text, meant):
    assert str(address(text)) == meant


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unknown",
        "_hidden",
        "192.0.2",
        "192.0.2.256",
        "192.0.2.07",
        "192.0.2.7:",
        "192.0.2.7:x",
        "[2001:db8::1",
        "::1]:80",
        "[]",
        "1",
    ],
)
def test_what_is_no_address_is_none(text):
    assert address(text) is None


@given(st.text(max_size=80))
def test_no_text_makes_reading_an_address_fail(text):
    assert client_ip("10.0.0.1", text, PROXIES) is None or kept_ip(client_ip("10.0.0.1", text, PROXIES), IpPolicy.KEEP)


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        ("198.51.100.1", "", "198.51.100.1"),  # nobody in between
        ("198.51.100.1", "192.0.2.7", "198.51.100.1"),  # a client's word about itself
        ("10.0.0.1", "", "10.0.0.1"),  # a health check by the proxy itself
        ("10.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "192.0.2.66, 192.0.2.7, 10.0.0.2", "192.0.2.7"),  # the left-most was the client's invention
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),  # it began inside
        ("10.0.0.1", "192.0.2.7, unknown", None),  # a trusted proxy did not know
        ("10.0.0.1", "garbage, 192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", ",, 192.0.2.7 , ,", "192.0.2.7"),
        ("10.0.0.1", " , ", "10.0.0.1"),
        ("::ffff:10.0.0.1", "[2001:db8::5]:4711", "2001:db8::5"),
        ("2001:db8:ff::1", "192.0.2.7:80", "192.0.2.7"),
        ("", "192.0.2.7", None),
    ],
)
def test_the_client_is_the_right_most_that_is_no_trusted_proxy(peer, forwarded_for, client):
    found = client_ip(peer, forwarded_for, PROXIES)
    assert (str(found) if found else None) == client


def test_without_trusted_proxies_the_peer_is_the_client():
    assert str(client_ip("10.0.0.1", "192.0.2.7", [])) == "10.0.0.1"


@given(st.lists(st.text(alphabet="0123456789.:,abc[] ", max_size=30)), OUTSIDE, st.lists(INSIDE, max_size=4), INSIDE)
def test_what_the_client_wrote_before_the_first_trusted_proxy_counts_for_nothing(invented, client, inside, peer):
    forwarded_for = ", ".join([*invented, str(client), *map(str, inside)])
    assert client_ip(str(peer), forwarded_for, PROXIES) == client


@given(st.one_of(IPV4, IPV6))
def test_truncating_keeps_the_network_and_nothing_of_the_host(ip):
    bits = 24 if ip.version == 4 else 48
    assert kept_ip(ip, IpPolicy.TRUNCATE) == str(ipaddress.ip_network((ip, bits), strict=False).network_address)
    assert kept_ip(ip, IpPolicy.KEEP) == str(ip)
    assert kept_ip(ip, IpPolicy.DROP) is None


@pytest.mark.parametrize("policy", IpPolicy)
def test_an_unknown_address_is_kept_as_nothing(policy):
    assert kept_ip(None, policy) is None
