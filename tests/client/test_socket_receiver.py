"""Receiving from a socket without a transport, on both loops: the other end is the test's."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from greeter import ConnectFailed, greet
from greeter.client import socket_receiver
from greeter.client.arguments import check_exchange
from greeter.client.connecting import Connected
from greeter.client.socket_receiver import SocketReceiver
from tests.conftest import PATIENCE
from tests.support.peers import reset

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("no_fd_leak")


@contextmanager
def receiving(
    until: str = "eof", limit: int = 10**9, error: OSError | None = None
) -> Iterator[tuple[SocketReceiver, socket.socket]]:
    """A receiver on a TCP connection, and the other end, which blocks."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    client.setblocking(False)
    exchange = check_exchange(None, PATIENCE, PATIENCE, limit, until, None, None, None)
    receiver = SocketReceiver(Connected(client, error), exchange)
    try:
        with server:
            yield receiver, server
    finally:
        receiver.close()


async def end(receiver: SocketReceiver) -> bytes:
    async with asyncio.timeout(PATIENCE):
        await receiver.done
    return receiver.reply()


@pytest.mark.parametrize("turns", [0, 1, 5])
async def test_all_that_came_before_a_reset_is_received(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop reports the error of a socket once, and then no more events, whatever is unread."""
    monkeypatch.setattr(socket_receiver, "_READ_BYTES", 7)
    with receiving() as (receiver, server):
        for _ in range(turns):
            await asyncio.sleep(0)
        server.sendall(b"x" * 10_000)
        reset(server)
        assert await end(receiver) == b"x" * 10_000
        assert isinstance(receiver.error, ConnectionResetError)


async def test_what_a_socket_does_not_take_at_once_is_sent_later() -> None:
    with receiving() as (receiver, server):
        data = bytes(range(256)) * 40_000
        receiver.send(data)
        assert receiver._unsent, "the buffers of the kernel have less than 10 MB"
        received = b""
        while len(received) < len(data):
            received += await asyncio.to_thread(server.recv, 1 << 20)
        assert received == data
        server.sendall(b"thanks")
        server.close()
        assert await end(receiver) == b"thanks"
        assert receiver.error is None


async def test_what_came_before_an_error_of_sending_is_received() -> None:
    with receiving() as (receiver, server):
        receiver.send(bytes(10_000_000))
        server.sendall(b"hello")
        reset(server)
        assert await end(receiver) == b"hello"
        assert receiver.error is not None


async def test_nothing_is_sent_to_a_peer_that_has_reset_the_connection() -> None:
    known = ConnectionResetError(errno.ECONNRESET, "reset")
    with receiving(error=known) as (receiver, server):
        receiver.send(b"x")
        server.close()
        assert await end(receiver) == b""
        assert receiver.error is known


async def test_what_is_unsent_at_the_end_of_the_greeting_is_no_error() -> None:
    with receiving("line") as (receiver, server):
        receiver.send(bytes(10_000_000))
        server.sendall(b"hello\nmore")
        assert await end(receiver) == b"hello\n"
        receiver._write()  # in the same iteration of the loop
        assert receiver.error is None


async def test_a_deadline_after_the_end_is_ignored() -> None:
    with receiving() as (receiver, server):
        server.close()
        receiver.expire()
        assert receiver.done.done()
        receiver.expire()
        assert not receiver.timed_out


@pytest.mark.parametrize("came", [b"hello", b""])
async def test_what_came_before_the_deadline_is_received(came: bytes) -> None:
    with receiving("bytes:5") as (receiver, server):
        server.sendall(came)
        receiver.expire()  # before the loop had a chance to read
        assert (await end(receiver), receiver.timed_out) == (came, not came)


async def test_the_pause_that_ends_a_greeting_is_one_of_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("greeter.client.receiver.perf_counter", lambda: now)
    with receiving("idle:60s") as (receiver, server):
        server.sendall(b"hi")
        receiver._read()
        now += 60.0
        server.sendall(b" there")
        receiver._check_idle()  # the process was stopped: the time has passed, and more has come
        assert not receiver.done.done()
        now += 60.0
        receiver._check_idle()
        assert await end(receiver) == b"hi there"
        assert receiver.last_byte == 1060.0


async def test_a_socket_that_cannot_be_watched_is_an_error_of_connecting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Receiver(SocketReceiver):
        def _watch(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")  # as epoll_ctl(2) does

    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr("greeter.client.oneshot.SocketReceiver", Receiver)
        with pytest.raises(ConnectFailed, match="[Nn]o space left on device"):
            await greet(port=listener.getsockname()[1])
