"""Where connections go and where they come from: the target looked up once, and sockets towards it.

The law: a load test asks the resolver once, before it begins. A name with several addresses is tried in
the resolver's order, and the first that takes a connection is the target; one address is not tried, so
that a server counts exactly the connections of the plan.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from greeter.errors import ConfigError, ConnectFailed, reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greeter.core.endpoint import Endpoint
    from greeter.loadtest.plan.plan import LoadPlan

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str

# Python has the name from 3.12 on, Linux the option from 4.2 on (ip(7)). With it, a port is chosen at
# connect, per destination; without it bind takes one for all destinations, and they run out sooner.
_BIND_ADDRESS_NO_PORT: int = getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24)
_NONBLOCK: int = getattr(socket, "SOCK_NONBLOCK", 0)
_TYPE = int(socket.SOCK_STREAM) | _NONBLOCK  # a plain number: an enum costs its arithmetic every time


@dataclass
class Target:
    """An address, and how to open sockets towards it."""

    family: int
    address: Address
    sources: Sequence[Address] = ()
    ssl_context: ssl.SSLContext | None = None
    server_name: str | None = None
    _run_once: int = field(default=0, init=False)

    def open(self) -> socket.SocketType:
        """A new non-blocking socket, bound to the next source address. Raises OSError."""
        # The C type: socket.socket adds enum properties and methods that are not needed here, and 2 µs.
        sock = socket.SocketType(self.family, _TYPE)
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
        source = self.sources[self._run_once % len(self.sources)]
        self._run_once += 1
        with suppress(OSError):  # then ports run out sooner
            sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
        sock.bind(source)

    def to_json(self) -> dict[str, Any]:
        """Where it is, for another process, which dresses it itself."""
        return {"family": int(self.family), "address": self.address, "sources": list(self.sources)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Target:
        def address(value: Any) -> Address:
            return value if isinstance(value, str) else tuple(value)  # JSON has lists only

        sources = tuple(address(one) for one in values["sources"])
        return cls(values["family"], address(values["address"]), sources)

    @property
    def local(self) -> bool:
        """Whether the target is this machine: only then can its address be bound to."""
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
        """Whether the address is one that no packet leaves the machine for."""
        return isinstance(self.address, str) or ip_address(self.address[0].partition("%")[0]).is_loopback


async def resolve(plan: LoadPlan) -> Target:
    """Look the plan's target up, and see that the source addresses are this machine's.

    Raises ConnectFailed for a name that does not resolve, ConfigError for what the plan has wrong.
    """
    endpoint = plan.endpoint
    if endpoint.kind == "unix":
        return with_tls(Target(socket.AF_UNIX, endpoint.path), plan)
    sources = [_source(address) for address in plan.source_ips]
    families = {family for family, _ in sources}
    if len(families) > 1:
        raise ConfigError("source addresses are of two families; a target has one")
    found = await _addresses(endpoint, families.pop() if families else socket.AF_UNSPEC)
    targets = [Target(family, address, tuple(source for _, source in sources)) for family, address in found]
    if len(targets) > 1:
        for target in targets:
            if await _accepts_connections(target, plan.connect_timeout):
                return with_tls(target, plan)
    # The only one; or all refuse, and the figures are about the one that the resolver prefers.
    return with_tls(targets[0], plan)


def with_tls(target: Target, plan: LoadPlan) -> Target:
    """Give ``target`` what the plan says about TLS. Raises ConfigError."""
    if not plan.tls:
        return target
    target.server_name = plan.server_name or plan.endpoint.host
    if not target.server_name:
        raise ConfigError(f"tls to {plan.endpoint} needs a server name, which certificates are checked for")
    try:
        context = ssl.create_default_context(cafile=plan.tls_ca)
        if plan.tls_cert is not None:
            context.load_cert_chain(plan.tls_cert, plan.tls_key)
    except OSError as error:  # ssl.SSLError is one
        paths = " ".join(path for path in (plan.tls_ca, plan.tls_cert, plan.tls_key) if path)
        raise ConfigError(f"cannot use {paths} for tls: {reason(error)}") from error
    target.ssl_context = context
    return target


async def _addresses(endpoint: Endpoint, family: int) -> list[tuple[int, Address]]:
    """What the resolver gives, in its order. Raises ConnectFailed."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            endpoint.host or None,  # no host means this machine
            endpoint.port,
            family=family,
            type=socket.SOCK_STREAM,
        )
    except OSError as error:
        raise ConnectFailed(str(endpoint), error) from error
    except UnicodeError as error:
        raise ConnectFailed(str(endpoint), "not a host name") from error
    return list(dict.fromkeys((family, cast("Address", address)) for family, _, _, _, address in found))


def _source(text: str) -> tuple[int, Address]:
    """The family and the address to bind to of a source address. Raises ConfigError if it is not ours."""
    family = socket.AF_INET if ip_address(text).version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((text, 0))
        except OSError as error:
            raise ConfigError(f"source address {text} is not usable: {reason(error)}") from error
        host, _, *scope = probe.getsockname()
    return family, (host, 0, *scope)


async def _accepts_connections(target: Target, timeout: float) -> bool:
    loop = asyncio.get_running_loop()
    with socket.socket(target.family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            async with asyncio.timeout(timeout):
                await loop.sock_connect(sock, target.address)
        except OSError:
            return False
    return True
