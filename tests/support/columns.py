"""The columns of the conformance suite: the same client and the same counters, by stream and by datagram.

A client begins by sending something, and ends by reading all that it gets. Over a stream, that is a
connection. By datagram, it is one datagram and its answer.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.conftest import PATIENCE
from tests.support.datagram_peers import queued, receive
from tests.support.peers import Outcome, read_to_end

if TYPE_CHECKING:
    from greeter import Server

DATAGRAM_MAX = 65_507  # bytes, over IPv4


@dataclass(frozen=True)
class Counts:
    """What a server has counted; classes without a client are left out."""

    accepted: int = 0
    greeted: int = 0
    sent: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)


class Streams:
    """Clients on TCP connections."""

    endpoint = "127.0.0.1:0"
    largest = 4_000_000  # bytes of a greeting

    async def begin(self, server: Server, size: int = 18, source: str = "127.0.0.1") -> socket.socket:
        """A client that has sent ``size`` bytes."""
        return await self._begin(server.port, size, source, socket.SOCK_STREAM)

    async def _begin(self, port: int, size: int, source: str, kind: socket.SocketKind) -> socket.socket:
        sock = socket.socket(type=kind)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            sock.bind((source, 0))
            async with asyncio.timeout(PATIENCE):
                await loop.sock_connect(sock, ("127.0.0.1", port))
                if kind == socket.SOCK_DGRAM:
                    sock.send(b"x" * size)  # also nothing, which uvloop would not send
                elif size:
                    await loop.sock_sendall(sock, b"x" * size)
        except BaseException:
            sock.close()
            raise
        return sock

    async def end(self, sock: socket.socket) -> Outcome:
        """Read what the client gets, to the end, and close."""
        return await read_to_end(sock)

    async def got_nothing(self, sock: socket.socket) -> bool:
        """Whether a client was not greeted, though later ones were. Closes its socket."""
        return not (await self.end(sock)).data

    async def visit(self, server: Server, size: int = 18, source: str = "127.0.0.1") -> Outcome:
        """A client from its begin to its end."""
        return await self.end(await self.begin(server, size, source))

    def counts(self, server: Server) -> Counts:
        """The counters of this column."""
        stats = server.stats
        failed, rejected = ({k: n for k, n in each.items() if n} for each in (stats.failed, stats.rejected))
        return Counts(stats.accepted, stats.greeted, stats.bytes_sent, failed, rejected)

    def waiting(self, server: Server) -> int:
        """How many clients wait for their greeting, or linger."""
        return server.stats.open


class Datagrams(Streams):
    """Clients that send one datagram each."""

    endpoint = "udp:127.0.0.1:0"
    largest = DATAGRAM_MAX

    async def begin(self, server: Server, size: int = 18, source: str = "127.0.0.1") -> socket.socket:
        return await self._begin(server.port, min(size, DATAGRAM_MAX), source, socket.SOCK_DGRAM)

    async def end(self, sock: socket.socket) -> Outcome:
        with sock:
            return Outcome(await receive(sock), reset=False)

    async def got_nothing(self, sock: socket.socket) -> bool:
        with sock:
            return queued(sock) == 0

    def counts(self, server: Server) -> Counts:
        found = {name: count for name, count in server.stats.datagrams.items() if count}

        def classes(end: str) -> dict[str, int]:
            return {name.removeprefix(end): n for name, n in found.items() if name.startswith(end)}

        received, greeted, sent = (found.get(name, 0) for name in ("received", "greeted", "sent_bytes"))
        return Counts(received, greeted, sent, classes("failed_"), classes("rejected_"))

    def waiting(self, server: Server) -> int:
        found = self.counts(server)
        return found.accepted - found.greeted - sum((found.failed | found.rejected).values())


COLUMNS = {"direct": Streams(), "streams": Streams(), "datagrams": Datagrams()}
