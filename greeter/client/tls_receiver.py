"""Receives over TLS, as the protocol of a transport of the event loop.

Invariants:

- A stream that ends without close_notify is told from one that was ended: its end could have been forged.
"""

from __future__ import annotations

import asyncio
import ssl
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from greeter.client.connecting import LAST_READ
from greeter.client.receiver import Receiver

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from greeter.client.arguments import Exchange


async def over_tls(sock: socket.socket, exchange: Exchange, name: str | None) -> TLSReceiver:
    """Make the TLS handshake on a connected socket, which is closed if this fails.

    Args:
        sock: The socket.
        exchange: What to receive.
        name: The name to verify in the server's certificate.
    """
    loop, receiver = asyncio.get_running_loop(), TLSReceiver(exchange)
    await loop.create_connection(lambda: receiver, sock=sock, ssl=exchange.ssl, server_hostname=name)
    return receiver


class TLSReceiver(Receiver, asyncio.Protocol):
    """Sends some bytes when TLS is established, and receives the greeting."""

    _transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.connected = perf_counter()  # the first bytes can arrive before greet() continues
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self.done.done():
            self.receive(data)

    def eof_received(self) -> None:
        if not self.done.done():  # the greeting may have ended with the same bytes
            self.truncated = self._lacks_close_notify()
            self._transport.close()  # that answers the peer's close_notify
            self.finish()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.error = exc
            # asyncio calls eof_received() at any end of a stream, uvloop only at an orderly one.
            self.truncated = exc is None
            self.finish()

    def send(self, data: bytes) -> None:
        """Send ``data``, unless the connection has ended already."""
        # Not in connection_made(): uvloop closes a socket that it has not taken over yet if this fails.
        if not self._transport.is_closing():  # if it is, uvloop raises RuntimeError
            self._transport.write(data)

    def close(self) -> None:
        if not self._transport.is_closing():  # its end is being answered
            self._transport.abort()

    def _after_last_read(self, function: Callable[..., object], *args: Any) -> None:
        self._loop.call_later(LAST_READ, function, *args)

    def _lacks_close_notify(self) -> bool:
        """Return True if TLS was not closed: its end is authenticated by close_notify (RFC 8446 6.1)."""
        session = self._transport.get_extra_info("ssl_object")
        try:
            session.read(1)  # nothing is left; the end that was reached is told again
        except ssl.SSLZeroReturnError:
            return False
        except ssl.SSLError:
            return True
        return False
