"""The one-shot client: connect, receive the greeting, close.

Invariants:

- Bytes that the peer sent are never lost. asyncio's StreamReader discards unread bytes when the connection is
  reset (cpython #75044), and a server that closes with unread input resets the connection. So ``greet()``
  receives with a protocol of its own.
- Every wait has a deadline.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from greeter.client.connecting import (
    CONNECT_TIMEOUT,
    MAX_BYTES,
    TIMEOUT,
    check_bounds,
    connect_errors,
    connected_socket,
    destination,
    name_to_verify,
    tcp_arguments,
    unix_socket,
)
from greeter.core.endpoint import DEFAULT_HOST
from greeter.core.replies import Reply, Until
from greeter.errors import ConfigError, GreetFailed, GreetReset, GreetTimeout, NoGreeting, ReplyTooLarge

if TYPE_CHECKING:
    import socket

    from greeter.client.connecting import TLS, Target
    from greeter.core.endpoint import Endpoint


class _ReplyProtocol(asyncio.Protocol):
    """Receives until the greeting or the stream ends, the size limit is exceeded or the deadline passes.

    ``done`` resolves then, after the transport was closed or aborted. The transport closes its descriptor
    before the waiting coroutine continues.
    """

    __slots__ = (
        "_data",
        "_limit",
        "_until",
        "connected",
        "done",
        "end",
        "error",
        "first_byte",
        "timed_out",
        "transport",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int, until: Until) -> None:
        self._data = bytearray()
        self._limit = limit
        self._until = until
        self.end: int | None = None  # of the greeting, when it is known
        self.done: asyncio.Future[None] = loop.create_future()
        self.error: Exception | None = None
        self.connected = 0.0
        self.first_byte: float | None = None
        self.timed_out = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.connected = perf_counter()  # the first bytes can arrive before greet() continues
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        held = self._data
        if self.first_byte is None:
            self.first_byte = perf_counter()
        seen = len(held)
        held += data
        if self.end is None:
            self.end = self._until.end(held, seen)
        if self.end is not None or len(held) > self._limit:
            self.abort()

    def eof_received(self) -> None:
        self.transport.close()  # with TLS, that answers the peer's close_notify
        self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.error = exc
            self._finish()

    def expire(self) -> None:
        if not self.done.done():  # it may have finished in this iteration of the loop
            self.timed_out = True
            self.abort()

    def abort(self) -> None:
        self.transport.abort()
        self._finish()

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def reply(self) -> bytes:
        """Return the bytes received, up to the end of the greeting."""
        return bytes(self._data[: self.end])

    @property
    def incomplete(self) -> bool:
        """True for a multi-line reply without its last line."""
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
) -> Reply:
    """Connect, receive the greeting, close, and return the greeting.

    The connection is closed when this returns or raises, and also if it is cancelled.

    Args:
        target: An Endpoint, the text of one (``"127.0.0.1:25"``, ``"[::1]:25"``, ``"unix:/path"``,
            ``"unix:@name"``, ``"fd:3"``), or a host: a name or an address.
        port: A port number or a service name, if the target is a host. The default is 9999.
        host: Keyword alternative to ``target``.
        path: The path of a Unix socket (``"@name"``: an abstract one), instead of a target.
        sock: A connected socket, instead of a target. It is closed with the connection.
        ssl: True or an SSLContext for TLS.
        server_hostname: The name to verify in the certificate, if it is not the target's host.
        timeout: Seconds for the whole call.
        connect_timeout: Seconds for connecting, including the TLS handshake; limited by ``timeout``.
        max_bytes: The size limit of the greeting in bytes.
        until: What ends the greeting. ``"eof"``: the end of the stream. ``"line"``: the end of a line, from a
            service that keeps the connection open (SSH). ``"reply"``: the last line of an SMTP or FTP reply
            (RFC 5321 4.2.1, RFC 959 4.2). The end of the stream always ends it.

    Returns:
        The Reply. It is empty if the peer closed without sending, and ``reset`` is set if the peer reset the
        connection after the greeting.

    Raises:
        ConfigError: An argument is invalid, or arguments contradict each other.
        ConnectFailed: Connecting failed.
        GreetTimeout: A deadline passed.
        GreetReset: The peer reset the connection before the first byte, or in the middle of a reply.
        NoGreeting: The peer closed in the middle of a reply (``until="reply"`` only).
        ReplyTooLarge: The greeting is longer than ``max_bytes``.

    Example::

        reply = await greeter.greet("mail.example", 25, until="reply", timeout=5)
    """
    if host is not None:
        if target != DEFAULT_HOST:
            raise ConfigError("give one of target and host")
        target = host
    where = destination(target, port, path, sock)
    server_hostname = name_to_verify(where, ssl, server_hostname)
    end = Until.parse(until)
    check_bounds(max_bytes, timeout, connect_timeout)
    loop = asyncio.get_running_loop()
    protocol = _ReplyProtocol(loop, max_bytes, end)
    deadline = loop.time() + timeout
    limit = min(connect_timeout, timeout)
    start = perf_counter()
    with connect_errors(where, limit):
        async with asyncio.timeout(limit):
            await _connect(loop, protocol, where, sock, ssl, server_hostname)
    timer = loop.call_at(deadline, protocol.expire)
    try:
        await protocol.done
    except asyncio.CancelledError:
        protocol.abort()
        raise
    finally:
        timer.cancel()
    data, first_byte = protocol.reply(), protocol.first_byte
    if protocol.timed_out:
        raise GreetTimeout(str(where), "end" if data else "first byte", timeout, data)
    if len(data) > max_bytes:
        raise ReplyTooLarge(str(where), max_bytes, data[:max_bytes])
    if protocol.error is not None and (not data or protocol.incomplete):
        raise GreetReset(str(where), data) from protocol.error
    if protocol.incomplete:
        raise NoGreeting(str(where), data)
    return Reply(
        data,
        str(where),
        connect_time=protocol.connected - start,
        first_byte_time=None if first_byte is None else first_byte - start,
        total_time=perf_counter() - start,
        reset=protocol.error is not None,
    )


async def greet_within(seconds: float, target: Target, **options: Any) -> Reply:
    """Call ``greet(target, **options)`` until it receives a greeting, for up to ``seconds``.

    The pause between attempts doubles from 20 ms to 1 s. The last attempt is made when the time is up.

    Args:
        seconds: How long to retry, in seconds.
        target: As for ``greet()``.
        options: As for ``greet()``.

    Returns:
        The Reply. It is empty if the last attempt received no byte.

    Raises:
        ConfigError: An argument is invalid.
        GreetFailed: The last attempt failed.
    """
    end = perf_counter() + seconds
    pause = 0.02
    while True:
        try:
            reply = await greet(target, **options)
            if reply.data or perf_counter() >= end:
                return reply
        except GreetFailed:
            if perf_counter() >= end:
                raise
        await asyncio.sleep(min(pause, max(0.0, end - perf_counter())))
        pause = min(2 * pause, 1.0)


async def _connect(
    loop: asyncio.AbstractEventLoop,
    protocol: _ReplyProtocol,
    target: Endpoint,
    sock: socket.socket | None,
    ssl: TLS,
    server_hostname: str | None,
) -> None:
    def factory() -> _ReplyProtocol:
        return protocol

    if target.kind == "unix":
        sock = await unix_socket(loop, target)
        await loop.create_unix_connection(factory, sock=sock, ssl=ssl, server_hostname=server_hostname)
    elif target.kind == "fd":
        sock = connected_socket(target, sock)
        await loop.create_connection(factory, sock=sock, ssl=ssl, server_hostname=server_hostname)
    else:
        where = tcp_arguments(loop, target)
        await loop.create_connection(factory, **where, ssl=ssl, server_hostname=server_hostname)
