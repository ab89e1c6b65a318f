r"""The PROXY protocol, versions 1 and 2: parse a trusted proxy's header, and make one.

Invariants:

- The parser accepts the grammar of the specification and nothing else.
- The first byte after which no completion is a valid header is an error at once. Its offset does not depend
  on how the bytes were split into segments. (The part of version 2 after the first 16 bytes is parsed only
  when it is complete, as the specification requires.)
- ``parse(encode(...))`` returns the addresses that were encoded.
- A reader that requests ``NeedMore.wanted`` bytes at a time never reads a byte after the header, such as the
  start of a TLS ClientHello, and never leaves one of the header in the kernel::

    while isinstance(parsed := parse(taken), NeedMore):
        taken += receive(parsed.wanted)  # at most that many; b"" is the end of the stream

=========  ========================================================================================
version 1  ``PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n``, TCP6, or UNKNOWN and anything
version 2  a signature, version and command, family, length; then addresses, then TLVs
=========  ========================================================================================

Source: "The PROXY protocol, versions 1 & 2", proxy-protocol.txt of the HAProxy distribution, 2020/03/05.
"""

from __future__ import annotations

import os
import re
from functools import cache
from socket import AddressFamily
from struct import Struct
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

from greeter.errors import ProxyProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Address, IPv6Address

MAX_V1 = 107  # section 2.1: the longest line, including CRLF
# The specification sets no limit for version 2 and is designed for 536 bytes, the smallest TCP segment.
# Certificates in TLVs may need more. nginx has the same limit.
MAX_V2 = 4096

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
CRC32C = 0x03  # the TLV with the checksum of the header

Buffer: TypeAlias = bytes | bytearray | memoryview
Address: TypeAlias = tuple[str, int]


class Header(NamedTuple):
    """A parsed header.

    ``family``, ``source`` and ``destination`` are None where the address of the connection itself must be
    used: for LOCAL (the proxy's own connection, such as a health check), UNKNOWN and AF_UNSPEC.

    Attributes:
        version: The version of the protocol.
        command: ``"PROXY"`` or ``"LOCAL"``.
        family: The family of the addresses.
        source: The client, as ``(host, port)``. Unix: a path, or ``@name`` for an abstract one, and 0.
        destination: The address that the client connected to, in the same form.
        tlvs: The types and values of version 2, in order; empty where the specification says to ignore them.
    """

    version: Literal[1, 2]
    command: Literal["LOCAL", "PROXY"] = "PROXY"
    family: AddressFamily | None = None
    source: Address | None = None
    destination: Address | None = None
    tlvs: tuple[tuple[int, bytes], ...] = ()


class Parsed(NamedTuple):
    """A complete header, and its length in bytes."""

    header: Header
    consumed: int


class NeedMore(NamedTuple):
    """The header is incomplete. The next ``wanted`` bytes belong to it: no completion is shorter."""

    wanted: int


def parse(buffer: Buffer) -> Parsed | NeedMore:
    """Parse the header at the start of ``buffer``.

    Args:
        buffer: What was received. It may end before the header does, or continue after it.

    Returns:
        The header and its length, or NeedMore if it is incomplete.

    Raises:
        ProxyProtocolError: ``buffer`` is not the start of a valid header. ``offset`` is that of the first
            wrong byte.
    """
    data = bytes(buffer[:MAX_V2])
    if (common := re.match(_COMMON_LINE, data)) is not None:
        source, destination, source_port, destination_port = common.groups()
        if int(source_port) <= 65535 and int(destination_port) <= 65535:
            return Parsed(
                Header(
                    1,
                    "PROXY",
                    _IPV4,
                    (source.decode(), int(source_port)),
                    (destination.decode(), int(destination_port)),
                ),
                common.end(),
            )
    if len(data) >= _COMMON_V2.size and data.startswith(_COMMON_START):
        _, source, destination, from_port, to_port = _COMMON_V2.unpack_from(data)
        addresses = (_host(source), from_port), (_host(destination), to_port)
        return Parsed(Header(2, "PROXY", _IPV4, *addresses), _COMMON_V2.size)
    for prefix, (_, parse_rest) in _PREFIXES.items():
        if data.startswith(prefix):
            return parse_rest(data)
    possible = [
        shortest - len(data) for prefix, (shortest, _) in _PREFIXES.items() if prefix.startswith(data)
    ]
    if possible:
        return NeedMore(min(possible))
    at = 0
    while any(prefix.startswith(data[: at + 1]) for prefix in _PREFIXES):
        at += 1
    raise _error(f"no version begins with {data[: at + 1]!r}", at)


ProxyVersion: TypeAlias = Literal["v1", "v2"]
PROXY_VERSIONS: tuple[ProxyVersion, ...] = get_args(ProxyVersion)


def encode(version: ProxyVersion, source: Any, destination: Any) -> bytes:
    """Make the header of a connection.

    Args:
        version: The version of the protocol.
        source: The client's address, as ``getsockname()`` of its socket returns it.
        destination: The address that it is connected to, as ``getpeername()`` returns it.

    Returns:
        The header. Version 1 has no Unix sockets, and says UNKNOWN.
    """
    if not isinstance(source, tuple) or not isinstance(destination, tuple):  # Unix: a path, or bytes
        if version == "v1":
            return b"PROXY UNKNOWN\r\n"
        names = (os.fsencode(source or ""), os.fsencode(destination or ""))
        return _v2_header(0x31, _FAMILIES[3][1].pack(*names))
    hosts = [_ip_address(address[0].partition("%")[0]) for address in (source, destination)]
    ports = source[1], destination[1]
    six = hosts[0].version == 6
    if version == "v1":
        first, second = map(_text, hosts)
        return f"PROXY TCP{6 if six else 4} {first} {second} {ports[0]} {ports[1]}\r\n".encode()
    packed = (host.packed for host in hosts)
    return _v2_header(0x21 if six else 0x11, _FAMILIES[2 if six else 1][1].pack(*packed, *ports))


def _v2_header(family: int, block: bytes) -> bytes:
    return SIGNATURE + bytes((0x21, family)) + len(block).to_bytes(2, "big") + block


def _error(what: str, offset: int) -> ProxyProtocolError:
    return ProxyProtocolError(f"bad PROXY header: {what} (byte {offset})", offset)


# Fast paths: nearly every valid line of version 1 matches an expression, and nearly every header of version 2
# without TLVs has one start. They take a tenth and a third of the time of the grammar, which gets the rest.
_IPV4 = AddressFamily.AF_INET  # in Python 3.11, an attribute of an enum takes five times as long as a name
_OCTET = rb"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_QUAD = rb"(" + _OCTET + rb"(?:\." + _OCTET + rb"){3})"
_PORT = rb"(0|[1-9][0-9]{0,4})"
_COMMON_START = SIGNATURE + bytes((0x21, 0x11, 0, 12))
_COMMON_V2 = Struct("!16s4s4sHH")
_COMMON_LINE = rb"PROXY TCP4 " + rb" ".join((_QUAD, _QUAD, _PORT, _PORT)) + rb"\r\n"

# -- version 1 -----------------------------------------------------------------------------------------


def _ipv4(text: str) -> str:
    return _text(_ip_address(text, version=4))  # rejects leading zeros


def _ipv6(text: str) -> str:
    # The specification's longest address has 39 characters. It does not mention the dotted form of RFC 4291
    # 2.2.3, but HAProxy sends ::ffff:192.0.2.1 for an IPv4 client of an IPv6 socket.
    if len(text) > 39 or "%" in text:
        raise ValueError(text)
    return _text(_ip_address(text, version=6))


def _ip_address(value: str | bytes, version: int | None = None) -> IPv4Address | IPv6Address:
    from ipaddress import ip_address  # slow to import, and most connections do without it

    address = ip_address(value)
    if version not in (None, address.version):
        raise ValueError(value)
    return address


def _text(address: IPv4Address | IPv6Address) -> str:
    mapped = address.ipv4_mapped if address.version == 6 else None
    return f"::ffff:{mapped}" if mapped else str(address)  # as the kernel has it; str() does from 3.13 on


def _port(text: str) -> str:
    if text != "0" and (not text.isdecimal() or text[0] == "0" or int(text) > 65535):
        raise ValueError(text)
    return text


class _Field(NamedTuple):
    """One field of a line of version 1.

    Attributes:
        name: For error messages.
        read: Parses a value. Raises ValueError if it is not valid.
        shortest: The length of the shortest value, in bytes.
        ends: Suffixes, shortest first. Every prefix of a valid value becomes valid with one of them.
    """

    name: str
    read: Callable[[str], str]
    shortest: int
    ends: tuple[str, ...]

    def shortest_end(self, text: str) -> str | None:
        """Return the shortest suffix that makes ``text`` valid: empty if it is, None if there is none."""
        for end in self.ends:
            try:
                self.read(text + end)
            except ValueError:
                continue
            return end
        return None


def _fields(read: Callable[[str], str], shortest: int, ends: tuple[str, ...]) -> tuple[_Field, ...]:
    return (
        _Field("source", read, shortest, ends),
        _Field("destination", read, shortest, ends),
        _Field("source port", _port, 1, ("", "0")),
        _Field("destination port", _port, 1, ("", "0")),
    )


_TCP4 = _fields(_ipv4, 7, ("", "0", ".0", "0.0", ".0.0", "0.0.0", ".0.0.0", "0.0.0.0"))
_TCP6 = _fields(_ipv6, 2, ("", "0", ":", "::", ".0", "0.0", ".0.0", "0.0.0"))


def _tcp(data: bytes, family: AddressFamily, fields: tuple[_Field, ...]) -> Parsed | NeedMore:
    """Parse a line that begins with ``PROXY TCP4 `` or ``PROXY TCP6 ``: four fields, and CRLF."""
    at = len(b"PROXY TCPx ")
    values = []
    rest = 1 + sum(field.shortest + 1 for field in fields)  # the shortest length of what follows the field
    for field in fields:
        rest -= field.shortest + 1
        stop = data.find(b"\r" if field is fields[-1] else b" ", at, MAX_V1)
        text = data[at : stop if stop >= 0 else MAX_V1].decode("latin-1")
        end = field.shortest_end(text)
        if end is None:
            good = max(n for n in range(len(text)) if field.shortest_end(text[:n]) is not None)
            raise _error(f"{field.name} {text[: good + 1]!r}", at + good)
        if stop < 0:
            return NeedMore(len(end) + 1 + rest)
        if end:
            raise _error(f"{field.name} {text!r} is incomplete", stop)
        values.append(field.read(text))
        at = stop + 1
    if len(data) == at:
        return NeedMore(1)
    if data[at] != ord("\n"):
        raise _error(f"{data[at : at + 1]!r} instead of the LF after CR", at)
    source, destination, source_port, destination_port = values
    header = Header(1, "PROXY", family, (source, int(source_port)), (destination, int(destination_port)))
    return Parsed(header, at + 1)


def _unknown(data: bytes) -> Parsed | NeedMore:
    """Parse a line that begins with ``PROXY UNKNOWN ``: anything up to CRLF, which is ignored."""
    line = data[:MAX_V1]
    end = line.find(b"\r\n", len(b"PROXY UNKNOWN "))
    if end >= 0:
        return Parsed(Header(1), end + 2)
    wanted = 1 if line.endswith(b"\r") else 2
    if len(line) + wanted > MAX_V1:
        at = MAX_V1 - 1 if line[MAX_V1 - 2] == ord("\r") else MAX_V1 - 2
        raise _error(f"the line is longer than {MAX_V1} bytes", at)
    return NeedMore(wanted)


# -- version 2 -----------------------------------------------------------------------------------------

# The address block by family number: source, destination, and (except for Unix) their ports.
_FAMILIES = {
    1: (AddressFamily.AF_INET, Struct("!4s4sHH")),
    2: (AddressFamily.AF_INET6, Struct("!16s16sHH")),
    3: (AddressFamily.AF_UNIX, Struct("!108s108s")),
}


def _v2(data: bytes) -> Parsed | NeedMore:
    seen = len(data)
    command = family = 0
    if seen > 12:
        version, command = divmod(data[12], 16)
        if version != 2 or command > 1:
            raise _error(f"version {version}, command {command}", 12)
    if seen > 13 and command:
        family, transport = divmod(data[13], 16)
        if family > 3 or transport > 2:
            raise _error(f"family and transport 0x{data[13]:02x}", 13)
        if not transport:  # UNSPEC in either place: "should ignore address information"
            family = 0
    if seen > 14 and 16 + (data[14] << 8) > MAX_V2:
        raise _error(f"it is longer than {MAX_V2} bytes", 14)
    if seen < 16:
        return NeedMore(16 - seen)
    end = 16 + _u16(data, 14)
    if end > MAX_V2:
        raise _error(f"it is longer than {MAX_V2} bytes", 15)
    if family and end < 16 + _FAMILIES[family][1].size:
        raise _error(f"length {end - 16} is too short for {_FAMILIES[family][0].name}", 15)
    if seen < end:
        return NeedMore(end - seen)
    if not family:  # LOCAL too: "discard the protocol block including the family"
        return Parsed(Header(2, "PROXY" if command else "LOCAL"), end)
    name, block = _FAMILIES[family]
    source, destination, *ports = block.unpack_from(data, 16)
    source_port, destination_port = ports or (0, 0)
    tlvs = _tlvs(data[:end], 16 + block.size)
    header = Header(
        2, "PROXY", name, (_host(source), source_port), (_host(destination), destination_port), tlvs
    )
    return Parsed(header, end)


def _tlvs(header: bytes, at: int) -> tuple[tuple[int, bytes], ...]:
    """Return the types and values from ``at`` to the end of ``header``."""
    tlvs = []
    while at < len(header):
        kind, value = header[at], header[at + 3 :]
        if at + 3 > len(header) or len(value) < (length := _u16(header, at + 1)):
            raise _error(f"TLV 0x{kind:02x} exceeds the header", at)
        value = value[:length]
        if kind == CRC32C:
            _verify_checksum(header, at + 3, value)
        tlvs.append((kind, value))
        at += 3 + length
    return tuple(tlvs)


def _verify_checksum(header: bytes, at: int, value: bytes) -> None:
    """Check the CRC32C of the header, which is computed with its own four bytes zero (section 2.2.3)."""
    if value != _crc32c(header[:at] + bytes(4) + header[at + 4 :]).to_bytes(4, "big"):
        raise _error(f"wrong checksum {value.hex() or '(empty)'}", at)


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


def _host(raw: bytes) -> str:
    if len(raw) == 4:
        return ".".join(map(str, raw))
    if len(raw) == 16:
        return _text(_ip_address(raw))
    name = raw.partition(b"\0")[0] or raw.rstrip(b"\0").replace(b"\0", b"@", 1)
    return name.decode(errors="backslashreplace")  # surrogates could be neither sent nor logged


def _crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli), reflected (RFC 4960, appendix B)."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@cache
def _crc_table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [crc >> 1 ^ 0x82F63B78 if crc & 1 else crc >> 1 for crc in table]
    return table


# The prefixes that a header can begin with. For each, the length of the shortest such header, and its parser.
_PREFIXES: dict[bytes, tuple[int, Callable[[bytes], Parsed | NeedMore]]] = {
    SIGNATURE: (16, _v2),
    b"PROXY UNKNOWN\r\n": (15, lambda data: Parsed(Header(1), 15)),
    b"PROXY UNKNOWN ": (16, _unknown),
    b"PROXY TCP4 ": (32, lambda data: _tcp(data, AddressFamily.AF_INET, _TCP4)),
    b"PROXY TCP6 ": (22, lambda data: _tcp(data, AddressFamily.AF_INET6, _TCP6)),
}
