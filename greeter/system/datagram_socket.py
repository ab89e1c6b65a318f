"""Receiving and sending datagrams, so that an answer leaves from the address that was asked.

On a socket that is bound to all addresses, the kernel would choose the source of an answer by its route. A
client that asked another address of this machine would drop it. There, each datagram is received with the
address it was sent to, and answered from that (IP_PKTINFO in ip(7), RFC 3542 for IPv6).

Invariants:

- No call blocks.
- One datagram is one call of the system, in each direction.
- The kernel keeps ICMP errors to itself, also on a socket that was inherited. Else it would report them as an
  event of the socket, at which libuv gives up watching it.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

# What a datagram tells about the address that it was sent to, for the answer; None if the kernel chooses.
Control: TypeAlias = "tuple[tuple[int, int, bytes], ...] | None"

# Where a datagram came from: host, port and more, as the socket module has it. Of a socket that is bound to
# all addresses, the last item is the Control for the answer.
Source: TypeAlias = "tuple[Any, ...]"

# IPv4 and IPv6, no name in Python 3.11: 8 is from <linux/in.h>.
_IP_PKTINFO: int | None = getattr(socket, "IP_PKTINFO", 8 if sys.platform == "linux" else None)
_SO_RCVBUFFORCE = 33  # <asm-generic/socket.h>
_SO_MEMINFO = 55  # <asm-generic/socket.h>; the values are those of <linux/sock_diag.h>
_MEMINFO = struct.Struct("=9I")
_DROPS = 8  # SK_MEMINFO_DROPS
_RECVERR = (
    (socket.IPPROTO_IP, 11),
    (socket.IPPROTO_IPV6, 25),
)  # IP_RECVERR, IPV6_RECVERR; <linux/in.h>, <in6.h>

# Bytes to ask for. A small datagram takes up to 1,280 of them (skb->truesize), so a burst of thousands fits.
RECEIVE_BUFFER = 4 * 1024 * 1024
# A datagram takes at least so many bytes of the receive buffer.
MIN_TRUESIZE = 512

# The addresses of this machine that are remembered: more than it has, but for forged multicast groups.
_MAX_CONTROLS = 1024


def size_receive_buffer(sock: socket.socket) -> None:
    """Give ``sock`` a receive buffer of RECEIVE_BUFFER bytes, as far as the kernel allows."""
    for option in (
        _SO_RCVBUFFORCE,
        socket.SO_RCVBUF,
    ):  # the first one ignores the limit, and needs CAP_NET_ADMIN
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BUFFER)
        except OSError:
            continue
        break


def receive_buffer(sock: socket.socket) -> int:
    """Return the size of the receive buffer in bytes. Linux doubles what it was told, for its own needs."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // (2 if sys.platform == "linux" else 1)


def dropped_datagrams(sock: socket.socket) -> int:
    """Return how many datagrams the kernel has dropped that were sent to ``sock``, since the socket was made.

    Most are dropped for lack of room in its receive buffer, and a few for a wrong checksum. The kernel counts
    with 32 bits.

    Raises:
        OSError: The socket is closed, or the kernel is older than Linux 4.12.
    """
    if sys.platform != "linux":
        return 0
    return int(_MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))[_DROPS])


class DatagramSocket:
    """A bound datagram socket.

    Args:
        sock: The socket, non-blocking.

    Raises:
        OSError: The system cannot tell the address that a datagram was sent to.

    Attributes:
        fd: Its descriptor.
        receive: Receives a datagram into a buffer. Returns its size and its Source. Raises BlockingIOError if
            there is none, or the error that the kernel has for the socket.
        send: Sends a datagram: its bytes, and the Source that it is for. Raises the error of sendto(2).
    """

    __slots__ = ("_controls", "_sock", "fd", "receive", "send")

    receive: Callable[[bytearray], tuple[int, Source]]
    send: Callable[[bytes, Source], int]

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._controls: dict[bytes, Control] = {}  # by what the kernel says about the address
        self.fd = sock.fileno()
        if sys.platform == "linux":
            for option in _RECVERR[: 1 if sock.family == socket.AF_INET else 2]:
                sock.setsockopt(*option, 0)
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # which clears it
        host = sock.getsockname()[0]
        if host == "0.0.0.0" and _IP_PKTINFO is not None:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        elif host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            self.receive, self.send = sock.recvfrom_into, sock.sendto
            return
        self.receive, self.send = self._receive_with_address, self._send_from_address

    def address(self, source: Source) -> tuple[Any, ...]:
        """Return the address of ``source`` as the socket module has it."""
        return source[:-1] if self.receive == self._receive_with_address else source

    def close(self) -> None:
        """Close the socket. The kernel drops what is queued."""
        self._sock.close()

    def _receive_with_address(self, buffer: bytearray) -> tuple[int, Source]:
        size, ancillary, _, address = self._sock.recvmsg_into((buffer,), 64)
        if not ancillary:
            return size, (*address, None)
        level, kind, info = ancillary[0]
        control = self._controls.get(info)
        if control is None and info not in self._controls:
            if len(self._controls) >= _MAX_CONTROLS:
                self._controls.clear()
            control = self._controls[info] = _answer_from(level, kind, info)
        return size, (*address, control)

    def _send_from_address(self, data: bytes, source: Source) -> int:
        *address, control = source
        if control is None:
            return self._sock.sendto(data, tuple(address))
        return self._sock.sendmsg((data,), control, 0, tuple(address))


def _answer_from(level: int, kind: int, info: bytes) -> Control:
    """Return the Control for answers to datagrams of which the kernel says ``info``."""
    if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
        # The local address of the packet, which is not that of its header if it was broadcast. An interface
        # of 0 leaves the route to the kernel.
        _, local, _ = struct.unpack("=I4s4s", info)
        return ((level, kind, struct.pack("=I4s4s", 0, local, b"")),)
    if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
        address, interface = struct.unpack("=16sI", info)
        if address[0] == 0xFF:  # a multicast group, which cannot be a source
            return None
        link_local = address[0] == 0xFE and address[1] & 0xC0 == 0x80
        return ((level, kind, struct.pack("=16sI", address, interface if link_local else 0)),)
    return None
