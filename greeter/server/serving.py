"""``serve()``: from its arguments to a running Server.

Invariants:

- Arguments are checked at the call, before a socket is opened.
- A start that fails leaves nothing open.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from greeter.core.endpoint import DEFAULT_HOST, DEFAULT_PORT, Endpoint
from greeter.core.greeting import DEFAULT_GREETING, Greeting, GreetingSource
from greeter.core.server_config import (
    BACKLOG,
    DRAIN_TIMEOUT,
    GREET_TIMEOUT,
    LINGER_TIMEOUT,
    Accept,
    AccessLog,
    ServerConfig,
)
from greeter.errors import ConfigError, GreeterError, ListenFailed
from greeter.server.datagram_limits import log_datagram_limits
from greeter.server.server import Server
from greeter.system.listeners import adopt, open_listeners

if TYPE_CHECKING:
    import socket
    import ssl as ssl_module
    from collections.abc import Callable, Coroutine, Generator, Iterable

    from greeter.core.admission import Limits, Networks


class Serving:
    """What ``serve()`` returns: await it for the Server, or enter it with ``async with``."""

    def __init__(self, start: Callable[[], Coroutine[None, None, Server]]) -> None:
        self._start = start
        self._started = False
        self._server: Server | None = None

    def __await__(self) -> Generator[Any, None, Server]:
        if self._started:
            raise RuntimeError("what serve() returned can be awaited or entered only once")
        self._started = True
        return self._start().__await__()

    async def __aenter__(self) -> Server:
        self._server = await self
        return self._server

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await self._server.drain()


def serve(
    greeting: GreetingSource = DEFAULT_GREETING,
    host: str | int | None = DEFAULT_HOST,
    port: int | str = DEFAULT_PORT,
    *,
    # Where to listen.
    path: str | None = None,
    sock: socket.socket | None = None,
    listen: Iterable[Endpoint | str] = (),
    # How to accept.
    accept: Accept = "auto",
    backlog: int = BACKLOG,
    unix_mode: int | None = None,
    # Which clients to serve, and how.
    limits: Limits | None = None,
    ssl: ssl_module.SSLContext | None = None,
    proxy_from: Iterable[str] | None = None,
    # How long a client may take.
    greet_timeout: float = GREET_TIMEOUT,
    linger_timeout: float = LINGER_TIMEOUT,
    drain_timeout: float = DRAIN_TIMEOUT,
    # What to log.
    access_log: bool | AccessLog = True,
) -> Serving:
    """Greet every client that connects. Await it for a running Server, or use ``async with``.

    Leaving ``async with`` drains the server (``Server.drain``) and closes every socket. A Server that was
    awaited is closed by its caller.

    Args:
        greeting: Text with ``$names``, bytes, a callable that takes a Peer, or a Greeting. A callable that
            fails costs its own client only: it is logged, counted in ``stats.failed``, and the connection is
            closed.
        host: Where to listen: a name or an address. ``None`` and ``""`` are every interface.
        port: A number, 0 for any free port, or a service name.
        path: The path of a Unix socket (``"@name"``: an abstract one), instead of a host and a port.
        sock: A bound socket, instead of a host and a port. It becomes the server's.
        listen: Any number of Endpoints or their texts, as in ``"udp:[::1]:9999"``, instead of a host and a
            port.
        accept: The accept path: ``"direct"`` works on the accepted sockets, ``"streams"`` is
            ``asyncio.start_server``, ``"auto"`` is the first of them that event loop and system allow.
        backlog: The length of the accept queue.
        unix_mode: The mode of the file of a Unix socket; None for what the umask leaves.
        limits: How many clients to serve, and which; None for as many as the descriptors allow.
        ssl: A context to serve TLS with (see ``greeter.system.tls``).
        proxy_from: The networks of the proxies whose connections begin with a PROXY header, version 1 or 2.
            All other clients are rejected then.
        greet_timeout: Seconds from accept until the kernel has the last byte.
        linger_timeout: Seconds after that until the client must have closed.
        drain_timeout: Seconds for all open connections at the end.
        access_log: True logs each client to the logger "greeter", at INFO; a callable gets the client's
            address instead; False logs none.

    Returns:
        What can be awaited, or entered by ``async with``, once.

    Raises:
        ConfigError: A value is not valid.
        ListenFailed: When awaited: an endpoint cannot be listened on. Nothing is left open.

    Example::

        async with greeter.serve("Hello $host", port=0) as server:
            print(await greeter.greet(port=server.port))
    """
    if sum((path is not None, sock is not None, bool(listen))) > 1:
        raise ConfigError("give one of path, sock and listen")
    if isinstance(listen, str | Endpoint):  # a string would be an iterable of characters
        raise ConfigError(f"listen must be several endpoints, not {listen!r}")
    proxies: Networks | None = None
    if proxy_from is not None:
        from greeter.core.admission import trusted_proxies  # only a server behind a proxy needs it

        proxies = trusted_proxies(proxy_from)
    config = ServerConfig(
        greeting=Greeting(greeting),
        limits=limits,
        tls=ssl,
        proxy_from=proxies,
        accept=accept,
        backlog=backlog,
        unix_mode=unix_mode,
        greet_timeout=greet_timeout,
        linger_timeout=linger_timeout,
        drain_timeout=drain_timeout,
        access_log=access_log,
    )
    if sock is not None:
        endpoints = []
    elif path is not None:
        endpoints = [Endpoint.unix(path)]
    elif listen:
        endpoints = [e if isinstance(e, Endpoint) else Endpoint.parse(e) for e in listen]
    else:
        endpoints = [Endpoint.tcp(host, port)]

    return Serving(functools.partial(start_server, config, endpoints, sock))


async def start_server(
    config: ServerConfig,
    endpoints: Iterable[Endpoint],
    sock: socket.socket | None = None,
    *,
    worker: bool = False,
) -> Server:
    """What ``serve()`` does when it is awaited.

    Args:
        config: The configuration of the server.
        endpoints: Where to listen.
        sock: A bound socket to listen on too, which becomes the server's.
        worker: Another process has logged what there is to say about the sockets.

    Returns:
        The running server.

    Raises:
        ListenFailed: An endpoint cannot be listened on. Every socket was closed.
        ConfigError: The event loop does not allow the accept path, or ``config`` does not allow an endpoint.
    """
    endpoints = tuple(endpoints)
    for endpoint in endpoints:
        config.check_endpoint(endpoint)
    listeners = open_listeners(endpoints, backlog=config.backlog, unix_mode=config.unix_mode)
    try:
        if sock is not None:
            listeners.append(adopt(sock, backlog=config.backlog))
        for listener in listeners:  # an inherited socket may be one for datagrams
            config.check_endpoint(listener.endpoint)
        if not worker:
            log_datagram_limits(config, listeners)
        server = Server(config, listeners)
        await server._start()
    except BaseException as error:
        for listener in listeners:
            listener.close()
        if isinstance(error, OSError) and not isinstance(error, GreeterError):
            raise ListenFailed(", ".join(listener.address for listener in listeners), error) from error
        raise
    return server
