"""The server: listeners, an accept path and the connection tracker, behind the interface of asyncio.Server.

Invariants:

- It runs in the caller's event loop, installs no signal handler, prints nothing and never exits.
- Every client that had connected when it was told to stop is greeted.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from greeter.core.greeting import Greeting, GreetingSource
from greeter.core.stats import DRAINS
from greeter.errors import ConfigError, os_error_text
from greeter.server.accept_pause import logger
from greeter.server.acceptor import choose_path, drain_accept_queues, watches_sockets
from greeter.server.conversation import Conversation
from greeter.server.direct import DirectPath
from greeter.server.streams import StreamsPath
from greeter.server.timeouts import timeout_without_pauses
from greeter.server.tracker import ConnectionTracker
from greeter.system.fdlimit import connection_capacity
from greeter.system.listeners import HANDSHAKE_GRACE, Listener

if TYPE_CHECKING:
    import socket
    import ssl as ssl_module

    from greeter.core.admission import Limits
    from greeter.core.server_config import ServerConfig
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
        """Serve with another greeting, other limits or another certificate, from the next client on.

        Args:
            greeting: As for ``serve()``; None to keep the current one, as for the others.
            limits: As for ``serve()``.
            tls: A context with another certificate. TLS cannot be turned on.

        Raises:
            ConfigError: A value is not valid. Nothing has changed then.
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

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop that it serves on."""
        return self._tracker.loop

    async def start_serving(self) -> None:
        """Do nothing: ``serve()`` has begun to accept."""

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drain()

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
        """Stop listening at once. The connections in the accept queues are still accepted and greeted.

        A handshake that is under way at this moment is reset; ``drain()`` lets it complete.
        """
        if self._closing:  # also by a callable of a client in the accept queue
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
        late = False
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
            late = True
            return False
        finally:
            aborted = 0
            try:
                if (
                    not self._closed.done()
                ):  # those in the queues are greeted in the place of those that had time
                    try:
                        aborted = await self._tracker.abort_remaining()
                    finally:  # a greeting callable that drains its own server is aborted too
                        self.close()
            finally:  # also when this is cancelled for a second time
                try:
                    aborted += await self._tracker.abort_remaining()
                finally:
                    if self._datagrams is not None:
                        aborted += self._datagrams.abort_all()
            if aborted:
                logger.warning(
                    "aborted %d connection%s %s",
                    aborted,
                    "" if aborted == 1 else "s",
                    "at the drain deadline" if late else "as the drain was cancelled",
                    extra={"event": "aborted", "count": aborted},
                )
                await self._tracker.wait_idle()
        return True

    async def wait_closed(self) -> None:
        """Return when the server and its last connection are closed."""
        await asyncio.shield(self._closed)
        await self._tracker.wait_idle()
        if self._datagrams is not None:
            await asyncio.shield(self._datagrams.idle())
