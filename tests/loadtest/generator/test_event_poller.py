from __future__ import annotations

import asyncio
import select
import socket
from typing import TYPE_CHECKING, TypeAlias

import pytest

from greeter.loadtest.generator.event_poller import (
    ENDED,
    FAILED,
    READABLE,
    WRITABLE,
    EpollPoller,
    ReaderPoller,
    new_poller,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind: TypeAlias = type[EpollPoller] | type[ReaderPoller]
both = pytest.mark.parametrize("kind", [EpollPoller, ReaderPoller])
pytestmark = pytest.mark.usefixtures("no_fd_leak")


class Eyes:
    """A poller, and what it has reported."""

    def __init__(self, kind: Kind) -> None:
        self.woken = asyncio.Event()
        self.poller = kind(asyncio.get_running_loop(), self.woken.set)

    async def see(self, fd: int, mask: int) -> int:
        """Wait until everything in ``mask`` was reported of ``fd``; what was reported until then."""
        seen = 0
        async with asyncio.timeout(10):
            while seen & mask != mask:
                await self.woken.wait()
                self.woken.clear()
                for found, bits in self.poller.poll():
                    assert found == fd
                    seen |= bits
        return seen


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def connecting_to(listener: socket.socket) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(listener.getsockname())
    return sock


@both
async def test_what_happens_to_a_connection_is_reported(kind: Kind, listener: socket.socket) -> None:
    eyes = Eyes(kind)
    with connecting_to(listener) as sock:
        eyes.poller.register(sock.fileno())
        await eyes.see(sock.fileno(), WRITABLE)
        peer, _ = listener.accept()
        peer.sendall(b"hello")
        await eyes.see(sock.fileno(), READABLE)
        assert sock.recv(100) == b"hello"
        peer.close()
        await eyes.see(sock.fileno(), READABLE | (ENDED if kind is EpollPoller else 0))
        eyes.poller.unregister(sock.fileno())
        eyes.poller.unregister(sock.fileno())  # once is enough, twice no harm
    eyes.poller.close()


@both
async def test_a_refusal_says_to_look_at_the_error(kind: Kind, listener: socket.socket) -> None:
    eyes = Eyes(kind)
    sock = socket.socket()
    address = listener.getsockname()
    listener.close()
    sock.setblocking(False)
    sock.connect_ex(address)
    eyes.poller.register(sock.fileno())
    await eyes.see(sock.fileno(), FAILED)
    eyes.poller.close()
    sock.close()


@both
async def test_idle_it_does_not_wake(kind: Kind, listener: socket.socket) -> None:
    eyes = Eyes(kind)
    with connecting_to(listener) as sock:
        eyes.poller.register(sock.fileno())
        await eyes.see(sock.fileno(), WRITABLE)
        for _ in range(3):
            await asyncio.sleep(0)  # what the loop had begun to tell
        assert eyes.poller.poll() == []
        eyes.woken.clear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await eyes.woken.wait()
        eyes.poller.unregister(sock.fileno())
    eyes.poller.close()


async def test_what_is_open_at_the_end_is_forgotten(listener: socket.socket) -> None:
    eyes = Eyes(ReaderPoller)
    with connecting_to(listener) as sock:
        eyes.poller.register(sock.fileno())
        eyes.poller.close()
        assert not asyncio.get_running_loop().remove_writer(sock.fileno())


async def test_epoll_where_there_is_epoll(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    found = new_poller(loop, lambda: None)
    assert isinstance(found, EpollPoller)
    found.close()
    monkeypatch.delattr(select, "epoll")
    assert isinstance(new_poller(loop, lambda: None), ReaderPoller)


def test_the_bits_are_epolls() -> None:
    assert (READABLE, WRITABLE, FAILED, ENDED) == (
        select.EPOLLIN,
        select.EPOLLOUT,
        select.EPOLLERR,
        select.EPOLLRDHUP,
    )
