"""The PROXY parser: tables, properties checked byte by byte, and a comparison with two other parsers."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import subprocess
from contextlib import ExitStack
from importlib import metadata
from socket import AddressFamily
from struct import unpack
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greeter.core.proxy_protocol import (
    MAX_V1,
    MAX_V2,
    PROXY_VERSIONS,
    SIGNATURE,
    Header,
    NeedMore,
    Parsed,
    ProxyVersion,
    encode,
    parse,
)
from greeter.errors import GreeterError, ProxyProtocolError
from tests.conftest import PATIENCE

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

INET, INET6, UNIX = AddressFamily.AF_INET, AddressFamily.AF_INET6, AddressFamily.AF_UNIX
LOCAL, PROXY = 0x20, 0x21


# -- building headers ------------------------------------------------------------------------------------


def v1(*fields: str) -> bytes:
    return b"PROXY " + " ".join(fields).encode("latin-1") + b"\r\n"


def tcp4(source: str = "1.2.3.4", destination: str = "5.6.7.8", *ports: str) -> bytes:
    return v1("TCP4", source, destination, *(ports or ("9", "10")))


def tcp6(source: str = "::1", destination: str = "::2", *ports: str) -> bytes:
    return v1("TCP6", source, destination, *(ports or ("9", "10")))


def tlv(kind: int, value: bytes, length: int | None = None) -> bytes:
    return bytes([kind]) + (len(value) if length is None else length).to_bytes(2, "big") + value


def v2(command: int = PROXY, family: int = 0x11, body: bytes = b"") -> bytes:
    return SIGNATURE + bytes([command, family]) + len(body).to_bytes(2, "big") + body


def build(header: Header, *, transport: int = 1) -> bytes:
    """The bytes of a version 2 header that has addresses."""
    assert header.source
    assert header.destination
    (source, source_port), (destination, destination_port) = header.source, header.destination
    if header.family is UNIX:
        block = b"".join(name.replace("@", "\0").encode().ljust(108, b"\0") for name in (source, destination))
    else:
        block = b"".join(ipaddress.ip_address(host).packed for host in (source, destination))
        block += source_port.to_bytes(2, "big") + destination_port.to_bytes(2, "big")
    number = {INET: 0x10, INET6: 0x20, UNIX: 0x30, None: 0}[header.family]
    return v2(PROXY, number | transport, block + b"".join(tlv(*pair) for pair in header.tlvs))


V4 = Header(2, "PROXY", INET, ("1.2.3.4", 9), ("5.6.7.8", 10))
V6 = Header(2, "PROXY", INET6, ("::1", 9), ("::2", 10))
PATHS = Header(2, "PROXY", UNIX, ("/run/a", 0), ("/run/b", 0))
B4, B6, BU = build(V4)[16:], build(V6)[16:], build(PATHS)[16:]
UNSPECIFIED = Header(2)
LOCALLY = Header(2, "LOCAL")
ALL_ONES = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
# A header with its CRC32C and a unique ID, as HAProxy 2.6 sent it.
SUMMED = bytes.fromhex("0d0a0d0a000d0a515549540a2111002001020304050607080009000a") + bytes.fromhex(
    "03000491ea2b5f05000a31393533333337333836"
)


VALID: dict[str, tuple[bytes, Header]] = {
    "v1 TCP4": (tcp4(), V4._replace(version=1)),
    "v1 TCP4, longest": (
        tcp4("255.255.255.255", "255.255.255.255", "65535", "65535"),
        Header(1, "PROXY", INET, ("255.255.255.255", 65535), ("255.255.255.255", 65535)),
    ),
    "v1 TCP4, all zero": (
        tcp4("0.0.0.0", "0.0.0.0", "0", "0"),
        Header(1, "PROXY", INET, ("0.0.0.0", 0), ("0.0.0.0", 0)),
    ),
    "v1 TCP6": (tcp6(), V6._replace(version=1)),
    "v1 TCP6, longest": (
        tcp6(ALL_ONES, ALL_ONES.upper(), "65535", "65535"),
        Header(1, "PROXY", INET6, (ALL_ONES, 65535), (ALL_ONES, 65535)),
    ),
    "v1 TCP6, :: for one group": (
        tcp6("1:2:3:4:5:6:7::", "0001::"),
        Header(1, "PROXY", INET6, ("1:2:3:4:5:6:7:0", 9), ("1::", 10)),
    ),
    "v1 TCP6, dotted end": (
        tcp6("::ffff:1.2.3.4", "0000:0000:0000:0000:0000:ffff:1.2.3.4"),
        Header(1, "PROXY", INET6, ("::ffff:1.2.3.4", 9), ("::ffff:1.2.3.4", 10)),
    ),
    "v1 UNKNOWN": (v1("UNKNOWN"), Header(1)),
    "v1 UNKNOWN, space": (v1("UNKNOWN", ""), Header(1)),
    "v1 UNKNOWN, longest": (v1("UNKNOWN", ALL_ONES, ALL_ONES, "65535", "65535"), Header(1)),
    "v1 UNKNOWN, anything": (b"PROXY UNKNOWN \t\0\xff 70000 \n\r.\r\r\n", Header(1)),
    "v2 TCP4": (v2(PROXY, 0x11, B4), V4),
    "v2 UDP4": (v2(PROXY, 0x12, B4), V4),
    "v2 TCP6": (v2(PROXY, 0x21, B6), V6),
    "v2 UDP6": (v2(PROXY, 0x22, B6), V6),
    "v2 TCP6, mapped": (
        v2(PROXY, 0x21, bytes(10) + b"\xff\xff\1\2\3\4" + B6[16:]),
        V6._replace(source=("::ffff:1.2.3.4", 9)),
    ),
    "v2 UNIX stream": (v2(PROXY, 0x31, BU), PATHS),
    "v2 UNIX dgram": (v2(PROXY, 0x32, BU), PATHS),
    "v2 UNIX, abstract and unnamed": (
        v2(PROXY, 0x31, b"\0abc".ljust(216, b"\0")),
        PATHS._replace(source=("@abc", 0), destination=("", 0)),
    ),
    "v2 UNIX, full width": (
        v2(PROXY, 0x31, b"a" * 108 + b"\0" * 108),
        PATHS._replace(source=("a" * 108, 0), destination=("", 0)),
    ),
    "v2 TLVs": (
        v2(PROXY, 0x11, B4 + tlv(4, b"") + tlv(0xE0, b"hi") + tlv(4, b"\0" * 300)),
        V4._replace(tlvs=((4, b""), (0xE0, b"hi"), (4, b"\0" * 300))),
    ),
    "v2 checksum": (SUMMED, V4._replace(tlvs=((3, b"\x91\xea\x2b\x5f"), (5, b"1953337386")))),
    "v2 unique id of 129": (
        v2(PROXY, 0x11, B4 + tlv(5, b"u" * 129)),
        V4._replace(tlvs=((5, b"u" * 129),)),
    ),
    "v2 longest": (
        v2(PROXY, 0x11, B4 + tlv(4, b"\0" * (MAX_V2 - 31))),
        V4._replace(tlvs=((4, b"\0" * (MAX_V2 - 31)),)),
    ),
    "v2 LOCAL": (v2(LOCAL, 0x00), LOCALLY),
    "v2 LOCAL, addresses": (v2(LOCAL, 0x11, B4), LOCALLY),
    "v2 LOCAL, any family": (v2(LOCAL, 0x71, b"abcde"), LOCALLY),
    "v2 LOCAL, wrong checksum": (v2(LOCAL, 0x00, tlv(3, b"abcd")), LOCALLY),
    "v2 UNSPEC": (v2(PROXY, 0x00), UNSPECIFIED),
    "v2 UNSPEC, anything": (v2(PROXY, 0x00, b"ab"), UNSPECIFIED),
    "v2 UNSPEC family": (v2(PROXY, 0x01, B4), UNSPECIFIED),
    "v2 UNSPEC transport": (v2(PROXY, 0x10, B4), UNSPECIFIED),
    "v2 UNSPEC transport, short": (v2(PROXY, 0x20), UNSPECIFIED),
}

# Each with the offset of the first wrong byte.
INVALID: dict[str, tuple[bytes, int]] = {
    "http": (b"GET / HTTP/1.0\r\n\r\n", 0),
    "TLS": (b"\x16\x03\x01\x02\0\x01", 0),
    "lower case": (b"proxy TCP4 1.2.3.4 5.6.7.8 9 10\r\n", 0),
    "space first": (b" " + tcp4(), 0),
    "no protocol": (b"PROXY\r\n", 5),
    "lower-case protocol": (v1("tcp4", "1.2.3.4", "5.6.7.8", "9", "10"), 6),
    "UDP4": (v1("UDP4", "1.2.3.4", "5.6.7.8", "9", "10"), 7),
    "TCP5": (v1("TCP5", "1.2.3.4", "5.6.7.8", "9", "10"), 9),
    "no addresses": (v1("TCP4"), 10),
    "UNKNOWNX": (v1("UNKNOWNX"), 13),
    "UNKNOWN, two CRs": (b"PROXY UNKNOWN\r\r\n", 14),
    "UNKNOWN, LF only": (b"PROXY UNKNOWN\n", 13),
    "UNKNOWN of 108": (v1("UNKNOWN", "x" * 92), 105),
    "UNKNOWN of 108, CR inside": (v1("UNKNOWN", "x" * 91 + "\r"), 106),
    "two spaces first": (b"PROXY  TCP4 1.2.3.4 5.6.7.8 9 10\r\n", 6),
    "two spaces before the source": (tcp4("", "1.2.3.4", "5.6.7.8", "9", "10"), 11),
    "two spaces before the ports": (tcp4("1.2.3.4", "5.6.7.8", "", "9", "10"), 27),
    "tab after TCP4": (b"PROXY TCP4\t1.2.3.4 5.6.7.8 9 10\r\n", 10),
    "tab after the source": (b"PROXY TCP4 1.2.3.4\t5.6.7.8 9 10\r\n", 18),
    "NUL after the source": (b"PROXY TCP4 1.2.3.4\0 5.6.7.8 9 10\r\n", 18),
    "no CR": (tcp4()[:-2] + b"\n", 31),
    "two CRs": (tcp4()[:-2] + b"\r\r\n", 32),
    "no LF": (tcp4()[:-1] + b"GET", 32),
    "space at the end": (tcp4("1.2.3.4", "5.6.7.8", "9", "10", ""), 31),
    "a fifth field": (tcp4("1.2.3.4", "5.6.7.8", "9", "10", "11"), 31),
    "port 70000": (tcp4("1.2.3.4", "5.6.7.8", "70000", "10"), 31),
    "port 65536": (tcp4("1.2.3.4", "5.6.7.8", "9", "65536"), 33),
    "port -9": (tcp4("1.2.3.4", "5.6.7.8", "-9", "10"), 27),
    "port +9": (tcp4("1.2.3.4", "5.6.7.8", "+9", "10"), 27),
    "port 1_0": (tcp4("1.2.3.4", "5.6.7.8", "1_0", "10"), 28),
    "port 09": (tcp4("1.2.3.4", "5.6.7.8", "09", "10"), 28),
    "port 00": (tcp4("1.2.3.4", "5.6.7.8", "9", "00"), 30),
    "port 0x1": (tcp4("1.2.3.4", "5.6.7.8", "9", "0x1"), 30),
    "port 10a": (tcp4("1.2.3.4", "5.6.7.8", "9", "10a"), 31),
    "port missing": (tcp4("1.2.3.4", "5.6.7.8", "9", ""), 29),
    "port in another script": (b"PROXY TCP4 1.2.3.4 5.6.7.8 \xb2 10\r\n", 27),
    "octet 700": (tcp4("700.2.3.4"), 13),
    "octet 256": (tcp4("1.2.3.4", "5.6.7.256"), 27),
    "octet 01": (tcp4("01.2.3.4"), 12),
    "three octets": (tcp4("1.2.3"), 16),
    "five octets": (tcp4("1.2.3.4.5"), 18),
    "empty octet": (tcp4("1..3.4"), 13),
    "TCP4 with IPv6": (tcp4("::1", "::2"), 11),
    "TCP4 with IPv6 destination": (tcp4("1.2.3.4", "::1"), 19),
    "TCP6 with IPv4": (tcp6("1.2.3.4", "5.6.7.8"), 12),
    "group of five": (tcp6("00001::"), 15),
    "two ::": (tcp6("1::2::3"), 16),
    ":::": (tcp6(":::"), 13),
    "nine groups": (tcp6("1:2:3:4:5:6:7:8:9"), 26),
    "seven groups": (tcp6("1:2:3:4:5:6:7"), 24),
    "eight groups and ::": (tcp6("1:2:3:4::5:6:7:8"), 25),
    "no digit": (tcp6("::g"), 13),
    "scope id": (tcp6("fe80::1%1"), 18),
    "brackets": (tcp6("[::1]"), 11),
    "dotted end of 40": (tcp6("0000:0000:0000:0000:0000:ffff:111.2.3.44"), 50),
    "v2 signature": (b"\r\n\r\n\1" + v2(PROXY, 0x11, B4)[5:], 4),
    "v2 signature, last byte": (SIGNATURE[:-1] + b"\r" + v2(PROXY, 0x11, B4)[12:], 11),
    "v2 version 1": (v2(0x11, 0x11, B4), 12),
    "v2 version 3": (v2(0x31, 0x11, B4), 12),
    "v2 command 2": (v2(0x22, 0x11, B4), 12),
    "v2 command 15": (v2(0x2F, 0x11, B4), 12),
    "v2 family 0x71": (v2(PROXY, 0x71, B4), 13),
    "v2 family 0x41": (v2(PROXY, 0x41), 13),
    "v2 transport 3": (v2(PROXY, 0x13, B4), 13),
    "v2 transport 15, UNSPEC": (v2(PROXY, 0x0F), 13),
    "v2 length 11 for INET": (v2(PROXY, 0x11, B4[:-1]), 15),
    "v2 length 0 for INET": (v2(PROXY, 0x12), 15),
    "v2 length 12 for INET6": (v2(PROXY, 0x21, B4), 15),
    "v2 length 215 for UNIX": (v2(PROXY, 0x31, BU[:-1]), 15),
    "v2 of 4097": (v2(PROXY, 0x11, B4 + tlv(4, b"\0" * (MAX_V2 - 30))), 15),
    "v2 LOCAL of 8016": (v2(LOCAL, 0x00, bytes(8000)), 14),
    "v2 TLV of 1 byte": (v2(PROXY, 0x11, B4 + b"\x04"), 28),
    "v2 TLV of 2 bytes": (v2(PROXY, 0x11, B4 + b"\x04\0"), 28),
    "v2 TLV too long": (v2(PROXY, 0x11, B4 + tlv(4, b"hi", 9)), 28),
    "v2 second TLV too long": (v2(PROXY, 0x21, B6 + tlv(4, b"hi") + tlv(4, b"", 1)), 57),
    "v2 checksum wrong": (v2(PROXY, 0x11, B4 + tlv(3, b"abcd")), 31),
    "v2 checksum of 3": (v2(PROXY, 0x11, B4 + tlv(3, b"abc")), 31),
    "v2 checksum of none": (v2(PROXY, 0x11, B4 + tlv(3, b"")), 31),
}


# -- the tables ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", VALID)
def test_a_valid_header(case: str) -> None:
    data, header = VALID[case]
    for after in (b"", b"\r\n", b"hello\r\n", data):
        assert parse(data + after) == (header, len(data))
    assert parse(bytearray(data)) == parse(memoryview(data)) == (header, len(data))


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_header_is_an_error_at_its_first_wrong_byte(case: str) -> None:
    data, offset = INVALID[case]
    with pytest.raises(ProxyProtocolError, match=rf"^bad PROXY header: .+ \(byte {offset}\)$") as caught:
        parse(data)
    assert caught.value.offset == offset
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, GreeterError)
    assert str(caught.value).isprintable()
    # The error is raised for that byte, not before. After byte 16 of version 2, when the header is complete.
    known = offset + 1 if offset < 16 or not data.startswith(SIGNATURE) else len(data)
    assert isinstance(parse(data[: known - 1]), NeedMore)
    with pytest.raises(ProxyProtocolError) as early:
        parse(data[:known])
    assert (str(early.value), early.value.offset) == (str(caught.value), offset)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("port 70000", "bad PROXY header: source port '70000' (byte 31)"),
        ("octet 256", "bad PROXY header: destination '5.6.7.256' (byte 27)"),
        ("seven groups", "bad PROXY header: source '1:2:3:4:5:6:7' is incomplete (byte 24)"),
        ("lower case", "bad PROXY header: no version begins with b'p' (byte 0)"),
        ("no LF", "bad PROXY header: b'G' instead of the LF after CR (byte 32)"),
        ("UNKNOWN of 108", "bad PROXY header: the line is longer than 107 bytes (byte 105)"),
        ("v2 command 15", "bad PROXY header: version 2, command 15 (byte 12)"),
        ("v2 family 0x71", "bad PROXY header: family and transport 0x71 (byte 13)"),
        ("v2 of 4097", "bad PROXY header: it is longer than 4096 bytes (byte 15)"),
        ("v2 length 11 for INET", "bad PROXY header: length 11 is too short for AF_INET (byte 15)"),
        ("v2 TLV too long", "bad PROXY header: TLV 0x04 exceeds the header (byte 28)"),
        ("v2 checksum wrong", "bad PROXY header: wrong checksum 61626364 (byte 31)"),
    ],
)
def test_the_message_names_what_is_wrong(case: str, message: str) -> None:
    with pytest.raises(ProxyProtocolError) as caught:
        parse(INVALID[case][0])
    assert str(caught.value) == message


def test_wanted_is_the_shortest_completion() -> None:
    assert parse(b"") == NeedMore(len(b"PROXY UNKNOWN\r\n"))
    assert parse(b"\r") == NeedMore(15)  # the shortest header of version 2 has 16
    assert parse(SIGNATURE + b"\x21\x11\x00\x0c") == NeedMore(12)
    assert parse(b"PROXY TCP4 192.0.2.") == NeedMore(len(b"0 0.0.0.0 0 0\r\n"))
    assert parse(b"PROXY TCP6 2001:db8") == NeedMore(len(b":: :: 0 0\r\n"))
    assert parse(tcp4()[:-1]) == NeedMore(1)
    assert parse(b"PROXY UNKNOWN what") == NeedMore(2)


def test_a_socket_name_that_is_not_utf8_is_escaped() -> None:
    parsed = parse(v2(PROXY, 0x31, b"/run/\xff".ljust(216, b"\0")))
    assert isinstance(parsed, Parsed)
    assert parsed.header.source == ("/run/\\xff", 0)


# -- properties ------------------------------------------------------------------------------------------

ports = st.integers(0, 65535)
ipv4 = st.ip_addresses(v=4).map(str)
ipv6 = st.ip_addresses(v=6).map(str).filter(lambda host: not host.startswith("::ffff:"))
mapped = ipv4.map("::ffff:".__add__)
spelled = (
    (ipv6 | mapped).map(
        lambda host: ":".join(f"{n:04x}" for n in unpack("!8H", ipaddress.IPv6Address(host).packed))
    )
    | (ipv6 | mapped).map(str.upper)
    | ipv6
)
tlvs = st.lists(st.tuples(st.integers(6, 255), st.binary(max_size=9)), max_size=3).map(tuple)
paths = (
    st.text("abc/.", min_size=1, max_size=108) | st.text("abc", max_size=9).map("@a".__add__) | st.just("")
)


def values(family: AddressFamily, hosts: st.SearchStrategy[str]) -> st.SearchStrategy[Header]:
    address = st.tuples(hosts, st.just(0) if family is UNIX else ports)
    return st.builds(Header, st.just(2), st.just("PROXY"), st.just(family), address, address, tlvs)


v1_headers = st.one_of(
    st.builds(lambda s, d, a, b: tcp4(s, d, str(a), str(b)), ipv4, ipv4, ports, ports),
    st.builds(lambda s, d, a, b: tcp6(s, d, str(a), str(b)), spelled, spelled, ports, ports),
    st.just(v1("UNKNOWN")),
)
unknown_rests = st.binary(max_size=91).filter(lambda rest: b"\r\n" not in rest + b"\r")
unknowns = unknown_rests.map(lambda rest: b"PROXY UNKNOWN " + rest + b"\r\n")
v2_inet = values(INET, ipv4) | values(INET6, ipv6 | mapped)
v2_values = v2_inet | values(UNIX, paths)
v2_headers = st.one_of(
    st.builds(
        lambda header, transport: build(header, transport=transport), v2_values, st.sampled_from([1, 2])
    ),
    st.builds(v2, st.just(LOCAL), st.integers(0, 255), st.binary(max_size=40)),
    st.builds(v2, st.just(PROXY), st.sampled_from([0, 1, 2, 0x10, 0x20, 0x30]), st.binary(max_size=40)),
)
headers = v1_headers | unknowns | v2_headers
payloads = st.sampled_from([b"", b"\n", b"\r\n", b"\x16\x03\x01", b"PROXY TCP4", b" 1", b"0"]) | st.binary(
    max_size=30
)


@given(v2_values, st.sampled_from([1, 2]))
def test_version_2_comes_back_as_it_was_built(header: Header, transport: int) -> None:
    data = build(header, transport=transport)
    assert parse(data) == (header, len(data))


@given(spelled, ipv4, ports, ports)
def test_version_1_comes_back_as_it_was_built(host6: str, host4: str, port: int, other: int) -> None:
    six, four = (
        parse(tcp6(host6, "::", str(port), str(other))),
        parse(tcp4(host4, "0.0.0.0", str(port), str(other))),
    )
    assert isinstance(six, Parsed)
    assert isinstance(four, Parsed)
    assert six.header.source
    assert ipaddress.ip_address(six.header.source[0]) == ipaddress.ip_address(host6)
    assert (six.header.source[1], six.header.destination) == (port, ("::", other))
    assert four.header == Header(1, "PROXY", INET, (host4, port), ("0.0.0.0", other))


@given(headers, payloads)
@settings(max_examples=60)
def test_every_prefix_of_a_header_needs_more_and_later_bytes_change_nothing(
    data: bytes, payload: bytes
) -> None:
    whole = parse(data + payload)
    assert isinstance(whole, Parsed)
    assert whole.consumed == len(data)
    for n in range(len(data)):
        assert isinstance(parse(data[:n]), NeedMore), data[:n]
    for n in range(len(data), len(data) + len(payload)):
        assert parse((data + payload)[:n]) == whole


@given(headers, payloads, st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_a_reader_that_reads_what_is_wanted_reads_no_payload(
    data: bytes, payload: bytes, chance: random.Random
) -> None:
    stream, taken, calls = data + payload, b"", 0
    while isinstance(parsed := parse(taken), NeedMore):
        assert 1 <= parsed.wanted <= len(data) - len(taken)
        taken += stream[len(taken) :][: chance.randint(1, parsed.wanted)]
        calls += 1
    assert taken == data
    assert parsed == parse(stream)
    assert calls <= len(data)


@given(v1_headers | v2_headers)
def test_a_complete_header_takes_few_reads(data: bytes) -> None:
    taken, calls = b"", 0
    while isinstance(parsed := parse(taken), NeedMore):
        taken, calls = data[: len(taken) + parsed.wanted], calls + 1
    assert calls <= 16


ALPHABET = bytes(
    sorted(
        set(SIGNATURE + b"PROXY TCP46 UNKNOWN\r\n 0123456789abcdefABCDEF:.%gx\t\0\x11\x20\x21\x31\x71\xff")
    )
)


@given(headers, st.data())
@settings(max_examples=80)
def test_wanted_decreases_by_one_for_some_byte_and_by_more_for_none(data: bytes, draw: st.DataObject) -> None:
    start = data[: draw.draw(st.integers(0, len(data) - 1))]
    if (data[:1] == b"P" or len(start) < 16) and draw.draw(st.booleans()):
        start += bytes([draw.draw(st.sampled_from(ALPHABET))])
    parsed = outcome(start)
    if isinstance(parsed, NeedMore):
        ways = [outcome(start + bytes([byte])) for byte in ALPHABET]
        left = [
            0 if isinstance(way, Parsed) else way.wanted
            for way in ways
            if not isinstance(way, ProxyProtocolError)
        ]
        # The length of version 2 is known after 16 bytes; until then, 16 is the shortest.
        assert min(left) == parsed.wanted - 1 or (start.startswith(SIGNATURE) and len(start) == 15)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A header with one or two bytes replaced, removed or inserted; usually invalid."""
    data = bytearray(draw(headers))
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 2))] = draw(
            st.sampled_from([b"", b" ", b":", b"."]) | st.binary(max_size=2)
        )
        data = data or bytearray(b"?")
    return bytes(data)


@given(damaged() | st.binary(max_size=40))
@settings(max_examples=200)
def test_any_bytes_get_a_verdict_at_the_earliest_byte_and_keep_it(data: bytes) -> None:
    known: ProxyProtocolError | Parsed | None = None
    for n in range(len(data) + 1):
        now = outcome(data[:n])
        if known is None and isinstance(now, ProxyProtocolError) and (data[:1] != b"\r" or n <= 16):
            assert now.offset == n - 1
        if known is not None:
            assert repr(now) == repr(known)
        known = None if isinstance(now, NeedMore) else now


def outcome(data: bytes) -> Parsed | NeedMore | ProxyProtocolError:
    try:
        return parse(data)
    except ProxyProtocolError as error:
        return error


@given(st.integers(0, len(SUMMED) * 8 - 1))
def test_the_checksum_finds_every_flipped_bit(bit: int) -> None:
    data = bytearray(SUMMED)
    data[bit // 8] ^= 1 << bit % 8
    if bit // 8 in (
        12,
        13,
        14,
        15,
        28,
        29,
        30,
    ):  # version, family, lengths and types decide what is parsed
        return
    with pytest.raises(ProxyProtocolError):
        parse(data)


def test_the_length_limits_of_the_specification() -> None:
    longest = VALID["v1 UNKNOWN, longest"][0]
    assert len(longest) == MAX_V1 == 107
    assert len(VALID["v1 TCP4, longest"][0]) == 56
    assert len(VALID["v1 TCP6, longest"][0]) == 104
    assert len(VALID["v2 longest"][0]) == MAX_V2


# -- other parsers ---------------------------------------------------------------------------------------
#
# Both parse every header of the tables. A list has the differences to our parser and the reason for each. A
# difference that is not listed fails the test. So does a listed one that is gone, in the versions for which
# the list was made.

REJECTED, REAL_PEER = "rejected", "real peer"
SAME = "1.2.3.4 9 5.6.7.8 10"


def verdict_of(source: tuple[str, int] | None, destination: tuple[str, int] | None) -> str:
    if source is None or destination is None:
        return REAL_PEER
    return " ".join(f"{plain(host)} {port}" for host, port in (source, destination))


def plain(host: str) -> str:
    """The canonical spelling of an address."""
    try:
        return ipaddress.ip_address(host).exploded
    except ValueError:
        return host


def our_verdict(data: bytes) -> str:
    parsed = outcome(data)
    return (
        verdict_of(parsed.header.source, parsed.header.destination)
        if isinstance(parsed, Parsed)
        else REJECTED
    )


PACKAGE_DIFFERS = {
    # int() accepts more than the specification's decimal digits, and leading zeros are "not permitted"
    "port 09": SAME,
    "port 00": "1.2.3.4 9 5.6.7.8 0",
    "port +9": SAME,
    "port 1_0": "1.2.3.4 10 5.6.7.8 10",
    "two CRs": SAME,  # int() strips it
    "scope id": f"{plain('fe80::1%1')} 9 {plain('::2')} 10",
    # no length limits
    "UNKNOWN of 108": REAL_PEER,
    "UNKNOWN of 108, CR inside": REAL_PEER,
    "dotted end of 40": f"{plain('::ffff:111.2.3.44')} 9 {plain('::2')} 10",
    "v2 of 4097": SAME,  # the specification leaves the bound to us
    "v2 LOCAL of 8016": REAL_PEER,
    # "must be rejected as invalid by receivers"
    "v2 family 0x71": REAL_PEER,
    "v2 family 0x41": REAL_PEER,
    "v2 transport 3": SAME,
    "v2 transport 15, UNSPEC": REAL_PEER,
    # UNSPEC transport: "should ignore address information"
    "v2 UNSPEC transport": SAME,
    "v2 UNSPEC transport, short": REJECTED,
    "v2 UNIX, abstract and unnamed": "\0abc 0  0",  # another notation for abstract names
    # TLVs that do not fit are truncated, and checksums are not verified
    "v2 TLV of 1 byte": SAME,
    "v2 TLV of 2 bytes": SAME,
    "v2 TLV too long": SAME,
    "v2 second TLV too long": f"{plain('::1')} 9 {plain('::2')} 10",
    "v2 checksum wrong": SAME,
}

HAPROXY_DIFFERS = {
    # numbers wrap around, and leading zeros are read although they are "not permitted"
    "port 70000": "1.2.3.4 4464 5.6.7.8 10",
    "port 65536": "1.2.3.4 9 5.6.7.8 0",
    "port 09": SAME,
    "port 00": "1.2.3.4 9 5.6.7.8 0",
    "port missing": "1.2.3.4 9 5.6.7.8 0",
    "octet 700": "188.2.3.4 9 5.6.7.8 10",
    "octet 256": "1.2.3.4 9 5.6.8.0 10",
    "octet 01": SAME,
    "three octets": "1.2.3.0 9 5.6.7.8 10",
    "empty octet": "1.0.3.4 9 5.6.7.8 10",
    "dotted end of 40": f"{plain('::ffff:111.2.3.44')} 9 {plain('::2')} 10",
    # "the receiver must ignore anything presented before the CRLF is found"
    "v1 UNKNOWN, space": REJECTED,
    "v1 UNKNOWN, longest": REJECTED,
    "v1 UNKNOWN, anything": REJECTED,
    # version 2 knows TCP only; for AF_UNSPEC a receiver is free to accept or to reject
    "v2 UDP4": REJECTED,
    "v2 UDP6": REJECTED,
    "v2 UNIX stream": REJECTED,
    "v2 UNIX dgram": REJECTED,
    "v2 UNIX, abstract and unnamed": REJECTED,
    "v2 UNIX, full width": REJECTED,
    "v2 UNSPEC": REJECTED,
    "v2 UNSPEC, anything": REJECTED,
    "v2 UNSPEC family": REJECTED,
    "v2 UNSPEC transport": REJECTED,
    "v2 UNSPEC transport, short": REJECTED,
    "v2 unique id of 129": REJECTED,  # the limit is 128; we do not validate TLVs
    "v2 of 4097": SAME,  # the specification leaves the bound to us
    "v2 LOCAL of 8016": REAL_PEER,
}

TABLE = {case: data for case, (data, _) in VALID.items()} | {
    case: data for case, (data, _) in INVALID.items()
}


def test_the_lists_of_differences_name_cases() -> None:
    assert set(PACKAGE_DIFFERS) <= set(TABLE)
    assert set(HAPROXY_DIFFERS) <= set(TABLE)
    assert len(TABLE) == len(VALID) + len(INVALID)


def compare(case: str, theirs: str, listed: dict[str, str], *, exact: bool) -> None:
    ours = our_verdict(TABLE[case])
    if exact:
        assert (theirs, ours != theirs) == (listed.get(case, ours), case in listed)
    else:
        assert theirs in (ours, listed.get(case))


@pytest.fixture(scope="module")
def package() -> Any:
    """The parser of the proxy-protocol package."""
    pytest.importorskip("proxyprotocol", reason="the proxy-protocol package is not installed")
    from proxyprotocol.detect import ProxyProtocolDetect

    return ProxyProtocolDetect()


def package_verdict(package: Any, data: bytes) -> str:
    try:
        result = package.unpack(data)
    except Exception:  # its own errors, and struct.error
        return REJECTED
    if result.source is None:
        return REAL_PEER
    if isinstance(result.source, str):
        return f"{result.source} 0 {result.dest} 0"
    return verdict_of(*((str(host), port) for host, port in (result.source, result.dest)))


@pytest.mark.parametrize("case", TABLE)
def test_the_proxy_protocol_package_differs_only_where_listed(package: Any, case: str) -> None:
    exact = metadata.version("proxy-protocol") == "0.11.3"
    compare(case, package_verdict(package, TABLE[case]), PACKAGE_DIFFERS, exact=exact)


@given(data=v1_headers | unknowns | v2_inet.map(build))
def test_the_proxy_protocol_package_agrees_on_any_valid_header(package: Any, data: bytes) -> None:
    assert package_verdict(package, data) == our_verdict(data)


HAPROXY = shutil.which("haproxy", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin")

HAPROXY_CONFIG = """
global
    maxconn 100
defaults
    mode http
    timeout connect {patience}s
    timeout client {patience}s
    timeout server {patience}s
frontend receiver
    bind fd@{receiver} accept-proxy
    http-request return status 200 content-type text/plain lf-string "%[src],%[src_port],%[dst],%[dst_port]"
listen sender1
    mode tcp
    bind fd@{sender1} accept-proxy
    server us 127.0.0.1:{us} send-proxy
listen sender2
    mode tcp
    bind fd@{sender2} accept-proxy
    unique-id-format %[rand]
    server us 127.0.0.1:{us} send-proxy-v2 proxy-v2-options crc32c,unique-id
listen dual
    mode tcp
    bind fd@{dual}
    server us 127.0.0.1:{us} send-proxy
"""


class HAProxy:
    """A running HAProxy: a receiver that returns the addresses it parsed, and senders to ``us``."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        assert HAPROXY
        self.version = subprocess.check_output([HAPROXY, "-v"], text=True)
        self.us = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.us.settimeout(PATIENCE)
        self.ports: dict[str, int] = {"us": self.us.getsockname()[1]}
        # It inherits listening sockets, so no port can be in use and no test waits for the start.
        with ExitStack() as inherited:
            fds = {}
            for name in ("receiver", "sender1", "sender2"):
                sock = inherited.enter_context(socket.create_server(("127.0.0.1", 0)))
                fds[name], self.ports[name] = sock.fileno(), sock.getsockname()[1]
            dual = inherited.enter_context(
                socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
                if socket.has_dualstack_ipv6()
                else socket.create_server(("127.0.0.1", 0))
            )
            fds["dual"], self.ports["dual"] = dual.fileno(), dual.getsockname()[1]
            config = directory / "haproxy.cfg"
            config.write_text(HAPROXY_CONFIG.format(**fds, us=self.ports["us"], patience=round(PATIENCE)))
            process = subprocess.Popen(
                [HAPROXY, "-db", "-f", str(config)], pass_fds=fds.values(), stderr=subprocess.DEVNULL
            )
        stack.callback(process.wait, timeout=PATIENCE)
        stack.callback(process.terminate)

    def connect(self, name: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.ports[name]), timeout=PATIENCE)

    def verdict(self, data: bytes) -> str:
        """How HAProxy parses ``data``. It closes without a response if the header is invalid."""
        response = b""
        with self.connect("receiver") as client:
            port = client.getsockname()[1]
            try:
                client.sendall(data + b"GET / HTTP/1.0\r\n\r\n")
                while chunk := client.recv(4096):
                    response += chunk
            except ConnectionError:
                pass  # a reset also ends the response
        if not response:
            return REJECTED
        assert response.startswith(b"HTTP/1.1 200 ")
        source, source_port, destination, destination_port = (
            response.partition(b"\r\n\r\n")[2].decode().split(",")
        )
        if (source, source_port) == ("127.0.0.1", str(port)):
            return REAL_PEER
        # It omits a port of 0.
        return verdict_of((source, int(source_port or 0)), (destination, int(destination_port or 0)))

    def forwarded(self, name: str, data: bytes) -> bytes:
        """The bytes that reach ``us`` when ``data`` is sent to the sender ``name``."""
        with self.connect(name) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            server, _ = self.us.accept()
            with server:
                server.settimeout(PATIENCE)
                return b"".join(iter(lambda: server.recv(4096), b""))


@pytest.fixture(scope="module")
def haproxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HAProxy]:
    if HAPROXY is None:
        pytest.skip("haproxy is not installed")
    with ExitStack() as stack:
        yield HAProxy(tmp_path_factory.mktemp("haproxy"), stack)


@pytest.mark.parametrize("case", TABLE)
def test_haproxy_differs_only_where_listed(haproxy: HAProxy, case: str) -> None:
    compare(case, haproxy.verdict(TABLE[case]), HAPROXY_DIFFERS, exact=" 2.6." in haproxy.version)


@given(data=v1_headers | v2_inet.map(build))
@settings(max_examples=60)
def test_haproxy_agrees_on_any_valid_header(haproxy: HAProxy, data: bytes) -> None:
    assert haproxy.verdict(data) == our_verdict(data)


@pytest.mark.parametrize("sender", ["sender1", "sender2"])
@pytest.mark.parametrize("case", ["v1 TCP4", "v1 TCP6", "v2 TCP4", "v2 TCP6", "v2 TCP6, mapped"])
def test_headers_sent_by_haproxy_are_parsed_to_the_byte(haproxy: HAProxy, sender: str, case: str) -> None:
    data, header = VALID[case]
    received = haproxy.forwarded(sender, data + b"hello")
    parsed = parse(received)
    assert isinstance(parsed, Parsed)
    assert received[parsed.consumed :] == b"hello"
    assert (parsed.header.source, parsed.header.destination) == (header.source, header.destination)
    assert parsed.header.version == (1 if sender == "sender1" else 2)
    assert [kind for kind, _ in parsed.header.tlvs] == ([] if sender == "sender1" else [3, 5])


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no dual-stack sockets here")
def test_an_ipv4_client_of_an_ipv6_socket_of_haproxy_is_parsed(haproxy: HAProxy) -> None:
    received = haproxy.forwarded("dual", b"hello")
    assert received.startswith(b"PROXY TCP6 ::ffff:127.0.0.1 ")
    parsed = parse(received)
    assert isinstance(parsed, Parsed)
    assert parsed.header.source
    assert parsed.header.source[0] == "::ffff:127.0.0.1"


# -- encoding ---------------------------------------------------------------------------------------------

PORTS = st.integers(0, 65535)
V4_HOSTS, V6_HOSTS = st.ip_addresses(v=4), st.ip_addresses(v=6)


@pytest.mark.parametrize("version", PROXY_VERSIONS)
@given(
    st.tuples(V4_HOSTS, V4_HOSTS) | st.tuples(V6_HOSTS, V6_HOSTS),
    PORTS,
    PORTS,
)
def test_an_encoded_header_is_parsed_to_its_addresses(
    version: ProxyVersion, hosts: tuple[Any, Any], source_port: int, destination_port: int
) -> None:
    rest = (0, 3) if hosts[0].version == 6 else ()  # flow label and scope id, as of a socket
    source, destination = (str(hosts[0]), source_port, *rest), (str(hosts[1]), destination_port, *rest)
    data = encode(version, source, destination)
    parsed = parse(data)
    assert isinstance(parsed, Parsed)
    assert parsed.consumed == len(data)
    header = parsed.header
    assert (header.version, header.command) == (int(version[1]), "PROXY")
    assert header.family is (INET if hosts[0].version == 4 else INET6)
    for address, host, port in (
        (header.source, hosts[0], source_port),
        (header.destination, hosts[1], destination_port),
    ):
        assert address is not None
        assert (ipaddress.ip_address(address[0]), address[1]) == (host, port)


def test_a_scope_is_not_encoded() -> None:
    there = ("fe80::1%eth0", 25, 0, 2)
    assert encode("v1", there, there) == b"PROXY TCP6 fe80::1 fe80::1 25 25\r\n"


@pytest.mark.parametrize(
    ("name", "parsed"), [("", ""), ("/run/x", "/run/x"), (b"\0abstract", "@abstract"), ("x" * 108, "x" * 108)]
)
def test_unix_names_are_encoded_in_version_2_only(name: str | bytes, parsed: str) -> None:
    assert encode("v1", "", name) == b"PROXY UNKNOWN\r\n"
    result = parse(encode("v2", "", name))
    assert isinstance(result, Parsed)
    header = result.header
    assert (header.family, header.source, header.destination) == (UNIX, ("", 0), (parsed, 0))
