"""The client for datagrams: ask, and ask again until the reply comes.

Invariants:

- A reply comes from the address that was asked. The sockets are connected, so the kernel drops any other.
- A datagram can be lost, so it is sent again: after FIRST_PAUSE, then after twice the pause before.
- Of a name with several addresses, each datagram asks the next. One that has refused is not asked again, and
  the next is asked at once.
- Every wait has a deadline, and no socket is open when ``ask()`` has ended.
"""

from __future__ import annotations

import asyncio
import socket
from time import perf_counter
from typing import TYPE_CHECKING

from greeter.client.connecting import LAST_READ, connect_errors, resolve
from greeter.core.datagram_sizes import REQUEST
from greeter.core.replies import Reply
from greeter.errors import ConnectFailed, GreetTimeout, NoGreeting, ReplyTooLarge, UnexpectedGreeting

if TYPE_CHECKING:
    from greeter.client.arguments import Exchange
    from greeter.client.connecting import Address
    from greeter.core.endpoint import Endpoint

FIRST_PAUSE = 0.5  # seconds
_MAX_SIZE = 65_535  # of a datagram, by the 16 bits of its length (RFC 768)


class _Failed:
    """What became of an address that cannot be asked, or has refused."""

    __slots__ = ("address", "error")

    def __init__(self, address: Address, error: OSError) -> None:
        self.address = address
        self.error = error


class _Sockets:
    """The connected sockets of one call, and what they have received.

    Args:
        loop: The running event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._sockets: dict[Address, socket.socket] = {}
        self._received: asyncio.Queue[bytes | _Failed] = asyncio.Queue()

    def send(self, data: bytes, address: Address) -> None:
        """Send ``data`` to an address. An error is received, as a refusal is."""
        try:
            sock = self._sockets.get(address) or self._open(address)
            sock.send(data)
        except BlockingIOError:  # the send buffer is full: this datagram is lost, as it can be on its way
            pass
        except OSError as error:
            self._fail(address, error)

    async def receive(self, deadline: float) -> bytes | _Failed | None:
        """Return the next datagram or failure; None if there is none by ``deadline``."""
        try:
            async with asyncio.timeout_at(deadline):
                return await self._received.get()
        except TimeoutError:
            await asyncio.sleep(LAST_READ)
        return None if self._received.empty() else self._received.get_nowait()

    def close(self) -> None:
        """Close all sockets."""
        for sock in self._sockets.values():
            self._close(sock)
        self._sockets.clear()

    def _open(self, address: Address) -> socket.socket:
        family, where = address
        sock = socket.socket(family, socket.SOCK_DGRAM)
        self._sockets[address] = sock
        sock.setblocking(False)
        sock.connect(where)
        self._loop.add_reader(sock, self._read, address, sock)
        return sock

    def _read(self, address: Address, sock: socket.socket) -> None:
        try:
            self._received.put_nowait(sock.recv(_MAX_SIZE))
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(address, error)

    def _fail(self, address: Address, error: OSError) -> None:
        if sock := self._sockets.pop(address, None):
            self._close(sock)
        self._received.put_nowait(_Failed(address, error))

    def _close(self, sock: socket.socket) -> None:
        self._loop.remove_reader(sock)
        sock.close()


async def ask(target: Endpoint, exchange: Exchange) -> Reply:
    """Ask a service for its greeting, again and again until it replies.

    Args:
        target: An endpoint of kind ``udp``.
        exchange: What to send, and the limits. Its deadline for connecting is that of the resolver.

    Returns:
        The Reply. It is empty, and thus false, if the datagram was.

    Raises:
        ConnectFailed: No address can be asked: all refused (ICMP port unreachable), or none is known.
        GreetTimeout: No reply came before the deadline.
        NoGreeting: The reply is empty, and ``expect`` is given.
        ReplyTooLarge: The reply is longer than ``max_bytes``.
        UnexpectedGreeting: The reply does not contain ``expect``.
    """
    loop = asyncio.get_running_loop()
    start, deadline = perf_counter(), loop.time() + exchange.timeout
    limit = min(exchange.connect_timeout, exchange.timeout)
    with connect_errors(target, limit):
        async with asyncio.timeout(limit):
            addresses = await resolve(target, socket.SOCK_DGRAM)
    resolved = perf_counter()
    sockets = _Sockets(loop)
    try:
        data, attempts = await _ask(sockets, addresses, target, exchange, deadline)
    finally:
        sockets.close()
    elapsed = perf_counter() - start
    if len(data) > exchange.max_bytes:
        raise ReplyTooLarge(str(target), exchange.max_bytes, data[: exchange.max_bytes])
    if exchange.expect is not None and not data:
        raise NoGreeting(str(target))
    if exchange.expect is not None and exchange.expect not in data:
        raise UnexpectedGreeting(str(target), exchange.expect, data)
    return Reply(
        data,
        str(target),
        connect_time=resolved - start,
        first_byte_time=elapsed if data else None,
        total_time=elapsed,
        attempts=attempts,
    )


async def _ask(
    sockets: _Sockets, addresses: list[Address], target: Endpoint, exchange: Exchange, deadline: float
) -> tuple[bytes, int]:
    """Return the reply, and how many datagrams were sent for it."""
    loop = asyncio.get_running_loop()
    request = REQUEST if exchange.send is None else exchange.send
    pause, attempts = FIRST_PAUSE, 0
    while True:
        address = addresses[0]
        addresses = [*addresses[1:], address]
        sockets.send(request, address)
        attempts += 1
        found = await sockets.receive(min(deadline, loop.time() + pause))
        while isinstance(found, _Failed):
            addresses = [other for other in addresses if other != found.address]
            if not addresses:
                raise ConnectFailed(str(target), found.error) from found.error
            if found.address == address:
                break  # the next one is asked at once
            found = await sockets.receive(min(deadline, loop.time() + pause))
        if isinstance(found, bytes):
            return found, attempts
        if found is None:
            if loop.time() >= deadline:
                raise GreetTimeout(str(target), "reply", exchange.timeout, attempts=attempts)
            pause *= 2
