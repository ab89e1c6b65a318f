"""Which datagrams are answered: tables of addresses, and the bound on amplification as a property."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greeter.core.datagram_rules import AMPLIFICATION, LOOP, classify_source, rejection

LOCAL = ["127.0.0.1", "127.255.255.255", "::1", "10.0.0.0", "10.255.255.255", "172.16.0.1", "172.31.255.255"]
LOCAL += ["192.168.0.1", "192.168.255.254", "fc00::1", "fdff::1", "169.254.0.1", "fe80::1", "fe80::1%eth0"]
LOCAL += ["febf::1", "::ffff:10.1.2.3", "::ffff:127.0.0.1"]
PUBLIC = ["8.8.8.8", "9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255"]
PUBLIC += ["192.169.0.0", "2001:4860::1", "fbff::1", "fe00::1", "fec0::1", "::2", "::ffff:8.8.8.8", "0.0.0.1"]
# ``is_private`` of ipaddress is true for these, and they may be routed nevertheless.
PUBLIC += ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "198.18.0.1", "100.64.0.1", "240.0.0.1"]
INVALID = ["0.0.0.0", "::", "224.0.0.1", "239.255.255.255", "255.255.255.255", "ff02::1", "ff02::1%eth0"]
INVALID += ["::ffff:0.0.0.0", "::ffff:255.255.255.255"]

PRIVATE = [IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
LINK_LOCAL = IPv4Network("169.254.0.0/16"), IPv6Network("fe80::/10")
UNIQUE_LOCAL = IPv6Network("fc00::/7")

PORTS = frozenset({9999, 17000})
HOSTS = st.sampled_from(LOCAL + PUBLIC + INVALID) | st.ip_addresses().map(str)
SIZES = st.integers(0, 65507)


@pytest.mark.parametrize(
    ("host", "kind"),
    [(host, kind) for kind in ("local", "public", "invalid") for host in globals()[kind.upper()]],
)
def test_a_source_is_local_public_or_no_host(host: str, kind: str) -> None:
    assert classify_source(host) == kind


@given(st.ip_addresses())
def test_any_address_is_classified_by_the_networks_of_the_rfcs(address: IPv4Address | IPv6Address) -> None:
    effective: IPv4Address | IPv6Address = getattr(address, "ipv4_mapped", None) or address
    networks: list[Any] = [*PRIVATE, *LINK_LOCAL, UNIQUE_LOCAL]
    local = effective.is_loopback or any(effective in network for network in networks)
    nobody = effective.is_multicast or effective.is_unspecified or effective == ip_address("255.255.255.255")
    assert classify_source(str(address)) == ("invalid" if nobody else "local" if local else "public")


@pytest.mark.parametrize("port", [0, 1, 7, 13, 17, 19, 1023, 9999, 17000])
def test_a_port_that_no_client_has_is_never_answered(port: int) -> None:
    for host in ("127.0.0.1", "8.8.8.8", "::1"):
        assert rejection(host, port, PORTS, 65507, 1) == LOOP


@pytest.mark.parametrize("host", INVALID)
def test_an_address_that_no_host_has_is_never_answered(host: str) -> None:
    assert rejection(host, 40000, PORTS, 65507, 1) == LOOP


@pytest.mark.parametrize("host", PUBLIC)
def test_a_public_source_pays_a_third(host: str) -> None:
    assert rejection(host, 1024, PORTS, 171, 513) is None
    assert rejection(host, 1024, PORTS, 171, 514) == AMPLIFICATION
    assert rejection(host, 1024, PORTS, 0, 1) == AMPLIFICATION
    assert rejection(host, 1024, PORTS, 0, 0) is None


@pytest.mark.parametrize("host", LOCAL)
def test_a_local_source_is_answered_whatever_it_sends(host: str) -> None:
    assert rejection(host, 65535, PORTS, 0, 65507) is None


@given(HOSTS, st.integers(0, 65535), SIZES, SIZES)
def test_an_answer_is_at_most_three_times_the_datagram_or_stays_local(
    host: str, port: int, size: int, reply_size: int
) -> None:
    if rejection(host, port, PORTS, size, reply_size) is None:
        assert port >= 1024
        assert port not in PORTS
        assert reply_size <= 3 * size or classify_source(host) == "local"
        # What is answered once is answered again, and so is anything larger.
        assert rejection(host, port, PORTS, size + 1, reply_size) is None
