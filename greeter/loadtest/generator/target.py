"""The target of a load test: its resolved address, and sockets to connect to it.

Invariants:

- The name is resolved once, before the run.
- If it has several addresses, the target is the first, in the order of the resolver, that accepts a
  connection, or replies to a datagram. A single address is not tried, so the server counts exactly the
  connections of the plan.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from greeter.core.datagram_sizes import REQUEST
from greeter.core.endpoint import Endpoint
from greeter.errors import ConfigError, ConnectFailed, os_error_text
from greeter.system.loops import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greeter.loadtest.plan.plan import LoadPlan

SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str

# New in Python 3.12; in Linux since 4.2 (ip(7)). With it, connect(2) chooses a port for each destination.
# Without it, bind(2) reserves a port for all destinations, so ports run out earlier.
_BIND_ADDRESS_NO_PORT: int = getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24)
_NONBLOCK: int = getattr(socket, "SOCK_NONBLOCK", 0)
_TYPE = int(socket.SOCK_STREAM) | _NONBLOCK  # an int, because the arithmetic of enums is slow
_DATAGRAM_TYPE = int(socket.SOCK_DGRAM) | _NONBLOCK
# How long an address of several has to reply to a datagram.
_REPLY_SECONDS = 0.5


@dataclass
class Target:
    """A resolved address, and what is needed to connect to it.

    - ``family``: the address family of its sockets.
    - ``address``: as ``socket.connect`` takes it.
    - ``sources``: local addresses to bind to, in turn.
    - ``ssl_context``, ``server_name``: for TLS; None without.
    - ``alternatives``: how many other addresses the name has, which are not loaded.
    - ``datagrams``: its sockets are for datagrams.
    """

    family: int
    address: SocketAddress
    sources: Sequence[SocketAddress] = ()
    ssl_context: ssl.SSLContext | None = None
    server_name: str | None = None
    alternatives: int = 0
    datagrams: bool = False
    _next_source: int = field(default=0, init=False)

    def open(self) -> socket.SocketType:
        """Return a new non-blocking socket, bound to the next source address.

        Raises:
            OSError: from socket(2) or bind(2).
        """
        # The C type: socket.socket adds 2 µs for properties and methods that are not needed here.
        sock = socket.SocketType(self.family, _DATAGRAM_TYPE if self.datagrams else _TYPE)
        try:
            if not _NONBLOCK:
                sock.setblocking(False)
            if self.sources:
                self._bind(sock)
        except OSError:
            sock.close()
            raise
        return sock

    def _bind(self, sock: socket.SocketType) -> None:
        source = self.sources[self._next_source % len(self.sources)]
        self._next_source += 1
        with suppress(OSError):  # without the option, ports run out earlier
            sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
        sock.bind(source)

    def to_json(self) -> dict[str, Any]:
        """Return the addresses as JSON, for a worker process, which adds TLS with ``with_tls``."""
        return {
            "family": int(self.family),
            "address": self.address,
            "sources": list(self.sources),
            "datagrams": self.datagrams,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Target:
        """Return the target that ``to_json`` made ``values`` from, without TLS."""

        def parse_address(value: Any) -> SocketAddress:
            return value if isinstance(value, str) else tuple(value)  # JSON has lists only

        sources = tuple(parse_address(source) for source in values["sources"])
        address = parse_address(values["address"])
        return cls(values["family"], address, sources, datagrams=values["datagrams"])

    @property
    def text(self) -> str:
        """The address as text, as in ``127.0.0.1:25``, ``[::1]:25`` or ``unix:/path``."""
        if isinstance(self.address, str):
            return str(Endpoint.unix(self.address))
        host, port, *scope = self.address
        if scope and scope[1] and "%" not in host:
            with suppress(OSError):  # an interface that has gone
                host = f"{host}%{socket.if_indextoname(scope[1])}"
        return str(Endpoint("udp" if self.datagrams else "tcp", host=host, port=port))

    @property
    def local(self) -> bool:
        """True if the target is this machine: only then can its address be bound to."""
        if isinstance(self.address, str):
            return True
        with socket.socket(self.family, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((self.address[0], 0, *self.address[2:]))
            except OSError:
                return False
        return True

    @property
    def loopback(self) -> bool:
        """True for a Unix socket or an address of the loopback interface."""
        return isinstance(self.address, str) or ip_address(self.address[0].partition("%")[0]).is_loopback


async def resolve(plan: LoadPlan) -> Target:
    """Resolve the target of a plan, and check its source addresses and TLS files.

    Raises:
        ConnectFailed: the name does not resolve.
        ConfigError: a source address is not one of this machine, or TLS cannot be set up.
    """
    endpoint = plan.endpoint
    if endpoint.kind == "unix":
        return with_tls(Target(socket.AF_UNIX, endpoint.path), plan)
    sources = [_source_address(address) for address in plan.source_ips]
    families = {family for family, _ in sources}
    if len(families) > 1:
        raise ConfigError("source addresses must be all IPv4 or all IPv6")
    found = await _addresses(endpoint, families.pop() if families else socket.AF_UNSPEC)
    bound = tuple(source for _, source in sources)
    targets = [Target(family, address, bound, datagrams=plan.datagrams) for family, address in found]
    for target in targets if len(targets) > 1 else ():
        target.alternatives = len(targets) - 1
        if await (_replies(target, plan) if plan.datagrams else _accepts_connections(target, plan)):
            return with_tls(target, plan)
    # The only address; or no address accepts, and the first one is measured.
    return with_tls(targets[0], plan)


def with_tls(target: Target, plan: LoadPlan) -> Target:
    """Add what the plan says about TLS to ``target``, and return it.

    Raises:
        ConfigError: a file cannot be used, or there is no server name to verify.
    """
    if not plan.tls:
        return target
    # A trailing dot makes a name absolute for the resolver. It is not part of a server name (RFC 6066 3).
    target.server_name = plan.server_name or plan.endpoint.host.removesuffix(".")
    if not target.server_name:
        raise ConfigError(f"tls to {plan.endpoint} requires a server name to verify")
    try:
        context = ssl.create_default_context(cafile=plan.tls_ca)
        if plan.tls_cert is not None:
            context.load_cert_chain(plan.tls_cert, plan.tls_key)
    except OSError as error:  # includes ssl.SSLError
        paths = " ".join(path for path in (plan.tls_ca, plan.tls_cert, plan.tls_key) if path)
        raise ConfigError(f"cannot use {paths} for tls: {os_error_text(error)}") from error
    target.ssl_context = context
    return target


async def _addresses(endpoint: Endpoint, family: int) -> list[tuple[int, SocketAddress]]:
    """Resolve an endpoint. Returns families and addresses in the order of the resolver."""
    host = endpoint.host or None  # no host is this machine
    kind = socket.SOCK_DGRAM if endpoint.kind == "udp" else socket.SOCK_STREAM
    try:
        # Not by the event loop: uvloop loses scope ids (uvloop #539), and Ctrl-C would wait for the resolver.
        found = await run_in_thread(lambda: socket.getaddrinfo(host, endpoint.port, family, kind))
    except OSError as error:
        raise ConnectFailed(str(endpoint), error) from error
    except UnicodeError as error:
        raise ConnectFailed(str(endpoint), "not a host name") from error
    return list(dict.fromkeys((family, cast("SocketAddress", address)) for family, _, _, _, address in found))


def _source_address(text: str) -> tuple[int, SocketAddress]:
    """Return the family and the address to bind to. Raises ConfigError if it is not one of this machine."""
    family = socket.AF_INET if ip_address(text).version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((text, 0))
        except OSError as error:
            raise ConfigError(f"source address {text} is not usable: {os_error_text(error)}") from error
        host, _, *scope = probe.getsockname()
    return family, (host, 0, *scope)


async def _accepts_connections(target: Target, plan: LoadPlan) -> bool:
    loop = asyncio.get_running_loop()
    with socket.socket(target.family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            async with asyncio.timeout(plan.connect_timeout):
                await loop.sock_connect(sock, target.address)
        except OSError:
            return False
    return True


async def _replies(target: Target, plan: LoadPlan) -> bool:
    with socket.socket(target.family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(target.address)
            sock.send(cast("bytes", plan.send) or REQUEST)
            async with asyncio.timeout(min(_REPLY_SECONDS, plan.timeout)):
                await asyncio.get_running_loop().sock_recv(sock, 1)
        except OSError:  # including TimeoutError
            return False
    return True
