"""The stream client, for protocols that continue after the greeting (SMTP, FTP, SSH).

Invariants:

- Bytes after the greeting stay in the StreamReader. Only ``readuntil()`` stops at a line end without reading
  on, so the limit on a line is the StreamReader's ``limit``.
- Every wait has a deadline.
- After an error the descriptor is closed. After a cancellation it is closed in the loop's next iteration.
"""

from __future__ import annotations

import asyncio
import contextlib
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from greeter.client.arguments import (
    CONNECT_TIMEOUT,
    MAX_BYTES,
    TIMEOUT,
    check_exchange,
    destination,
    name_to_verify,
)
from greeter.client.connecting import LAST_READ, connect, connect_errors, is_alert
from greeter.core.endpoint import DEFAULT_HOST
from greeter.core.replies import Reply, Until
from greeter.errors import (
    ConfigError,
    ConnectFailed,
    GreetFailed,
    GreetReset,
    GreetTimeout,
    NoGreeting,
    ReplyTooLarge,
)

if TYPE_CHECKING:
    import socket

    from greeter.client.arguments import TLS, Target
    from greeter.core.proxy_protocol import ProxyVersion


async def open_connection(
    target: Target = DEFAULT_HOST,
    port: int | str | None = None,
    *,
    path: str | None = None,
    sock: socket.socket | None = None,
    until: Literal["line", "reply"] = "line",
    send: bytes | bytearray | memoryview | None = None,
    proxy_protocol: ProxyVersion | None = None,
    ssl: TLS = None,
    server_hostname: str | None = None,
    timeout: float = TIMEOUT,
    connect_timeout: float = CONNECT_TIMEOUT,
    max_bytes: int = MAX_BYTES,
) -> tuple[Reply, asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect, receive the greeting, and return it with the open connection.

    Bytes after the greeting stay in the StreamReader. The deadlines apply up to the end of the greeting. The
    caller must close the StreamWriter.

    asyncio's StreamReader discards unread bytes when the peer resets the connection (cpython #75044), so a
    greeting can be lost if a reset follows it at once. ``greet()`` never loses a byte; use it if only the
    greeting is needed.

    Args:
        target: An Endpoint, the text of one (``"127.0.0.1:25"``, ``"[::1]:25"``, ``"unix:/path"``,
            ``"unix:@name"``, ``"fd:3"``), or a host: a name or an address.
        port: A port number or a service name, if the target is a host. The default is 9999.
        path: The path of a Unix socket (``"@name"``: an abstract one), instead of a target.
        sock: A connected socket, instead of a target. It is closed with the connection.
        until: What ends the greeting. ``"line"``: the end of a line. ``"reply"``: the last line of an SMTP
            or FTP reply (RFC 5321 4.2.1, RFC 959 4.2). The end of the stream ends a line too.
        send: Bytes to send before the greeting is read.
        proxy_protocol: ``"v1"`` or ``"v2"`` to send a PROXY header first, with the addresses of this
            connection.
        ssl: True or an SSLContext for TLS.
        server_hostname: The name to verify in the certificate, if it is not the target's host.
        timeout: Seconds from the call to the end of the greeting.
        connect_timeout: Seconds for connecting, including the TLS handshake; limited by ``timeout``.
        max_bytes: The size limit of the greeting in bytes. The StreamReader's ``limit`` is one byte less.

    Returns:
        The Reply, the StreamReader and the StreamWriter. Every line of ``reply.data`` has its line end,
        except a last line that the end of the stream ended.

    Raises:
        ConfigError: An argument is invalid, or arguments contradict each other.
        ConnectFailed: Connecting failed, or the peer refused the client certificate.
        GreetTimeout: A deadline passed.
        GreetReset: The peer reset the connection before the greeting was complete.
        NoGreeting: The peer closed the connection without sending, or in the middle of a reply.
        ReplyTooLarge: The greeting is longer than ``max_bytes``.

    Example::

        reply, reader, writer = await greeter.open_connection("mail.example", 25, until="reply")
        writer.write(b"QUIT\\r\\n")
        print(reply, await reader.readline())
        writer.close()
        await writer.wait_closed()
    """
    where = destination(target, port, path, sock)
    where.require_stream("open_connection()")
    exchange = check_exchange(ssl, timeout, connect_timeout, max_bytes, until, send, None, proxy_protocol)
    if exchange.until.kind not in ("line", "reply"):
        raise ConfigError(f"until must be line or reply, not {until!r}")
    name = name_to_verify(where, ssl, server_hostname)
    deadline = asyncio.get_running_loop().time() + timeout
    limit = min(connect_timeout, timeout)
    start = perf_counter()
    with connect_errors(where, limit) as progress:
        async with asyncio.timeout(limit):
            sock, lost = await connect(where, sock, proxy_protocol, tls=bool(ssl))
            progress.phase = "handshake" if ssl else "connect"
            # The first byte is read separately, so a buffer above this limit means a line above max_bytes.
            reader, writer = await asyncio.open_connection(
                sock=sock, limit=max(max_bytes - 1, 1), ssl=ssl, server_hostname=name
            )
    connected = perf_counter()
    data = bytearray()
    try:
        if send and not writer.transport.is_closing():  # uvloop raises RuntimeError if it is
            writer.write(send)  # without drain(): the peer may block until we read
        try:
            async with asyncio.timeout_at(deadline):
                first_byte = await _receive(reader, data, exchange.until, max_bytes)
        except TimeoutError as error:
            if error.errno is not None:  # the system's
                raise
            await asyncio.sleep(LAST_READ)  # after a pause of this process, what came in time is read first
            async with asyncio.timeout(0):
                first_byte = await _receive(reader, data, exchange.until, max_bytes)
        if lost is not None and exchange.until.end(data) is None:
            raise lost
    except (asyncio.LimitOverrunError, asyncio.IncompleteReadError, OSError) as error:
        data += await _abort(reader, writer)
        cause = lost if lost and isinstance(error, asyncio.IncompleteReadError) else error
        raise _failure(cause, str(where), bytes(data), max_bytes, timeout) from cause
    except BaseException:
        writer.transport.abort()
        raise
    reply = Reply(
        bytes(data),
        str(where),
        connect_time=connected - start,
        first_byte_time=first_byte - start,
        total_time=perf_counter() - start,
        reset=lost is not None,
    )
    return reply, reader, writer


async def _receive(reader: asyncio.StreamReader, data: bytearray, until: Until, max_bytes: int) -> float:
    """Read the greeting into ``data``, which has the bytes received even if this raises. May be repeated.

    Returns:
        The time of the first byte, on ``perf_counter()``.

    Raises:
        LimitOverrunError: The greeting is longer than ``max_bytes``. The rest may still be in the reader.
        IncompleteReadError: The stream ended before the greeting did.
    """
    if not data:
        data += await reader.readexactly(1)  # separately, to take its time
    first_byte = perf_counter()
    seen = 0
    try:
        while until.end(data, seen) is None and len(data) <= max_bytes:
            seen = len(data)
            # At the limit, read one more byte: it tells a longer greeting from the end of the stream.
            data += await (reader.readuntil(b"\n") if len(data) < max_bytes else reader.readexactly(1))
    except asyncio.IncompleteReadError as error:
        data += error.partial
        if not until.ended_by_eof(data):
            raise
    if len(data) > max_bytes:
        raise asyncio.LimitOverrunError("the greeting is longer than max_bytes", len(data))
    return first_byte


def _failure(error: Exception, target: str, received: bytes, max_bytes: int, timeout: float) -> GreetFailed:
    """Return what ``open_connection()`` raises for an error of the streams."""
    if isinstance(error, asyncio.LimitOverrunError) or len(received) > max_bytes:
        return ReplyTooLarge(target, max_bytes, received[:max_bytes])
    if isinstance(error, asyncio.IncompleteReadError):
        return NoGreeting(target, received)
    if isinstance(error, TimeoutError) and error.errno is None:  # not the system's ETIMEDOUT
        return GreetTimeout(target, "end" if received else "first byte", timeout, received)
    if is_alert(error) and not received:
        return ConnectFailed(target, error)
    return GreetReset(target, received)


async def _abort(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Abort the connection. Return the bytes that are still in the reader."""
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
        return await reader.read()
    return b""
