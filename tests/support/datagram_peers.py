"""Clients of a datagram service, on connected sockets: the kernel drops an answer from another address."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from typing import TYPE_CHECKING

from tests.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


class BlockingLoop:
    """A closed loop in a thread, which asks as fast as the service answers.

    Args:
        address: Of the service.
        answer: What each answer must be.
        clients: How many ask at once, each from a socket of its own.
    """

    def __init__(self, address: tuple[str, int], answer: bytes, clients: int = 50) -> None:
        self.asked = self.answers = self.lost = 0
        self.wrong: list[bytes] = []
        self._address = address
        self._answer = answer
        self._clients = clients

    def run(self, count: int, go_on: Callable[[], bool] = lambda: False) -> None:
        """Ask ``count`` times, and further while ``go_on()``. No question is repeated.

        What is not answered within PATIENCE is lost. The last question of each client is not waited for: see
        ``read_the_rest``, which has to be called.
        """
        self._poll, self._socks = select.epoll(), {}
        for _ in range(self._clients):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setblocking(False)
            sock.connect(self._address)
            self._socks[sock.fileno()] = sock
            self._poll.register(sock, select.EPOLLIN)
            self._ask(sock)
        while self.asked < count or go_on():
            if not self._read_answers(self._ask):
                break

    def read_the_rest(self) -> None:
        """Receive the answers to the questions that have been asked, and close the sockets."""
        while self.answers < self.asked and self._read_answers(lambda _: None):
            pass
        self.lost = self.asked - self.answers
        self._poll.close()
        for sock in self._socks.values():
            sock.close()

    def _ask(self, sock: socket.socket) -> None:
        sock.send(QUESTION)
        self.asked += 1

    def _read_answers(self, then: Callable[[socket.socket], None]) -> bool:
        ready = self._poll.poll(PATIENCE)
        for fd, _ in ready:
            try:
                found = self._socks[fd].recv(65536)
            except OSError:  # refused: there is no service any more
                self._poll.unregister(fd)
                continue
            self.answers += 1
            if found != self._answer:
                self.wrong.append(found)
            then(self._socks[fd])
        return bool(ready)
