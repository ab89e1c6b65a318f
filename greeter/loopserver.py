"""Accepting by the event loop's own servers, where the loop cannot watch a socket for us.

The law: the clients in the listen queue outlive a pause, a reload and a close, because the loop works on
duplicates of the listening sockets. It is the second choice, for loops without ``add_reader`` (Windows'
proactor): they answer a lack of descriptors each in a way of its own, and tell nobody.

``loop.create_server`` is what asyncio.start_server calls with a factory that makes a StreamReader, a
StreamWriter and a protocol for each client, none of which a greeting needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING

from greeter.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from greeter.connection import House
    from greeter.listeners import Listener

# How many connections asyncio accepts per wake-up, which it derives from its backlog argument; a large
# number starves everything else on the loop.
ACCEPT_BATCH = 8


class LoopServer:
    """Accepts on ``listeners``, and serves each client with a Connection in ``house``.

    ``greet_queue`` takes clients from a listen queue without the loop, when the server closes.
    """

    name = "stream"

    def __init__(
        self,
        house: House,
        listeners: list[Listener],
        greet_queue: Callable[[Listener, int], int],
        *,
        backlog: int,
    ) -> None:
        self.greet_queue = greet_queue
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

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting = None
        if task.cancelled() or not self._wanted:
            self._unserve()
        elif (error := task.exception()) is not None:
            self._unserve()
            assert isinstance(error, OSError)
            self._reception.cannot_accept(error)
