"""The service's socket, as the kernel of this machine knows it: sock_diag(7), and proc(5) for datagrams.

Invariants:

- It is a hint for the texts of a report, and what ``--pid`` is held against. A socket of another machine, of
  another network namespace, or of a kernel without sock_diag is not found.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from greeter.conformance.dial import SocketAddress

# Of the kernel's uapi headers: linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, net/tcp_states.h.
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_REQUEST_AND_DUMP = 0x301
_DONE, _ERROR = 3, 2
_LISTEN = 10
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI48x")
_PORT = struct.Struct("!H")
# Of struct inet_diag_msg: where the port, the address, and the queues with the inode are.
_PORT_AT, _ADDRESS_AT, _QUEUES_AT = 4, 8, 56


class Listening(NamedTuple):
    """A listening socket.

    Attributes:
        inode: Its number, by which ``/proc/PID/fd`` knows it.
        backlog: The length of its accept queue.
        queued: How many connections are in it.
    """

    inode: int
    backlog: int
    queued: int


def listening(family: int, address: SocketAddress) -> Listening | None:
    """Find the socket that listens where a client connects, one of several; None if it is not found."""
    if isinstance(address, str):
        return None
    return next(iter(_all_listening(family, address)), None)


def _all_listening(family: int, address: tuple[str, int] | tuple[str, int, int, int]) -> list[Listening]:
    host = socket.inet_pton(family, address[0].partition("%")[0])
    exact, wildcard = [], []
    try:
        # A wildcard socket of IPv6 may serve IPv4 too.
        for other in {family, socket.AF_INET6}:
            for port, at, found in _dump(other):
                if port != address[1]:
                    continue
                if other == family and at[: len(host)] == host:
                    exact.append(found)
                elif not any(at):
                    wildcard.append(found)
    except OSError:
        return []
    return exact or wildcard


def inodes(family: int, address: SocketAddress, kind: int = socket.SOCK_STREAM) -> list[int]:
    """Returns the numbers of all sockets that listen at an address, a Unix socket's too.

    With ``SOCK_DGRAM`` as ``kind``, they are those that receive datagrams there.
    """
    if kind == socket.SOCK_DGRAM and not isinstance(address, str):
        return _receiving(family, address)
    if not isinstance(address, str):
        return [found.inode for found in _all_listening(family, address)]
    # proc(5): Num RefCount Protocol Flags Type St Inode Path; @ stands for the null of an abstract name.
    name = "@" + address[1:] if address.startswith("\0") else address
    try:
        rows = [line.split(None, 7) for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    except OSError:
        return []
    accepts = "00010000"  # __SO_ACCEPTCON of linux/net.h
    return [int(row[6]) for row in rows if len(row) == 8 and row[3] == accepts and row[7] == name]


def _receiving(family: int, address: tuple[str, int] | tuple[str, int, int, int]) -> list[int]:
    """Returns the numbers of the sockets that receive datagrams at an address, and are not connected."""
    host = socket.inet_pton(family, address[0].partition("%")[0])
    exact, wildcard = [], []
    for name, other in (("udp", socket.AF_INET), ("udp6", socket.AF_INET6)):
        try:
            rows = [line.split() for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
        except OSError:
            continue
        for row in rows:
            at, _, port = row[1].rpartition(":")
            if int(port, 16) != address[1] or row[3] != "07":  # TCP_CLOSE: without a peer
                continue
            # Each word of the address is in the byte order of this machine.
            words = [int(at[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(at), 8)]
            if other == family and b"".join(words) == host:
                exact.append(int(row[9]))
            elif not any(b"".join(words)):
                wildcard.append(int(row[9]))
    return exact or wildcard


def owners(*numbers: int, among: Iterable[int] | None = None) -> list[int]:
    """Returns the processes that have one of some sockets open, of those whose descriptors we may see.

    Args:
        numbers: The numbers of the sockets.
        among: The processes to look at; all by default, which takes long where they have many descriptors.
    """
    links = {f"socket:[{number}]" for number in numbers}
    found: list[int] = []
    if not links:
        return found
    for pid in processes() if among is None else among:
        try:
            fds = os.listdir(f"/proc/{pid}/fd")
            if any(_link(f"/proc/{pid}/fd/{fd}") in links for fd in fds):
                found.append(pid)
        except OSError:  # it has ended, or is not ours
            continue
    return found


def processes() -> list[int]:
    """Returns the processes of this machine."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _dump(family: int) -> Iterator[tuple[int, bytes, Listening]]:
    """Yields the port, the address and the rest of every listening TCP socket of a family."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(1.0)
        request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, 1 << _LISTEN)
        netlink.send(
            _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_AND_DUMP, 1, 0) + request
        )
        while True:
            data, at = netlink.recv(65536), 0
            while at < len(data):
                size, kind, _, _, _ = _HEADER.unpack_from(data, at)
                if kind in (_DONE, _ERROR) or size < _HEADER.size:
                    return
                body = at + _HEADER.size
                (port,) = _PORT.unpack_from(data, body + _PORT_AT)
                source = data[body + _ADDRESS_AT : body + _ADDRESS_AT + 16]
                queued, backlog, _, inode = struct.unpack_from("=4I", data, body + _QUEUES_AT)
                yield port, source, Listening(inode, backlog, queued)
                at += (size + 3) & ~3
