"""The server: listeners, an accept path and the connection tracker, behind the interface of asyncio.Server.

Invariants:

- It runs in the caller's event loop, installs no signal handler, prints nothing and never exits.
- Every client that had connected when it was told to stop is greeted.
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import replace
from typing import TYPE_CHECKING

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
from greeter.core.stats import DRAINS
from greeter.errors import ConfigError, GreeterError, ListenFailed, os_error_text
from greeter.server.accept_pause import logger
from greeter.server.acceptor import choose_path, drain_accept_queues, watches_sockets
from greeter.server.conversation import Conversation
from greeter.server.datagram_limits import log_datagram_limits
from greeter.server.direct import DirectPath
from greeter.server.serving import Serving
from greeter.server.streams import StreamsPath
from greeter.server.timeouts import timeout_without_pauses
from greeter.server.tracker import ConnectionTracker
from greeter.system.fdlimit import connection_capacity
from greeter.system.listeners import HANDSHAKE_GRACE, Listener, adopt, open_listeners

if TYPE_CHECKING:
    import socket
    import ssl as ssl_module
    from collections.abc import Iterable

    from greeter.core.admission import Limits, Networks
    from greeter.core.stats import ServerStats
    from greeter.server.datagrams import DatagramPath

# What a close accepts from a queue that others keep filling, at the most.
MAX_FINAL_ACCEPTS = 65536


class Server:
    """A running server, as ``serve()`` gives it. It mirrors asyncio.Server.

    ``config`` is its configuration; ``stats`` counts; ``sockets`` are the listening sockets and ``addresses``
    their texts, with real ports; ``path`` is the name of the accept path.
    """

    def __init__(self, config: ServerConfig, listeners: list[Listener]) -> None:
        direct = choose_path(config.accept, asyncio.get_running_loop()) == "direct"
        self._tracker = tracker = ConnectionTracker(
            config,
            max_capacity=connection_capacity(0 if direct else len(listeners)),
            pause=lambda: self._path.pause(),
            resume=lambda: self._path.resume(),
        )
        self._listeners = listeners
        self._accepting = accepting = [one for one in listeners if one.endpoint.kind != "udp"]
        self._conversation = conversation = Conversation(tracker)
        self._path = (DirectPath if direct else StreamsPath)(conversation, accepting)
        self._datagrams: DatagramPath | None = None
        if len(accepting) < len(listeners):
            from greeter.server.datagrams import DatagramPath  # few servers need it

            if not watches_sockets(tracker.loop):
                raise ConfigError("datagrams need an event loop that can watch a socket")
            self._datagrams = DatagramPath(conversation, [one for one in listeners if one not in accepting])
        self._serving = self._draining = self._closing = False
        self._closed: asyncio.Future[None] = tracker.loop.create_future()

    def update(
        self,
        *,
        greeting: GreetingSource | None = None,
        limits: Limits | None = None,
        tls: ssl_module.SSLContext | None = None,
    ) -> None:
        """Go on with another greeting, other limits, another certificate: from the next client on.

        None leaves a thing as it is; TLS can be renewed, not turned on. Raises ConfigError, and changes
        nothing then.
        """
        new = self.config
        if greeting is not None:
            new = replace(new, greeting=Greeting(greeting))
        if limits is not None:
            new = replace(new, limits=limits)
        if tls is not None:
            new = replace(new, tls=tls, certificate_expiry=None)
        self.reconfigure(new)

    def reconfigure(self, new: ServerConfig) -> None:
        """Go on with the greeting, the limits and the certificate of ``new``, from the next client on.

        All else stays as it is: it belongs to the sockets or to connections that are open. Limits that are
        None and TLS without a context also leave what is there.

        Raises:
            ConfigError: TLS would be turned on, or the greeting is too long. Nothing has changed then.
        """
        config = replace(self.config, greeting=new.greeting)
        if new.limits is not None:
            config = replace(config, limits=new.limits)
        if new.tls is not None:
            if config.tls is None:
                raise ConfigError("TLS cannot be turned on while serving")
            config = replace(config, tls=new.tls, certificate_expiry=new.certificate_expiry)
        for listener in self._listeners:
            config.check_endpoint(listener.endpoint)
        self._tracker.configure(config)

    def __repr__(self) -> str:
        return f"<greeter.Server {' '.join(self.addresses)} {self.path}>"

    @property
    def config(self) -> ServerConfig:
        return self._tracker.config

    @property
    def path(self) -> str:
        return self._path.name

    @property
    def max_connections(self) -> int:
        """The number of open connections at which accepting is paused."""
        return self._tracker.capacity

    @property
    def stats(self) -> ServerStats:
        stats, tracker = self._tracker.stats, self._tracker
        stats.open = tracker.open_count
        stats.datagrams_dropped = sum(listener.dropped() for listener in self._listeners)
        stats.lingering = len(tracker.lingering) + len(tracker.lingering_sockets)
        stats.max_connections = tracker.capacity
        stats.accepting = int(self._serving and tracker.accept_pause.accepting)
        tracker.accept_pause.count_time()
        return stats

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        return () if self._closed.done() else tuple(listener.sock for listener in self._listeners)

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(listener.address for listener in self._listeners)

    @property
    def port(self) -> int:
        """The port of the first TCP or UDP listener; raises LookupError if there is none."""
        for listener in self._listeners:
            if isinstance(listener.endpoint.port, int) and listener.endpoint.kind in ("tcp", "udp"):
                return listener.endpoint.port
        raise LookupError("this server listens on no port")

    def is_serving(self) -> bool:
        return self._serving

    async def _start(self) -> None:
        await self._path.start()
        if self._datagrams is not None:
            self._datagrams.start()
        self._serving = True

    async def serve_forever(self) -> None:
        """Serve until ``close()`` or ``drain()``; when cancelled, drain first."""
        try:
            await asyncio.shield(self._closed)
        except asyncio.CancelledError:
            await self.drain()
            raise

    def close(self) -> None:
        """Stop listening, at once. Those in the listen queues are still accepted, and greeted.

        Under load, ``drain()`` loses fewer: a handshake that is under way at this moment is reset.
        """
        if self._closing:  # also by a callable of a client in the listen queue
            return
        self._closing, self._serving = True, False
        self._tracker.stop_accepting()
        self._path.stop()
        if self._datagrams is not None:
            self._datagrams.stop()
        for listener in self._accepting:
            listener.remove_file()
            try:
                left = MAX_FINAL_ACCEPTS
                while left > 0 and (accepted := self._path.accept_batch(listener, left)):
                    left -= accepted
            except OSError as error:
                logger.warning("closing with clients in the accept queue: %s", os_error_text(error))
            listener.close()
        self._tracker.idle().add_done_callback(self._on_idle)  # connections may still wait for a thread
        self._closed.set_result(None)

    def _on_idle(self, _: object) -> None:
        """The last connection is closed, but for the one whose callable has closed the server."""
        for busy in self._tracker, self._datagrams:
            if busy is not None and busy.open_count:
                busy.idle().add_done_callback(self._on_idle)
                return
        self._conversation.close()
        self._path.close()

    async def drain(self, timeout: float | None = None, *, last: bool = False) -> bool:
        """Stop in order, and return when the last connection is closed.

        New handshakes are rejected, those under way complete, every connection in the accept queues is
        accepted and greeted as the capacity allows, then the listening sockets are closed. A socket that we
        did not make is left as it is, for others to serve.

        Args:
            timeout: seconds, ``config.drain_timeout`` by default, after which connections that are still
                open are aborted. Cancelling this coroutine does so at once.
            last: no other process serves our sockets, also those that we did not make.

        Returns:
            False if connections were aborted.
        """
        self._tracker.stats.block[DRAINS] += not (self._draining or self._closed.done())
        self._draining = True
        try:
            async with timeout_without_pauses(self.config.drain_timeout if timeout is None else timeout):
                if self._serving:
                    ending = [
                        listener for listener in self._accepting if listener.reject_new_handshakes(last=last)
                    ]
                    if ending:
                        await asyncio.sleep(HANDSHAKE_GRACE)
                        self._path.stop()
                        self._tracker.stop_accepting()
                        for listener in ending:
                            listener.refuse_connections()
                        await drain_accept_queues(ending, self._path.accept_batch, self._tracker)
                self.close()
                await self.wait_closed()
        except TimeoutError:
            return False
        finally:
            aborted = 0
            if not self._closed.done():  # those in the queues are greeted in the place of those that had time
                try:
                    aborted = await self._tracker.abort_remaining()
                finally:  # a greeting callable that drains its own server is aborted too
                    self.close()
            aborted += await self._tracker.abort_remaining()
            if self._datagrams is not None:
                aborted += self._datagrams.abort_all()
            if aborted:
                logger.warning(
                    "aborted %d connections at the drain deadline",
                    aborted,
                    extra={"event": "aborted", "count": aborted},
                )
                await self._tracker.wait_idle()
        return True

    async def wait_closed(self) -> None:
        """Wait until the server is closed and every client has left."""
        await asyncio.shield(self._closed)
        await self._tracker.wait_idle()
        if self._datagrams is not None:
            await asyncio.shield(self._datagrams.idle())


def serve(
    greeting: GreetingSource = DEFAULT_GREETING,
    host: str | int | None = DEFAULT_HOST,
    port: int | str = DEFAULT_PORT,
    *,
    # where: one of these takes the place of host and port
    path: str | None = None,
    sock: socket.socket | None = None,
    listen: Iterable[Endpoint | str] = (),
    # how clients are accepted
    accept: Accept = "auto",
    backlog: int = BACKLOG,
    unix_mode: int | None = None,
    # who may come, and how
    limits: Limits | None = None,
    ssl: ssl_module.SSLContext | None = None,
    proxy_from: Iterable[str] | None = None,
    # how long a client may take
    greet_timeout: float = GREET_TIMEOUT,
    linger_timeout: float = LINGER_TIMEOUT,
    drain_timeout: float = DRAIN_TIMEOUT,
    # what is written down
    access_log: bool | AccessLog = True,
) -> Serving:
    """Greet every client that connects. Await it for a running Server, or use ``async with``.

    ``greeting``: text with ``$names``, bytes, a callable that gets a Peer, or a Greeting.
    ``host``, ``port``: where to listen; ``None`` or ``""`` is every interface, port 0 any free port, a
    string a service name. ``path``: a Unix socket (``@name``: an abstract one). ``sock``: a bound socket,
    which becomes the server's. ``listen``: any number of Endpoints, or texts like ``udp:[::1]:9999``.

    ``accept``: the accept path: "direct" serves on the accepted sockets, "streams" by
    ``asyncio.start_server``, "auto" is the first of them that the event loop and the system allow.
    ``backlog``: connections that the kernel queues. ``unix_mode``: the mode of a Unix socket's file.
    ``limits``: how many clients, and which. ``ssl``: a context to serve TLS with (see greeter.system.tls).
    ``proxy_from``: networks of the proxies whose connections begin with a PROXY header, version 1 or 2;
    all other clients are rejected then.
    ``greet_timeout``: seconds from accept until the kernel has the last byte; ``linger_timeout``: seconds
    after that until the client must have closed; ``drain_timeout``: seconds for all connections at the end.
    ``access_log``: True writes a line for each client to the logger "greeter", at INFO; a callable gets
    the client's address instead; False writes nothing.

    Resource handling: leaving ``async with`` drains the server (``Server.drain``) and closes every
    socket; if you await it, that is up to you. A failed start leaves nothing open.

    Error handling: raises ConfigError for a value that cannot be right and ListenFailed for an endpoint
    that cannot be listened on. A greeting callable that fails costs the client it was called for: it is
    logged, counted in ``stats.failed`` and the connection closed.
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
