"""One client of a datagram service: a socket that sends, and waits for what comes back.

Invariants:

- The socket is not connected: the kernel would drop a reply from another address than the one that was asked.
  Such a reply is noted, and is not taken for the reply, as a connected client would not see it.
- A port unreachable of ICMP is reported all the same (IP_RECVERR in ip(7)), and ends the client.
- Every wait has a deadline, and the socket is closed however the client ends.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

from greeter.client.connecting import LAST_READ
from greeter.conformance.findings import Ending, Experience
from greeter.conformance.probe import LOCAL_ERRORS, Ended

if TYPE_CHECKING:
    from greeter.conformance.dial import Dial

MAX_SIZE = 65_535  # of a datagram, by the 16 bits of its length (RFC 768)
# IP_RECVERR of <linux/in.h>, IPV6_RECVERR of <linux/in6.h>.
_RECVERR = {
    socket.AF_INET: (socket.IPPROTO_IP, 11),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 25),
}


class DatagramProbe:
    """One client. Use it with ``async with``; its methods raise ``Ended`` where it has no reply.

    Args:
        dial: The address to ask, and what its reply must contain.
        address: The address to ask instead of that of ``dial``.
        source: The address and port to ask from; the kernel's choice by default.

    Attributes:
        elsewhere: The address of the last reply that came from another one than was asked; "" if none did.

    Raises:
        OSError: ``source`` cannot be had.
    """

    def __init__(
        self, dial: Dial, *, address: tuple[Any, ...] | None = None, source: tuple[str, int] | None = None
    ) -> None:
        assert isinstance(dial.address, tuple)
        self.data = b""
        self.elsewhere = ""
        self._address: tuple[Any, ...] = address or dial.address
        self._expect = dial.expect
        self._loop = asyncio.get_running_loop()
        self._start = perf_counter()
        self._story: list[tuple[float, str]] = []
        self._received: asyncio.Queue[bytes | OSError] = asyncio.Queue()
        self._sock = socket.socket(dial.family, socket.SOCK_DGRAM)
        self._watched = False
        try:
            self._sock.setblocking(False)
            self._sock.setsockopt(*_RECVERR[socket.AddressFamily(dial.family)], 1)
            if source is not None:
                self._sock.bind(source)
        except OSError:
            self._sock.close()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        """Send a datagram. One for which the send buffer has no room is lost, as it can be on its way."""
        try:
            self._sock.sendto(data, self._address)
        except BlockingIOError:
            self._note("no room to send")
            return
        except OSError as error:
            raise self._ended(error) from None
        self._note(f"sent {len(data)} B")
        if not self._watched:
            self._loop.add_reader(self._sock, self._read)
            self._watched = True

    async def reply(self, timeout: float) -> Ending:
        """Wait for a reply, ``timeout`` seconds at the most, and say what it is."""
        try:
            async with asyncio.timeout(timeout):
                found = await self._received.get()
        except TimeoutError:
            await asyncio.sleep(LAST_READ)  # after a pause of this process, what came in time is read first
            if self._received.empty():
                self._note("no reply by the deadline")
                raise Ended(Ending.SILENT) from None
            found = self._received.get_nowait()
        if isinstance(found, OSError):
            raise self._ended(found)
        self.data = found
        if not found:
            return Ending.LOST
        return Ending.GREETED if self._expect in found else Ending.OTHER

    def more(self) -> int:
        """Returns how many replies have come that were not waited for."""
        return self._received.qsize()

    def close(self) -> None:
        """Close the socket."""
        if self._watched:
            self._loop.remove_reader(self._sock)
            self._watched = False
        self._sock.close()

    def experience(self, ending: Ending) -> Experience:
        """Returns what this client experienced."""
        return Experience(ending, self.data, tuple(self._story))

    def _read(self) -> None:
        try:
            data, source = self._sock.recvfrom(MAX_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self._loop.remove_reader(self._sock)  # the error stays readable
            self._watched = False
            self._received.put_nowait(error)
            return
        if source[:2] == tuple(self._address[:2]):
            self._note(f"got {len(data)} B")
            self._received.put_nowait(data)
        else:
            self.elsewhere = f"[{source[0]}]:{source[1]}" if ":" in source[0] else f"{source[0]}:{source[1]}"
            self._note(f"got {len(data)} B from {self.elsewhere}")

    def _ended(self, error: OSError) -> Ended:
        self._note(errno.errorcode.get(error.errno or 0, "error"))
        local = error.errno in (*LOCAL_ERRORS, errno.EMSGSIZE)
        return Ended(Ending.LOCAL if local else Ending.REFUSED)

    def _note(self, event: str) -> None:
        if len(self._story) < 100:
            self._story.append((perf_counter() - self._start, event))
