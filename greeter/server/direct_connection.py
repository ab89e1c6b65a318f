"""A connection of the direct path: a non-blocking socket and a coroutine, without a transport or a task.

The coroutine waits for nothing but its own socket and its own greeting, and both call back. So it is stepped
by those callbacks, and needs neither a task nor a future (the figures are in poller.py and batch.py).

Invariants:

- An async callable always runs in a task, as it would anywhere in asyncio.
- After ``abort`` nothing of the connection runs any more, but for what its callable does with the
  cancellation.
"""

from __future__ import annotations

import contextlib
import socket
import types
from typing import TYPE_CHECKING

from greeter.server.connection import LINGERING, Connection
from greeter.server.conversation import made
from greeter.server.poller import HANG_UP, READABLE, WRITABLE, SocketPoller

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine, Generator
    from socket import SocketType

    from greeter.core.address import Address
    from greeter.server.tracker import ConnectionTracker

# Linux. Elsewhere, the end of stream takes a segment of its own.
MSG_MORE: int = getattr(socket, "MSG_MORE", 0)
SEND_FLAGS: int = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)
# Data and end of stream leave in one segment: tcp(7), MSG_MORE, and the shutdown that follows.
LAST_SEND_FLAGS: int = SEND_FLAGS | MSG_MORE


@types.coroutine
def _suspend() -> Generator[None, None, None]:
    """Until ``DirectConnection.resume``."""
    yield


class DirectConnection(Connection):
    """One connection of the direct path, between accept and lingering close.

    ``sock`` was accepted, and is in blocking mode: every call on it says MSG_DONTWAIT.
    """

    __slots__ = ("_coroutine", "_fd", "_poller", "_running", "_tracker", "_waits", "closed", "sock", "work")

    def __init__(
        self,
        tracker: ConnectionTracker,
        poller: SocketPoller,
        sock: SocketType,
        address: Address,
        family: int,
        server: str,
    ) -> None:
        super().__init__(address, family, server, tracker.stats.accepted)
        self.key = sock  # by which lingering sockets are known too
        self.sock = sock
        self.closed = False
        self.work: asyncio.Future[bytes] | asyncio.Task[None] | None = None  # makes the greeting
        self._coroutine: Coroutine[None, None, None] | None = None
        self._fd = sock.fileno()
        self._poller = poller
        self._running = False
        self._tracker = tracker
        self._waits = False  # for the socket

    # -- the coroutine

    def run(self, coroutine: Coroutine[None, None, None]) -> None:
        """Let ``coroutine`` serve the connection, from now on."""
        self._coroutine = coroutine
        self.resume()

    def resume(self, _: object = None) -> None:
        """What the coroutine waits for has come, or may have."""
        if self._coroutine is None:
            return
        self._running, self._waits = True, False
        try:
            self._coroutine.send(None)
        except StopIteration:
            self._coroutine = None
        finally:
            self._running = False

    def last_try(self) -> bool:
        if self._waits:
            self.resume()
        return True

    # -- a conversation's side of it

    async def receive(self, size: int) -> bytes:
        while True:
            try:
                return self.sock.recv(size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                await self._ready(READABLE)

    async def send(self, data: bytes | memoryview, *, last: bool = False) -> None:
        flags = LAST_SEND_FLAGS if last else SEND_FLAGS
        while data:
            try:
                sent = self.sock.send(data, flags)
            except BlockingIOError:
                await self._ready(WRITABLE)
            else:
                data = memoryview(data)[sent:]

    async def result_of(self, work: asyncio.Future[bytes]) -> bytes:
        self.wait_for(work)
        work.add_done_callback(self.resume)
        while not work.done():  # an event may come late for what was waited for before
            await _suspend()
        self.work = None
        return made(work)

    async def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    async def linger(self) -> None:
        self.hand_over()

    def abort(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self.work is not None:
            self.work.cancel()
        self._poller.forget(self._fd)
        self.sock.close()
        if not self._running and self._coroutine is not None:
            self._coroutine.close()
            self._coroutine = None
        self._tracker.closed(self)

    # -- the rest

    def wait_for(self, work: asyncio.Future[bytes] | asyncio.Task[None]) -> None:
        """``work`` makes the greeting, and is cancelled if the connection is aborted."""
        self.work = work
        self._tracker.waits_for_greeting(self)

    def hand_over(self) -> None:
        """The socket is half-closed: from here on it is one of the lingering sockets."""
        self.closed = True
        self.state = LINGERING
        self._poller.forget(self._fd)
        self._tracker.lingering_sockets.add(self.sock)

    def watch_for_reset(self) -> None:
        if self.work is not None:
            with contextlib.suppress(OSError):  # no memory for it: the send will tell
                self._poller.wait(self._fd, 0, self)

    def on_event(self, events: int) -> None:
        """The poller has events for the socket."""
        if self.work is None:
            self.resume()
        elif events & HANG_UP:
            self.abort()

    async def _ready(self, events: int) -> None:
        self._waits = True
        self._poller.wait(self._fd, events, self)
        await _suspend()
