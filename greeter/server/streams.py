"""The streams path: ``asyncio.start_server``, with a StreamReader and a StreamWriter for each client.

This is the reference: the same conversation as on the direct path, over the objects that asyncio documents.
It is the path of event loops that cannot watch a socket, and ``handler`` puts it into anybody's own server.

It holds every law of the direct path but two, because the event loop accepts and we hear of it later:

- When descriptors run out below the cap that was known at the start, uvloop (libuv) accepts connections and
  closes them at once. On asyncio, accepting waits.
- The cap on open connections is overshot by up to a batch of accepted connections.

Invariants:

- The accept queue outlives a pause, a reload and a stop: asyncio gets duplicates of the listening sockets,
  and the length of their queue stays what it was.
- A connection counts as open from the moment at which its handler is called; what asyncio has accepted
  reaches the handler within TURNS turns of the event loop (tracker.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import socket
import ssl
import struct
import sys
from typing import TYPE_CHECKING, Any

from greeter.errors import ConfigError
from greeter.greeting import DEFAULT_GREETING, Greeting, GreetingSource
from greeter.listeners import TRANSIENT_ACCEPT_ERRORS
from greeter.server.connection import Connection
from greeter.server.conversation import Conversation, made
from greeter.server.tracker import AccessLog, ConnectionTracker, log_connection, logger
from greeter.tls import describe_peer

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import Callable

    from greeter.listeners import Listener

    ClientConnected = Callable[[StreamReader, StreamWriter], None]

GREET_TIMEOUT = 10.0
LINGER_TIMEOUT = 2.0

# Connections that asyncio accepts per wake-up, which it derives from its backlog argument; a large number
# starves everything else on the loop.
ACCEPT_BATCH = 8
# A backlog that the kernel shortens to the longest it allows (net.core.somaxconn, listen(2)).
LONGEST_QUEUE = 65_535
# Bytes written at a time: what waits in user space for a slow client is bounded.
CHUNK_SIZE = 256 * 1024
# Bytes discarded at a time.
DISCARD_SIZE = 64 * 1024


def handler(
    greeting: GreetingSource = DEFAULT_GREETING,
    *,
    greet_timeout: float = GREET_TIMEOUT,
    linger_timeout: float = LINGER_TIMEOUT,
    access_log: bool | AccessLog = True,
) -> ClientConnected:
    """Returns a ``client_connected_cb`` that greets every client of an asyncio server without losing one.

    The server is yours: so are its sockets, its limits and its stop. With ``ssl=`` it works over asyncio's
    own TLS transport. One handler can serve several servers.

    Args:
        greeting: text with ``$names``, bytes, a callable that gets a Peer, or a Greeting.
        greet_timeout: seconds from accept until the kernel has the last byte.
        linger_timeout: seconds after that until the client must have closed.
        access_log: True writes a line for each client to the logger "greeter", at INFO; a callable gets the
            client's address instead; False writes nothing.

    Raises:
        ConfigError: a greeting or a time-out that cannot be right.

    Example::

        server = await asyncio.start_server(greeter.handler("Hello $host"), "127.0.0.1", 9999)
        async with server:
            await server.serve_forever()
    """
    checked = Greeting(greeting)
    for name, seconds in (("greet", greet_timeout), ("linger", linger_timeout)):
        check_timeout(name, seconds)
    conversation: Conversation | None = None

    def client_connected(reader: StreamReader, writer: StreamWriter) -> None:
        nonlocal conversation
        if conversation is None or conversation.tracker.loop is not asyncio.get_running_loop():
            tracker = ConnectionTracker(
                checked,
                greet_timeout=greet_timeout,
                linger_timeout=linger_timeout,
                access_log=choose_access_log(access_log),
            )
            conversation = Conversation(tracker)
        name = writer.get_extra_info("sockname")
        server = ":".join(map(str, name[:2])) if isinstance(name, tuple) else f"unix:{name}"
        serve_streams(conversation, server, reader, writer)

    return client_connected


def check_timeout(name: str, seconds: float) -> None:
    """Raises ConfigError if ``seconds`` cannot be a time-out."""
    if not isinstance(seconds, int | float) or not seconds >= 0:
        raise ConfigError(f"{name}_timeout must be a number of seconds from 0, not {seconds!r}")


def choose_access_log(access_log: bool | AccessLog) -> AccessLog | None:
    """What is called for each client: the callable itself, or the logger "greeter" if that is enabled."""
    if isinstance(access_log, bool):
        return log_connection if access_log and logger.isEnabledFor(logging.INFO) else None
    return access_log


def serve_streams(
    conversation: Conversation, server: str, reader: StreamReader, writer: StreamWriter
) -> None:
    """Serve a client that asyncio has accepted, in a task of its own."""
    tracker = conversation.tracker
    address = writer.get_extra_info("peername")
    if not tracker.accepted(address):
        writer.transport.abort()
        return
    connection = StreamConnection(tracker, address, server, reader, writer)
    tracker.start(connection)
    if not tracker.behind_proxy:  # else its address is not known yet
        tracker.hold_admission(connection.key, address)
    connection.run(conversation)
    if tracker.free_slots <= 0:
        tracker.at_capacity()


class StreamConnection(Connection):
    """One connection of the streams path."""

    __slots__ = ("_aborted", "_after_close_notify", "_discarding", "_reader", "_task", "_tracker", "_writer")

    def __init__(
        self,
        tracker: ConnectionTracker,
        address: Any,
        server: str,
        reader: StreamReader,
        writer: StreamWriter,
    ) -> None:
        sock = writer.get_extra_info("socket")
        family = socket.AF_UNSPEC if sock is None else sock.family
        super().__init__(address, family, server, tracker.stats.accepted)
        self._aborted = False
        self._after_close_notify: _Discarder | None = None
        self._discarding: asyncio.Task[None] | None = None
        self._reader = reader
        self._task: asyncio.Task[None] | None = None
        self._tracker = tracker
        self._writer = writer
        # With no buffer allowed, drain() returns when the kernel has every byte.
        if (tls := writer.get_extra_info("ssl_object")) is None:
            writer.transport.set_write_buffer_limits(0)
        else:  # whose limit is the first size that is too large
            writer.transport.set_write_buffer_limits(high=1, low=0)
            self.tls = tls.version() or "", describe_peer(tls.getpeercert())

    def run(self, conversation: Conversation) -> None:
        """Go through ``conversation`` in a task of its own."""
        self._task = self._tracker.loop.create_task(conversation.run(self))
        self._task.add_done_callback(self._on_done)

    async def receive(self, size: int) -> bytes:
        return await self._reader.read(size)

    async def send(self, data: bytes | memoryview, *, last: bool = False) -> None:
        for start in range(0, len(data), CHUNK_SIZE):
            self._check_open()
            self._writer.write(data[start : start + CHUNK_SIZE])
            await self._writer.drain()

    async def result_of(self, work: asyncio.Future[bytes]) -> bytes:
        self._discarding = discarding = self._tracker.loop.create_task(self._discard())
        try:
            either: list[asyncio.Future[Any]] = [work, discarding]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                discarding.result()  # raises OSError after a reset; an end of stream is none
                await asyncio.wait([work])
        finally:
            work.cancel()  # of no effect when it is done
        return made(work)

    async def half_close(self) -> None:
        self._check_open()
        if self._writer.can_write_eof():
            self._writer.write_eof()
        else:
            self._after_close_notify = await self._send_close_notify()

    async def linger(self) -> None:
        self._tracker.start_linger(self)
        if self._after_close_notify is not None:
            await self._after_close_notify.closed
            self._writer.close()
            return
        await (self._discarding or self._discard())
        self._writer.close()
        await self._writer.wait_closed()

    async def _send_close_notify(self) -> _Discarder:
        """End the stream on asyncio's own TLS transport, and go on reading.

        That transport has no half-close, and when it is closed it fails as soon as the client sends data
        after our close_notify (RFC 8446, 6.1). So it stays open until the client closes.
        ``SSLObject.unwrap`` writes close_notify, but also looks for that of the client, and data in its place
        would break the session: nothing that was received may be left in the transport then. A turn to
        reading also sends what was written.
        """
        discarder = _Discarder(self._tracker.loop)
        transport: Any = self._writer.transport
        transport.set_protocol(discarder)  # which never pauses, unlike a StreamReader
        transport.resume_reading()
        await asyncio.sleep(0)
        self._check_open()
        with contextlib.suppress(ssl.SSLWantReadError):
            self._writer.get_extra_info("ssl_object").unwrap()
        transport.pause_reading()
        transport.resume_reading()
        return discarder

    def abort(self) -> None:
        if not self._aborted:
            self._aborted = True
            self._writer.transport.abort()
            if self._task is not None:
                self._task.cancel()

    def watch_for_reset(self) -> None:
        """asyncio reads all the time, and so notices a reset."""

    def last_try(self) -> bool:
        return False

    def _check_open(self) -> None:
        """asyncio ignores what is written to a closed transport, and uvloop raises RuntimeError."""
        if self._writer.transport.is_closing():
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    async def _discard(self) -> None:
        while await self._reader.read(DISCARD_SIZE):
            pass

    def _on_done(self, _: object) -> None:
        self._writer.transport.abort()  # of no effect when it is closed
        self._tracker.closed(self)


class _Discarder(asyncio.Protocol):
    """Reads and discards what a client sends; ``closed`` is done when it has closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.closed: asyncio.Future[None] = loop.create_future()

    def eof_received(self) -> None:
        self._set_closed()

    def connection_lost(self, exc: Exception | None) -> None:
        self._set_closed()

    def _set_closed(self) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


class StreamsPath:
    """Accepts on ``listeners`` by ``asyncio.start_server``, for one server.

    ``backlog`` is the length of the accept queues that are ours.
    """

    name = "streams"

    def __init__(self, conversation: Conversation, listeners: list[Listener], *, backlog: int) -> None:
        self._conversation = conversation
        self._tracker = conversation.tracker
        self._listeners = listeners
        self._backlog = backlog
        self._servers: list[asyncio.Server] = []
        self._wanted = False  # whether to accept, as we were told last
        self._starting: asyncio.Task[None] | None = None
        self._arriving: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Begin to accept."""
        self._wanted = True
        await self._serve()

    def resume(self) -> None:
        """Accept again after ``pause``."""
        self._wanted = True
        if self._starting is None and not self._servers:
            self._starting = self._tracker.loop.create_task(self._serve())
            self._starting.add_done_callback(self._on_started)

    def pause(self) -> None:
        """Accept no more for now. The accept queues stay as they are."""
        self._wanted = False
        if self._starting is None:  # else it is done when that has come to its end
            self._unserve()

    def close(self) -> None:
        """The last connection is closed."""

    def accept_batch(self, listener: Listener, limit: int) -> int:
        """Accept up to ``limit`` connections by hand, when asyncio does so no more.

        Zero means that the queue is empty.

        Raises:
            OSError: the system cannot accept, for want of descriptors or memory.
        """
        accepted = 0
        try:
            while accepted < limit:
                fd, _ = listener.accept_fd()
                accepted += 1
                self._arrive(socket.socket(listener.family, socket.SOCK_STREAM, 0, fd), listener)
        except BlockingIOError:
            pass  # the queue is empty
        except OSError as error:
            if error.errno not in TRANSIENT_ACCEPT_ERRORS:
                raise
            accepted += 1  # it was one of them: the queue need not be empty
        return accepted

    def _arrive(self, sock: socket.socket, listener: Listener) -> None:
        """Give an accepted socket its streams, as ``asyncio.start_server`` does."""
        loop, tracker = self._tracker.loop, self._tracker
        sock.setblocking(False)
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, self._handler(listener), loop=loop)

        def arrived(task: asyncio.Task[Any]) -> None:
            self._arriving.discard(task)
            failed = task.cancelled() or task.exception() is not None
            if failed:  # it was reset meanwhile, and the handler was not called
                sock.close()
                tracker.stats.accepted += 1
                tracker.count_reset()
            tracker.arrived()

        tracker.arriving += 1
        task = loop.create_task(loop.connect_accepted_socket(lambda: protocol, sock))
        self._arriving.add(task)
        task.add_done_callback(arrived)

    def _handler(self, listener: Listener) -> ClientConnected:
        return functools.partial(serve_streams, self._conversation, listener.address)

    async def _serve(self) -> None:
        on_asyncio = isinstance(self._tracker.loop, asyncio.BaseEventLoop)
        for listener in self._listeners:
            sock = _Duplicate(listener.sock, self._tracker.cannot_accept)
            unknown = LONGEST_QUEUE if listener.inherited else self._backlog
            backlog = ACCEPT_BATCH if on_asyncio else queue_length(listener.sock, unknown)
            try:
                if listener.family == getattr(socket, "AF_UNIX", None):
                    options: dict[str, Any] = {}
                    if on_asyncio and sys.version_info >= (3, 13):
                        options["cleanup_socket"] = False  # the file is the listener's to remove
                    server = await asyncio.start_unix_server(
                        self._handler(listener), sock=sock, backlog=backlog, **options
                    )
                else:
                    server = await asyncio.start_server(self._handler(listener), sock=sock, backlog=backlog)
            except BaseException:
                sock.close()
                raise
            self._servers.append(server)

    def _unserve(self) -> None:
        loop = self._tracker.loop
        for server in self._servers:
            if isinstance(loop, asyncio.BaseEventLoop):
                # asyncio attaches a connection to its server one step after it was accepted, and loses it
                # if the server is closed in between (cpython #109564). So: watch no more, and close later.
                for sock in server.sockets:
                    with contextlib.suppress(NotImplementedError):
                        loop.remove_reader(sock.fileno())
                loop.call_soon(server.close)
            else:
                server.close()
        self._servers.clear()

    def _on_started(self, task: asyncio.Task[None]) -> None:
        self._starting = None
        if task.cancelled() or not self._wanted:
            self._unserve()
        elif (error := task.exception()) is not None:
            self._unserve()
            assert isinstance(error, OSError)
            self._tracker.cannot_accept(error)


class _Duplicate(socket.socket):
    """A duplicate of a listening socket, as asyncio gets it; uvloop works on its descriptor alone.

    asyncio calls ``listen`` with the number of connections that it is to accept per wake-up, and for an error
    of ``accept`` that it does not know it logs a traceback. Should it one day do without these methods, the
    queue is shorter and the log longer, and tests/server/test_streams.py fails.
    """

    def __init__(self, sock: socket.socket, cannot_accept: Callable[[OSError], None]) -> None:
        duplicate = sock.dup()
        super().__init__(duplicate.family, duplicate.type, duplicate.proto, duplicate.detach())
        self._cannot_accept = cannot_accept

    def listen(self, backlog: int = 0, /) -> None:
        """It listens already, with a queue of the right length."""

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection, or BlockingIOError, upon which asyncio goes on to watch the socket."""
        try:
            return super().accept()
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno not in TRANSIENT_ACCEPT_ERRORS:
                self._cannot_accept(error)
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error


def queue_length(sock: socket.socket, default: int) -> int:
    """The length of the accept queue of a TCP socket, which TCP_INFO calls tcpi_sacked (tcp(7)).

    Returns ``default`` for other sockets, whose length cannot be read.
    """
    if sock.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_INFO"):
        with contextlib.suppress(OSError):
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
            return int(struct.unpack_from("I", info, 28)[0])
    return default
