"""asyncio.start_server, paused, resumed and stopped without a loss; ``handler`` in a server of our own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from greeter import serve
from greeter.core.admission import Limits
from greeter.core.endpoint import DEFAULT_PORT
from greeter.server.streams import StreamsPath
from tests.conftest import PATIENCE
from tests.support.peers import Outcome, connect, read_to_end, send_then_read, until

if TYPE_CHECKING:
    from greeter.server import Server, Serving

GREETED = Outcome(b"Thank you for connecting", reset=False)

pytestmark = pytest.mark.usefixtures("no_fd_leak")


def here(**options: Any) -> Serving:
    return serve(**{"port": 0, "access_log": False, "accept": "streams", **options})


def path_of(server: Server) -> StreamsPath:
    assert isinstance(server._path, StreamsPath)
    return server._path


async def greeted(clients: list[socket.socket]) -> None:
    for client in clients:
        client.setblocking(False)
        assert await read_to_end(client) == GREETED


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_paused_and_resumed_it_loses_no_client() -> None:
    async with here() as server:
        path = path_of(server)
        waiting: list[socket.socket] = []
        for _ in range(5):
            path.pause()
            path.pause()
            waiting += [socket.create_connection(("127.0.0.1", server.port)) for _ in range(10)]
            await turns(3)
            accepted = server.stats.accepted
            await turns(10)
            assert server.stats.accepted == accepted
            path.resume()
            path.resume()
            waiting.append(await connect(server.port))
        await greeted(waiting)
        assert server.stats.greeted == 55


@pytest.mark.parametrize("kind", ["async", "thread"])
@pytest.mark.parametrize("how", ["drain", "close"])
@pytest.mark.parametrize("turns_before", range(6))
async def test_at_the_end_what_asyncio_has_accepted_is_greeted(
    turns_before: int, how: str, kind: str
) -> None:
    """Whether its handler was called or not, and also if its greeting takes a while."""

    async def later(_: object) -> str:
        await asyncio.sleep(0.01)
        return "Hello"

    greeting = later if kind == "async" else lambda _: "Hello"
    with socket.create_server(("127.0.0.1", 0)) as sock:  # others may serve it too: it is left at once
        server = await here(greeting=greeting, port=DEFAULT_PORT, sock=sock.dup(), linger_timeout=0.02)
        assert (await send_then_read(server.port, 5)).data == b"Hello"
        await until(lambda: server.stats.open == 0, "the first is closed")
        waiting = [socket.create_connection(sock.getsockname()) for _ in range(6)]
        await turns(turns_before)
        if how == "close":
            server.close()
            await server.wait_closed()
        else:
            assert await server.drain() is True
    for client in waiting:
        client.setblocking(False)
        assert await read_to_end(client) == Outcome(b"Hello", reset=False)
    assert server.stats.greeted == 7


@pytest.mark.parametrize("turns_before", range(1, 6))
async def test_a_cancelled_start_leaves_nothing_open_and_nothing_watched(turns_before: int) -> None:
    async def start() -> None:
        async with here(listen=["127.0.0.1:0"] * 3):
            await asyncio.sleep(0)

    loop = asyncio.get_running_loop()
    watched = getattr(loop, "_selector", None)  # of asyncio's own loop
    before = len(watched.get_map()) if watched is not None else 0
    starting = asyncio.create_task(start())
    await turns(turns_before)
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting
    await turns(2)
    assert watched is None or len(watched.get_map()) == before


@pytest.mark.parametrize("turns_before", range(6))
async def test_it_may_be_paused_while_it_resumes(turns_before: int) -> None:
    """Wherever it is by then, it accepts no more; and then it can be resumed all the same."""
    async with here(listen=["127.0.0.1:0"] * 3) as server:
        path = path_of(server)
        path.pause()
        path.resume()
        await turns(turns_before)
        path.pause()
        await turns(5)
        ports = [int(address.rpartition(":")[2]) for address in server.addresses]
        clients = [socket.create_connection(("127.0.0.1", port)) for port in ports]
        await turns(20)
        assert server.stats.accepted == 0
        path.resume()
        await greeted(clients)


@pytest.mark.parametrize("turns_before", range(4))
async def test_it_may_be_resumed_at_once(turns_before: int) -> None:
    async with here() as server:
        path = path_of(server)
        path.pause()
        path.resume()
        await turns(turns_before)
        path.pause()
        path.resume()  # before anything has come of either
        assert await send_then_read(server.port, 18) == GREETED


@pytest.mark.parametrize("turns_before", range(6))
async def test_it_may_be_closed_while_it_resumes(turns_before: int) -> None:
    """Nothing that listens is left; the fixture looks for it."""
    server = await here(listen=["127.0.0.1:0"] * 3)
    path = path_of(server)
    path.pause()
    path.resume()
    await turns(turns_before)
    server.close()
    async with asyncio.timeout(PATIENCE):
        await server.wait_closed()
    await turns(5)
    for address in server.addresses:
        with pytest.raises(ConnectionRefusedError):
            await connect(int(address.rpartition(":")[2]))


async def test_a_client_that_is_being_accepted_when_it_is_paused_is_greeted() -> None:
    """asyncio accepts in one turn and attaches in a later one (cpython #109564)."""
    for before in range(6):
        async with here() as server:
            client = socket.create_connection(("127.0.0.1", server.port))
            await turns(before)
            path_of(server).pause()
            await turns(5)
            path_of(server).resume()
            await greeted([client])


async def test_a_resume_that_fails_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes a descriptor, and there may be none."""
    monkeypatch.setattr("greeter.server.accept_pause.RETRY_SECONDS", 0.01)
    monkeypatch.setattr("greeter.server.accept_pause.LOG_INTERVAL", PATIENCE)
    async with here() as server:
        path = path_of(server)
        failing = iter([errno.EMFILE, errno.ENFILE])
        really = socket.socket.dup

        def dup(sock: socket.socket) -> socket.socket:
            if number := next(failing, None):
                raise OSError(number, os.strerror(number))
            return really(sock)

        monkeypatch.setattr(socket.socket, "dup", dup)
        path.pause()
        client = socket.create_connection(("127.0.0.1", server.port))
        path.resume()
        await greeted([client])
        assert server.stats.accept_errors == 2
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("cannot accept (too many open files): accepting is paused")


async def test_at_capacity_asyncio_pauses() -> None:
    async with here(limits=Limits(max_connections=2)) as server:
        clients = [await connect(server.port) for _ in range(40)]
        for client in clients:
            assert await read_to_end(client) == GREETED
    assert server.stats.greeted == 40


async def test_asyncio_takes_few_at_a_time_and_the_queue_is_long() -> None:
    """Its backlog argument is both; the queue has to have its own length."""
    async with here() as server:
        clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
        await greeted(clients)
        assert server.stats.greeted == 200


async def test_a_client_that_is_not_admitted_is_closed() -> None:
    async with here(limits=Limits(deny=["127.0.0.1"])) as server:
        assert (await send_then_read(server.port, 0)).data == b""
        assert server.stats.rejected["denied"] == server.stats.accepted == 1
        await until(lambda: server.stats.open == 0, "it has left")
    server = await here(limits=Limits(deny=["127.0.0.1"]))
    client = socket.create_connection(("127.0.0.1", server.port))
    server.close()  # which accepts it from the queue by hand
    client.setblocking(False)
    assert (await read_to_end(client)).data == b""
    assert server.stats.rejected["denied"] == 1
    await until(lambda: server.stats.open == 0, "it is closed")
