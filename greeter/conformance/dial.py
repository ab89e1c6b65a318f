"""How the clients of a check connect, and what greeting they wait for."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from greeter.core.replies import Until

if TYPE_CHECKING:
    import ssl

    from greeter.core.proxy_protocol import ProxyVersion

SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str


@dataclass(frozen=True, slots=True)
class Dial:
    """How to connect, and what the greeting is.

    Attributes:
        family: The address family.
        address: As ``socket.connect`` takes it.
        timeout: How long a client waits for its greeting, in seconds.
        until: What ends the greeting.
        send: What to say before the greeting comes.
        proxy: The version of the PROXY header that the connection begins with; None without.
        tls: The context for TLS; None without.
        server_name: The name to verify.
        beginning: The first bytes of the greeting, as it was learnt.
        expect: What the greeting must contain.
        begins: What a greeting begins with, one of these; anything else is a refusal. All do if empty.
        shortest: The smallest length of the greeting, as it was learnt, in bytes.
        tls_version: The only version of TLS to offer; None for those that ``tls`` allows.
        pieces: True to send the first flight of the handshake byte by byte.
        joined: What the first flight of the handshake follows in one segment.
        kind: ``SOCK_STREAM``, or ``SOCK_DGRAM`` for a service that answers datagrams.
    """

    family: int
    address: SocketAddress
    timeout: float
    until: Until = Until("eof")
    send: bytes = b""
    proxy: ProxyVersion | None = None
    tls: ssl.SSLContext | None = None
    server_name: str | None = None
    beginning: bytes = b""
    shortest: int = 1
    expect: bytes = b""
    begins: tuple[bytes, ...] = ()
    tls_version: ssl.TLSVersion | None = None
    pieces: bool = False
    joined: bytes = b""
    kind: int = socket.SOCK_STREAM
