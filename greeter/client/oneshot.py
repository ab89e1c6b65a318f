"""The one-shot client: connect, receive the greeting, close.

Invariants:

- Bytes that the peer sent are never lost. asyncio's StreamReader discards unread bytes when the connection is
  reset (cpython #75044), and a server that closes with unread input resets the connection. So ``greet()``
  receives with a protocol of its own. (With TLS, what is unread when a write fails is lost.)
- Every wait has a deadline.
"""

from __future__ import annotations

import asyncio
import ssl as ssl_module
from time import perf_counter
from typing import TYPE_CHECKING, cast

from greeter.client import datagram_exchange
from greeter.client.arguments import (
    CONNECT_TIMEOUT,
    MAX_BYTES,
    TIMEOUT,
    check_datagrams,
    check_exchange,
    check_wait,
    destination,
    name_to_verify,
)
from greeter.client.connecting import (
    LAST_READ,
    Connected,
    begin_to_connect,
    connect,
    connect_errors,
    is_alert,
)
from greeter.core.endpoint import DEFAULT_HOST
from greeter.core.replies import Reply, Until, is_tls_alert
from greeter.errors import (
    ConfigError,
    ConnectFailed,
    GreetFailed,
    GreetReset,
    GreetTimeout,
    NoGreeting,
    ReplyTooLarge,
    UnexpectedGreeting,
)

if TYPE_CHECKING:
    import socket

    from greeter.client.arguments import TLS, Exchange, Target
    from greeter.core.endpoint import Endpoint
    from greeter.core.proxy_protocol import ProxyVersion


class _ReplyProtocol(asyncio.Protocol):
    """Receives until the greeting or the stream ends, the size limit is exceeded or the deadline passes.

    ``done`` resolves then, after the transport was closed or aborted. The transport closes its descriptor
    before the waiting coroutine continues.
    """

    __slots__ = (
        "_data",
        "_limit",
        "_loop",
        "_sock",
        "_until",
        "connected",
        "done",
        "end",
        "error",
        "first_byte",
        "last_byte",
        "timed_out",
        "transport",
        "truncated",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int, until: Until) -> None:
        self._data = bytearray()
        self._limit = limit
        self._loop = loop
        self._sock: socket.socket | None = None
        self._until = until
        self.end: int | None = None  # of the greeting, when it is known
        self.done: asyncio.Future[None] = loop.create_future()
        self.error: Exception | None = None
        self.connected = 0.0
        self.first_byte: float | None = None
        self.last_byte = 0.0
        self.timed_out = self.truncated = False
        self.transport: asyncio.Transport

    def use(self, sock: socket.socket, error: OSError | None) -> None:
        """Set the socket to read from after an error, without TLS, and the error that it has already."""
        self._sock = sock
        self.error = error

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.connected = perf_counter()  # the first bytes can arrive before greet() continues
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        held = self._data
        if self.first_byte is None:
            self.first_byte = perf_counter()
            if self._until.idle:
                self._loop.call_later(self._until.idle, self._check_idle)
        if self._until.idle:
            self.last_byte = perf_counter()
        seen = len(held)
        held += data
        if self.end is None:
            self.end = self._until.end(held, seen)
        if self.end is not None or len(held) > self._limit:
            self.abort()

    def eof_received(self) -> None:
        self.truncated = self._lacks_close_notify()
        self.transport.close()  # with TLS, that answers the peer's close_notify
        self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.error = exc or self.error
            if exc is not None and self._sock is not None:
                self._read_rest(self._sock)
            # asyncio calls eof_received() at any end of a TLS stream, uvloop only at an orderly one.
            self.truncated = exc is None and self.transport.get_extra_info("ssl_object") is not None
            self._finish()

    def expire(self) -> None:
        if not self.done.done():  # it may have finished in this iteration of the loop
            self._loop.call_later(LAST_READ, self._time_out)

    def abort(self) -> None:
        self.transport.abort()
        self._finish()

    def _time_out(self) -> None:
        if not self.done.done():
            self.timed_out = True
            self.abort()

    def _check_idle(self) -> None:
        """End the greeting if its last byte is old enough, or look again when it can be."""
        if self.done.done():
            return
        rest = self.last_byte + self._until.idle - perf_counter()
        if rest > 0:
            self._loop.call_later(rest, self._check_idle)
        else:
            self._loop.call_later(LAST_READ, self._end_if_idle, self.last_byte)

    def _end_if_idle(self, last_byte: float) -> None:
        if self.done.done():
            return
        if self.last_byte != last_byte:
            self._check_idle()
            return
        self.end = len(self._data)
        self.abort()

    def _lacks_close_notify(self) -> bool:
        """Return True if TLS was not closed: its end is authenticated by close_notify (RFC 8446 6.1)."""
        session = self.transport.get_extra_info("ssl_object")
        if session is None:
            return False
        try:
            session.read(1)  # nothing is left; the end that was reached is told again
        except ssl_module.SSLZeroReturnError:
            return False
        except ssl_module.SSLError:
            return True
        return False

    def _read_rest(self, sock: socket.socket) -> None:
        """Read what is unread after a failed write. The transport closes the socket afterwards."""
        try:
            while len(self._data) <= self._limit and (data := sock.recv(65536)):
                self.data_received(data)
        except OSError:  # the end, or the error that is known
            pass

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def reply(self) -> bytes:
        """Return the bytes received, up to the end of the greeting."""
        return bytes(self._data[: self.end])

    @property
    def incomplete(self) -> bool:
        """True for a greeting that the end of the stream does not complete."""
        return self.end is None and bool(self._data) and not self._until.ended_by_eof(self._data)


async def greet(
    target: Target = DEFAULT_HOST,
    port: int | str | None = None,
    *,
    host: str | int | Endpoint | None = None,
    path: str | None = None,
    sock: socket.socket | None = None,
    ssl: TLS = None,
    server_hostname: str | None = None,
    timeout: float = TIMEOUT,
    connect_timeout: float = CONNECT_TIMEOUT,
    max_bytes: int = MAX_BYTES,
    until: str | Until = "eof",
    send: bytes | bytearray | memoryview | None = None,
    expect: str | bytes | None = None,
    proxy_protocol: ProxyVersion | None = None,
    wait: float = 0.0,
) -> Reply:
    r"""Connect, receive the greeting, close, and return the greeting.

    The connection is closed when this returns or raises, and also if it is cancelled.

    A service for datagrams (``"udp:127.0.0.1:9999"``, RFC 865) is asked with one datagram and again after
    0.5, 1, 2, … seconds, until it replies. The reply is one datagram. There is no TLS, PROXY header or
    ``until``.

    Args:
        target: An Endpoint, the text of one (``"127.0.0.1:25"``, ``"[::1]:25"``, ``"unix:/path"``,
            ``"unix:@name"``, ``"fd:3"``, ``"udp:[::1]:17"``), or a host: a name or an address.
        port: A port number or a service name, if the target is a host. The default is 9999.
        host: Keyword alternative to ``target``.
        path: The path of a Unix socket (``"@name"``: an abstract one), instead of a target.
        sock: A connected socket, instead of a target. It is closed with the connection.
        ssl: True or an SSLContext for TLS.
        server_hostname: The name to verify in the certificate, if it is not the target's host.
        timeout: Seconds for the whole call; with ``wait``, for one attempt.
        connect_timeout: Seconds for connecting, including the TLS handshake; limited by ``timeout``.
        max_bytes: The size limit of the greeting in bytes.
        until: What ends the greeting. The end of the stream always does.

            - ``"eof"``: nothing else.
            - ``"line"``: the end of a line, from a service that keeps the connection open (SSH).
            - ``"reply"``: the last line of an SMTP or FTP reply (RFC 5321 4.2.1, RFC 959 4.2).
            - ``"text:TEXT"``: the first occurrence of TEXT, in which ``\r \n \t \\ \xNN`` are escapes.
            - ``"bytes:N"``: the N-th byte.
            - ``"idle:DUR"``: the last byte before a pause, as in ``"idle:300ms"``. No time includes it.
        send: Bytes to send as soon as the connection is complete; the payload of each datagram. Without it, a
            datagram has 171 bytes, a third of RFC 865's 512: no service needs more to be no amplifier.
        expect: Text or bytes that the greeting must contain.
        proxy_protocol: ``"v1"`` or ``"v2"`` to send a PROXY header first, with the addresses of this
            connection, to a service that requires one.
        wait: Seconds for which to retry until the service greets. The pause between attempts doubles from
            20 ms to 1 s. The last attempt is made when the time is up.

    Returns:
        The Reply. It is empty, and thus false, if the peer closed without sending. ``reset`` is set if the
        peer reset the connection after the greeting, ``truncated`` if TLS ended without close_notify.

    Raises:
        ConfigError: An argument is invalid, or arguments contradict each other.
        ConnectFailed: Connecting failed, or the peer speaks TLS on a connection without it, or refused the
            client certificate. A datagram was refused (ICMP port unreachable).
        GreetTimeout: A deadline passed.
        GreetReset: The peer reset the connection before the first byte, or in the middle of a greeting.
        NoGreeting: The peer closed in the middle of a greeting, or without a byte (only with ``expect``
            or ``wait``).
        ReplyTooLarge: The greeting is longer than ``max_bytes``.
        UnexpectedGreeting: The greeting does not contain ``expect``.

    Example::

        reply = await greeter.greet("mail.example", 25, until="reply", expect="220 ", wait=5)
    """
    if host is not None:
        if target != DEFAULT_HOST:
            raise ConfigError("give one of target and host")
        target = host
    where = destination(target, port, path, sock)
    exchange = check_exchange(ssl, timeout, connect_timeout, max_bytes, until, send, expect, proxy_protocol)
    check_datagrams(where, exchange)
    name = name_to_verify(where, ssl, server_hostname)
    check_wait(wait, where)
    if not wait:
        return await exchange_once(where, exchange, name, sock)
    return await exchange_within(wait, where, exchange, name)


async def exchange_within(seconds: float, target: Endpoint, exchange: Exchange, name: str | None) -> Reply:
    """Call ``exchange_once()`` until it receives a greeting, for up to ``seconds``. See ``greet()``."""
    end = perf_counter() + seconds
    pause = 0.02
    while True:
        try:
            reply = await exchange_once(target, exchange, name)
            if not reply:
                raise NoGreeting(str(target))
            return reply
        except GreetFailed:
            if perf_counter() >= end:
                raise
        await asyncio.sleep(min(pause, max(0.0, end - perf_counter())))
        pause = min(2 * pause, 1.0)


async def exchange_once(
    target: Endpoint, exchange: Exchange, name: str | None, sock: socket.socket | None = None
) -> Reply:
    """Connect, exchange and close.

    Args:
        target: The endpoint.
        exchange: What to say and to receive.
        name: The name to verify in the certificate.
        sock: A connected socket, instead of connecting to ``target``.

    Returns:
        As ``greet()``, whose exceptions this raises.
    """
    if target.kind == "udp":
        return await datagram_exchange.ask(target, exchange)
    loop = asyncio.get_running_loop()
    protocol = _ReplyProtocol(loop, exchange.max_bytes, exchange.until)
    deadline = loop.time() + exchange.timeout
    limit = min(exchange.connect_timeout, exchange.timeout)
    start = perf_counter()
    with connect_errors(target, limit) as progress:
        attempt = begin_to_connect(target)
        if attempt is None or attempt.code or exchange.ssl or exchange.proxy_protocol is not None:
            async with asyncio.timeout(limit):
                connected = await connect(
                    target, sock, exchange.proxy_protocol, tls=bool(exchange.ssl), attempt=attempt
                )
                if exchange.ssl:
                    progress.phase = "handshake"
                    await loop.create_connection(
                        lambda: protocol, sock=connected.sock, ssl=exchange.ssl, server_hostname=name
                    )
        else:
            connected = Connected(attempt.sock)
        if not exchange.ssl:
            protocol.use(*connected)
            await loop.create_connection(lambda: protocol, sock=connected.sock)
    # Not in connection_made(): uvloop closes a socket that it has not taken over yet if this fails.
    if exchange.send and not protocol.transport.is_closing():  # if it is, uvloop raises RuntimeError
        protocol.transport.write(exchange.send)
    timer = loop.call_at(deadline, protocol.expire)
    try:
        await protocol.done
    except asyncio.CancelledError:
        protocol.abort()
        raise
    finally:
        timer.cancel()
    end = protocol.last_byte or perf_counter()
    data, first_byte = protocol.reply(), protocol.first_byte
    _check(data, protocol, str(target), exchange)
    return Reply(
        data,
        str(target),
        connect_time=protocol.connected - start,
        first_byte_time=None if first_byte is None else first_byte - start,
        total_time=end - start,
        reset=protocol.error is not None,
        truncated=protocol.truncated,
    )


def _check(data: bytes, protocol: _ReplyProtocol, target: str, exchange: Exchange) -> None:
    """Raise what ``greet()`` raises for what was received."""
    if protocol.timed_out:
        raise GreetTimeout(target, "end" if data else "first byte", exchange.timeout, data)
    if len(data) > exchange.max_bytes:
        raise ReplyTooLarge(target, exchange.max_bytes, data[: exchange.max_bytes])
    if not exchange.ssl and is_tls_alert(data):
        raise ConnectFailed(target, "the server speaks TLS")
    if is_alert(protocol.error) and not data:
        raise ConnectFailed(target, protocol.error) from protocol.error
    if protocol.error is not None and (not data or protocol.incomplete):
        raise GreetReset(target, data) from protocol.error
    if protocol.incomplete or (exchange.expect is not None and not data):
        raise NoGreeting(target, data)
    if exchange.expect is not None and exchange.expect not in data:
        raise UnexpectedGreeting(target, exchange.expect, data)
