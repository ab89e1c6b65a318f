r"""The PROXY protocol, versions 1 and 2: who the client really is, as a trusted proxy tells it.

The law: the grammar of the specification and nothing else. A byte after which no completion could be
a header any more is an error at once, and its offset is the same however the bytes were cut up. (Only
what version 2 has after its first 16 bytes waits until it is all there, as the specification asks.)

``parse`` looks at what has arrived. While the header is incomplete it says how many further bytes
surely belong to it, so a reader that takes no more than that never has a byte of what follows (a TLS
ClientHello, say), and never has to leave one in the kernel, where it would keep the socket readable::

    while isinstance(parsed := parse(taken), NeedMore):
        taken += receive(parsed.wanted)  # at most so many, and b"" is the end of the stream

=========  ========================================================================================
version 1  ``PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n``, TCP6, or UNKNOWN and anything
version 2  a signature, version and command, family, length; then addresses, then types with values
=========  ========================================================================================

Source: "The PROXY protocol, versions 1 & 2", proxy-protocol.txt of the HAProxy distribution, 2020/03/05.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from socket import AddressFamily
from struct import Struct
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from greeter.errors import ProxyProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_V1 = 107  # section 2.1: the longest line, with its CRLF
# The specification leaves the length of version 2 open and designs it for 536 bytes, the smallest TCP
# segment. Certificates in TLVs may need more; this is also where nginx draws the line.
MAX_V2 = 4096

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
CRC32C = 0x03  # the one TLV that says whether the others, and the addresses, arrived as they were sent

Buffer: TypeAlias = bytes | bytearray | memoryview
Address: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Header:
    """What the proxy says about the connection.

    ``source`` is the client and ``destination`` what it connected to, as ``(host, port)``; for a Unix
    socket a path, or ``@name`` for an abstract one, and 0. All of ``family``, ``source`` and
    ``destination`` are None when the real peer of the connection counts: for LOCAL (the proxy speaks
    for itself, as in a health check), UNKNOWN and AF_UNSPEC. ``tlvs`` are the types and values of
    version 2, in order; those of a block that is to be ignored are not looked at.
    """

    version: Literal[1, 2]
    command: Literal["LOCAL", "PROXY"] = "PROXY"
    family: AddressFamily | None = None
    source: Address | None = None
    destination: Address | None = None
    tlvs: tuple[tuple[int, bytes], ...] = ()


class Parsed(NamedTuple):
    """A complete header, and how many bytes it took."""

    header: Header
    consumed: int


class NeedMore(NamedTuple):
    """No header yet. The next ``wanted`` bytes can only be the header's: no completion is shorter."""

    wanted: int


def parse(buffer: Buffer) -> Parsed | NeedMore:
    """Read the header at the start of ``buffer``, which may end before it or go on behind it.

    Raises ProxyProtocolError when no further bytes could make it a header; its ``offset`` is that of
    the byte that is wrong.
    """
    data = bytes(buffer[:MAX_V2])
    if (usual := _USUAL_LINE.match(data)) is not None:
        source, destination, source_port, destination_port = usual.groups()
        if int(source_port) <= 65535 and int(destination_port) <= 65535:
            return Parsed(
                Header(
                    1,
                    "PROXY",
                    AddressFamily.AF_INET,
                    (source.decode(), int(source_port)),
                    (destination.decode(), int(destination_port)),
                ),
                usual.end(),
            )
    for head, (_, rest) in _HEADS.items():
        if data.startswith(head):
            return rest(data)
    possible = [shortest - len(data) for head, (shortest, _) in _HEADS.items() if head.startswith(data)]
    if possible:
        return NeedMore(min(possible))
    at = 0
    while any(head.startswith(data[: at + 1]) for head in _HEADS):
        at += 1
    raise _bad(f"no version of it begins with {data[: at + 1]!r}", at)


def _bad(what: str, offset: int) -> ProxyProtocolError:
    return ProxyProtocolError(f"bad PROXY header: {what} (byte {offset})", offset)


# Almost every line of version 1, complete and correct, is read by this expression in a tenth of the time that
# the grammar takes; whatever it does not match is left to the grammar.
_OCTET = rb"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_QUAD = rb"(" + _OCTET + rb"(?:\." + _OCTET + rb"){3})"
_PORT = rb"(0|[1-9][0-9]{0,4})"
_USUAL_LINE = re.compile(rb"PROXY TCP4 " + rb" ".join((_QUAD, _QUAD, _PORT, _PORT)) + rb"\r\n")

# -- version 1 -----------------------------------------------------------------------------------------


def _ipv4(text: str) -> str:
    return str(IPv4Address(text))  # dotted quads in decimal, without leading zeros


def _ipv6(text: str) -> str:
    # The specification's longest is 39. It does not mention the dotted end of RFC 4291, section 2.2.3,
    # yet its authors' own proxy writes ::ffff:192.0.2.1 for an IPv4 client of an IPv6 socket.
    if len(text) > 39 or "%" in text:
        raise ValueError(text)
    return _ipv6_text(IPv6Address(text))


def _ipv6_text(address: IPv6Address) -> str:
    mapped = address.ipv4_mapped  # written as the kernel would; str() does so only from Python 3.13
    return f"::ffff:{mapped}" if mapped else str(address)


def _port(text: str) -> str:
    if text != "0" and (not text.isdecimal() or text[0] == "0" or int(text) > 65535):
        raise ValueError(text)
    return text


class _Field(NamedTuple):
    """One field of a line.

    ``read`` raises ValueError, ``shortest`` is how long a value has to be, and ``ends`` are all that
    the beginning of a value may need to become one, shortest first.
    """

    name: str
    read: Callable[[str], str]
    shortest: int
    ends: tuple[str, ...]

    def shortest_end(self, text: str) -> str | None:
        """What completes ``text`` soonest: nothing when it is complete, None when nothing can."""
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
    """After ``PROXY TCP4 `` or ``PROXY TCP6 ``: four fields, each up to a space and the last to a CR, LF."""
    at = len(b"PROXY TCPx ")
    values = []
    rest = 1 + sum(field.shortest + 1 for field in fields)  # how long what follows the field is at least
    for field in fields:
        rest -= field.shortest + 1
        stop = data.find(b"\r" if field is fields[-1] else b" ", at, MAX_V1)
        text = data[at : stop if stop >= 0 else MAX_V1].decode("latin-1")
        end = field.shortest_end(text)
        if end is None:
            good = max(n for n in range(len(text)) if field.shortest_end(text[:n]) is not None)
            raise _bad(f"{field.name} {text[: good + 1]!r}", at + good)
        if stop < 0:
            return NeedMore(len(end) + 1 + rest)
        if end:
            raise _bad(f"{field.name} {text!r} is incomplete", stop)
        values.append(field.read(text))
        at = stop + 1
    if len(data) == at:
        return NeedMore(1)
    if data[at] != ord("\n"):
        raise _bad(f"{data[at : at + 1]!r} instead of the LF after CR", at)
    source, destination, source_port, destination_port = values
    header = Header(1, "PROXY", family, (source, int(source_port)), (destination, int(destination_port)))
    return Parsed(header, at + 1)


def _unknown(data: bytes) -> Parsed | NeedMore:
    """After ``PROXY UNKNOWN ``: anything, to be ignored up to the CRLF."""
    line = data[:MAX_V1]
    end = line.find(b"\r\n", len(b"PROXY UNKNOWN "))
    if end >= 0:
        return Parsed(Header(1), end + 2)
    wanted = 1 if line.endswith(b"\r") else 2
    if len(line) + wanted > MAX_V1:
        at = MAX_V1 - 1 if line[MAX_V1 - 2] == ord("\r") else MAX_V1 - 2
        raise _bad(f"the line is longer than {MAX_V1} bytes", at)
    return NeedMore(wanted)


# -- version 2 -----------------------------------------------------------------------------------------

# The block of addresses by the number of its family: source, destination, and ports but for Unix.
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
            raise _bad(f"version {version}, command {command}", 12)
    if seen > 13 and command:
        family, transport = divmod(data[13], 16)
        if family > 3 or transport > 2:
            raise _bad(f"family and transport 0x{data[13]:02x}", 13)
        if not transport:  # UNSPEC in either place: "should ignore address information"
            family = 0
    if seen > 14 and 16 + (data[14] << 8) > MAX_V2:
        raise _bad(f"it is longer than {MAX_V2} bytes", 14)
    if seen < 16:
        return NeedMore(16 - seen)
    end = 16 + _u16(data, 14)
    if end > MAX_V2:
        raise _bad(f"it is longer than {MAX_V2} bytes", 15)
    if family and end < 16 + _FAMILIES[family][1].size:
        raise _bad(f"length {end - 16} is too short for {_FAMILIES[family][0].name}", 15)
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
    """Types and values from ``at`` to the end of ``header``."""
    tlvs = []
    while at < len(header):
        kind, value = header[at], header[at + 3 :]
        if at + 3 > len(header) or len(value) < (length := _u16(header, at + 1)):
            raise _bad(f"TLV 0x{kind:02x} goes on behind the end", at)
        value = value[:length]
        if kind == CRC32C:
            _check_sum(header, at + 3, value)
        tlvs.append((kind, value))
        at += 3 + length
    return tuple(tlvs)


def _check_sum(header: bytes, at: int, value: bytes) -> None:
    """Section 2.2.3: the CRC32C of the header with zeros in the place of its own four bytes."""
    if value != _crc32c(header[:at] + bytes(4) + header[at + 4 :]).to_bytes(4, "big"):
        raise _bad(f"wrong checksum {value.hex() or '(empty)'}", at)


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


def _host(raw: bytes) -> str:
    if len(raw) == 4:
        return ".".join(map(str, raw))
    if len(raw) == 16:
        return _ipv6_text(IPv6Address(raw))
    name = raw.partition(b"\0")[0] or raw.rstrip(b"\0").replace(b"\0", b"@", 1)
    return name.decode(errors="backslashreplace")  # unlike surrogates, this can be sent and logged


def _crc32c(data: bytes) -> int:
    """Castagnoli's CRC, bits reflected (RFC 4960, appendix B)."""
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


# A header begins in one of five ways. For each, how long the shortest such header is, and who reads on.
_HEADS: dict[bytes, tuple[int, Callable[[bytes], Parsed | NeedMore]]] = {
    SIGNATURE: (16, _v2),
    b"PROXY UNKNOWN\r\n": (15, lambda data: Parsed(Header(1), 15)),
    b"PROXY UNKNOWN ": (16, _unknown),
    b"PROXY TCP4 ": (32, lambda data: _tcp(data, AddressFamily.AF_INET, _TCP4)),
    b"PROXY TCP6 ": (22, lambda data: _tcp(data, AddressFamily.AF_INET6, _TCP6)),
}
