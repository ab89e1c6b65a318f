"""Find services for datagrams: ask ``<broadcast>``, and collect the replies.

Invariants:

- Each service is found once, by its address, however many interfaces reach it.
- A reply comes from the port that was asked. Any other datagram is dropped.
- Round trips end when a reply is received, not when the caller takes it.
- The wait has a deadline, and what is collected a bound. No socket is open when the generator has ended.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from greeter.client.arguments import check_seconds
from greeter.client.connecting import LAST_READ
from greeter.core.datagram_sizes import REQUEST
from greeter.core.endpoint import DEFAULT_PORT, Endpoint
from greeter.errors import ConfigError, ConnectFailed
from greeter.system.broadcasts import broadcast
from greeter.system.datagram_socket import size_receive_buffer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

TIMEOUT = 1.0  # seconds
_MAX_SERVICES = 10_000
_MAX_SIZE = 65_535  # of a datagram, by the 16 bits of its length (RFC 768)
# Datagrams that one wake-up reads at most: other tasks must run.
_BATCH = 256


@dataclass(frozen=True, slots=True)
class DiscoveredService:
    """A service that has replied to ``discover()``.

    Attributes:
        address: Its address and port, as in ``"192.0.2.1:9999"``.
        data: The bytes of its greeting.
        round_trip: Seconds from the question to the reply.
    """

    address: str
    data: bytes
    round_trip: float

    @property
    def greeting(self) -> str:
        """The greeting as text. Bytes that are not UTF-8 are escaped, as in ``\\xff``."""
        return self.data.decode(errors="backslashreplace")

    @property
    def target(self) -> Endpoint:
        """The endpoint, as ``greet()`` takes it."""
        return Endpoint.parse(f"udp:{self.address}")

    def __str__(self) -> str:
        return f"{self.address}: {self.greeting}"


class _Replies:
    """What is received on a socket that has asked.

    Args:
        sock: The socket.
        port: The port that was asked.
        start: When, as a time of ``perf_counter()``.
    """

    def __init__(self, sock: socket.socket, port: int, start: float) -> None:
        self.services: asyncio.Queue[DiscoveredService] = asyncio.Queue()
        self._sock = sock
        self._port = port
        self._start = start
        self._known: set[str] = set()

    def read(self) -> None:
        """Read what has come, as the reader of the socket."""
        for _ in range(_BATCH):
            try:
                data, (host, port) = self._sock.recvfrom(_MAX_SIZE)
            except BlockingIOError:
                return
            except OSError:  # reported by ICMP, of one host
                continue
            if port != self._port or host in self._known or len(self._known) == _MAX_SERVICES:
                continue
            self._known.add(host)
            found = DiscoveredService(f"{host}:{port}", data, perf_counter() - self._start)
            self.services.put_nowait(found)


async def discover(
    port: int | str = DEFAULT_PORT, *, timeout: float = TIMEOUT
) -> AsyncGenerator[DiscoveredService, None]:
    """Find the services for datagrams on the local networks, and yield each as it replies.

    One datagram is sent to ``<broadcast>`` (255.255.255.255) on every interface that can broadcast, which is
    IPv4 only. Services are found that listen on all addresses (``udp::9999``). The network can lose a
    datagram, so one that is not found may still be there.

    To leave the loop early, close the generator (``contextlib.aclosing``).

    Args:
        port: The port that the services listen on: a number or a service name.
        timeout: Seconds to wait for replies.

    Yields:
        A DiscoveredService, once for each address.

    Raises:
        ConfigError: An argument is invalid.
        ConnectFailed: There is no network to ask, or the service name is unknown.

    Example::

        async for found in greeter.discover(9999):
            print(found.address, found.greeting)
    """
    target = Endpoint.udp("255.255.255.255", port)
    check_seconds("timeout", timeout)
    if target.port == 0:
        raise ConfigError("no service can have port 0")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        size_receive_buffer(sock)
        start = perf_counter()
        try:
            number = _number(target.port)
            broadcast(sock, REQUEST, number)
        except OSError as error:
            raise ConnectFailed(str(target), error) from error
        replies = _Replies(sock, number, start)
        loop.add_reader(sock, replies.read)
        try:
            while (found := await _next(replies.services, deadline)) is not None:
                yield found
        finally:
            loop.remove_reader(sock)


async def _next(services: asyncio.Queue[DiscoveredService], deadline: float) -> DiscoveredService | None:
    if services.empty():
        try:
            async with asyncio.timeout_at(deadline):
                return await services.get()
        except TimeoutError:
            await asyncio.sleep(LAST_READ)
    return None if services.empty() else services.get_nowait()


def _number(port: int | str) -> int:
    return port if isinstance(port, int) else socket.getservbyname(port, "udp")
