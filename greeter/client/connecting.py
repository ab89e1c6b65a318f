"""Shared by ``greet()`` and ``open_connection()``: validating arguments, and connecting to an endpoint.

Invariants:

- An invalid argument raises ConfigError before a socket is opened.
- An error of the resolver, the system or TLS while connecting raises ConnectFailed; a deadline raises
  GreetTimeout.
- A socket that is created here is closed on every error and on cancellation.
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

TIMEOUT = 10.0  # seconds
CONNECT_TIMEOUT = 5.0  # seconds
MAX_BYTES = 64 * 1024
# Seconds between the connection attempts of happy eyeballs, as RFC 8305 5 recommends.
HAPPY_EYEBALLS_DELAY = 0.25

Target: TypeAlias = str | int | Endpoint | None
TLS: TypeAlias = ssl_module.SSLContext | bool | None

# Parsing a target costs a tenth of a greet(), and most callers use few targets. Typed: True must not hit 1.
_cached_target = functools.lru_cache(maxsize=256, typed=True)(Endpoint.target)


def destination(
    target: Target, port: int | str | None, path: str | None, sock: socket.socket | None
) -> Endpoint:
    """Return the endpoint that the arguments of ``greet()`` stand for.

    Raises:
        ConfigError: They contradict each other, or one is malformed or has the wrong type.
    """
    if path is None and sock is None:
        try:
            return _cached_target(target, port)
        except TypeError:  # unhashable: not a target either, and target() says so
            return Endpoint.target(target, port)
    if path is not None and sock is not None:
        raise ConfigError("give one of path and sock")
    if target != DEFAULT_HOST or port is not None:
        raise ConfigError(f"{'path' if sock is None else 'sock'} cannot be combined with a target or a port")
    if sock is None:
        if not isinstance(path, str):
            raise ConfigError(f"path must be a string, not {type(path).__name__}")
        return Endpoint.unix(path)
    if not isinstance(sock, socket.socket):
        raise ConfigError(f"sock must be a socket, not {type(sock).__name__}")
    return Endpoint.inherited(sock.fileno())


def check_bounds(max_bytes: object, timeout: object, connect_timeout: object) -> None:
    """Raise ConfigError for a limit of the wrong type or out of range."""
    if not isinstance(max_bytes, int) or isinstance(max_bytes, bool) or max_bytes < 1:
        raise ConfigError(f"max_bytes must be an integer of at least 1, not {max_bytes!r}")
    for name, seconds in (("timeout", timeout), ("connect_timeout", connect_timeout)):
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not seconds > 0:
            raise ConfigError(f"{name} must be a positive number of seconds, not {seconds!r}")


def name_to_verify(target: Endpoint, ssl: TLS, server_hostname: str | None) -> str | None:
    """Validate the TLS arguments.

    Returns:
        The ``server_hostname`` to pass to asyncio; ``None`` stands for the target's host.

    Raises:
        ConfigError: One has the wrong type, ``server_hostname`` is given without TLS, or TLS must verify a
            host name and the target has none.
    """
    if ssl is not None and not isinstance(ssl, bool | ssl_module.SSLContext):
        raise ConfigError(f"ssl must be True or an SSLContext, not {type(ssl).__name__}")
    if server_hostname is not None and not isinstance(server_hostname, str):
        raise ConfigError(f"server_hostname must be a string, not {type(server_hostname).__name__}")
    if server_hostname is not None and not ssl:
        raise ConfigError(f"server_hostname {server_hostname!r} requires ssl")
    if ssl and server_hostname is None and target.kind != "tcp":
        if ssl is True or ssl.check_hostname:
            raise ConfigError(f"TLS to {target} needs server_hostname, the name to verify")
        return ""
    return server_hostname


@contextlib.contextmanager
def connect_errors(target: Endpoint, limit: float) -> Iterator[None]:
    """Convert what connecting within ``limit`` seconds raises to ConnectFailed or GreetTimeout."""
    try:
        yield
    except TimeoutError as error:
        if error.errno is not None:  # the system's ETIMEDOUT, not our deadline
            raise ConnectFailed(str(target), error) from error
        raise GreetTimeout(str(target), "connect", limit) from None
    except OSError as error:  # including the errors of the resolver and of TLS
        raise ConnectFailed(str(target), _last_error(error)) from error
    except UnicodeError as error:
        raise ConnectFailed(str(target), "not a host name") from error


def tcp_arguments(loop: asyncio.AbstractEventLoop, target: Endpoint) -> dict[str, Any]:
    """Return the arguments with which ``create_connection()`` connects to a TCP endpoint."""
    host = target.host or "localhost"
    arguments: dict[str, Any] = {"host": host, "port": target.port}  # the resolver handles service names
    if isinstance(loop, asyncio.BaseEventLoop) and not _is_ip_address(host):  # uvloop lacks happy eyeballs
        arguments["happy_eyeballs_delay"] = HAPPY_EYEBALLS_DELAY
    return arguments


async def unix_socket(loop: asyncio.AbstractEventLoop, target: Endpoint) -> socket.socket:
    """Return a socket connected to a Unix endpoint. uvloop cannot connect to abstract names by itself."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, target.path)
    except BaseException:
        sock.close()
        raise
    return sock


def connected_socket(target: Endpoint, sock: socket.socket | None) -> socket.socket:
    """Return a non-blocking socket: ``sock``, or one on a duplicate of the descriptor of ``target``.

    Raises:
        OSError: It is not a stream socket. It was closed.
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
    """Return the last of several errors that asyncio put into one text: that of the last address tried."""
    codes = re.findall(r"\[Errno (\d+)\]", str(error)) if error.errno is None else ()
    return OSError(int(codes[-1]), os.strerror(int(codes[-1]))) if codes else error


def _is_ip_address(host: str) -> bool:
    """Return True for an IP address, for which happy eyeballs has no alternatives to race."""
    return ":" in host or host.replace(".", "").isdigit()
