"""The streams path: ``asyncio.start_server``, with a StreamReader and a StreamWriter for each client.

This is the reference: the same conversation as on the direct path, over the objects that asyncio documents.
It is the path of event loops that cannot watch a socket, and that of ``greeter.handler``, which serves in an
asyncio server of the user's own.

It keeps every guarantee of the direct path but two, because the event loop accepts and we hear of it later:

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
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any

from greeter.core.stats import ACCEPTED
from greeter.server.stream_connection import serve_streams
from greeter.server.tracker import TURNS
from greeter.system.listeners import TRANSIENT_ACCEPT_ERRORS

if TYPE_CHECKING:
    from collections.abc import Callable

    from greeter.server.conversation import Conversation
    from greeter.server.stream_connection import ClientConnected
    from greeter.system.listeners import Listener

# Connections that asyncio accepts per wake-up, which it derives from its backlog argument; a large number
# starves everything else on the loop.
ACCEPT_BATCH = 8
# A backlog that the kernel shortens to the longest it allows (net.core.somaxconn, listen(2)).
LONGEST_QUEUE = 65_535


class StreamsPath:
    """Accepts on ``listeners`` by ``asyncio.start_server``, for one server."""

    name = "streams"

    def __init__(self, conversation: Conversation, listeners: list[Listener]) -> None:
        self._conversation = conversation
        self._tracker = conversation.tracker
        self._listeners = listeners
        self._servers: list[asyncio.Server] = []
        self._wanted = False  # whether to accept, as we were told last
        self._starting: asyncio.Task[None] | None = None
        self._arriving: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Begin to accept."""
        self._wanted = True
        try:
            await self._serve()
        except BaseException:
            self._unserve()
            raise

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

    def stop(self) -> None:
        """Accept no more for good. The accept queues stay as they are.

        What asyncio has accepted must not be forgotten on its way to its handler: until then the server is
        not idle.
        """
        self.pause()
        self._tracker.arriving += 1
        self._wait_for_handlers(TURNS)

    def _wait_for_handlers(self, turns: int) -> None:
        if turns:
            self._tracker.loop.call_soon(self._wait_for_handlers, turns - 1)
        else:
            self._tracker.arrived()

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
                tracker.stats.block[ACCEPTED] += 1
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
            unknown = LONGEST_QUEUE if listener.inherited else self._tracker.config.backlog
            backlog = ACCEPT_BATCH if on_asyncio else queue_length(listener.sock, unknown)
            options: dict[str, Any] = {"sock": sock, "backlog": backlog, "start_serving": False}
            try:
                if listener.family == getattr(socket, "AF_UNIX", None):
                    if sys.version_info >= (3, 13):
                        options["cleanup_socket"] = False  # the file is the listener's to remove
                    server = await asyncio.start_unix_server(self._handler(listener), **options)
                else:
                    server = await asyncio.start_server(self._handler(listener), **options)
            except BaseException:
                sock.close()
                raise
            self._servers.append(server)
            await server.start_serving()
            if any(sock is None for sock in server.sockets):  # uvloop hides what listen(2) failed with
                raise OSError("uvloop could not listen")

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
            # EINVAL: another process has called refuse_connections() on it
            if error.errno not in TRANSIENT_ACCEPT_ERRORS and error.errno != errno.EINVAL:
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
