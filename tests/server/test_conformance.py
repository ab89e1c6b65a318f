"""One behaviour, whatever the loop and the way of a client: every test here runs over their product.

A client comes by one of the two accept paths, or by datagram. What a datagram does not have (a half-close, a
lingering close, a reset) is tested on the accept paths only.
"""

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
from greeter.server import Server, Serving
from greeter.server.timeouts import PAUSE_SECONDS
from greeter.system.fdlimit import OVERSHOOT
from tests.conftest import PATIENCE
from tests.support.columns import COLUMNS, Counts, Streams
from tests.support.peers import Outcome, connect, read_to_end, reset, send_then_read, stand_still, until

Serve = Callable[..., Serving]
GREETED = Outcome(b"Thank you for connecting", reset=False)

pytestmark = pytest.mark.usefixtures("no_fd_leak")


@pytest.fixture(params=COLUMNS)
def accept(request: pytest.FixtureRequest) -> str:
    """The accept path, or "datagrams"."""
    return str(request.param)


@pytest.fixture
def way(accept: str) -> Streams:
    """The clients of the column under test."""
    return COLUMNS[accept]


connections_only = pytest.mark.parametrize("accept", ["direct", "streams"], indirect=True)


@pytest.fixture
def server(accept: str) -> Serve:
    """serve() on a free port of the column under test, without an access log or a near deadline."""
    defaults = {"greet_timeout": PATIENCE, "linger_timeout": PATIENCE, "access_log": False}

    def start(greeting: Any = DEFAULT_GREETING, **options: Any) -> Serving:
        if not {"path", "sock", "listen"} & options.keys():
            options["listen"] = [COLUMNS[accept].endpoint]
        path = "auto" if accept == "datagrams" else accept
        return serve(greeting, **{**defaults, "accept": path, **options})

    return start


# -- law 4: a greeting accepted is a greeting delivered


async def test_a_client_is_greeted(server: Serve, accept: str, way: Streams) -> None:
    async with server() as s:
        reply = await greeter.greet(s.addresses[0])
        assert reply.data == GREETED.data
        assert not reply.reset
        assert s.path == accept or accept == "datagrams"
    assert way.counts(s) == Counts(1, 1, len(GREETED.data))


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
async def test_clients_that_speak_first_are_greeted(
    server: Serve, way: Streams, size: int, kind: str
) -> None:
    expected = Outcome(GREETED.data + b"$" * (kind == "template"), reset=False)
    async with server(KINDS[kind]) as s:
        for _ in range(2):
            outcomes = await asyncio.gather(*(way.visit(s, size) for _ in range(40)))
            assert outcomes == [expected] * 40
        assert way.counts(s) == Counts(80, 80, 80 * len(expected.data))


@connections_only
async def test_a_client_that_half_closes_first_is_greeted(server: Serve) -> None:
    async with server() as s:
        sock = await connect(s.port)
        sock.shutdown(socket.SHUT_WR)
        assert await read_to_end(sock) == GREETED


@connections_only
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


@connections_only
async def test_a_silent_client_is_cut_off_at_the_linger_deadline(server: Serve) -> None:
    async with server(linger_timeout=0.2) as s:
        sock = await connect(s.port)
        await until(lambda: s.stats.linger_timeouts == 1, "cut off")
        await until(lambda: s.stats.open == 0, "gone")
        assert await read_to_end(sock) == GREETED


async def test_many_at_once(server: Serve, way: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greeter.client.datagram_exchange.FIRST_PAUSE", PATIENCE)  # none is to ask twice
    async with server() as s:
        target = s.addresses[0]
        replies = await asyncio.gather(*(greeter.greet(target, timeout=PATIENCE) for _ in range(500)))
        assert {(reply.data, reply.reset, reply.attempts) for reply in replies} == {(GREETED.data, False, 1)}
    assert way.counts(s) == Counts(500, 500, 500 * len(GREETED.data))
    assert s.stats.open == s.stats.lingering == way.waiting(s) == 0


# -- greetings of every kind


async def test_template(server: Serve, way: Streams) -> None:
    async with server("$host $port $count $$5 $hostname $time") as s:
        for count in (1, 2):
            sock = await way.begin(s)
            host, port = sock.getsockname()
            words = (await way.end(sock)).data.decode().split()
            assert words[:5] == [host, str(port), str(count), "$5", socket.gethostname()]
            assert words[5].endswith("Z")


async def test_empty_greeting_is_an_orderly_end(server: Serve, way: Streams) -> None:
    async with server(b"") as s:
        assert await way.visit(s) == Outcome(b"", reset=False)
        assert way.counts(s) == Counts(1, 1, 0)


async def test_a_large_greeting_arrives_whole(server: Serve, way: Streams) -> None:
    greeting = (bytes(range(256)) * 15625)[: way.largest]
    async with server(greeting) as s:
        outcomes = await asyncio.gather(*(way.visit(s) for _ in range(8)))
        assert outcomes == [Outcome(greeting, reset=False)] * 8
    assert way.counts(s) == Counts(8, 8, 8 * len(greeting))


async def test_quick_callable(server: Serve, way: Streams) -> None:
    seen: list[Peer] = []

    def greeting(peer: Peer) -> str:
        seen.append(peer)
        return f"Hello {peer.port}"

    async with server(greeter.Greeting(greeting, quick=True)) as s:
        sock = await way.begin(s)
        port = sock.getsockname()[1]
        assert await way.end(sock) == Outcome(f"Hello {port}".encode(), reset=False)
        (peer,) = seen
        assert (peer.host, peer.port, peer.family) == ("127.0.0.1", port, socket.AF_INET)
        assert peer.server == s.addresses[0]
        assert str(peer) == f"('127.0.0.1', {port})"


@pytest.mark.parametrize("kind", ["quick", "thread", "async"])
@pytest.mark.parametrize("answer", ["raise", "type"])
async def test_a_callable_that_fails_costs_its_client_only(
    server: Serve, way: Streams, answer: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def greeting(peer: Peer) -> Any:
        if peer.count == 1:
            if answer == "raise":
                raise ZeroDivisionError("a bug\nforged line")
            return 42
        return "fine"

    async def awaited_greeting(peer: Peer) -> Any:
        return greeting(peer)

    made = awaited_greeting if kind == "async" else greeter.Greeting(greeting, quick=kind == "quick")
    async with server(made) as s:
        with caplog.at_level(logging.WARNING):
            first = await way.begin(s)
            await until(lambda: way.counts(s).failed == {"greeting_error": 1}, "the first has failed")
        assert await way.visit(s) == Outcome(b"fine", reset=False)
        assert await way.got_nothing(first)
        assert way.counts(s) == Counts(2, 1, 4, {"greeting_error": 1})
        (record,) = caplog.records
        assert "('127.0.0.1', " in record.getMessage()


async def test_a_callable_that_never_returns_is_cut_off_and_disturbs_no_other(
    server: Serve, way: Streams, give_time: Callable[[Server], None]
) -> None:
    async def greeting(peer: Peer) -> bytes:
        if peer.count <= 20:
            await asyncio.sleep(PATIENCE)
        return GREETED.data

    async with server(greeting, greet_timeout=0.3) as s:
        stuck = [await way.begin(s) for _ in range(20)]
        await until(lambda: way.counts(s).accepted == 20, "stuck")
        give_time(s)
        assert await asyncio.gather(*(way.visit(s) for _ in range(5))) == [GREETED] * 5
        await until(lambda: way.counts(s).failed == {"greet_timeout": 20}, "cut off")
        assert [await way.got_nothing(sock) for sock in stuck] == [True] * 20


# -- admission and changes while serving


async def test_clients_over_a_limit_are_rejected_and_disturb_no_other(server: Serve, way: Streams) -> None:
    limits = greeter.Limits(rate_per_ip=0.01, deny=["127.0.0.3"])  # one, and none in the time of a test
    async with server(limits=limits) as s:
        denied = await way.begin(s, source="127.0.0.3")
        many = [await way.begin(s, source="127.0.0.4") for _ in range(8)]
        await until(lambda: way.counts(s).accepted == 9, "all are seen to")
        assert await way.visit(s) == GREETED
        assert await way.got_nothing(denied)
        assert [await way.got_nothing(sock) for sock in many[1:]] == [True] * 7
        assert await way.end(many[0]) == GREETED
        assert way.counts(s) == Counts(10, 2, 48, rejected={"denied": 1, "rate": 7})


async def test_limits_and_greetings_change_from_the_next_client_on(server: Serve, way: Streams) -> None:
    release = asyncio.Event()

    async def slow(_: Peer) -> bytes:
        await release.wait()
        return b"from before"

    async with server(slow, limits=greeter.Limits(max_per_ip=1)) as s:
        before = await way.begin(s)
        await until(lambda: way.waiting(s) == 1, "it is being made")
        second = await way.begin(s)
        await until(lambda: way.counts(s).rejected == {"per_ip": 1}, "one is enough")
        s.update(greeting=GREETED.data, limits=greeter.Limits(max_per_ip=2, deny=["127.0.0.3"]))
        assert await way.visit(s) == GREETED
        denied = await way.begin(s, source="127.0.0.3")
        await until(lambda: way.counts(s).rejected == {"per_ip": 1, "denied": 1}, "the new limits")
        s.update(limits=greeter.Limits())
        assert await way.visit(s, source="127.0.0.3") == GREETED
        assert [await way.got_nothing(sock) for sock in (second, denied)] == [True, True]
        release.set()
        assert await way.end(before) == Outcome(b"from before", reset=False)
    assert way.waiting(s) == 0


@pytest.mark.parametrize("kind", ["fixed", "quick", "async that waits"])
async def test_reloading_under_load_loses_no_client(server: Serve, way: Streams, kind: str) -> None:
    outcomes: list[Outcome] = []
    async with server(KINDS[kind]) as s:

        async def client() -> None:
            while reloads:
                outcomes.append(await way.visit(s))

        reloads = list(range(20))
        clients = [asyncio.create_task(client()) for _ in range(20)]
        while reloads:
            seen = len(outcomes)
            await until(lambda: len(outcomes) >= seen + 20, "under load")  # noqa: B023  # which ends in this turn
            s.update(greeting=KINDS[kind], limits=greeter.Limits(max_per_ip=100 + reloads.pop()))
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*clients)
        assert set(outcomes) == {GREETED}
        assert way.counts(s) == Counts(len(outcomes), len(outcomes), 24 * len(outcomes))


# -- clients that are gone, slow or hostile


async def test_a_client_that_is_gone_at_once_disturbs_no_other(server: Serve, way: Streams) -> None:
    async with server() as s:
        for _ in range(20):
            reset(await way.begin(s))
        assert await way.visit(s) == GREETED
        await until(lambda: way.waiting(s) == 0, "all gone")
        counts = way.counts(s)
        assert counts.accepted == counts.greeted + sum(counts.failed.values()) == 21


@connections_only
async def test_clients_that_never_read_are_cut_off_and_disturb_no_other(
    server: Serve, give_time: Callable[[Server], None]
) -> None:
    def greeting(peer: Peer) -> bytes:
        return b"g" * 4_000_000 if peer.count <= 20 else GREETED.data

    async with server(greeter.Greeting(greeting, quick=True), greet_timeout=0.5) as s:
        stuck = [await connect(s.port, receive_buffer=4096) for _ in range(20)]
        await until(lambda: s.stats.accepted == 20, "stuck")
        give_time(s)
        outcomes = await asyncio.gather(*(send_then_read(s.port, 0) for _ in range(5)))
        assert outcomes == [GREETED] * 5
        await until(lambda: s.stats.failed["greet_timeout"] == 20, "cut off")
        await until(lambda: s.stats.open == 0, "gone")
        for sock in stuck:
            sock.close()


# -- stopping


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "template"])
async def test_close_greets_those_in_the_queue(server: Serve, way: Streams, kind: str) -> None:
    s = await server(KINDS[kind])
    queued = []
    for _ in range(40):
        sock = socket.socket(type=s.sockets[0].type)
        sock.connect(("127.0.0.1", s.port))
        sock.send(b"Hello")
        queued.append(sock)
    # No await since: all of them are in the queue of the socket, and none has been taken.
    s.close()
    assert not s.is_serving()
    assert s.sockets == ()
    for sock in queued:
        sock.setblocking(False)
        assert await way.end(sock) == GREETED
    await s.wait_closed()
    assert way.counts(s).greeted == 40


async def test_drain_waits_for_greetings_and_refuses_new_clients(server: Serve, way: Streams) -> None:
    release = asyncio.Event()

    async def slow(_: Peer) -> bytes:
        await release.wait()
        return GREETED.data

    s = await server(slow)
    socks = [await way.begin(s) for _ in range(10)]
    await until(lambda: way.waiting(s) == 10, "they wait")
    draining = asyncio.create_task(s.drain())
    await until(lambda: not s.is_serving(), "it accepts no more")
    assert not draining.done()
    release.set()
    assert [await way.end(sock) for sock in socks] == [GREETED] * 10
    assert await draining is True
    with pytest.raises(greeter.ConnectFailed):
        await greeter.greet(s.addresses[0])


@connections_only
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


async def test_drain_cuts_off_greetings_at_its_deadline(
    server: Serve, way: Streams, caplog: pytest.LogCaptureFixture
) -> None:
    async def never(_: Peer) -> bytes:
        await asyncio.sleep(PATIENCE)
        return b"never"

    s = await server(never)
    socks = [await way.begin(s) for _ in range(3)]
    await until(lambda: way.waiting(s) == 3, "they wait")
    with caplog.at_level(logging.WARNING):
        assert await s.drain(0.1) is False
    assert way.counts(s) == Counts(3, failed={"aborted": 3})
    assert "aborted 3 connections" in caplog.text
    for sock in socks:
        sock.close()


@connections_only
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


@connections_only
@pytest.mark.thorough
async def test_a_pause_during_a_drain_costs_no_client_that_spoke_meanwhile(
    server: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greeter.server.server.HANDSHAKE_GRACE", 0.0)  # no handshake is under way
    s = await server(proxy_from=["127.0.0.0/8"], greet_timeout=PATIENCE)
    socks = [await connect(s.port) for _ in range(5)]
    await until(lambda: s.stats.accepted == 5, "they are accepted")
    draining = asyncio.create_task(s.drain(1.0))
    await until(lambda: not s.is_serving(), "it accepts no more")
    for sock in socks:
        sock.send(b"PROXY UNKNOWN\r\n")
    stand_still(1.0 + 1.5 * PAUSE_SECONDS)
    for sock in socks:
        assert await read_to_end(sock) == GREETED
    assert await draining is True


async def test_stopping_under_load_loses_no_client(server: Serve, way: Streams) -> None:
    """Clients in a closed loop; each is greeted whole or refused, however the stop falls."""
    s = await server()
    outcomes: list[Outcome] = []

    async def client() -> None:
        while True:
            try:
                outcomes.append(await way.visit(s))
            except ConnectionRefusedError:
                return

    clients = [asyncio.create_task(client()) for _ in range(30)]
    await until(lambda: len(outcomes) >= 200, "under load")
    assert await s.drain() is True
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*clients)
    assert set(outcomes) == {GREETED}
    assert way.counts(s).greeted == len(outcomes)


# -- the exceptions of the streams path (greeter/server/streams.py); tests/test_faults.py has the other one

OVERSHOOT_REASON = "asyncio accepts a batch of connections before the handler of the first is called"


@connections_only
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


async def test_at_the_cap_greetings_are_made_as_others_end(server: Serve, accept: str, way: Streams) -> None:
    running = most = 0

    async def greeting(_: Peer) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return GREETED.data

    allowed = 5 + (OVERSHOOT if accept == "streams" else 0)  # OVERSHOOT_REASON
    async with server(greeting, limits=greeter.Limits(max_connections=5)) as s:
        socks = [await way.begin(s) for _ in range(60)]
        assert [await way.end(sock) for sock in socks] == [GREETED] * 60
    assert most <= allowed
    assert way.counts(s).greeted == 60


# -- other sockets


@connections_only
async def test_unix_socket(server: Serve, tmp_path: Any) -> None:
    path = str(tmp_path / "s")
    async with server(path=path) as s:
        assert s.addresses == (f"unix:{path}",)
        reply = await greeter.greet(path=path)
        assert reply.data == GREETED.data


async def test_several_endpoints_at_once(server: Serve, tmp_path: Any) -> None:
    path = str(tmp_path / "s")
    async with server(listen=["127.0.0.1:0", f"unix:{path}", "udp:127.0.0.1:0", "127.0.0.1:0"]) as s:
        assert len(s.sockets) == len(s.addresses) == 4
        for address in s.addresses:
            assert (await greeter.greet(greeter.Endpoint.parse(address))).data == GREETED.data
    assert (s.stats.greeted, s.stats.datagrams["greeted"]) == (3, 1)


async def test_the_access_log_has_each_client_in_order(server: Serve, way: Streams) -> None:
    log: list[Any] = []
    async with server(access_log=log.append) as s:
        ports = []
        for _ in range(10):
            sock = await way.begin(s)
            ports.append(sock.getsockname()[1])
            await way.end(sock)
    assert [address[:2] for address in log] == [("127.0.0.1", port) for port in ports]
