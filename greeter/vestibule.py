"""Between the door and the greeting: the PROXY header, who may come in, the TLS handshake.

The law: in that order, and nothing is taken from the socket that belongs to the next step. A header byte
left in the kernel would keep the socket readable and the loop awake; a byte too many would be missing
from the ClientHello (cpython #142352: a header and a ClientHello in one segment hang start_tls). Whoever
fails here is closed without a greeting, and the greeting callable never hears of it.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Protocol, cast

from greeter.errors import ProxyProtocolError
from greeter.reception import Guest, describe, logger

if TYPE_CHECKING:
    import asyncio
    import socket

    from greeter.limits import Networks
    from greeter.proxy_protocol import Header
    from greeter.reception import Address, Reception


class Newcomer(Guest, Protocol):
    """A guest, and asyncio protocol, that is on its way to a transport."""

    @property
    def connected(self) -> bool:
        """Whether it has one."""

    def introduce(self, address: Address) -> None:
        """A PROXY header has told who the client is."""


class Vestibule:
    """What a client passes before it is greeted.

    ``tls``: the context of the handshake, or None. ``proxy_from``: networks whose connections begin with
    a PROXY header, or None; everybody else is turned away then (the PROXY protocol's section 2: accept it
    from trusted sources only, and never guess).
    """

    def __init__(
        self,
        reception: Reception,
        *,
        tls: ssl.SSLContext | None,
        proxy_from: Networks | None,
        greet_timeout: float,
        linger_timeout: float,
    ) -> None:
        self._reception = reception
        self.tls = tls
        self.proxy_from = proxy_from
        self._handshake_timeout = greet_timeout
        # Our own linger deadline is the one that counts; asyncio's is there for good measure.
        self._shutdown_timeout = linger_timeout + 1.0

    async def bring_in(self, guest: Newcomer, sock: socket.socket) -> None:
        """Take an accepted socket through all of it, up to ``guest.connection_made``.

        The socket is ours: it is closed if that is not reached, whatever the reason.
        """
        reception = self._reception
        try:
            if self.proxy_from is not None and not await self._past_the_proxy(guest, sock):
                sock.close()
                reception.left(guest)
                return
            tls = self.tls
            await reception.loop.connect_accepted_socket(
                lambda: cast("asyncio.Protocol", guest),
                sock,
                ssl=tls,
                ssl_handshake_timeout=self._handshake_timeout if tls else None,
                ssl_shutdown_timeout=self._shutdown_timeout if tls else None,
            )
        except (ssl.SSLError, ConnectionError, TimeoutError, EOFError) as error:
            sock.close()
            if self.tls is not None and not guest.connected:
                logger.info("%s: no TLS handshake (%s)", describe(guest.address()), _reason(error))
                reception.failed(guest, "tls")
            reception.left(guest)
        except BaseException:
            sock.close()
            reception.left(guest)
            raise

    async def _past_the_proxy(self, guest: Newcomer, sock: socket.socket) -> bool:
        """Learn the client's real address from the header, and whether it may come in."""
        reception = self._reception
        address = guest.address()
        # A Unix socket's file permissions say who may connect.
        if isinstance(address, tuple) and address[0].partition("%")[0] not in (self.proxy_from or ()):
            reception.refused("untrusted")
            reception.dismiss(guest)
            return False
        try:
            header = await read_header(reception.loop, sock)
        except (ProxyProtocolError, ConnectionError) as error:
            logger.info("%s: no PROXY header (%s)", describe(address), error)
            reception.failed(guest, "proxy")
            return False
        if header.source is not None:
            guest.introduce(header.source)
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


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return str(error) or type(error).__name__
