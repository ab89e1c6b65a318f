"""Connect a socket to an endpoint, on any event loop alike.

The loops differ in what they do for a name: uvloop has no happy eyeballs, its resolver drops IPv6 scope ids
(uvloop #539), and both lose what a peer sent that reset the connection before the loop saw it connected. So
greeter connects sockets itself, and the loop only waits.

Invariants:

- A name with several addresses is connected as RFC 8305 recommends.
- A socket that is created here is closed on every error and on cancellation.
- An error of the resolver, the system or TLS while connecting raises ConnectFailed; a deadline raises
  GreetTimeout.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeGuard

from greeter.errors import ConnectFailed, GreetTimeout
from greeter.system.loops import run_in_thread

if TYPE_CHECKING:
    from types import TracebackType

    from greeter.core.endpoint import Endpoint
    from greeter.core.proxy_protocol import ProxyVersion

# Seconds between the attempts to connect to the addresses of a name, as RFC 8305 5 recommends.
ATTEMPT_DELAY = 0.25
# Seconds that pass between a deadline and the failure. A process that was stopped finds its deadline passed
# and the greeting unread, and uvloop runs timers before it reads.
LAST_READ = 0.001
# Seconds between attempts to connect to a Unix socket whose queue is full, which no event ends (connect(2)).
_RETRY_SECONDS = 0.005
# Errors of a connection that the peer has reset. EPIPE: after the end of the stream (Linux).
_RESET_ERRORS = (errno.ECONNRESET, errno.EPIPE)
# What OpenSSL, 1.1 to 3.5, makes of a server that sends something else than TLS.
_NOT_TLS = {"WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL"}

Address: TypeAlias = "tuple[socket.AddressFamily, Any]"  # the family, and what connect() takes


class Connected(NamedTuple):
    """A connected socket, which does not block.

    Attributes:
        sock: The socket.
        error: The reset that the peer has sent already; what it sent before that can still be read.
    """

    sock: socket.socket
    error: OSError | None = None


class Attempt(NamedTuple):
    """A socket that was told to connect.

    Attributes:
        sock: The socket, which does not block.
        where: What connect() takes.
        code: 0 if it is connected, EINPROGRESS if that takes time, or the error of connect(2).
    """

    sock: socket.socket
    where: Any
    code: int


class connect_errors:  # a context manager, used as a function
    """Convert what connecting within ``limit`` seconds raises to ConnectFailed or GreetTimeout.

    Attributes:
        phase: What is under way, for GreetTimeout.
    """

    __slots__ = ("_limit", "_target", "phase")

    def __init__(self, target: Endpoint, limit: float) -> None:
        self._target = target
        self._limit = limit
        self.phase: Literal["connect", "handshake"] = "connect"

    def __enter__(self) -> connect_errors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is None:
            return
        target = str(self._target)
        if (
            isinstance(error, TimeoutError) and error.errno is None
        ):  # our deadline, not the system's ETIMEDOUT
            raise GreetTimeout(target, self.phase, self._limit) from None
        if isinstance(error, ssl.SSLError) and error.reason in _NOT_TLS:
            raise ConnectFailed(target, "the server does not speak TLS") from error
        if isinstance(error, OSError):  # including the errors of the resolver and of TLS
            raise ConnectFailed(target, error) from error
        if isinstance(error, UnicodeError):
            raise ConnectFailed(target, "not a host name") from error


def is_alert(error: BaseException | None) -> TypeGuard[ssl.SSLError]:
    """Return True for a TLS alert of the peer (RFC 8446 6.2).

    With TLS 1.3, the handshake is complete for a client before its server has checked the client's
    certificate. A server that refuses it sends an alert in place of the greeting.
    """
    return isinstance(error, ssl.SSLError) and "_ALERT_" in (error.reason or "")


def begin_to_connect(target: Endpoint) -> Attempt | None:
    """Begin to connect to ``target``, if that needs no resolver; otherwise return None.

    On loopback, the connection is established at once and needs no deadline.
    """
    address = _numeric_address(target) if target.kind == "tcp" else None
    return None if address is None else _begin(address)


async def connect(
    target: Endpoint,
    sock: socket.socket | None,
    proxy_protocol: ProxyVersion | None,
    *,
    tls: bool,
    attempt: Attempt | None = None,
) -> Connected:
    """Return a socket that is connected to ``target``, or ``sock``, which is.

    Args:
        target: The endpoint.
        sock: A connected socket, for an endpoint of kind ``fd``; None for a duplicate of its descriptor.
        proxy_protocol: The version of the PROXY header to send, or None.
        tls: True if a TLS handshake follows, which a connection that was reset cannot complete.
        attempt: What ``begin_to_connect`` returned for this target.

    Raises:
        OSError: Connecting failed, or ``sock`` is no stream socket. ``sock`` is closed.
        UnicodeError: The host is not a valid name.
    """
    loop = asyncio.get_running_loop()
    if attempt is not None:
        connected = await _complete(loop, attempt)
    elif target.kind == "tcp":
        addresses = await resolve(target)
        connected = await (_connect(loop, addresses[0]) if len(addresses) == 1 else _race(loop, addresses))
    elif target.kind == "unix":
        connected = await _connect(loop, (socket.AF_UNIX, target.path))
    else:
        connected = Connected(_stream_socket(target, sock))
    if proxy_protocol is not None and connected.error is None:
        connected = _send_header(connected.sock, proxy_protocol)
    if tls and connected.error is not None:
        connected.sock.close()
        raise connected.error
    return connected


async def resolve(target: Endpoint, kind: socket.SocketKind = socket.SOCK_STREAM) -> list[Address]:
    """Return the addresses of a TCP or UDP endpoint, at least one, in the order in which to try them.

    Args:
        target: The endpoint.
        kind: The type of the sockets, which a service name depends on.

    Raises:
        OSError: The name cannot be resolved.
        UnicodeError: The host is not a valid name.
    """
    address = _numeric_address(target)
    return _interleaved(await _look_up(target, kind)) if address is None else [address]


def _numeric_address(target: Endpoint) -> Address | None:
    """Return the address of an endpoint that needs no resolver: an IP address with a port number."""
    host, port = target.host, target.port
    if isinstance(port, str):
        return None
    try:
        if ":" in host:  # the resolver's parser makes a number of a scope
            flags = socket.AI_NUMERICHOST
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
            return found[0][0], found[0][4]
        socket.inet_pton(socket.AF_INET, host)
    except OSError:
        return None
    return socket.AF_INET, (host, port)


async def _look_up(target: Endpoint, kind: socket.SocketKind) -> list[Address]:
    """Return the addresses of a TCP or UDP endpoint, at least one, in the order of RFC 6724."""
    host = target.host or "localhost"
    if host == "localhost.":  # RFC 6761 6.3; a hosts file has it without the dot
        host = "localhost"
    # Not in the event loop's pool of threads: names that take long would hold up all others, and the end of
    # the process.
    found = await run_in_thread(lambda: socket.getaddrinfo(host, target.port, type=kind))
    return [(entry[0], entry[4]) for entry in found]


def _interleaved(addresses: list[Address]) -> list[Address]:
    """Return the addresses so that the families alternate, as RFC 8305 4 requires."""
    first = [address for address in addresses if address[0] == addresses[0][0]]
    others = [address for address in addresses if address[0] != addresses[0][0]]
    return [address for pair in zip_longest(first, others) for address in pair if address is not None]


async def _race(loop: asyncio.AbstractEventLoop, addresses: list[Address]) -> Connected:
    """Connect to one of several addresses.

    An attempt begins when the one before it has failed, or has taken ATTEMPT_DELAY (RFC 8305 5). The first
    that succeeds wins, and the others are cancelled.

    Raises:
        OSError: Every attempt failed; this is the error of the last.
    """
    attempts: list[asyncio.Task[Connected]] = []
    pending: set[asyncio.Task[Connected]] = set()
    winner = None
    try:
        while len(attempts) < len(addresses) or pending:
            more = len(attempts) < len(addresses)
            if more:
                attempts.append(loop.create_task(_connect(loop, addresses[len(attempts)])))
                pending.add(attempts[-1])
            _, pending = await asyncio.wait(
                pending,
                timeout=ATTEMPT_DELAY if len(attempts) < len(addresses) else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            winner = next((task for task in attempts if task.done() and task.exception() is None), None)
            if winner is not None:
                return winner.result()
        return attempts[-1].result()  # raises
    finally:
        for task in attempts:
            task.cancel()
        try:
            await asyncio.wait(attempts)
        except asyncio.CancelledError:
            winner = None  # the caller does not get it
            raise
        finally:  # an attempt that is not done by now is cancelled, and closes its socket itself
            for task in attempts:
                if task.done() and not task.cancelled() and task.exception() is None and task is not winner:
                    task.result().sock.close()


async def _connect(loop: asyncio.AbstractEventLoop, address: Address) -> Connected:
    """Connect a new socket to one address.

    Raises:
        OSError: Connecting failed.
    """
    return await _complete(loop, _begin(address))


def _begin(address: Address) -> Attempt:
    """Begin to connect a new socket to one address. Raises OSError if there is no socket for it."""
    family, where = address
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        code = sock.connect_ex(where)
    except BaseException:
        sock.close()
        raise
    if code == errno.EINPROGRESS and _is_established(sock):  # on loopback it is
        code = 0
    return Attempt(sock, where, code)


async def _complete(loop: asyncio.AbstractEventLoop, attempt: Attempt) -> Connected:
    """Wait until the socket of ``attempt`` is connected.

    Raises:
        OSError: Connecting failed.
    """
    sock, where, code = attempt
    try:
        while code == errno.EAGAIN and sock.family == socket.AF_UNIX:
            await asyncio.sleep(_RETRY_SECONDS)
            code = sock.connect_ex(where)
        if code == errno.EINPROGRESS:
            await _writable(loop, sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code and code not in _RESET_ERRORS:
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    # An attempt that fails is refused, or times out. A reset means that the connection was established.
    return Connected(sock, _reset() if code else None)


def _is_established(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:  # ENOTCONN
        return False
    return True


async def _writable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    done = loop.create_future()

    def resolve() -> None:
        if not done.done():
            done.set_result(None)

    loop.add_writer(sock, resolve)
    try:
        await done
    finally:
        loop.remove_writer(sock)


def _stream_socket(target: Endpoint, sock: socket.socket | None) -> socket.socket:
    """Return ``sock``, or a socket on a duplicate of the descriptor of ``target``."""
    if sock is None:
        fd = os.dup(target.fd)
        try:
            sock = socket.socket(fileno=fd)
        except OSError:  # not a socket
            os.close(fd)
            raise
    if sock.type != socket.SOCK_STREAM:
        sock.close()
        raise OSError(errno.EPROTOTYPE, os.strerror(errno.EPROTOTYPE))
    sock.setblocking(False)
    return sock


def _send_header(sock: socket.socket, version: ProxyVersion) -> Connected:
    """Send a PROXY header, which always fits into the buffer of a new connection."""
    from greeter.core.proxy_protocol import encode  # few callers need it

    try:
        sock.sendall(encode(version, sock.getsockname(), sock.getpeername()))
    except OSError as error:
        if error.errno in (*_RESET_ERRORS, errno.ENOTCONN):
            return Connected(sock, _reset())
        sock.close()
        raise
    return Connected(sock)


def _reset() -> OSError:
    return ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
