"""The configuration of a server, as one immutable value.

``greeter.config`` makes it from options, and ``greeter.serve`` from its keywords. It is handed down whole as
far as the connection tracker. A reload makes another one (``dataclasses.replace``).

Invariants:

- A ServerConfig that exists is valid: its checks stand here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from greeter.core.address import Address
from greeter.core.datagram_sizes import DATAGRAM_MAX
from greeter.errors import ConfigError

if TYPE_CHECKING:
    import ssl

    from greeter.core.admission import Limits, Networks
    from greeter.core.endpoint import Endpoint
    from greeter.core.greeting import Greeting

Accept: TypeAlias = Literal["auto", "direct", "streams"]
AccessLog: TypeAlias = Callable[[Address], None]

# The length of the accept queue. Python's default of 100 overflows at 150 simultaneous connects; nginx uses
# 511, uvicorn 2048. net.core.somaxconn caps it (listen(2)).
BACKLOG = 2048
# Seconds.
GREET_TIMEOUT = 10.0
LINGER_TIMEOUT = 2.0
DRAIN_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """What a server is told at its start. The listening sockets are not part of it.

    Args:
        greeting: The greeting to send.
        limits: Which connections are admitted, and how many; None admits all that the descriptors allow.
        tls: The TLS context, or None to serve without TLS.
        certificate_expiry: When the certificate expires, in seconds since the epoch; None if it is not known.
        proxy_from: The networks of trusted proxies, or None if there is no PROXY header.
        accept: The accept path.
        backlog: The length of the accept queues.
        unix_mode: The permissions of the files of Unix sockets; None for those that the umask leaves.
        greet_timeout: Seconds from accept until the kernel has the last byte.
        linger_timeout: Seconds after that until the client must have closed.
        drain_timeout: Seconds for all open connections at the end.
        access_log: True logs each client to the logger "greeter", at INFO; a callable gets the client's
            address instead; False logs none.
        datagram_log: Called with the source of each datagram, instead of ``access_log``.

    Raises:
        ConfigError: A value is not valid. The message has its name and the value.
    """

    greeting: Greeting
    limits: Limits | None = None
    tls: ssl.SSLContext | None = None
    certificate_expiry: float | None = None
    proxy_from: Networks | None = None
    accept: Accept = "auto"
    backlog: int = BACKLOG
    unix_mode: int | None = None
    greet_timeout: float = GREET_TIMEOUT
    linger_timeout: float = LINGER_TIMEOUT
    drain_timeout: float = DRAIN_TIMEOUT
    access_log: bool | AccessLog = True
    datagram_log: AccessLog | None = None

    def __post_init__(self) -> None:
        for name in ("greet_timeout", "linger_timeout", "drain_timeout"):
            seconds = getattr(self, name)
            if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not seconds >= 0:
                raise ConfigError(f"{name} must be a number of seconds from 0, not {seconds!r}")
        _check_integer("backlog", self.backlog, 1, 0x7FFFFFFF)  # a C int, for listen(2)
        if self.unix_mode is not None:
            _check_integer("unix_mode", self.unix_mode, 0, 0o7777)
        # By what is used of them: their modules are slow to import, and most servers need neither.
        if self.tls is not None and not hasattr(self.tls, "wrap_bio"):
            raise ConfigError(f"TLS needs an SSLContext, not {self.tls!r}")
        if self.limits is not None and not hasattr(self.limits, "admits_all"):
            raise ConfigError(f"limits must be Limits, not {self.limits!r}")
        if self.accept not in ("auto", "direct", "streams"):
            raise ConfigError(f"accept must be 'auto', 'direct' or 'streams', not {self.accept!r}")

    @property
    def connection_timeout(self) -> float:
        """How long a connection can stay open, in seconds, unless a stop aborts it."""
        return self.greet_timeout + self.linger_timeout

    @property
    def has_preamble(self) -> bool:
        """True if something comes before the greeting."""
        return self.tls is not None or self.proxy_from is not None

    def check_endpoint(self, endpoint: Endpoint) -> None:
        """Raise ConfigError for an endpoint for datagrams that cannot be served with this configuration.

        Clients that TLS or the networks of the proxies keep out would get the same greeting in plain text.
        """
        if endpoint.kind != "udp":
            return
        if self.has_preamble:
            what = "TLS" if self.tls is not None else "a PROXY header"
            raise ConfigError(f"{endpoint} cannot be combined with {what}, which datagrams do not have")
        size = len(self.greeting.fixed or b"")
        if size > DATAGRAM_MAX:
            raise ConfigError(
                f"{endpoint} cannot send a greeting of {size} bytes: a datagram has at most {DATAGRAM_MAX}"
            )


def _check_integer(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{name} must be an integer from {least} to {most}, not {value!r}")
