"""One behaviour, whatever the loop and the accept path: every test here runs over their product."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any

import pytest

import greeter
from greeter import Peer, serve
from greeter.core.greeting import DEFAULT_GREETING
from greeter.server import Serving
from greeter.server.timeouts import PAUSE_SECONDS
from greeter.system.fdlimit import OVERSHOOT
from tests.conftest import PATIENCE
from tests.support.peers import Outcome, connect, read_to_end, reset, send_then_read, stand_still, until

Serve = Callable[..., Serving]
GREETED = Outcome(b"Thank you for connecting", reset=False)

pytestmark = pytest.mark.usefixtures("no_fd_leak")


@pytest.fixture
def server(accept: str) -> Serve:
    """serve() on a free port with the accept path under test and no access log, as a factory."""

    def start(greeting: Any = DEFAULT_GREETING, **options: Any) -> Serving:
        where = {} if {"path", "sock", "listen"} & options.keys() else {"port": 0}
        return serve(greeting, **{"access_log": False, "accept": accept, **where, **options})

    return start


# -- law 4: a greeting accepted is a greeting delivered


async def test_a_client_is_greeted(server: Serve, accept: str) -> None:
    async with server() as s:
        reply = await greeter.greet(port=s.port)
        assert reply.data == GREETED.data
        assert not reply.reset
        assert s.path == accept
    assert s.stats.accepted == s.stats.greeted == 1
    assert s.stats.bytes_sent == len(GREETED.data)


def at_once(_: Peer) -> bytes:
    return GREETED.data


async def awaited_at_once(_: Peer) -> bytes:
    return GREETED.data


async def awaited(_: Peer) -> bytes:
    await asyncio.sleep(0)
    return GREETED.data


KINDS: dict[str, Any] = {
    "fixed": GREETED.data,
    "template": "Thank you for connecting$$",
    "quick": greeter.Greeting(at_once, quick=True),
    "thread": at_once,
    "async at once": awaited_at_once,
    "async that waits": awaited,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 18, 5000, 200_000])
async def test_clients_that_speak_first_are_greeted(server: Serve, size: int, kind: str) -> None:
    expected = Outcome(GREETED.data + b"$" * (kind == "template"), reset=False)
    async with server(KINDS[kind]) as s:
        for _ in range(2):
            outcomes = await asyncio.gather(*(send_then_read(s.port, size) for _ in range(40)))
            assert outcomes == [expected] * 40
        assert s.stats.greeted == 80


async def test_a_client_that_half_closes_first_is_greeted(server: Serve) -> None:
    async with server() as s:
        sock = await connect(s.port)
        sock.shutdown(socket.SHUT_WR)
        assert await read_to_end(sock) == GREETED


async def test_a_client_that_goes_on_talking_is_cut_off_at_the_linger_deadline(server: Serve) -> None:
    async with server(linger_timeout=0.2) as s:
        sock = await connect(s.port)
        loop = asyncio.get_running_loop()
        assert await loop.sock_recv(sock, 100) == GREETED.data
        assert await loop.sock_recv(sock, 100) == b""
        while s.stats.linger_timeouts == 0:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                await loop.sock_sendall(sock, b"and another thing, ")
            await asyncio.sleep(0.005)  # the pace of a talker
        sock.close()
        await until(lambda: s.stats.open == 0, "the talker is gone")
        assert s.stats.linger_timeouts == 1
        assert s.stats.greeted == 1


async def test_a_silent_client_is_cut_off_at_the_linger_deadline(server: Serve) -> None:
    async with server(linger_timeout=0.2) as s:
        sock = await connect(s.port)
        await until(lambda: s.stats.linger_timeouts == 1, "cut off")
        await until(lambda: s.stats.open == 0, "gone")
        assert await read_to_end(sock) == GREETED


async def test_many_at_once(server: Serve) -> None:
    async with server() as s:
        replies = await asyncio.gather(*(greeter.greet(port=s.port, timeout=30) for _ in range(500)))
        assert {reply.data for reply in replies} == {GREETED.data}
        assert not any(reply.reset for reply in replies)
    assert s.stats.accepted == s.stats.greeted == 500
    assert s.stats.open == s.stats.lingering == 0


# -- greetings of every kind


async def test_template(server: Serve) -> None:
    async with server("$host $port $count $$5 $hostname $time") as s:
        for count in (1, 2):
            sock = await connect(s.port)
            host, port = sock.getsockname()
            words = (await read_to_end(sock)).data.decode().split()
            assert words[:5] == [host, str(port), str(count), "$5", socket.gethostname()]
            assert words[5].endswith("Z")


async def test_empty_greeting_is_an_orderly_end(server: Serve) -> None:
    async with server(b"") as s:
        assert await send_then_read(s.port, 18) == Outcome(b"", reset=False)
        assert s.stats.greeted == 1


async def test_a_large_greeting_arrives_whole(server: Serve) -> None:
    greeting = bytes(range(256)) * 15625
    async with server(greeting) as s:
        outcomes = await asyncio.gather(*(send_then_read(s.port, 18) for _ in range(8)))
        assert outcomes == [Outcome(greeting, reset=False)] * 8
    assert s.stats.bytes_sent == 8 * len(greeting)


async def test_quick_callable(server: Serve) -> None:
    seen: list[Peer] = []

    def greeting(peer: Peer) -> str:
        seen.append(peer)
        return f"Hello {peer.port}"

    async with server(greeter.Greeting(greeting, quick=True)) as s:
        sock = await connect(s.port)
        port = sock.getsockname()[1]
        assert await read_to_end(sock) == Outcome(f"Hello {port}".encode(), reset=False)
        (peer,) = seen
        assert (peer.host, peer.port, peer.family) == ("127.0.0.1", port, socket.AF_INET)
        assert peer.server == f"127.0.0.1:{s.port}"
        assert str(peer) == f"('127.0.0.1', {port})"


@pytest.mark.parametrize("answer", ["raise", "type"])
async def test_a_quick_callable_that_fails_costs_its_client_only(
    server: Serve, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    def greeting(peer: Peer) -> Any:
        if peer.count == 1:
            if answer == "raise":
                raise ZeroDivisionError("a bug\nforged line")
            return 42
        return "fine"

    async with server(greeter.Greeting(greeting, quick=True)) as s:
        with caplog.at_level(logging.WARNING):
            assert await send_then_read(s.port, 18) == Outcome(b"", reset=False)
        assert await send_then_read(s.port, 18) == Outcome(b"fine", reset=False)
        assert s.stats.failed["greeting_error"] == 1
        assert s.stats.greeted == 1
        (record,) = caplog.records
        assert "('127.0.0.1', " in record.getMessage()


# -- clients that are gone, slow or hostile


async def test_a_client_that_resets_at_once_disturbs_no_other(server: Serve) -> None:
    async with server() as s:
        for _ in range(20):
            reset(await connect(s.port))
        assert await send_then_read(s.port, 18) == GREETED
        await until(lambda: s.stats.open == 0, "all gone")
        stats = s.stats
        assert stats.accepted == stats.greeted + sum(stats.failed.values())


async def test_clients_that_never_read_are_cut_off_and_disturb_no_other(server: Serve) -> None:
    greeting = b"g" * 4_000_000
    async with server(greeting, greet_timeout=0.5) as s:
        stuck = [await connect(s.port, receive_buffer=4096) for _ in range(20)]
        await until(lambda: s.stats.open == 20, "stuck")
        outcomes = await asyncio.gather(*(send_then_read(s.port, 0) for _ in range(5)))
        assert outcomes == [Outcome(greeting, reset=False)] * 5
        await until(lambda: s.stats.failed["greet_timeout"] == 20, "cut off")
        await until(lambda: s.stats.open == 0, "gone")
        for sock in stuck:
            sock.close()


# -- stopping


async def test_close_greets_those_in_the_queue(server: Serve) -> None:
    s = await server()
    blocking = [socket.create_connection(("127.0.0.1", s.port)) for _ in range(40)]
    # No await since: all of them are in the listen queue, and none has been accepted.
    s.close()
    assert not s.is_serving()
    assert s.sockets == ()
    for sock in blocking:
        sock.setblocking(False)
        assert await read_to_end(sock) == GREETED
    await s.wait_closed()
    assert s.stats.greeted == 40


async def test_drain_lets_every_client_finish(server: Serve) -> None:
    s = await server(linger_timeout=PATIENCE)
    socks = [await connect(s.port) for _ in range(10)]
    await until(lambda: s.stats.greeted == 10, "greeted")
    draining = asyncio.create_task(s.drain())
    await until(lambda: not s.is_serving(), "it accepts no more")
    assert not draining.done()
    for sock in socks:
        assert await read_to_end(sock) == GREETED
    assert await draining is True
    with pytest.raises(greeter.ConnectFailed):
        await greeter.greet(port=int(s.addresses[0].rpartition(":")[2]))


async def test_drain_cuts_off_at_its_deadline(server: Serve, caplog: pytest.LogCaptureFixture) -> None:
    s = await server(linger_timeout=PATIENCE)
    socks = [await connect(s.port) for _ in range(3)]
    await until(lambda: s.stats.greeted == 3, "greeted")
    with caplog.at_level(logging.WARNING):
        assert await s.drain(0.1) is False
    assert s.stats.open == 0
    assert "aborted 3 connections" in caplog.text
    for sock in socks:
        sock.close()


async def test_a_pause_during_a_drain_costs_no_client_that_spoke_meanwhile(server: Serve) -> None:
    s = await server(proxy_from=["127.0.0.0/8"], greet_timeout=PATIENCE)
    socks = [await connect(s.port) for _ in range(5)]
    await until(lambda: s.stats.accepted == 5, "they are accepted")
    draining = asyncio.create_task(s.drain(0.2))
    await until(lambda: not s.is_serving(), "it accepts no more")
    for sock in socks:
        sock.send(b"PROXY UNKNOWN\r\n")
    stand_still(0.2 + 1.5 * PAUSE_SECONDS)
    for sock in socks:
        assert await read_to_end(sock) == GREETED
    assert await draining is True


async def test_stopping_under_load_loses_no_client(server: Serve) -> None:
    """Clients in a closed loop; each is greeted whole or refused, however the stop falls."""
    s = await server()
    port = s.port
    outcomes: list[Outcome] = []

    async def client() -> None:
        while True:
            try:
                outcomes.append(await send_then_read(port, 18))
            except ConnectionRefusedError:
                return

    clients = [asyncio.create_task(client()) for _ in range(30)]
    await until(lambda: len(outcomes) >= 200, "under load")
    assert await s.drain() is True
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*clients)
    assert set(outcomes) == {GREETED}
    assert s.stats.greeted == len(outcomes)


# -- the exceptions of the streams path (greeter/server/streams.py); tests/test_faults.py has the other one

OVERSHOOT_REASON = "asyncio accepts a batch of connections before the handler of the first is called"


async def test_at_the_cap_clients_wait_in_the_accept_queue(server: Serve, accept: str) -> None:
    capacity, clients = 5, 60
    allowed = capacity + (OVERSHOOT if accept == "streams" else 0)  # OVERSHOOT_REASON
    most = 0
    limits = greeter.Limits(max_connections=capacity)
    async with server(limits=limits, linger_timeout=PATIENCE) as s:
        loop = asyncio.get_running_loop()
        for client in [await connect(s.port) for _ in range(clients)]:
            assert await loop.sock_recv(client, 100) == GREETED.data
            most = max(most, s.stats.open)
            assert await read_to_end(client) == Outcome(b"", reset=False)
        assert capacity <= most <= allowed, OVERSHOOT_REASON
        assert s.stats.greeted == clients


# -- other sockets


async def test_unix_socket(server: Serve, tmp_path: Any) -> None:
    path = str(tmp_path / "s")
    async with server(path=path) as s:
        assert s.addresses == (f"unix:{path}",)
        reply = await greeter.greet(path=path)
        assert reply.data == GREETED.data


async def test_several_endpoints_at_once(server: Serve, tmp_path: Any) -> None:
    path = str(tmp_path / "s")
    async with server(listen=["127.0.0.1:0", f"unix:{path}", "127.0.0.1:0"]) as s:
        assert len(s.sockets) == len(s.addresses) == 3
        for address in s.addresses:
            assert (await greeter.greet(greeter.Endpoint.parse(address))).data == GREETED.data
    assert s.stats.greeted == 3


async def test_the_access_log_has_each_client_in_order(server: Serve) -> None:
    log: list[Any] = []
    async with server(access_log=log.append) as s:
        ports = []
        for _ in range(10):
            sock = await connect(s.port)
            ports.append(sock.getsockname()[1])
            await read_to_end(sock)
    assert [address[:2] for address in log] == [("127.0.0.1", port) for port in ports]
