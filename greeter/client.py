"""The client: connect, take the greeting, close; made to be awaited in any coroutine.

The law: what the peer sent is never lost. asyncio's StreamReader throws away what it holds when a
connection ends in a reset (cpython #75044), and a server that closes too early resets clients that spoke
first; so the reply is collected by a protocol of our own. And no wait is without a deadline.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import re
import socket
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, cast

from greeter.endpoint import DEFAULT_HOST, DEFAULT_PORT, Endpoint
from greeter.errors import ConfigError, ConnectFailed, GreetFailed, GreetReset, GreetTimeout, ReplyTooLarge

if TYPE_CHECKING:
    import ssl as ssl_module

TIMEOUT = 10.0
CONNECT_TIMEOUT = 5.0
MAX_BYTES = 64 * 1024
# RFC 8305, section 5, recommends 250 ms between the attempts of happy eyeballs.
EYEBALLS_DELAY = 0.25


@dataclass(frozen=True, slots=True)
class Reply:
    """A greeting received. ``data`` has its bytes, ``str(reply)`` its text (undecodable bytes escaped).

    ``connect_time``, ``first_byte_time`` and ``total_time`` are seconds since the call (``None`` where
    no byte came). ``reset`` is True if the peer reset the connection after what is in ``data``.
    """

    data: bytes
    target: str
    connect_time: float
    first_byte_time: float | None
    total_time: float
    reset: bool = False

    def __bytes__(self) -> bytes:
        return self.data

    def __str__(self) -> str:
        return self.data.decode(errors="backslashreplace")


class _Collector(asyncio.Protocol):
    """Collects until the end of stream, a newline, the size bound or the deadline.

    ``done`` resolves then, after the transport was told to close: when the waiting coroutine goes on,
    the descriptor is gone.
    """

    __slots__ = ("_data", "_limit", "_line", "connected", "done", "error", "first_byte", "late", "transport")

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int, until_line: bool) -> None:
        self._data = bytearray()
        self._limit = limit
        self._line = until_line
        self.done: asyncio.Future[None] = loop.create_future()
        self.error: Exception | None = None
        self.connected = 0.0
        self.first_byte: float | None = None
        self.late = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.connected = perf_counter()  # the first bytes can be here before greet() goes on
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        held = self._data
        if self.first_byte is None:
            self.first_byte = perf_counter()
        held += data
        if (self._line and b"\n" in data) or len(held) > self._limit:
            self.abort()

    def eof_received(self) -> None:
        self.transport.close()  # with TLS, that answers the peer's close_notify
        self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.error = exc
            self._finish()

    def expire(self) -> None:
        if not self.done.done():  # it may have ended in this very turn of the loop
            self.late = True
            self.abort()

    def abort(self) -> None:
        self.transport.abort()
        self._finish()

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def reply(self) -> bytes:
        """What came, up to and with the newline if one was asked for."""
        end = self._data.find(b"\n") + 1 if self._line else 0
        return bytes(self._data[:end] if end else self._data)


async def greet(
    host: str | int | Endpoint | None = DEFAULT_HOST,
    port: int | str = DEFAULT_PORT,
    *,
    # where: one of these takes the place of host and port
    path: str | None = None,
    sock: socket.socket | None = None,
    # TLS
    ssl: ssl_module.SSLContext | bool | None = None,
    server_hostname: str | None = None,
    # bounds
    timeout: float = TIMEOUT,
    connect_timeout: float = CONNECT_TIMEOUT,
    max_bytes: int = MAX_BYTES,
    until: Literal["eof", "line"] = "eof",
) -> Reply:
    """Connect, receive the greeting, close, and return the Reply.

    ``host``, ``port``: the server (or an Endpoint in the place of both). ``path``: a Unix socket
    (``@name``: an abstract one). ``sock``: a socket that is connected already, which becomes ours.
    ``ssl``: True or an SSLContext for TLS; ``server_hostname`` the name to verify, if not ``host``.
    ``timeout``: seconds for everything; ``connect_timeout``: seconds of those for connecting, with the
    TLS handshake. ``max_bytes``: the longest reply. ``until="line"`` takes one line, newline included,
    from a service that keeps the connection open (SMTP, SSH, FTP).

    Resource handling: the connection is closed when this returns or raises, also when it is cancelled.

    Error handling: raises ConnectFailed, GreetTimeout, GreetReset (before the first byte; after it, the
    Reply is flagged) and ReplyTooLarge, all GreetFailed; and ConfigError for arguments that contradict
    each other. A peer that closes without a byte gives an empty Reply.
    """
    target = _target(host, port, path, sock)
    if server_hostname is not None and not ssl:
        raise ConfigError(f"server_hostname {server_hostname!r} goes with ssl")
    if ssl and server_hostname is None and target.kind != "tcp":
        if ssl is True or ssl.check_hostname:
            raise ConfigError(f"TLS to {target} needs server_hostname, the name to verify")
        server_hostname = ""
    if until not in ("eof", "line") or max_bytes < 1 or not (timeout > 0 and connect_timeout > 0):
        raise ConfigError(
            "greet() needs until='eof' or 'line', max_bytes of at least 1 and positive timeouts, "
            f"not {until!r}, {max_bytes}, {timeout} and {connect_timeout}"
        )
    loop = asyncio.get_running_loop()
    collector = _Collector(loop, max_bytes, until == "line")
    deadline = loop.time() + timeout
    limit = min(connect_timeout, timeout)
    start = perf_counter()
    try:
        async with asyncio.timeout(limit):
            await _connect(loop, collector, target, sock, ssl, server_hostname)
    except TimeoutError as error:
        if error.errno is not None:  # the system's ETIMEDOUT, not our deadline
            raise ConnectFailed(str(target), error) from error
        raise GreetTimeout(str(target), "connect", limit) from None
    except OSError as error:  # the resolver's and TLS's errors are OSErrors too
        raise ConnectFailed(str(target), _last(error)) from error
    except UnicodeError as error:
        raise ConnectFailed(str(target), "not a host name") from error
    timer = loop.call_at(deadline, collector.expire)
    try:
        await collector.done
    except asyncio.CancelledError:
        collector.abort()
        raise
    finally:
        timer.cancel()
    data, first_byte = collector.reply(), collector.first_byte
    if collector.late:
        raise GreetTimeout(str(target), "end" if data else "first byte", timeout, data)
    if len(data) > max_bytes:
        raise ReplyTooLarge(str(target), max_bytes, data[:max_bytes])
    if collector.error is not None and not data:
        raise GreetReset(str(target)) from collector.error
    return Reply(
        data,
        str(target),
        connect_time=collector.connected - start,
        first_byte_time=None if first_byte is None else first_byte - start,
        total_time=perf_counter() - start,
        reset=collector.error is not None,
    )


async def greet_within(seconds: float, target: Endpoint, **options: Any) -> Reply:
    """``greet(target, **options)``, tried again for up to ``seconds`` until the service is up.

    The pause between tries doubles from 20 ms to 1 s; the last try is at the end of the time. Raises what
    that one raised.
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


def printable(text: str) -> str:
    """``text`` as a terminal may see it: control characters (C0 but newline and tab, DEL, C1) escaped."""
    return "".join(
        c if c >= " " and not "\x7f" <= c <= "\x9f" or c in "\n\t" else f"\\x{ord(c):02x}" for c in text
    )


def _target(
    host: str | int | Endpoint | None, port: int | str, path: str | None, sock: socket.socket | None
) -> Endpoint:
    if path is not None and sock is not None:
        raise ConfigError("give one of path and sock")
    if isinstance(host, Endpoint):
        return host
    if path is not None:
        return Endpoint.unix(path)
    if sock is not None:
        return Endpoint.inherited(sock.fileno())
    return _tcp(host, port)


# Checking a target costs a tenth of greeting it, and a caller has few of them.
_tcp = functools.lru_cache(maxsize=256)(Endpoint.tcp)


async def _connect(
    loop: asyncio.AbstractEventLoop,
    collector: _Collector,
    target: Endpoint,
    sock: socket.socket | None,
    ssl: ssl_module.SSLContext | bool | None,
    server_hostname: str | None,
) -> None:
    if target.kind == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, target.path)  # uvloop's own connect knows no abstract names
        except BaseException:
            sock.close()
            raise
        await loop.create_unix_connection(
            lambda: collector, sock=sock, ssl=ssl, server_hostname=server_hostname
        )
        return
    if target.kind == "fd":
        sock = _duplicate(target.fd) if sock is None else sock
        if sock.type != socket.SOCK_STREAM:
            sock.close()
            raise OSError(errno.EPROTOTYPE, os.strerror(errno.EPROTOTYPE))
        sock.setblocking(False)
        await loop.create_connection(lambda: collector, sock=sock, ssl=ssl, server_hostname=server_hostname)
        return
    host = target.host or "localhost"
    extras: dict[str, Any] = {}
    if isinstance(loop, asyncio.BaseEventLoop) and not _literal(host):  # uvloop has no happy eyeballs
        extras["happy_eyeballs_delay"] = EYEBALLS_DELAY
    await loop.create_connection(
        lambda: collector,
        host,
        cast("int", target.port),  # or a service name, which the resolver takes as well
        ssl=ssl,
        server_hostname=server_hostname,
        **extras,
    )


def _duplicate(fd: int) -> socket.socket:
    """A socket of our own on the connection behind ``fd``."""
    fd = os.dup(fd)
    try:
        return socket.socket(fileno=fd)
    except OSError:  # not a socket
        os.close(fd)
        raise


def _last(error: OSError) -> OSError:
    """asyncio puts the errors of several addresses into one text: the last of them, which is IPv4's."""
    codes = re.findall(r"\[Errno (\d+)\]", str(error)) if error.errno is None else ()
    return OSError(int(codes[-1]), os.strerror(int(codes[-1]))) if codes else error


def _literal(host: str) -> bool:
    """True for an IP address, which has nothing to race against."""
    return ":" in host or host.replace(".", "").isdigit()
