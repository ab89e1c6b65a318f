"""Sockets that are bound to the addresses of a host, for TCP or for datagrams.

Invariants:

- A host with several addresses, such as the empty host, gets one socket for each, all on one port.
- Binding is all or nothing: an error closes every socket that was bound.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

from greeter.errors import ListenFailed
from greeter.system.datagram_socket import size_receive_buffer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greeter.core.endpoint import Endpoint

# Attempts to find a port that is free on every address of a host. The kernel chooses it for the first one.
PORT_TRIES = 16


def bind_internet(endpoint: Endpoint) -> list[socket.socket]:
    """Bind a socket to each address of a TCP or UDP endpoint. Resolving a name blocks.

    Args:
        endpoint: Its host is resolved; port 0 is any free port.

    Returns:
        The sockets, those of IPv6 first.

    Raises:
        ListenFailed: The host does not resolve, or the addresses cannot be bound to.
    """
    kind = socket.SOCK_DGRAM if endpoint.kind == "udp" else socket.SOCK_STREAM
    try:
        found = socket.getaddrinfo(endpoint.host or None, endpoint.port, type=kind, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        cause = error if isinstance(error, OSError) else "not a host name"
        raise ListenFailed(str(endpoint), cause) from error
    # IPv6 first: a port that is free on IPv6 is less often in use on IPv4 than the other way round.
    addresses = sorted(
        dict.fromkeys((info[0], info[4]) for info in found), key=lambda a: a[0] != socket.AF_INET6
    )
    tries = PORT_TRIES if endpoint.port == 0 and len(addresses) > 1 else 1
    while True:
        tries -= 1
        try:
            return _bind_all(addresses, kind)
        except OSError as error:
            if tries == 0 or error.errno != errno.EADDRINUSE:
                raise ListenFailed(str(endpoint), error) from error


def _bind_all(
    addresses: Sequence[tuple[int, tuple[object, ...]]], kind: socket.SocketKind
) -> list[socket.socket]:
    """Bind all addresses to the port of the first. Skip those that are not addresses of this machine."""
    opened: list[socket.socket] = []
    skipped: OSError | None = None
    try:
        for family, address in addresses:
            host, port, *scope = address
            if opened:
                port = opened[0].getsockname()[1]
            try:
                sock = socket.socket(family, kind)
            except OSError as error:
                if error.errno != errno.EAFNOSUPPORT:
                    raise
                skipped = error  # no IPv6
                continue
            try:
                if kind == socket.SOCK_STREAM:  # with datagrams, others could bind to the same address
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                else:
                    size_receive_buffer(sock)
                if family == socket.AF_INET6:
                    # One socket per family, so that IPv4 clients keep their IPv4 addresses (RFC 3493 5.3).
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((host, port, *scope))
            except OSError as error:
                sock.close()
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                skipped = error
                continue
            opened.append(sock)
    except BaseException:
        for sock in opened:
            sock.close()
        raise
    if not opened:
        raise skipped or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    return opened
