"""A connection of the streams path: a StreamReader and a StreamWriter, and one task.

Invariants:

- ``drain()`` returns when the kernel has every byte: the transports get no buffer of their own.
- The client is read from until it closes, whatever carries its bytes: a plain transport is half-closed, and
  asyncio's TLS transport, which cannot be, is left open behind close_notify.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any

from greeter.core.tls_session import describe_peer
from greeter.server.connection import Connection
from greeter.server.conversation import Conversation, made, retrieve

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import Callable

    from greeter.server.tracker import ConnectionTracker

    ClientConnected = Callable[[StreamReader, StreamWriter], None]

# Bytes written at a time: what waits in user space for a slow client is bounded.
CHUNK_SIZE = 64 * 1024
# Bytes discarded at a time.
DISCARD_SIZE = 64 * 1024


def serve_streams(
    conversation: Conversation, server: str, reader: StreamReader, writer: StreamWriter
) -> None:
    """Serve a client that asyncio has accepted, in a task of its own."""
    tracker = conversation.tracker
    address = writer.get_extra_info("peername")
    if not tracker.accepted(address, writer):
        writer.transport.abort()
        return
    try:
        connection = StreamConnection(tracker, address, server, reader, writer)
    except OSError:  # uvloop asks the kernel for the address of the socket: ENOBUFS (getsockname(2))
        writer.transport.abort()
        tracker.count_reset()
        tracker.release_admission(writer)
        return
    tracker.start(connection)
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
        self.key = writer
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
            if (
                start
            ):  # asyncio's TLS transport tells of a reset in a later turn, and warns of each write before
                await asyncio.sleep(0)
            self._check_open()
            self._writer.write(data[start : start + CHUNK_SIZE])
            await self._writer.drain()

    async def result_of(self, work: asyncio.Future[bytes]) -> bytes:
        self._discarding = discarding = self._tracker.loop.create_task(self._discard())
        discarding.add_done_callback(retrieve)  # the send may fail before it is awaited
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
        if self._discarding is not None:
            self._discarding.cancel()  # behind close_notify, its reader hears of nothing any more
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
