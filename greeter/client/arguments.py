"""The arguments of ``greet()``, ``greet_many()`` and ``open_connection()``, validated.

Invariants:

- An invalid argument raises ConfigError, whose message names it, before a socket is opened.
"""

from __future__ import annotations

import functools
import socket
import ssl as ssl_module
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from greeter.core.datagram_sizes import DATAGRAM_MAX
from greeter.core.endpoint import DEFAULT_HOST, Endpoint, host_name
from greeter.core.replies import Until
from greeter.errors import ConfigError

if TYPE_CHECKING:
    from greeter.core.proxy_protocol import ProxyVersion

TIMEOUT = 10.0  # seconds
CONNECT_TIMEOUT = 5.0  # seconds
MAX_BYTES = 64 * 1024

Target: TypeAlias = str | int | Endpoint | None
TLS: TypeAlias = ssl_module.SSLContext | bool | None

# Parsing a target costs a tenth of a greet(), and most callers use few targets. Typed: True must not hit 1.
_cached_target = functools.lru_cache(maxsize=256, typed=True)(Endpoint.target)


class Exchange(NamedTuple):
    """What is said on a connection, and its limits. See ``greet()``."""

    ssl: TLS
    timeout: float
    connect_timeout: float
    max_bytes: int
    until: Until
    send: bytes | None
    expect: bytes | None
    proxy_protocol: ProxyVersion | None


def destination(
    target: Target, port: int | str | None = None, path: str | None = None, sock: socket.socket | None = None
) -> Endpoint:
    """Return the endpoint that the arguments of ``greet()`` stand for.

    Raises:
        ConfigError: They contradict each other, or one is malformed or has the wrong type.
    """
    if path is None and sock is None:
        try:
            endpoint = _cached_target(target, port)
        except TypeError:  # unhashable: not a target either, and target() says so
            endpoint = Endpoint.target(target, port)
        return endpoint
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


def check_exchange(
    ssl: TLS,
    timeout: float,
    connect_timeout: float,
    max_bytes: int,
    until: str | Until,
    send: object,
    expect: object,
    proxy_protocol: object,
) -> Exchange:
    """Return the Exchange of these arguments.

    Raises:
        ConfigError: One has the wrong type or is out of range.
    """
    if ssl is not None and not isinstance(ssl, bool | ssl_module.SSLContext):
        raise ConfigError(f"ssl must be True or an SSLContext, not {type(ssl).__name__}")
    check_seconds("timeout", timeout)
    check_seconds("connect_timeout", connect_timeout)
    if not isinstance(max_bytes, int) or isinstance(max_bytes, bool) or max_bytes < 1:
        raise ConfigError(f"max_bytes must be an integer of at least 1, not {max_bytes!r}")
    if send is not None and not isinstance(send, bytes | bytearray | memoryview):
        raise ConfigError(f"send must be bytes, not {type(send).__name__}")
    if expect is not None and (not isinstance(expect, str | bytes) or not expect):
        raise ConfigError(f"expect must be a non-empty string or bytes, not {expect!r}")
    if proxy_protocol is not None:
        from greeter.core.proxy_protocol import PROXY_VERSIONS  # few callers need it

        if proxy_protocol not in PROXY_VERSIONS:
            raise ConfigError(f"proxy_protocol must be 'v1' or 'v2', not {proxy_protocol!r}")
    return Exchange(
        ssl,
        timeout,
        connect_timeout,
        max_bytes,
        Until.parse(until),
        None if send is None else bytes(send),
        expect.encode(errors="surrogateescape") if isinstance(expect, str) else expect,
        proxy_protocol,
    )


def check_datagrams(target: Endpoint, exchange: Exchange) -> None:
    """Raise ConfigError if ``target`` is an endpoint for datagrams, and ``exchange`` needs a stream."""
    if target.kind != "udp":
        return
    if exchange.ssl:
        target.require_stream("ssl")
    if exchange.until.kind != "eof":
        target.require_stream(f"until {str(exchange.until)!r}")
    if exchange.proxy_protocol is not None:
        target.require_stream("proxy_protocol")
    if exchange.send is not None and len(exchange.send) > DATAGRAM_MAX:
        raise ConfigError(f"send has {len(exchange.send)} bytes, and a datagram {DATAGRAM_MAX} at most")


def check_seconds(name: str, seconds: object, *, zero: bool = False) -> None:
    """Raise ConfigError if ``seconds`` is not a positive number, or 0 where ``zero`` allows it."""
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not (seconds >= 0 if zero else seconds > 0):  # type: ignore[operator]  # it is a number
        kind = "number of seconds, 0 or more" if zero else "positive number of seconds"
        raise ConfigError(f"{name} must be a {kind}, not {seconds!r}")


def check_wait(wait: object, target: Endpoint) -> None:
    """Raise ConfigError if ``wait`` is not a number of seconds, or ``target`` cannot be connected again."""
    check_seconds("wait", wait, zero=True)
    if wait and target.kind == "fd":
        raise ConfigError(f"wait cannot be combined with {target}: it cannot be connected again")


def name_to_verify(target: Endpoint, ssl: TLS, server_hostname: str | None) -> str | None:
    """Return the name that the server's certificate must have; None without TLS.

    It has neither the dot that ends an absolute name (RFC 6066 3) nor the scope of an IPv6 address.

    Raises:
        ConfigError: ``server_hostname`` is not a host name or is given without TLS, or TLS must verify a host
            name and the target has none.
    """
    if server_hostname is not None and not isinstance(server_hostname, str):
        raise ConfigError(f"server_hostname must be a string, not {type(server_hostname).__name__}")
    if not ssl:
        if server_hostname is not None:
            raise ConfigError(f"server_hostname {server_hostname!r} requires ssl")
        return None
    if server_hostname is None and target.kind != "tcp":
        if ssl is True or ssl.check_hostname:
            raise ConfigError(f"TLS to {target} needs server_hostname, the name to verify")
        return ""
    if server_hostname:
        try:
            host_name(server_hostname)
        except ConfigError as error:
            raise ConfigError(f"server_hostname {error}") from None
    name = (target.host or "localhost") if server_hostname is None else server_hostname
    return name.partition("%")[0].removesuffix(".")
