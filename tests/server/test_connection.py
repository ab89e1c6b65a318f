"""The states of a connection: real ones go through them as drawn, and every arrow of the drawing occurs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from greeter import Greeting, Limits, Peer, serve
from greeter.server.connection import TRANSITIONS, State
from tests.conftest import PATIENCE
from tests.support.peers import connect, read_to_end, reset, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from greeter.server import Server
    from tests.server.conftest import Walk

pytestmark = pytest.mark.usefixtures("no_fd_leak")

HEADER = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"
BEHIND_A_PROXY = {"proxy_from": ["127.0.0.1"]}


async def never(_: Peer) -> str:
    await asyncio.Event().wait()
    return ""


async def soon(_: Peer) -> str:
    await asyncio.sleep(0)
    return "Hello"


async def fails(_: Peer) -> str:
    await asyncio.sleep(0)
    raise ValueError("a bug")


async def leave(server: Server) -> None:
    """A client that is greeted, or not, and closes."""
    await read_to_end(await connect(server.port))


async def tell(server: Server) -> None:
    sock = await connect(server.port)
    await asyncio.get_running_loop().sock_sendall(sock, HEADER)
    await read_to_end(sock)


async def give_up(server: Server) -> None:
    sock = await connect(server.port)
    await until(lambda: server.stats.accepted == 1, "accepted")
    reset(sock)


async def stay(server: Server) -> None:
    """A client that never closes, until the server is told to stop."""
    with await connect(server.port):
        await until(lambda: server.stats.accepted == 1, "accepted")
        await server.drain(0)


async def be_cut_off(server: Server) -> None:
    """A client that never closes, until it lingers for too long."""
    with await connect(server.port):
        await until(lambda: server.stats.linger_timeouts == 1, "cut off")


# Of each kind of connection: what the server says, its options, what the client does, and the walk of the
# connection from ACCEPTED on. On the direct path, a connection that lingers is no Connection any more.
WALKS: dict[str, tuple[Any, dict[str, Any], Callable[[Server], Awaitable[None]], str]] = {
    "greeted": (soon, {}, leave, "GREETING LINGERING CLOSED"),
    "behind a proxy": ("Hello", BEHIND_A_PROXY, tell, "PREAMBLE GREETING LINGERING CLOSED"),
    "a wrong header": ("Hello", {**BEHIND_A_PROXY, "greet_timeout": 0.05}, leave, "PREAMBLE FAILED CLOSED"),
    "untrusted": ("Hello", {"proxy_from": ["192.0.2.9"]}, leave, "PREAMBLE REJECTED CLOSED"),
    "denied": (
        "Hello",
        {**BEHIND_A_PROXY, "limits": Limits(deny=["192.0.2.1"])},
        tell,
        "PREAMBLE REJECTED CLOSED",
    ),
    "no greeting": (fails, {}, leave, "GREETING FAILED LINGERING CLOSED"),
    "too late": (never, {"greet_timeout": 0.05}, leave, "GREETING FAILED CLOSED"),
    "reset": (never, {}, give_up, "GREETING FAILED CLOSED"),
    "stopped": (never, {}, stay, "GREETING ABORTED CLOSED"),
    "stopped in its preamble": ("Hello", BEHIND_A_PROXY, stay, "PREAMBLE ABORTED CLOSED"),
    "silent": (soon, {"linger_timeout": 0.05}, be_cut_off, "GREETING LINGERING ABORTED CLOSED"),
}


@pytest.mark.parametrize("kind", WALKS)
async def test_a_connection_walks_as_drawn(kind: str, accept: str, walks: list[Walk]) -> None:
    greeting, options, client, expected = WALKS[kind]
    defaults: dict[str, Any] = {"greet_timeout": PATIENCE, "linger_timeout": PATIENCE, "access_log": False}
    async with serve(greeting, port=0, **{**defaults, "accept": accept, **options}) as server:
        await client(server)
        await until(lambda: server.stats.open == 0, "no connection is open")
        if accept == "direct":
            expected = expected.partition("LINGERING")[0] + "LINGERING" * ("LINGERING" in expected)
        assert walks == [["ACCEPTED", *expected.split()]]


async def test_a_greeting_that_is_known_needs_no_connection(walks: list[Walk]) -> None:
    async with serve(Greeting(lambda _: "Hello", quick=True), port=0, accept="direct") as server:
        await leave(server)
        assert server.stats.greeted == 1
    assert walks == []


def test_every_walk_ends_and_its_states_are_drawn() -> None:
    import greeter.server.connection as module

    drawing = (module.__doc__ or "").partition("::\n")[2].partition("TRANSITIONS")[0]
    assert all(state.name in drawing for state in State)
    assert TRANSITIONS.keys() == set(State)
    assert [state for state, following in TRANSITIONS.items() if not following] == [State.CLOSED]
    assert set().union(*TRANSITIONS.values()) == set(State) - {State.ACCEPTED}
