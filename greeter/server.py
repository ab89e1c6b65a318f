"""The server: listeners, an accept path and the reception, behind the interface of asyncio.Server.

The law: it runs in the caller's loop, installs no signal handler, prints nothing and exits nothing; and
whoever had connected when it was told to close is greeted all the same.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from greeter.acceptor import empty_queues
from greeter.connection import House
from greeter.endpoint import DEFAULT_HOST, DEFAULT_PORT, Endpoint
from greeter.errors import ConfigError, reason
from greeter.fdlimit import connection_capacity
from greeter.greeting import DEFAULT_GREETING, Greeting, GreetingSource
from greeter.listeners import BACKLOG, Listener, adopt, open_listeners
from greeter.paths import Accept, choose_path
from greeter.reception import AccessLog, Reception, log_connection, logger
from greeter.stream import Stream
from greeter.vestibule import Vestibule

if TYPE_CHECKING:
    import socket
    import ssl as ssl_module
    from collections.abc import Callable, Coroutine, Generator, Iterable

    from greeter.limits import Limits, Networks
    from greeter.stats import ServerStats

GREET_TIMEOUT = 10.0
LINGER_TIMEOUT = 2.0
DRAIN_TIMEOUT = 10.0

# How long the door stays ajar for handshakes that were under way when it began to close; a round trip
# on the loopback or in a data centre is far shorter.
DOOR_SECONDS = 0.05
QUEUE_BOUND = 65536  # what a close takes from a queue that others keep filling, at the most


class Server:
    """A running server, as ``serve()`` gives it. It mirrors asyncio.Server.

    ``stats`` counts; ``sockets`` are the listening sockets and ``addresses`` their texts, with real
    ports; ``path`` is the name of the accept path.
    """

    def __init__(
        self,
        words: Greeting,
        listeners: list[Listener],
        *,
        accept: Accept,
        backlog: int,
        limits: Limits | None,
        tls: ssl_module.SSLContext | None,
        proxy_from: Networks | None,
        greet_timeout: float,
        linger_timeout: float,
        drain_timeout: float,
        access_log: AccessLog | None,
    ) -> None:
        self.drain_timeout = drain_timeout
        self._fd_capacity = connection_capacity(len(listeners))
        self._reception = Reception(
            words,
            greet_timeout=greet_timeout,
            linger_timeout=linger_timeout,
            access_log=access_log,
            proxied=proxy_from is not None,
            capacity=self._fd_capacity,
            pause=lambda: self._path.stop(),
            resume=lambda: self._path.resume(),
        )
        self._vestibule = Vestibule(self._reception, tls=tls, proxy_from=proxy_from)
        self._listeners = listeners
        for listener in listeners:
            listener.cork()
        self._house = house = House(self._reception, self._vestibule)
        if limits is not None:
            self._limit(limits)
        self._path = choose_path(house, Stream(house), listeners, accept, backlog=backlog)
        self._serving = self._draining = False
        self._closed: asyncio.Future[None] = self._reception.loop.create_future()

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
        words = None if greeting is None else Greeting(greeting)
        if tls is not None and self._vestibule.tls is None:
            raise ConfigError("TLS cannot be turned on while serving")
        if words is not None:
            self._reception.words = words
        if tls is not None:
            self._vestibule.tls = tls
        if limits is not None:
            self._limit(limits)

    def _limit(self, limits: Limits) -> None:
        from greeter.limits import Admission  # not for everybody: with ipaddress, it is slow to load

        reception = self._reception
        reception.hold(min(self._fd_capacity, limits.max_connections or self._fd_capacity))
        if reception.admission is not None:
            reception.admission.replace(limits)
        else:
            reception.admission = Admission.of(limits)

    def __repr__(self) -> str:
        return f"<greeter.Server {' '.join(self.addresses)} {self.path}>"

    @property
    def path(self) -> str:
        return self._path.name

    @property
    def stats(self) -> ServerStats:
        stats, reception = self._reception.stats, self._reception
        stats.open = reception.present
        stats.lingering = len(reception.lingering) + len(reception.parking)
        return stats

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        return () if self._closed.done() else tuple(listener.sock for listener in self._listeners)

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(listener.address for listener in self._listeners)

    @property
    def port(self) -> int:
        """The port of the first TCP listener; raises LookupError if there is none."""
        for listener in self._listeners:
            if isinstance(listener.endpoint.port, int) and listener.endpoint.kind == "tcp":
                return listener.endpoint.port
        raise LookupError("this server listens on no port")

    def is_serving(self) -> bool:
        return self._serving

    async def _start(self) -> None:
        await self._path.start()
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
        if self._closed.done():
            return
        self._serving = False
        self._reception.stop_accepting()
        self._path.stop()
        for listener in self._listeners:
            listener.remove_file()
            try:
                left = QUEUE_BOUND
                while left > 0 and (taken := self._path.greet_queue(listener, left)):
                    left -= taken
            except OSError as error:
                logger.warning("closing with clients in the listen queue: %s", reason(error))
            listener.close()
        # Some of those who are here may still have to wait for a thread.
        self._reception.emptied().add_done_callback(lambda _: self._house.close())
        self._closed.set_result(None)

    async def drain(self, timeout: float | None = None, *, last: bool = False) -> bool:
        """Close the door in order, finish with everybody inside, and return.

        New handshakes are stopped, those under way complete, everybody in the listen queues is greeted
        as there is room, then the sockets are closed. A socket that we did not make is left as it is, for
        others to serve, unless ``last`` says that it ends with us. After ``timeout`` seconds
        (``drain_timeout`` by default) whoever is still there is cut off; returns False then. Cancelling it
        closes and cuts off at once.
        """
        self._reception.stats.drains += not (self._draining or self._closed.done())
        self._draining = True
        try:
            async with asyncio.timeout(self.drain_timeout if timeout is None else timeout):
                if self._serving:
                    shut = [listener for listener in self._listeners if listener.refuse_new(last=last)]
                    if shut:
                        await asyncio.sleep(DOOR_SECONDS)
                        self._path.stop()
                        self._reception.stop_accepting()
                        await empty_queues(shut, self._path.greet_queue, self._reception)
                self.close()
                await self.wait_closed()
        except TimeoutError:
            return False
        finally:
            left = 0
            if not self._closed.done():  # who waits in a queue is greeted in the place of who had his time
                left = await self._reception.cut_off()
                self.close()
            if left := left + await self._reception.cut_off():
                logger.warning("cut off %d connections at the drain deadline", left)
                await self._reception.all_left()
        return True

    async def wait_closed(self) -> None:
        """Wait until the server is closed and every client has left."""
        await asyncio.shield(self._closed)
        await self._reception.all_left()


class Serving:
    """What ``serve()`` returns: await it for the Server, or enter it with ``async with``."""

    def __init__(self, start: Callable[[], Coroutine[None, None, Server]]) -> None:
        self._start = start
        self._server: Server | None = None

    def __await__(self) -> Generator[Any, None, Server]:
        return self._start().__await__()

    async def __aenter__(self) -> Server:
        self._server = await self._start()
        return self._server

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await self._server.drain()


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
    """Greet whoever connects. Await it for a Server that runs already, or use ``async with``.

    ``greeting``: text with ``$names``, bytes, a callable that gets a Peer, or a Greeting.
    ``host``, ``port``: where to listen; ``None`` or ``""`` is every interface, port 0 any free port, a
    string a service name. ``path``: a Unix socket (``@name``: an abstract one). ``sock``: a bound socket,
    which becomes the server's. ``listen``: any number of Endpoints, or texts like ``[::1]:9999``.

    ``accept``: the accept path: "instant" for a greeting that is known when the client is accepted (text,
    bytes, a quick callable), "stream" for any, "auto" for the first of them that can.
    ``backlog``: connections that the kernel queues. ``unix_mode``: the mode of a Unix socket's file.
    ``limits``: how many clients, and which. ``ssl``: a context to serve TLS with (see greeter.tls).
    ``proxy_from``: networks of the proxies whose connections begin with a PROXY header, version 1 or 2;
    nobody else is served then.
    ``greet_timeout``: seconds from accept until the kernel has the last byte; ``linger_timeout``: seconds
    after that until the client must have closed; ``drain_timeout``: seconds for everybody at the end.
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
    for name, seconds in (("greet", greet_timeout), ("linger", linger_timeout), ("drain", drain_timeout)):
        if not seconds >= 0:
            raise ConfigError(f"{name}_timeout is a number of seconds from 0, not {seconds}")
    if backlog < 1:
        raise ConfigError(f"backlog is at least 1, not {backlog}")
    if accept not in ("auto", "stream", "instant"):
        raise ConfigError(f"accept is auto, stream or instant, not {accept!r}")
    words = Greeting(greeting)
    proxies: Networks | None = None
    if proxy_from is not None:
        from greeter.limits import trusted  # only a server behind a proxy needs it

        proxies = trusted(proxy_from)
    if sock is not None:
        endpoints = []
    elif path is not None:
        endpoints = [Endpoint.unix(path)]
    elif listen:
        endpoints = [e if isinstance(e, Endpoint) else Endpoint.parse(e) for e in listen]
    else:
        endpoints = [Endpoint.tcp(host, port)]
    record: AccessLog | None
    if isinstance(access_log, bool):
        record = log_connection if access_log and logger.isEnabledFor(logging.INFO) else None
    else:
        record = access_log

    async def start() -> Server:
        listeners = open_listeners(endpoints, backlog=backlog, unix_mode=unix_mode)
        try:
            if sock is not None:
                listeners.append(adopt(sock))
            server = Server(
                words,
                listeners,
                accept=accept,
                backlog=backlog,
                limits=limits,
                tls=ssl,
                proxy_from=proxies,
                greet_timeout=greet_timeout,
                linger_timeout=linger_timeout,
                drain_timeout=drain_timeout,
                access_log=record,
            )
            await server._start()
        except BaseException:
            for listener in listeners:
                listener.close()
            raise
        return server

    return Serving(start)
