"""Clients of a datagram service, on connected sockets: the kernel drops an answer from another address."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

from tests.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

QUESTION = b"Hello, is there anybody in there?"


@contextlib.contextmanager
def client(address: tuple[str, int], source: str = "", *, port: int = 0) -> Iterator[socket.socket]:
    """A non-blocking socket that is connected to ``address``, and bound to ``source`` and ``port``."""
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        if source or port:
            sock.bind((source, port))
        sock.connect(address)
        yield sock


async def receive(sock: socket.socket) -> bytes:
    """The next datagram."""
    async with asyncio.timeout(PATIENCE):
        return await asyncio.get_running_loop().sock_recv(sock, 65536)


async def ask(
    address: tuple[str, int], question: bytes = QUESTION, source: str = "", *, port: int = 0
) -> bytes:
    """The answer to one datagram."""
    with client(address, source, port=port) as sock:
        sock.send(question)
        return await receive(sock)


class ClosedLoop:
    """Clients that each ask, wait for the answer, and ask again. No question is repeated: a loss hangs."""

    def __init__(self, address: tuple[str, int], clients: int = 50) -> None:
        self.answers = 0
        self.wrong: list[bytes] = []
        self._address = address
        self._clients = clients

    async def exchange(self, count: int, answer: bytes) -> None:
        """Let each client ask ``count`` times; each must get ``answer``."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._clients):
                group.create_task(self._ask_again(count, answer))

    async def _ask_again(self, count: int, answer: bytes) -> None:
        with client(self._address) as sock:
            for _ in range(count):
                sock.send(QUESTION)
                found = await receive(sock)
                self.answers += 1
                if found != answer:
                    self.wrong.append(found)


def queued(sock: socket.socket) -> int:
    """How many datagrams are in the receive queue of ``sock``; they are taken out."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.recv(65536)
            count += 1
    return count


def small_buffer() -> socket.socket:
    """A bound socket whose receive buffer has room for a few datagrams."""
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.bind(("127.0.0.1", 0))
    return sock
