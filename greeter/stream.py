"""The stream path: asyncio.start_server accepts, and one small protocol object serves each client.

The law: a greeting accepted is a greeting delivered. The order is always the same: every byte, then
half-close, then discard what the client says until it closes or the linger deadline passes, then close.
Closing with unread input would make the kernel send a reset that can overtake the greeting (RFC 1122,
4.2.2.13; RFC 9293, 3.6.1).

There is no task, no timer and no read buffer per client: a client costs what asyncio's own objects cost,
and a task only while an async greeting is being awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from typing import TYPE_CHECKING, cast

from greeter.errors import GreetingError

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from greeter.greeting import Greeting, Peer
    from greeter.listeners import Listener
    from greeter.reception import Address, Reception

# One write of at most this many bytes at a time: what waits in user space for a slow client is bounded.
CHUNK = 256 * 1024
# How many connections asyncio accepts per wake-up, which it derives from its backlog argument; a large
# number starves everything else on the loop.
ACCEPT_BATCH = 8
# Slow sync greetings run in threads, and this many at a time.
THREADS = 32


class StreamPath:
    """Accepts on ``listeners`` with asyncio.start_server and greets with the words of ``reception``.

    It works on duplicates of the listening sockets, so that the sockets themselves, and the clients
    in their queues, outlive a pause or a close.
    """

    name = "stream"

    def __init__(self, reception: Reception, listeners: list[Listener], *, backlog: int) -> None:
        self.reception = reception
        self._threads: ThreadPoolExecutor | None = None
        self._listeners = listeners
        self._backlog = backlog
        self._servers: list[asyncio.Server] = []
        self._starting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to accept."""
        for listener in self._listeners:
            server = await self.reception.loop.create_server(
                functools.partial(Connection, self, listener),
                sock=listener.sock.dup(),
                backlog=ACCEPT_BATCH,
            )
            self._servers.append(server)
            listener.listen(self._backlog)

    def resume(self) -> None:
        """Accept again after ``stop``."""
        if self._starting is None and not self._servers:
            self._starting = self.reception.loop.create_task(self.start())
            self._starting.add_done_callback(self._started)

    def stop(self) -> None:
        """Accept no more. Those in the listen queue stay there."""
        if self._starting is not None:
            self._starting.cancel()
        loop = self.reception.loop
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

    def close(self) -> None:
        """Let go of everything but the clients."""
        self.stop()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def thread_pool(self) -> ThreadPoolExecutor:
        """Where sync greetings run that are not declared quick."""
        if self._threads is None:
            from concurrent.futures import ThreadPoolExecutor  # most servers never need it

            self._threads = ThreadPoolExecutor(THREADS, "greeter-callable")
        return self._threads

    def greet_queue(self, listener: Listener, limit: int) -> int:
        """Take up to ``limit`` clients from the listen queue, without asyncio; returns how many there were.

        Raises OSError when the system cannot accept, for want of descriptors or memory.
        """
        accepted = 0
        while accepted < limit and (client := listener.accept()) is not None:
            accepted += 1
            fd, address = client
            self.reception.arrive(address)
            self.take(fd, address, listener)
        return accepted

    def take(
        self, fd: int, address: Address, listener: Listener, begun: tuple[bytes, int] | None = None
    ) -> None:
        """Serve a client that was accepted elsewhere and has arrived; the descriptor is ours from here on.

        ``begun`` is its greeting and how much of that was sent already, if any of it was made.
        """
        sock = socket.socket(listener.family, socket.SOCK_STREAM, fileno=fd)
        sock.setblocking(False)
        guest = Connection(self, listener)
        guest.adopted(address, begun)
        loop = self.reception.loop
        self.reception.bring(loop.create_task(_attach(loop, guest, sock)))

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting = None
        if not task.cancelled() and (error := task.exception()) is not None:
            assert isinstance(error, OSError)
            self.reception.cannot_accept(error)


async def _attach(loop: asyncio.AbstractEventLoop, guest: Connection, sock: socket.socket) -> None:
    try:
        await loop.connect_accepted_socket(lambda: guest, sock)
    except BaseException:
        sock.close()
        raise


class Connection(asyncio.Protocol):
    """One client of the stream path, from accept to close."""

    __slots__ = (
        "_address",  # of the client, when it was accepted elsewhere
        "_arrived",
        "_listener",
        "_paused",  # the kernel has not yet taken all that was written
        "_path",
        "_peer_done",  # the client has ended its side
        "_rest",  # what is still to be written, or None
        "_size",
        "_spoken",  # the end of stream is sent, or nothing will be
        "_task",  # makes an async greeting
        "transport",
    )

    def __init__(self, path: StreamPath, listener: Listener) -> None:
        self._path = path
        self._listener = listener
        self._address: Address = None
        self._arrived = self._paused = self._peer_done = self._spoken = False
        self._rest: memoryview | None = None
        self._size = 0
        self._task: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport

    def adopted(self, address: Address, begun: tuple[bytes, int] | None) -> None:
        """The client was accepted elsewhere, and perhaps part of its greeting was sent there."""
        self._arrived = True
        self._address = address
        if begun is not None:
            greeting, sent = begun
            self._rest, self._size = memoryview(greeting)[sent:], len(greeting)

    def address(self) -> Address:
        """The client's address, as accept() gives it; None if it had left before it could be asked."""
        return self._address or self.transport.get_extra_info("peername")

    def abort(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self.transport.abort()

    # -- making the greeting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        # With no buffer allowed, "not paused" means that the kernel has every byte written so far.
        self.transport.set_write_buffer_limits(0)
        reception = self._path.reception
        if not self._arrived:
            reception.arrive(self.address() if reception.access_log is not None else None)
        if self._rest is not None:
            self._go_on()
            return
        words = reception.words
        if words.fixed is not None:
            self._send(words.fixed)
        elif words.quick:
            try:
                data = words.render(self._peer())
            except GreetingError as error:
                self._fail(error)
            else:
                self._send(data)
        else:
            reception.wait(self)
            self._task = reception.loop.create_task(self._compose(words))

    def _peer(self) -> Peer:
        listener = self._listener
        return self._path.reception.peer(self.address(), listener.family, listener.address)

    async def _compose(self, words: Greeting) -> None:
        try:
            if words.kind == "async":
                data = await words.render_async(self._peer())
            else:
                pool = self._path.thread_pool()
                data = await self._path.reception.loop.run_in_executor(pool, words.render, self._peer())
        except GreetingError as error:
            self._fail(error)
        else:
            self._send(data)
        finally:
            self._task = None

    def _fail(self, error: GreetingError) -> None:
        if not self.transport.is_closing():
            self._path.reception.not_made(self.address(), error)
            self._path.reception.failed(self)
            self._half_close()

    # -- sending it

    def _send(self, data: bytes) -> None:
        self._size = len(data)
        if len(data) <= CHUNK:
            self.transport.write(data)
        else:
            self._rest = memoryview(data)
        self._go_on()

    def _go_on(self) -> None:
        """Write until the kernel takes no more; then half-close."""
        while self._rest is not None and not self._paused:
            chunk, self._rest = self._rest[:CHUNK], self._rest[CHUNK:] or None
            self.transport.write(chunk)
        if self.transport.is_closing():  # the write failed, or a deadline passed: connection_lost follows
            return
        if self._paused:
            self._path.reception.wait(self)
        elif self._half_close():
            self._path.reception.greeted(self, self._size)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if not self._spoken:
            self._go_on()

    def _half_close(self) -> bool:
        """Send our end of stream; False if the client is found to be gone."""
        self._spoken = True
        try:
            if self._peer_done:
                self.transport.close()
            else:
                self.transport.write_eof()
        except OSError:  # ENOTCONN: reset meanwhile
            self.transport.abort()
            return False
        return True

    # -- the client's side

    def data_received(self, data: bytes) -> None:
        pass  # whatever it says, it is not for us

    def eof_received(self) -> bool:
        self._peer_done = True
        return not self._spoken  # keep the transport open while we have something to say

    def connection_lost(self, exc: Exception | None) -> None:
        self._spoken = True
        if self._task is not None:
            self._task.cancel()
        self._path.reception.left(self)
