"""A greeting callable or an access log that changes, closes or drains the server which has called it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from typing import TYPE_CHECKING, Any, Literal

import pytest

from greeter import Greeting, serve
from greeter.core.admission import Limits
from tests.conftest import PATIENCE
from tests.support.peers import Outcome, read_to_end, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from greeter.server import Server

    Accept = Literal["direct", "streams"]

COUNT = 20
LARGE = b"g" * 4_000_000  # more than the kernel takes at once
HELLO = Outcome(b"Hello", reset=False)

pytestmark = pytest.mark.usefixtures("no_fd_leak", "no_error_in_the_loop")


@pytest.fixture
async def no_error_in_the_loop() -> Any:
    """Nothing that the event loop calls raises."""
    loop = asyncio.get_running_loop()
    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    yield
    loop.set_exception_handler(None)
    assert errors == []


@contextlib.contextmanager
def queued(server: Server, count: int = COUNT) -> Iterator[list[socket.socket]]:
    """So many clients that are all in the accept queue before one of them is accepted."""
    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", server.port)
        clients = [stack.enter_context(socket.create_connection(address)) for _ in range(count)]
        for client in clients:
            client.setblocking(False)
        yield clients


def all_accepted(server: Server, count: int) -> bool:
    return server.stats.accepted == count


async def outcomes(clients: list[socket.socket]) -> list[Outcome]:
    return await asyncio.gather(*map(read_to_end, clients))


@pytest.mark.parametrize("by", ["callable", "access log"])
async def test_a_new_greeting_of_another_kind_is_for_the_next_client(by: str, accept: Accept) -> None:
    async def later(_: Any) -> str:
        return "later"

    def change(_: Any) -> Any:
        server.update(greeting=later)
        return "first"

    if by == "callable":
        first = serve(Greeting(change, quick=True), port=0, access_log=False, accept=accept)
    else:
        first = serve("first", port=0, access_log=change, accept=accept)
    async with first as server:
        with queued(server) as clients:
            found = [outcome.data for outcome in await outcomes(clients)]
        await until(lambda: server.stats.open == 0, "all are closed")
        assert server.stats.greeted == COUNT
        assert sorted(found)[1:] == [b"later"] * (COUNT - 1)
        # On the streams path, asyncio has accepted the client before its greeting is asked for.
        assert b"first" in found or (accept == "streams" and by == "access log")


@pytest.mark.parametrize("by", ["callable", "failing callable", "access log"])
async def test_limits_that_are_turned_on_hold_from_the_next_client_on(by: str, accept: Accept) -> None:
    def limit(_: Any) -> str:
        server.update(limits=Limits(max_per_ip=2))
        if by == "failing callable":
            raise ValueError("a bug")
        return "Hello"

    greeting: Any = "Hello" if by == "access log" else Greeting(limit, quick=True)
    log: Any = limit if by == "access log" else False
    async with serve(greeting, port=0, access_log=log, accept=accept, linger_timeout=PATIENCE) as server:
        for total in (COUNT, 2 * COUNT):
            with queued(server) as clients:
                await until(functools.partial(all_accepted, server, total), "all are accepted")
                await outcomes(clients)
            await until(lambda: server.stats.open == 0, "all are closed")
        admitted = 2 * COUNT - server.stats.rejected["per_ip"]
        # The first one, before there was a limit, and two each time. On the streams path, asyncio has
        # accepted more clients before a callable is called.
        assert admitted == 5 or (accept == "streams" and by != "access log" and 5 < admitted < COUNT)
        admission = server._tracker.admission
        assert admission is not None
        assert (admission.addresses, server._tracker._admitted) == (0, {})


async def test_a_server_that_every_callable_closes_greets_the_whole_queue(
    accept: Accept, caplog: pytest.LogCaptureFixture
) -> None:
    def make(_: Any) -> str:
        server.close()
        return "Hello"

    server = await serve(Greeting(make, quick=True), port=0, access_log=False, accept=accept)
    with queued(server) as clients:
        assert await outcomes(clients) == [HELLO] * COUNT
    async with asyncio.timeout(PATIENCE):
        await server.wait_closed()
    assert (server.stats.greeted, caplog.messages) == (COUNT, [])


async def test_the_client_whose_callable_closes_the_server_gets_all_of_a_large_greeting(
    accept: Accept,
) -> None:
    def make(_: Any) -> bytes:
        server.close()
        return LARGE

    server = await serve(
        Greeting(make, quick=True), port=0, access_log=False, accept=accept, greet_timeout=600
    )
    with queued(server, 1) as clients:
        await until(lambda: server.sockets == (), "the callable was called")
        for _ in range(5):  # in which a server would end that has nothing to do
            await asyncio.sleep(0)
        assert await outcomes(clients) == [Outcome(LARGE, reset=False)]
    async with asyncio.timeout(PATIENCE):
        await server.wait_closed()


@pytest.mark.parametrize("timeout", [0, 0.1])
async def test_a_callable_that_waits_for_its_own_end_ends_the_server(timeout: float, accept: Accept) -> None:
    """It waits for its own client, which is aborted at the drain deadline, and the drain with it."""

    async def make(_: Any) -> str:
        await server.drain(timeout)
        return "Hello"

    server = await serve(make, port=0, access_log=False, accept=accept)
    with queued(server, 3) as clients:
        assert await outcomes(clients) == [Outcome(b"", reset=False)] * 3
        async with asyncio.timeout(PATIENCE):
            await server.wait_closed()
    assert (server.stats.failed["aborted"], server.sockets) == (3, ())
