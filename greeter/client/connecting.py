"""What ``greet()`` and ``open_connection()`` share: checked arguments, and how to connect to an endpoint.

Invariants:

- A wrong argument is a ConfigError before a socket is opened.
- Whatever the resolver, the system or TLS reports while connecting is a ConnectFailed; a deadline is a
  GreetTimeout.
- A socket that is made here is closed on every error and on cancellation.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import re
import socket
import ssl as ssl_module
from typing import TYPE_CHECKING, Any, TypeAlias

from greeter.core.endpoint import DEFAULT_HOST, Endpoint
from greeter.errors import ConfigError, ConnectFailed, GreetTimeout

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT = 10.0
CONNECT_TIMEOUT = 5.0
MAX_BYTES = 64 * 1024
# RFC 8305, section 5, recommends 250 ms between the attempts of happy eyeballs.
EYEBALLS_DELAY = 0.25

Target: TypeAlias = str | int | Endpoint | None
TLS: TypeAlias = ssl_module.SSLContext | bool | None

# Checking a target costs a tenth of greeting it, and a caller has few of them. Typed: True is not 1.
_read_target = functools.lru_cache(maxsize=256, typed=True)(Endpoint.target)


def destination(
    target: Target, port: int | str | None, path: str | None, sock: socket.socket | None
) -> Endpoint:
    """The endpoint that the arguments name, of which ``path`` and ``sock`` take the place of a target.

    Raises:
        ConfigError: They contradict each other, or one of them is malformed or of a wrong type.
    """
    if path is None and sock is None:
        try:
            return _read_target(target, port)
        except TypeError:  # what cannot be hashed is not a target either
            return Endpoint.target(target, port)
    if path is not None and sock is not None:
        raise ConfigError("give one of path and sock")
    if target != DEFAULT_HOST or port is not None:
        raise ConfigError(f"{'path' if sock is None else 'sock'} takes the place of a target and a port")
    if sock is None:
        if not isinstance(path, str):
            raise ConfigError(f"path is a string, not {type(path).__name__}")
        return Endpoint.unix(path)
    if not isinstance(sock, socket.socket):
        raise ConfigError(f"sock is a socket, not {type(sock).__name__}")
    return Endpoint.inherited(sock.fileno())


def check_bounds(
    until: object, allowed: tuple[str, ...], max_bytes: object, timeout: object, connect_timeout: object
) -> None:
    """Raise ConfigError for a bound of a wrong type or out of range, and for an unknown ``until``."""
    if until not in allowed:
        raise ConfigError(f"until is one of {', '.join(map(repr, allowed))}, not {until!r}")
    if not isinstance(max_bytes, int) or isinstance(max_bytes, bool) or max_bytes < 1:
        raise ConfigError(f"max_bytes is an integer of at least 1, not {max_bytes!r}")
    for name, seconds in (("timeout", timeout), ("connect_timeout", connect_timeout)):
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not seconds > 0:
            raise ConfigError(f"{name} is a positive number of seconds, not {seconds!r}")


def name_to_verify(target: Endpoint, ssl: TLS, server_hostname: str | None) -> str | None:
    """Check the arguments of TLS.

    Returns:
        The ``server_hostname`` to pass to asyncio; ``None`` is the target's host.

    Raises:
        ConfigError: One is of a wrong type, ``server_hostname`` is given without TLS, or the target has no
            host name and TLS is to verify one.
    """
    if ssl is not None and not isinstance(ssl, bool | ssl_module.SSLContext):
        raise ConfigError(f"ssl is True or an SSLContext, not {type(ssl).__name__}")
    if server_hostname is not None and not isinstance(server_hostname, str):
        raise ConfigError(f"server_hostname is a string, not {type(server_hostname).__name__}")
    if server_hostname is not None and not ssl:
        raise ConfigError(f"server_hostname {server_hostname!r} goes with ssl")
    if ssl and server_hostname is None and target.kind != "tcp":
        if ssl is True or ssl.check_hostname:
            raise ConfigError(f"TLS to {target} needs server_hostname, the name to verify")
        return ""
    return server_hostname


@contextlib.contextmanager
def connect_errors(target: Endpoint, limit: float) -> Iterator[None]:
    """Turn what connecting within ``limit`` seconds raises into ConnectFailed or GreetTimeout."""
    try:
        yield
    except TimeoutError as error:
        if error.errno is not None:  # the system's ETIMEDOUT, not our deadline
            raise ConnectFailed(str(target), error) from error
        raise GreetTimeout(str(target), "connect", limit) from None
    except OSError as error:  # the resolver's and TLS's errors are OSErrors too
        raise ConnectFailed(str(target), _last_error(error)) from error
    except UnicodeError as error:
        raise ConnectFailed(str(target), "not a host name") from error


def tcp_arguments(loop: asyncio.AbstractEventLoop, target: Endpoint) -> dict[str, Any]:
    """The arguments with which asyncio connects to a TCP endpoint."""
    host = target.host or "localhost"
    arguments: dict[str, Any] = {"host": host, "port": target.port}  # a service name is the resolver's
    if isinstance(loop, asyncio.BaseEventLoop) and not _is_ip_address(host):  # uvloop has no happy eyeballs
        arguments["happy_eyeballs_delay"] = EYEBALLS_DELAY
    return arguments


async def unix_socket(loop: asyncio.AbstractEventLoop, target: Endpoint) -> socket.socket:
    """A socket connected to a Unix endpoint. uvloop's own connect knows no abstract names."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, target.path)
    except BaseException:
        sock.close()
        raise
    return sock


def connected_socket(target: Endpoint, sock: socket.socket | None) -> socket.socket:
    """``sock``, or a socket of our own on the connection behind an ``fd`` endpoint; not blocking.

    Raises:
        OSError: It is not a stream socket. It is closed then.
    """
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


def _last_error(error: OSError) -> OSError:
    """asyncio puts the errors of several addresses into one text: the last of them, which is IPv4's."""
    codes = re.findall(r"\[Errno (\d+)\]", str(error)) if error.errno is None else ()
    return OSError(int(codes[-1]), os.strerror(int(codes[-1]))) if codes else error


def _is_ip_address(host: str) -> bool:
    """True for an IP address, which has nothing to race against."""
    return ":" in host or host.replace(".", "").isdigit()
