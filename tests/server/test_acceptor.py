"""Accepting by hand: batches, the rest between them, and stopping at any moment."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING, Any

import pytest
from greeter.acceptor import ACCEPT_BATCH, BUSY, Acceptor, can_watch

from greeter import serve
from greeter.limits import Limits
from greeter.listeners import HANDSHAKE_GRACE
from tests.conftest import PATIENCE
from tests.peers import Outcome, read_to_end, speak_first, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from greeter.listeners import Listener
    from greeter.server import Server

GREETED = Outcome(b"Thank you for connecting", reset=False)

pytestmark = pytest.mark.usefixtures("no_fd_leak")


class Watched:
    """A server whose acceptor says how many clients it took each time, and who is in its queue."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.batches: list[int] = []
        assert isinstance(server._path, Acceptor)
        self.acceptor = server._path
        take: Callable[[Listener, int], int] = self.acceptor.greet_queue

        def noted(listener: Listener, limit: int) -> int:
            self.batches.append(take(listener, limit))
            return self.batches[-1]

        self.acceptor.greet_queue = noted

    @property
    def resting(self) -> int:
        return len(self.acceptor._resting)

    def queue(self, clients: int) -> list[socket.socket]:
        """So many clients, in the listen queue until the caller awaits something."""
        return [socket.create_connection(("127.0.0.1", self.server.port)) for _ in range(clients)]


async def outcomes(clients: list[socket.socket]) -> list[Outcome]:
    for client in clients:
        client.setblocking(False)
    async with asyncio.timeout(PATIENCE):
        return await asyncio.gather(*map(read_to_end, clients))


def here(**options: Any) -> Any:
    return serve(port=0, access_log=False, accept="direct", **options)


async def test_few_clients_are_no_load() -> None:
    async with here() as server:
        watched = Watched(server)
        clients = watched.queue(BUSY - 1)
        await until(lambda: watched.batches == [BUSY - 1], "all in one wake-up")
        assert watched.resting == 0
        assert await outcomes(clients) == [GREETED] * (BUSY - 1)


async def test_under_load_it_rests_between_batches() -> None:
    async with here() as server:
        watched = Watched(server)
        first = watched.queue(BUSY)
        await until(lambda: watched.batches == [BUSY], "all in one wake-up")
        assert watched.resting == 1
        second = watched.queue(3)
        # Nobody is told before the rest is over, and then they come together.
        await until(lambda: len(watched.batches) == 2, "the rest is over")
        assert watched.batches == [BUSY, 3]
        assert watched.resting == 0
        assert await outcomes(first + second) == [GREETED] * (BUSY + 3)


async def test_a_long_queue_is_taken_in_batches_without_a_rest() -> None:
    async with here() as server:
        watched = Watched(server)
        count = 2 * ACCEPT_BATCH + BUSY
        clients = watched.queue(count)
        turns = 0
        while sum(watched.batches) < count:
            await asyncio.sleep(0)  # others get a turn in between
            turns += 1
        assert watched.batches == [ACCEPT_BATCH, ACCEPT_BATCH, BUSY]
        assert turns >= 3
        assert await outcomes(clients) == [GREETED] * count


async def test_it_may_be_stopped_while_it_rests() -> None:
    async with here(listen=["127.0.0.1:0", "127.0.0.1:0"]) as server:
        watched = Watched(server)
        first = watched.queue(BUSY)
        await until(lambda: watched.resting == 1, "it rests, on one of the two")
        watched.acceptor.stop()
        watched.acceptor.stop()
        assert watched.resting == 0
        second = watched.queue(5)
        await asyncio.sleep(0.01)  # many times the rest
        assert server.stats.accepted == BUSY
        watched.acceptor.resume()
        watched.acceptor.resume()
        assert await outcomes(first + second) == [GREETED] * (BUSY + 5)
        other = int(server.addresses[1].rpartition(":")[2])
        assert await speak_first(other, 18) == GREETED


@pytest.mark.parametrize("how", ["close", "drain"])
async def test_whoever_comes_during_the_rest_is_not_forgotten_at_the_end(how: str) -> None:
    server = await here()
    watched = Watched(server)
    first = watched.queue(BUSY)
    await until(lambda: watched.resting == 1, "it rests")
    second = watched.queue(5)
    if how == "close":
        server.close()
    ending = asyncio.create_task(server.drain())
    assert await outcomes(first + second) == [GREETED] * (BUSY + 5)
    async with asyncio.timeout(PATIENCE):
        assert await ending is True
    assert server.stats.greeted == BUSY + 5


async def test_everybody_in_the_queue_is_greeted_at_the_end_as_there_is_room() -> None:
    server = await here(limits=Limits(max_connections=3), linger_timeout=PATIENCE)
    watched = Watched(server)
    clients = watched.queue(20)
    ending = asyncio.create_task(server.drain())
    await asyncio.sleep(2 * HANDSHAKE_GRACE)  # they stay for longer than it is ajar
    assert await outcomes(clients) == [GREETED] * 20
    async with asyncio.timeout(PATIENCE):
        assert await ending is True
    assert max(watched.batches) <= 3
    assert server.stats.greeted == 20


@pytest.mark.parametrize("accept", ["direct", "streams"])
@pytest.mark.parametrize("how", ["deadline", "cancelled", "closed", "twice"])
async def test_whoever_waits_for_room_at_the_deadline_gets_it(how: str, accept: str) -> None:
    """From those who were greeted and stay."""
    server = await serve(
        port=0,
        access_log=False,
        accept=accept,  # type: ignore[arg-type]  # a parameter's text
        limits=Limits(max_connections=1),
        linger_timeout=PATIENCE,
    )
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(6)]
    ending = asyncio.create_task(server.drain(0.2 if how == "deadline" else PATIENCE))
    await until(lambda: server.stats.greeted == 1, "one is greeted")
    if how == "cancelled":
        await asyncio.sleep(2 * HANDSHAKE_GRACE)
        ending.cancel()
    elif how == "closed":
        server.close()
    elif how == "twice":
        await server.drain(0.2)
    assert await outcomes(clients) == [GREETED] * 6
    async with asyncio.timeout(PATIENCE):
        await asyncio.wait([ending])
    assert ending.cancelled() == (how == "cancelled")
    assert (server.stats.greeted, server.stats.drains, server.stats.open) == (6, 1, 0)


async def test_the_end_does_not_wait_for_those_of_a_socket_of_others() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=16) as theirs:
        listen = ["127.0.0.1:0", f"fd:{theirs.fileno()}"]
        server = await serve(listen=listen, access_log=False, limits=Limits(max_connections=2))
        over = asyncio.Event()

        async def come_again() -> None:
            while not over.is_set():
                with socket.socket() as client:
                    client.setblocking(False)
                    await asyncio.get_running_loop().sock_connect(client, theirs.getsockname())
                    if server.sockets:
                        await asyncio.wait([asyncio.ensure_future(read_to_end(client))], timeout=0.01)

        others = [asyncio.create_task(come_again()) for _ in range(8)]
        await until(lambda: server.stats.greeted > 8, "they come")
        async with asyncio.timeout(PATIENCE):
            assert await server.drain() is True
        over.set()
        for other in others:
            other.cancel()
        await asyncio.wait(others)


async def test_a_lack_of_descriptors_at_the_end_is_waited_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("greeter.acceptor.RETRY_SECONDS", 0.01)
    server = await here()
    (listener,) = server._listeners
    accept_fd, refusals = listener.accept_fd, [errno.EMFILE, errno.ENFILE]

    def scarce() -> Any:
        if refusals:
            raise OSError(refusals.pop(), "irrelevant")
        return accept_fd()

    listener.accept_fd = scarce
    client = socket.create_connection(("127.0.0.1", server.port))
    ending = asyncio.create_task(server.drain())
    assert await outcomes([client]) == [GREETED]
    async with asyncio.timeout(PATIENCE):
        assert await ending is True
    assert "accepting is paused" in caplog.text


def test_a_loop_without_readers_cannot_watch() -> None:
    def watch(*_: Any) -> None:
        pass

    blind: Any = type("Blind", (asyncio.AbstractEventLoop,), {})
    proactor: Any = type("ProactorEventLoop", (asyncio.AbstractEventLoop,), {"add_reader": watch})
    sighted: Any = type("Sighted", (asyncio.AbstractEventLoop,), {"add_reader": watch})
    assert [can_watch(kind()) for kind in (blind, proactor, sighted)] == [False, False, True]
