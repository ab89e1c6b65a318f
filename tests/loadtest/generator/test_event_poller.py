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
from tests.support.loadtest_peers import refused_endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind: TypeAlias = type[EpollPoller] | type[ReaderPoller]
both = pytest.mark.parametrize("kind", [EpollPoller, ReaderPoller])
pytestmark = pytest.mark.usefixtures("no_fd_leak")


class Recorder:
    """A poller, and a wait for its reports."""

    def __init__(self, kind: Kind) -> None:
        self.woken = asyncio.Event()
        self.poller = kind(asyncio.get_running_loop(), self.woken.set)

    async def wait_for(self, fd: int, mask: int) -> int:
        """Wait until all bits of ``mask`` were reported for ``fd``. Returns the bits reported until then."""
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
async def test_the_events_of_a_connection_are_reported(kind: Kind, listener: socket.socket) -> None:
    recorder = Recorder(kind)
    with connecting_to(listener) as sock:
        recorder.poller.register(sock.fileno())
        await recorder.wait_for(sock.fileno(), WRITABLE)
        peer, _ = listener.accept()
        peer.sendall(b"hello")
        await recorder.wait_for(sock.fileno(), READABLE)
        assert sock.recv(100) == b"hello"
        peer.close()
        await recorder.wait_for(sock.fileno(), READABLE | (ENDED if kind is EpollPoller else 0))
        recorder.poller.unregister(sock.fileno())
        recorder.poller.unregister(sock.fileno())  # may be repeated
    recorder.poller.close()


@both
async def test_a_refused_connection_is_reported_as_failed(kind: Kind) -> None:
    recorder = Recorder(kind)
    sock = socket.socket()
    host, _, port = refused_endpoint().rpartition(":")
    sock.setblocking(False)
    sock.connect_ex((host, int(port)))
    recorder.poller.register(sock.fileno())
    await recorder.wait_for(sock.fileno(), FAILED)
    recorder.poller.close()
    sock.close()


@both
async def test_an_idle_socket_does_not_wake_the_loop(kind: Kind, listener: socket.socket) -> None:
    recorder = Recorder(kind)
    with connecting_to(listener) as sock:
        recorder.poller.register(sock.fileno())
        await recorder.wait_for(sock.fileno(), WRITABLE)
        for _ in range(3):
            await asyncio.sleep(0)  # callbacks that were scheduled already
        assert recorder.poller.poll() == []
        recorder.woken.clear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await recorder.woken.wait()
        recorder.poller.unregister(sock.fileno())
    recorder.poller.close()


async def test_closing_unregisters_all_sockets(listener: socket.socket) -> None:
    recorder = Recorder(ReaderPoller)
    with connecting_to(listener) as sock:
        recorder.poller.register(sock.fileno())
        recorder.poller.close()
        assert not asyncio.get_running_loop().remove_writer(sock.fileno())


async def test_epoll_is_used_where_it_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    found = new_poller(loop, lambda: None)
    assert isinstance(found, EpollPoller)
    found.close()
    monkeypatch.delattr(select, "epoll")
    assert isinstance(new_poller(loop, lambda: None), ReaderPoller)


def test_the_bits_are_those_of_epoll() -> None:
    assert (READABLE, WRITABLE, FAILED, ENDED) == (
        select.EPOLLIN,
        select.EPOLLOUT,
        select.EPOLLERR,
        select.EPOLLRDHUP,
    )
