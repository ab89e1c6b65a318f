"""The direct path: greetings sent at accept time, short sends, and clients that are gone before."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

import greeter
from greeter import Greeting, Peer, serve
from greeter.core.admission import Limits
from greeter.core.greeting import DEFAULT_GREETING
from tests.conftest import PATIENCE
from tests.support.peers import Outcome, connect, read_to_end, send_then_read, until

if TYPE_CHECKING:
    from greeter.server import Server, Serving

GREETED = Outcome(b"Thank you for connecting", reset=False)

pytestmark = pytest.mark.usefixtures("no_fd_leak")


def here(greeting: Any = DEFAULT_GREETING, **options: Any) -> Serving:
    """serve() on a free port and on the direct path, without an access log or a near deadline."""
    defaults = {"greet_timeout": PATIENCE, "linger_timeout": PATIENCE, "access_log": False, "port": 0}
    return serve(greeting, **{**defaults, "accept": "direct", **options})


def narrow() -> socket.socket:
    """A listening socket whose connections take no more than a few kilobytes at once."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel makes it its minimum
    sock.bind(("127.0.0.1", 0))
    return sock


def failures(server: Server) -> dict[str, int]:
    return {why: count for why, count in server.stats.failed.items() if count}


class Sockets(list["Accepted"]):
    """The sockets that the path makes; each fails as the next of ``faults`` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *faults: tuple[str, int]) -> None:
        super().__init__()
        self.faults = list(faults)
        monkeypatch.setattr("greeter.server.direct.SocketType", self.make)

    def make(self, family: int, kind: int, protocol: int, fd: int) -> Accepted:
        self.append(Accepted(family, kind, protocol, fd))
        self[-1].fault = self.faults.pop(0) if self.faults else ("", 0)
        return self[-1]


class Accepted(socket.SocketType):
    """A socket, one of whose calls may fail."""

    fault = ("", 0)

    def send(self, *args: Any) -> int:
        self._maybe_fail("send")
        return super().send(*args)

    def shutdown(self, how: int, /) -> None:
        self._maybe_fail("shutdown")
        super().shutdown(how)

    def _maybe_fail(self, call: str) -> None:
        name, number = self.fault
        if name == call:
            self.fault = ("", 0)  # once
            raise OSError(number, os.strerror(number))


async def test_the_rest_of_a_short_send_is_sent_when_there_is_room() -> None:
    greeting = bytes(range(256)) * 8192
    async with here(greeting, sock=narrow()) as server:
        clients = [await connect(server.port, receive_buffer=4096) for _ in range(5)]
        await until(lambda: server.stats.accepted == 5, "all are in")
        assert (server.stats.greeted, server.stats.open, server.stats.lingering) == (0, 5, 0)
        for client in clients:
            assert await read_to_end(client) == Outcome(greeting, reset=False)
        assert (server.stats.greeted, server.stats.bytes_sent) == (5, 5 * len(greeting))
        await until(lambda: server.stats.open == 0, "all have left")


async def test_a_client_that_never_takes_the_rest_is_cut_off() -> None:
    async with here(b"g" * 4_000_000, sock=narrow(), greet_timeout=0.1) as server:
        client = await connect(server.port, receive_buffer=4096)
        await until(lambda: failures(server) == {"greet_timeout": 1}, "cut off")
        await until(lambda: server.stats.open == 0, "gone")
        client.close()


async def test_a_client_whose_greeting_is_sent_in_parts_counts_for_its_address() -> None:
    """And no longer than it is here."""
    limits = Limits(max_per_ip=2)
    async with here(b"g" * 1_000_000, sock=narrow(), limits=limits) as server:
        for _ in range(3):
            clients = [await connect(server.port, receive_buffer=4096) for _ in range(2)]
            await until(lambda: server.stats.open == 2, "both are in")
            assert await send_then_read(server.port, 0) == Outcome(b"", reset=False)
            for client in clients:
                assert len((await read_to_end(client)).data) == 1_000_000
            await until(lambda: server.stats.open == 0, "both have left")
        assert server.stats.rejected["per_ip"] == 3
        assert server.stats.greeted == 6


async def test_a_socket_that_takes_nothing_now_takes_it_later(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = Sockets(monkeypatch, ("send", errno.EAGAIN))
    async with here() as server:
        assert await send_then_read(server.port, 18) == GREETED
        assert server.stats.greeted == len(sockets) == 1


@pytest.mark.parametrize(
    "fault",
    [
        ("send", errno.EPIPE),
        ("send", errno.ECONNRESET),
        ("send", errno.ENOBUFS),
        ("shutdown", errno.ENOTCONN),
    ],
    ids=lambda fault: f"{fault[0]}-{errno.errorcode[fault[1]]}",
)
async def test_a_client_that_is_gone_is_counted_and_closed(
    monkeypatch: pytest.MonkeyPatch, fault: tuple[str, int]
) -> None:
    sockets = Sockets(monkeypatch, fault, ("", 0), fault)
    limits = Limits(max_per_ip=1)
    async with here(limits=limits) as server:
        for number in range(4):
            outcome = await send_then_read(server.port, 18)
            await until(lambda: server.stats.open == 0, "it has left")
            if number % 2:
                assert outcome == GREETED
            else:
                assert sockets[number].fileno() == -1
        assert failures(server) == {"reset": 2}
        assert (server.stats.accepted, server.stats.greeted) == (4, 2)
        assert server.stats.rejected["per_ip"] == 0  # the places of those who are gone are free again


async def test_the_quick_callable_fails_for_a_client_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    Sockets(monkeypatch, ("shutdown", errno.ENOTCONN))

    def greeting(peer: Peer) -> str:
        raise ZeroDivisionError

    limits = Limits(max_per_ip=1)
    async with here(Greeting(greeting, quick=True), limits=limits, linger_timeout=0.1) as server:
        await send_then_read(server.port, 18)  # to the linger deadline, as there is no end of stream
        await until(lambda: server.stats.open == 0, "it has left")
        server._tracker.lingering_sockets.seconds = PATIENCE
        assert await send_then_read(server.port, 18) == Outcome(b"", reset=False)
        assert failures(server) == {"greeting_error": 2}


@pytest.mark.parametrize("error", ["ECONNABORTED", "EPROTO", "EPERM", "ENETDOWN"])
async def test_one_that_died_in_the_queue_hides_no_other(error: str) -> None:
    async with here() as server:
        (listener,) = server._listeners
        really = listener.accept_fd
        calls = 0

        def accept_fd() -> Any:
            nonlocal calls
            calls += 1
            if calls % 2:
                raise OSError(getattr(errno, error), "irrelevant")
            return really()

        listener.accept_fd = accept_fd
        clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(6)]
        for client in clients:
            client.setblocking(False)
            assert await read_to_end(client) == GREETED
        assert server.stats.accept_errors == 0


async def test_those_greeted_before_the_system_ran_out_are_greeted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch ends, but not for those who are in it."""
    monkeypatch.setattr("greeter.server.accept_pause.RETRY_SECONDS", 0.01)
    async with here() as server:
        (listener,) = server._listeners
        really = listener.accept_fd
        calls = 0

        def accept_fd() -> Any:
            nonlocal calls
            calls += 1
            if calls == 4:
                raise OSError(errno.ENOMEM, "irrelevant")
            return really()

        listener.accept_fd = accept_fd
        clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(6)]
        await until(lambda: server.stats.accept_errors == 1, "out of memory")
        assert (server.stats.accepted, server.stats.greeted) == (3, 3)
        for client in clients:
            client.setblocking(False)
            assert await read_to_end(client) == GREETED
        assert server.stats.greeted == 6


async def test_the_end_of_stream_comes_with_the_greeting() -> None:
    """One segment: a client that polls once sees both."""
    async with here() as server:
        client = await connect(server.port)
        await until(lambda: server.stats.greeted == 1, "greeted")
        assert client.recv(100) == GREETED.data
        assert client.recv(100) == b""  # it is there already: the socket does not block
        client.close()


async def test_a_client_that_is_not_let_in_is_closed_and_not_counted_as_here() -> None:
    async with here(limits=Limits(allow=["192.0.2.0/24"])) as server:
        for _ in range(3):
            assert (await send_then_read(server.port, 0)).data == b""
        assert (server.stats.accepted, server.stats.open) == (3, 0)
        assert server.stats.rejected["denied"] == 3


async def test_over_a_unix_socket(tmp_path: Any) -> None:
    """Which has its own limits to what it takes at once."""
    path = str(tmp_path / "s")
    greeting = bytes(range(256)) * 8192
    async with here(greeting, path=path) as server:
        reply = await greeter.greet(path=path, max_bytes=len(greeting) + 1)
        assert reply.data == greeting
        assert server.stats.bytes_sent == len(greeting)
