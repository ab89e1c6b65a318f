"""Between the door and the greeting: the PROXY header, who may come in, the TLS handshake.

The law: in that order, and nothing is taken from the socket that belongs to the next step. A header byte
left in the kernel would keep the socket readable and the loop awake; a byte too many would be missing
from the ClientHello (cpython #142352: a header and a ClientHello in one segment hang start_tls). Whoever
fails here is closed without a greeting, and the greeting callable never hears of it.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING, Protocol, cast

from greeter.address import describe
from greeter.errors import ProxyProtocolError, reason
from greeter.listeners import cork
from greeter.reception import Guest, logger

if TYPE_CHECKING:
    import asyncio
    import socket

    from greeter.address import Address
    from greeter.limits import Networks
    from greeter.proxy_protocol import Header
    from greeter.reception import Reception
    from greeter.seal import Seal


class Newcomer(Guest, Protocol):
    """A guest, and asyncio protocol, that is on its way to a transport."""

    @property
    def connected(self) -> bool:
        """Whether it has one."""

    def introduce(self, address: Address, family: int) -> None:
        """A PROXY header has told who the client is."""

    def sealed(self, seal: Seal) -> None:
        """What is written from here on goes through TLS."""


class Vestibule:
    """What a client passes before it is greeted.

    ``tls``: the context of the handshake, or None. ``proxy_from``: networks whose connections begin with
    a PROXY header, or None; everybody else is turned away then (the PROXY protocol's section 2: accept it
    from trusted sources only, and never guess).
    """

    def __init__(
        self, reception: Reception, *, tls: ssl.SSLContext | None, proxy_from: Networks | None
    ) -> None:
        self._reception = reception
        self.tls = tls
        self.proxy_from = proxy_from

    @property
    def empty(self) -> bool:
        """Whether nothing comes before the greeting."""
        return self.tls is None and self.proxy_from is None

    def bring_in(self, guest: Newcomer, sock: socket.socket) -> asyncio.Task[None]:
        """Take an accepted socket through all of it, up to ``guest.connection_made``; cancel it to give up.

        The socket is ours: it is closed if that is not reached, whatever the reason.
        """

        def ended(_: object) -> None:
            if not guest.connected:  # else it leaves when its connection is lost
                sock.close()
                self._reception.left(guest)

        task = self._reception.loop.create_task(self._pass(guest, sock))
        task.add_done_callback(ended)  # which a task that is cancelled before it has begun gets to, too
        return task

    async def _pass(self, guest: Newcomer, sock: socket.socket) -> None:
        try:
            if await self._past_the_proxy(guest, sock) and await self._past_the_handshake(guest, sock):
                loop = self._reception.loop
                await loop.connect_accepted_socket(lambda: cast("asyncio.Protocol", guest), sock)
        except OSError as error:  # it was reset on the way in
            logger.debug("%s: %s", describe(guest.address()), error)

    async def _past_the_handshake(self, guest: Newcomer, sock: socket.socket) -> bool:
        if self.tls is None:
            return True
        from greeter.seal import Seal  # only a server with TLS needs it

        seal = Seal(self.tls)
        cork(sock, False)  # it waits for our every word
        try:
            await shake_hands(self._reception.loop, sock, seal)
        except (ssl.SSLError, OSError) as error:
            logger.info(
                "%s: no TLS handshake (%s)",
                describe(guest.address()),
                _reason(error),
                extra={"event": "failed", "reason": "tls"},
            )
            self._reception.failed(guest, "tls")
            return False
        cork(sock, True)
        guest.sealed(seal)
        return True

    async def _past_the_proxy(self, guest: Newcomer, sock: socket.socket) -> bool:
        """Learn the client's real address from the header, and whether it may come in."""
        if self.proxy_from is None:
            return True
        reception = self._reception
        address = guest.address()
        # A Unix socket's file permissions say who may connect.
        if isinstance(address, tuple) and address[0].partition("%")[0] not in self.proxy_from:
            reception.refused("untrusted")
            reception.dismiss(guest)
            return False
        try:
            header = await read_header(reception.loop, sock)
        except (ProxyProtocolError, ConnectionError) as error:
            logger.info(
                "%s: no PROXY header (%s)",
                describe(address),
                error,
                extra={"event": "failed", "reason": "proxy"},
            )
            reception.failed(guest, "proxy")
            return False
        if header.source is not None:
            assert header.family is not None
            guest.introduce(header.source, header.family)
        if not reception.let_in(guest.address()):
            reception.dismiss(guest)
            return False
        reception.remember(guest, guest.address())
        return True


async def read_header(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> Header:
    """Read a PROXY header off the socket, and exactly its bytes. Waiting for them costs nothing.

    Raises ProxyProtocolError, also for an end of stream before the end of the header.
    """
    from greeter.proxy_protocol import NeedMore, parse  # only a server behind a proxy needs it

    taken = b""
    while isinstance(parsed := parse(taken), NeedMore):
        more = await loop.sock_recv(sock, parsed.wanted)
        if not more:
            raise ProxyProtocolError("the end of stream came first", len(taken))
        taken += more
    return parsed.header


async def shake_hands(loop: asyncio.AbstractEventLoop, sock: socket.socket, seal: Seal) -> None:
    """Do the handshake. Raises ssl.SSLError, after the client was told why, and ConnectionError."""
    received = b""
    done = False
    while not done:
        try:
            done = seal.shake(received)
        except ssl.SSLError:
            with contextlib.suppress(OSError):
                await loop.sock_sendall(sock, seal.to_send())
            raise
        if reply := seal.to_send():
            await loop.sock_sendall(sock, reply)
        if not done:
            received = await loop.sock_recv(sock, 16384)
            if not received:
                raise ConnectionError("the end of stream came first")


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return reason(error)
