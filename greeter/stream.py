"""The stream path: asyncio's own servers and transports; it serves every greeting on every platform.

The law: the clients in the listen queue outlive a pause, a reload and a close, because asyncio works on
duplicates of the listening sockets.

``loop.create_server`` is what asyncio.start_server calls with a factory that makes a StreamReader, a
StreamWriter and a protocol for each client. A greeting needs none of them, and without them the path
costs 1.7 of nginx's CPU per greeting on uvloop, where it was 2.8.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
from typing import TYPE_CHECKING

from greeter.connection import Connection, House

if TYPE_CHECKING:
    from greeter.address import Address
    from greeter.listeners import Listener

# How many connections asyncio accepts per wake-up, which it derives from its backlog argument; a large
# number starves everything else on the loop.
ACCEPT_BATCH = 8


class StreamPath:
    """Accepts on ``listeners``, and serves each client with a Connection in ``house``."""

    name = "stream"

    def __init__(self, house: House, listeners: list[Listener], *, backlog: int) -> None:
        self._house = house
        self._reception = house.reception
        self._listeners = listeners
        self._backlog = backlog
        self._servers: list[asyncio.Server] = []
        self._wanted = False  # whether to accept, as it was said last
        self._starting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to accept."""
        self._wanted = True
        await self._serve()

    def resume(self) -> None:
        """Accept again after ``stop``."""
        self._wanted = True
        if self._starting is None and not self._servers:
            self._starting = self._reception.loop.create_task(self._serve())
            self._starting.add_done_callback(self._started)

    def stop(self) -> None:
        """Accept no more. Those in the listen queue stay there."""
        self._wanted = False
        if self._starting is None:  # else it is done when that has come to its end
            self._unserve()

    async def _serve(self) -> None:
        for listener in self._listeners:
            sock = listener.sock.dup()
            try:
                server = await self._reception.loop.create_server(
                    functools.partial(Connection, self._house, listener), sock=sock, backlog=ACCEPT_BATCH
                )
            except BaseException:
                sock.close()
                raise
            self._servers.append(server)
            listener.listen(self._backlog)

    def _unserve(self) -> None:
        loop = self._reception.loop
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
        self._house.close()

    def greet_queue(self, listener: Listener, limit: int) -> int:
        """Take up to ``limit`` clients from the listen queue, without asyncio; returns how many there were.

        Raises OSError when the system cannot accept, for want of descriptors or memory.
        """
        accepted = 0
        while accepted < limit and (client := listener.accept()) is not None:
            accepted += 1
            fd, address = client
            if self._reception.arrive(address):
                self.take(fd, address, listener)
            else:
                os.close(fd)
        return accepted

    def take(
        self, fd: int, address: Address, listener: Listener, begun: tuple[bytes, int] | None = None
    ) -> None:
        """Serve a client that was accepted elsewhere and has arrived; the descriptor is ours from here on.

        ``begun`` is its greeting and how much of that was sent already, if any of it was made.
        """
        sock = socket.socket(listener.family, socket.SOCK_STREAM, fileno=fd)
        sock.setblocking(False)
        guest = Connection(self._house, listener)
        if not self._reception.proxied:  # else its address is not yet known
            self._reception.remember(guest, address)
        guest.bring_in(sock, address, begun)

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting = None
        if task.cancelled() or not self._wanted:
            self._unserve()
        elif (error := task.exception()) is not None:
            self._unserve()
            assert isinstance(error, OSError)
            self._reception.cannot_accept(error)
