"""Send one datagram over every network that this machine can broadcast to.

Invariants:

- An interface is asked that is up, can broadcast, and has an IPv4 address. Whether that was configured with a
  broadcast address does not matter: 255.255.255.255 needs none (RFC 919).
- No call blocks.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys

# <linux/sockios.h>, <linux/if.h>, <linux/in.h>
_SIOCGIFFLAGS, _SIOCGIFADDR = 0x8913, 0x8915
_IFF_UP, _IFF_BROADCAST = 0x1, 0x2
_IP_PKTINFO = 8
_IFREQ = struct.Struct("16sH22x")  # struct ifreq: the name, then the flags or an address (netdevice(7))
_PKTINFO = struct.Struct("=I4s4s")  # struct in_pktinfo: the interface, the source, the destination (ip(7))


def broadcast_interfaces() -> list[int]:
    """Return the indexes of the interfaces that can broadcast over IPv4; none but on Linux."""
    if sys.platform != "linux":
        return []
    from fcntl import ioctl

    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for index, name in socket.if_nameindex():
            request = _IFREQ.pack(os.fsencode(name), 0)
            try:
                _, flags = _IFREQ.unpack(ioctl(sock, _SIOCGIFFLAGS, request))
                if flags & _IFF_UP and flags & _IFF_BROADCAST:
                    ioctl(sock, _SIOCGIFADDR, request)
                    found.append(index)
            except OSError:  # it has no IPv4 address, or is gone
                continue
    return found


def broadcast(sock: socket.socket, data: bytes, port: int) -> None:
    """Send a datagram to ``<broadcast>`` over each of these interfaces.

    Args:
        sock: An unconnected IPv4 datagram socket.
        data: The payload.
        port: The port to send it to.

    Raises:
        OSError: No interface can broadcast, or none has taken the datagram.
    """
    error, sent = OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH)), 0
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    for index in broadcast_interfaces():
        # The kernel chooses the interface by the route, unless it is told one.
        info = (socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO.pack(index, b"", b""))
        try:
            sock.sendmsg((data,), (info,), 0, ("<broadcast>", port))
            sent += 1
        except OSError as failed:  # an interface without a carrier, a firewall
            error = failed
    if not sent:
        raise error
