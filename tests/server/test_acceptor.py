"""Accepting by hand: batches, the moments in which none is accepted, and stopping at any time."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
from typing import TYPE_CHECKING, Any

import pytest

from greeter import Greeting, serve
from greeter.core.admission import Limits
from greeter.server.acceptor import ACCEPT_BATCH, COALESCE_THRESHOLD, supports_direct
from greeter.server.direct import DirectPath
from greeter.server.streams import ACCEPT_BATCH as STREAMS_BATCH
from greeter.system.listeners import HANDSHAKE_GRACE
from tests.conftest import PATIENCE
from tests.support.peers import Outcome, read_to_end, send_then_read, until

if TYPE_CHECKING:
    from greeter.server import Server
    from greeter.system.listeners import Listener

GREETED = Outcome(b"Thank you for connecting", reset=False)

pytestmark = pytest.mark.usefixtures("no_fd_leak")


class Counting(dict[Any, Any]):
    """A dictionary that counts how often an item was set."""

    times = 0

    def __setitem__(self, key: Any, value: Any) -> None:
        self.times += 1
        super().__setitem__(key, value)


class Watched:
    """A server of the direct path that notes the size of each batch, and how often it coalesced."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.batches: list[int] = []
        assert isinstance(server._path, DirectPath)
        path: Any = server._path
        self.acceptor: Any = path._acceptor
        accept_batch = path.accept_batch

        def noted(listener: Listener, limit: int) -> int:
            self.batches.append(accept_batch(listener, limit))
            return self.batches[-1]

        path.accept_batch = noted
        self.acceptor._accept_batch = noted
        self.acceptor._coalescing = Counting()

    @property
    def coalescing(self) -> int:
        """How many listeners are not watched for a moment."""
        return len(self.acceptor._coalescing)

    @property
    def coalesced(self) -> int:
        """How often a listener was not watched for a moment."""
        return int(self.acceptor._coalescing.times)

    def queue(self, clients: int) -> list[socket.socket]:
        """Returns so many clients, which are in the accept queue until the caller awaits something."""
        return [socket.create_connection(("127.0.0.1", self.server.port)) for _ in range(clients)]


async def outcomes(clients: list[socket.socket]) -> list[Outcome]:
    for client in clients:
        client.setblocking(False)
    async with asyncio.timeout(PATIENCE):
        return await asyncio.gather(*map(read_to_end, clients))


def serve_direct(**options: Any) -> Any:
    return serve(port=0, access_log=False, accept="direct", **options)


async def test_after_a_small_batch_the_listener_stays_watched() -> None:
    async with serve_direct() as server:
        watched = Watched(server)
        clients = watched.queue(COALESCE_THRESHOLD - 1)
        await until(lambda: watched.batches == [COALESCE_THRESHOLD - 1], "all in one wake-up")
        assert watched.coalesced == 0
        assert await outcomes(clients) == [GREETED] * (COALESCE_THRESHOLD - 1)


async def test_under_load_connections_are_coalesced_into_batches() -> None:
    async with serve_direct() as server:
        watched = Watched(server)
        first = watched.queue(COALESCE_THRESHOLD)
        await until(lambda: watched.batches == [COALESCE_THRESHOLD], "all in one wake-up")
        assert watched.coalesced == 1
        second = watched.queue(3)
        await until(lambda: len(watched.batches) == 2, "the second batch")
        assert watched.batches == [COALESCE_THRESHOLD, 3]
        assert (watched.coalesced, watched.coalescing) == (1, 0)
        assert await outcomes(first + second) == [GREETED] * (COALESCE_THRESHOLD + 3)


async def test_a_long_queue_is_accepted_in_full_batches_without_a_pause() -> None:
    async with serve_direct() as server:
        watched = Watched(server)
        count = 2 * ACCEPT_BATCH + COALESCE_THRESHOLD
        clients = watched.queue(count)
        turns = 0
        while sum(watched.batches) < count:
            assert watched.coalesced == 0
            await asyncio.sleep(0)  # other tasks get their turn in between
            turns += 1
        assert watched.batches == [ACCEPT_BATCH, ACCEPT_BATCH, COALESCE_THRESHOLD]
        assert turns >= 3
        assert await outcomes(clients) == [GREETED] * count


async def test_accepting_can_be_paused_while_it_coalesces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greeter.server.acceptor.COALESCE_SECONDS", 600.0)  # until the pause
    async with serve_direct(listen=["127.0.0.1:0", "127.0.0.1:0"]) as server:
        watched = Watched(server)
        first = watched.queue(COALESCE_THRESHOLD)
        await until(lambda: watched.coalescing == 1, "one of the two listeners is not watched")
        (timer,) = watched.acceptor._coalescing.values()
        watched.acceptor.pause()
        watched.acceptor.pause()
        assert (watched.coalescing, timer.cancelled()) == (0, True)
        second = watched.queue(5)
        await asyncio.sleep(0.01)  # of two listeners, the other one is not watched either
        assert server.stats.accepted == COALESCE_THRESHOLD
        watched.acceptor.resume()
        watched.acceptor.resume()
        assert await outcomes(first + second) == [GREETED] * (COALESCE_THRESHOLD + 5)
        other = int(server.addresses[1].rpartition(":")[2])
        assert await send_then_read(other, 18) == GREETED


@pytest.mark.parametrize("how", ["close", "drain"])
async def test_a_client_that_connects_while_it_coalesces_is_greeted_at_the_end(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greeter.server.acceptor.COALESCE_SECONDS", 600.0)  # until the end
    server = await serve_direct()
    watched = Watched(server)
    first = watched.queue(COALESCE_THRESHOLD)
    await until(lambda: watched.coalescing == 1, "the listener is not watched")
    second = watched.queue(5)
    if how == "close":
        server.close()
    ending = asyncio.create_task(server.drain())
    assert await outcomes(first + second) == [GREETED] * (COALESCE_THRESHOLD + 5)
    async with asyncio.timeout(PATIENCE):
        assert await ending is True
    assert server.stats.greeted == COALESCE_THRESHOLD + 5


async def test_at_the_end_the_accept_queue_is_drained_as_the_capacity_allows() -> None:
    server = await serve_direct(limits=Limits(max_connections=3), linger_timeout=PATIENCE)
    watched = Watched(server)
    clients = watched.queue(20)
    ending = asyncio.create_task(server.drain())
    await asyncio.sleep(2 * HANDSHAKE_GRACE)  # longer than handshakes may complete
    assert await outcomes(clients) == [GREETED] * 20
    async with asyncio.timeout(PATIENCE):
        assert await ending is True
    assert max(watched.batches) <= 3
    assert server.stats.greeted == 20


@pytest.mark.parametrize("accept", ["direct", "streams"])
@pytest.mark.parametrize("how", ["deadline", "cancelled", "closed", "twice"])
async def test_clients_in_the_accept_queue_at_the_deadline_take_the_place_of_lingering_ones(
    how: str, accept: str
) -> None:
    server = await serve(
        port=0,
        access_log=False,
        accept=accept,  # type: ignore[arg-type]  # a parameter's text
        limits=Limits(max_connections=1),
        linger_timeout=PATIENCE,
    )
    count = 4 * STREAMS_BATCH  # more than the streams path accepts beyond its capacity
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(count)]
    ending = asyncio.create_task(server.drain(0.2 if how == "deadline" else PATIENCE))
    await until(lambda: server.stats.greeted > 0, "the first are greeted")
    assert server.stats.greeted == 1 or accept == "streams"
    assert server.stats.accepted < count
    if how == "cancelled":
        await asyncio.sleep(2 * HANDSHAKE_GRACE)
        ending.cancel()
    elif how == "closed":
        server.close()
    elif how == "twice":
        await server.drain(0.2)
    assert await outcomes(clients) == [GREETED] * count
    async with asyncio.timeout(PATIENCE):
        await asyncio.wait([ending])
    assert ending.cancelled() == (how == "cancelled")
    assert (server.stats.greeted, server.stats.drains, server.stats.open) == (count, 1, 0)


async def test_the_end_does_not_wait_for_the_clients_of_an_inherited_socket() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=16) as inherited:
        listen = ["127.0.0.1:0", f"fd:{inherited.fileno()}"]
        server = await serve(listen=listen, access_log=False, limits=Limits(max_connections=2))
        over = asyncio.Event()

        async def connect_again() -> None:
            while not over.is_set():
                with socket.socket() as client:
                    client.setblocking(False)
                    await asyncio.get_running_loop().sock_connect(client, inherited.getsockname())
                    if server.sockets:
                        await asyncio.wait([asyncio.ensure_future(read_to_end(client))], timeout=0.01)

        others = [asyncio.create_task(connect_again()) for _ in range(8)]
        await until(lambda: server.stats.greeted > 8, "clients come")
        async with asyncio.timeout(PATIENCE):
            assert await server.drain() is True
        over.set()
        for other in others:
            other.cancel()
        await asyncio.wait(others)


async def test_a_lack_of_descriptors_at_the_end_is_waited_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("greeter.server.acceptor.RETRY_SECONDS", 0.01)
    server = await serve_direct()
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


@pytest.mark.parametrize("when", ["serving", "draining"])
@pytest.mark.parametrize(("client", "capacity"), [(1, None), (3, None), (20, None), (5, 5)])
async def test_a_server_that_is_closed_by_its_callable_greets_the_whole_queue(
    client: int, capacity: int | None, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The listening socket is closed within a batch, at its first, a middle and its last connection."""

    def make(peer: Any) -> str:
        if peer.count == client:
            server.close()
        return "Hello"

    limits = Limits(max_connections=capacity)
    server = await serve_direct(greeting=Greeting(make, quick=True), limits=limits)
    watched = Watched(server)
    if when == "draining":
        watched.acceptor.pause()
    clients = watched.queue(20)
    ending = asyncio.create_task(server.drain() if when == "draining" else server.wait_closed())
    assert await outcomes(clients) == [Outcome(b"Hello", reset=False)] * 20
    async with asyncio.timeout(PATIENCE):
        await ending
    assert (server.stats.greeted, server.stats.accept_errors, caplog.messages) == (20, 0, [])


def test_the_direct_path_needs_readers_and_epoll(monkeypatch: pytest.MonkeyPatch) -> None:
    def add_reader(*_: Any) -> None:
        pass

    without: Any = type("Without", (asyncio.AbstractEventLoop,), {})
    proactor: Any = type("ProactorEventLoop", (asyncio.AbstractEventLoop,), {"add_reader": add_reader})
    selector: Any = type("Selector", (asyncio.AbstractEventLoop,), {"add_reader": add_reader})
    monkeypatch.setattr(select, "epoll", object, raising=False)
    assert [supports_direct(kind()) for kind in (without, proactor, selector)] == [False, False, True]
    monkeypatch.delattr(select, "epoll")
    assert not supports_direct(selector())
