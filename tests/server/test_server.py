"""serve() and Server: what is refused and why, which path is chosen, how it ends."""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest

import greeter
from greeter import ConfigError, Endpoint, Greeting, ListenFailed, Peer, serve
from greeter.core.admission import Limits
from greeter.core.greeting import DEFAULT_GREETING
from greeter.server.server import MAX_FINAL_ACCEPTS
from greeter.server.streams import queue_length
from greeter.system.fdlimit import OVERSHOOT
from tests.conftest import PATIENCE
from tests.support.peers import Outcome, connect, read_to_end, reset, send_then_read, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from greeter.core.server_config import Accept
    from greeter.server import Server, Serving

GREETED = Outcome(b"Thank you for connecting", reset=False)

pytestmark = pytest.mark.usefixtures("no_fd_leak")


def here(greeting: Any = DEFAULT_GREETING, **options: Any) -> Serving:
    """serve() on a free port, without an access log."""
    return serve(greeting, **{"port": 0, "access_log": False, **options})


async def in_time(awaitable: Any) -> Any:
    """The result of what must come to an end."""
    async with asyncio.timeout(PATIENCE):
        return await awaitable


async def slow(peer: Peer) -> str:
    return f"Hello {peer.port}"


def plain(peer: Peer) -> str:
    return f"Hello {peer.port}"


class Slow:
    async def __call__(self, peer: Peer) -> str:
        return "Hello"


def tls() -> ssl.SSLContext:
    """A context that will do as long as no client does a handshake."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


# -- arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "/s", "listen": [":1"]}, "give one of path, sock and listen"),
        ({"greet_timeout": -1}, "greet_timeout must be a number of seconds from 0, not -1"),
        ({"greet_timeout": float("nan")}, "greet_timeout must be a number of seconds from 0, not nan"),
        ({"linger_timeout": -0.5}, "linger_timeout must be a number of seconds from 0, not -0.5"),
        ({"drain_timeout": -2}, "drain_timeout must be a number of seconds from 0, not -2"),
        ({"backlog": 0}, "backlog must be an integer from 1 to 2147483647, not 0"),
        ({"ssl": True}, "TLS needs an SSLContext, not True"),
        ({"limits": {"max_per_ip": 1}}, "limits must be Limits, not {'max_per_ip': 1}"),
        ({"listen": "127.0.0.1:0"}, "listen must be several endpoints, not '127.0.0.1:0'"),
        ({"listen": Endpoint.tcp()}, r"listen must be several endpoints, not Endpoint\(kind='tcp'"),
        ({"greet_timeout": "1"}, "greet_timeout must be a number of seconds from 0, not '1'"),
        ({"accept": "stream"}, "accept must be 'auto', 'direct' or 'streams', not 'stream'"),
        ({"accept": "instant"}, "accept must be 'auto', 'direct' or 'streams', not 'instant'"),
        ({"greeting": 42}, "a greeting must be text, bytes or a callable, not int"),
        ({"greeting": "$nobody"}, r"unknown name \$nobody"),
        ({"port": 65536}, "65536"),
        ({"listen": ["localhost"]}, "localhost"),
        ({"proxy_from": ["10.0.0.1/8"]}, "proxy_from '10.0.0.1/8' has host bits set"),
        ({"proxy_from": []}, "proxy_from names no network"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_right_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        serve(**options)


def test_one_place_at_a_time() -> None:
    with socket.socket() as sock, pytest.raises(ConfigError, match="give one of"):
        serve(sock=sock, path="/s")


@pytest.mark.parametrize("name", ["greet_timeout", "linger_timeout", "drain_timeout"])
def test_no_time_at_all_is_a_time(name: str) -> None:
    here(**{name: 0})


# -- the accept path ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "greeting",
    [
        slow,
        Slow(),
        functools.partial(slow),
        plain,
        "Hello",
        b"\0",
        "Hello $host",
        Greeting(plain, quick=True),
    ],
    ids=["async", "object", "partial", "thread", "text", "bytes", "template", "quick"],
)
@pytest.mark.parametrize("accept", ["auto", "direct", "streams"])
async def test_every_path_serves_every_greeting(greeting: Any, accept: Accept) -> None:
    async with here(greeting, accept=accept) as server:
        assert server.path == ("streams" if accept == "streams" else "direct")
        assert repr(server) == f"<greeter.Server 127.0.0.1:{server.port} {server.path}>"
        reply = await greeter.greet(port=server.port)
        assert reply.data.startswith(b"Hello") or reply.data == b"\0"


@pytest.fixture
def blind_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that cannot watch a socket, as on Windows."""
    monkeypatch.setattr("greeter.server.acceptor.supports_direct", lambda loop: False)


@pytest.mark.usefixtures("blind_loop")
async def test_a_loop_that_cannot_watch_serves_on_the_streams_path() -> None:
    async with here() as server:
        assert server.path == "streams"
        assert await send_then_read(server.port, 18) == GREETED
    with pytest.raises(ConfigError, match="direct accept path needs an event loop that can watch a socket"):
        await here(accept="direct")


# -- where -------------------------------------------------------------------------------------------------


def bound(listening: bool) -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    if listening:
        sock.listen(5)
    return sock


@pytest.mark.parametrize("listening", [False, True])
async def test_a_socket_of_the_caller_becomes_ours(listening: bool, accept: Accept) -> None:
    sock = bound(listening)
    port = sock.getsockname()[1]
    async with here(sock=sock, accept=accept, backlog=7) as server:
        assert (server.port, server.sockets) == (port, (sock,))
        assert queue_length(sock, 0) == (5 if listening else 7)
        assert await send_then_read(port, 18) == GREETED
    assert sock.fileno() == -1


async def test_a_unix_socket_of_the_caller_keeps_its_file(tmp_path: Path, accept: Accept) -> None:
    path = tmp_path / "s"
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    async with here(sock=sock, accept=accept) as server:
        assert server.addresses == (f"unix:{path}",)
        assert (await greeter.greet(path=str(path))).data == GREETED.data
        with pytest.raises(LookupError, match="listens on no port"):
            _ = server.port
    assert path.exists()


async def test_a_socket_that_cannot_listen_stays_the_callers() -> None:
    with socket.socket() as unbound, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        for sock, why in ((unbound, "not bound to a port"), (datagrams, "neither a stream socket nor a UDP")):
            with pytest.raises(ListenFailed, match=why):
                await here(sock=sock)
            assert sock.fileno() >= 0


async def test_a_port_that_is_taken() -> None:
    with bound(listening=True) as sock:
        taken = sock.getsockname()[1]
        with pytest.raises(ListenFailed, match=f"127.0.0.1:{taken}: address already in use"):
            await here(port=taken)
        with pytest.raises(ListenFailed, match="already in use"):  # and the free one is let go of
            await here(listen=["127.0.0.1:0", f"127.0.0.1:{taken}"])


async def test_a_failed_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def fail(server: Server) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("greeter.server.server.Server._start", fail)
    with pytest.raises(ZeroDivisionError):
        await here(listen=["127.0.0.1:0", f"unix:{tmp_path}/s"])
    assert os.listdir(tmp_path) == []


async def test_the_port_is_that_of_the_first_tcp_listener(tmp_path: Path) -> None:
    async with here(listen=[f"unix:{tmp_path}/s", "127.0.0.1:0", "127.0.0.1:0"]) as server:
        assert server.addresses[1] == f"127.0.0.1:{server.port}"


async def test_the_mode_of_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with here(path=str(path), unix_mode=0o600):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


# -- what is written down ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("access_log", "level", "lines"), [(True, logging.INFO, 1), (True, logging.WARNING, 0), (False, 10, 0)]
)
async def test_the_access_log_is_at_info(
    access_log: bool, level: int, lines: int, accept: Accept, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(level, "greeter"):
        async with serve(port=0, accept=accept, access_log=access_log) as server:
            client = await connect(server.port)
            name = client.getsockname()
            assert await read_to_end(client) == GREETED
    found = [vars(record) for record in caplog.records if vars(record).get("event") == "connection"]
    assert [entry["msg"] % entry["args"] for entry in found] == [f"Got a connection from {name}"] * lines
    assert [entry["peer"] for entry in found] == [f"127.0.0.1:{name[1]}"] * lines


# -- while it runs -----------------------------------------------------------------------------------------


async def test_update_takes_effect_with_the_next_client(accept: Accept) -> None:
    async with here("one", accept=accept) as server:
        assert (await send_then_read(server.port, 18)).data == b"one"
        server.update(greeting="two")
        assert (await send_then_read(server.port, 18)).data == b"two"
        server.update(greeting=slow)  # of a kind that is not known at accept time
        client = await connect(server.port)
        port = client.getsockname()[1]
        assert await read_to_end(client) == Outcome(f"Hello {port}".encode(), reset=False)
        server.update(greeting=plain)
        assert (await send_then_read(server.port, 18)).data.startswith(b"Hello ")
        server.update()
        assert (await send_then_read(server.port, 18)).data.startswith(b"Hello ")
        assert server.stats.greeted == 5


async def test_an_update_that_is_wrong_changes_nothing() -> None:
    async with here("one") as server:
        for wrong, message in (
            ({"greeting": 42}, "a greeting must be text"),
            ({"tls": tls()}, "TLS cannot be turned on while serving"),
        ):
            with pytest.raises(ConfigError, match=message):
                server.update(**{"greeting": "two", "limits": Limits(deny=["127.0.0.1"]), **wrong})  # type: ignore[arg-type]  # wrong on purpose
            assert (await send_then_read(server.port, 18)).data == b"one"
        assert sum(server.stats.rejected.values()) == 0


async def test_limits_can_be_set_changed_and_lifted(accept: Accept) -> None:
    turned_away = Outcome(b"", reset=False)
    async with here(accept=accept) as server:
        assert await send_then_read(server.port, 0) == GREETED
        server.update(limits=Limits(deny=["127.0.0.0/8"]))
        assert await send_then_read(server.port, 0) == turned_away
        server.update(limits=Limits(allow=["127.0.0.0/8"]))
        assert await send_then_read(server.port, 0) == GREETED
        server.update(limits=Limits())
        assert await send_then_read(server.port, 0) == GREETED
        assert (server.stats.accepted, server.stats.greeted) == (4, 3)
        assert server.stats.rejected["denied"] == 1
        await until(lambda: server.stats.open == 0, "all gone")


async def test_one_address_has_its_share(accept: Accept) -> None:
    async with here(accept=accept, limits=Limits(max_per_ip=2), linger_timeout=PATIENCE) as server:
        first = await connect(server.port)
        second = await connect(server.port)
        await until(lambda: server.stats.greeted == 2, "both are in")
        assert await send_then_read(server.port, 0) == Outcome(b"", reset=False)
        assert await read_to_end(first) == GREETED
        await until(lambda: server.stats.open == 1, "one has left")
        assert await send_then_read(server.port, 0) == GREETED
        assert await read_to_end(second) == GREETED
        assert server.stats.rejected["per_ip"] == 1
        await until(lambda: server.stats.open == 0, "all gone")


async def test_at_capacity_those_in_the_queue_wait_for_room(
    accept: Accept, caplog: pytest.LogCaptureFixture
) -> None:
    """Each client stays until it has been greeted and another client needs its place."""
    capacity, clients = 5, 40
    seen = 0
    loop = asyncio.get_running_loop()
    with caplog.at_level(logging.WARNING):
        started = loop.time()
        limits = Limits(max_connections=capacity)
        async with here(accept=accept, limits=limits, linger_timeout=PATIENCE) as server:
            queue = [await connect(server.port) for _ in range(clients)]
            await until(lambda: server.stats.open >= capacity, "it is full")
            for client in queue:
                assert await in_time(loop.sock_recv(client, 100)) == GREETED.data
                seen = max(seen, server.stats.open)
                assert await read_to_end(client) == Outcome(b"", reset=False)
        elapsed = loop.time() - started
    assert capacity <= seen <= capacity + OVERSHOOT  # for which descriptors are kept in reserve
    assert server.stats.accepted == server.stats.greeted == clients
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith(f"at {capacity} connections: accepting is paused")
    assert len(lines) <= 1 + elapsed


async def test_a_system_without_descriptors_loses_no_client(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On the direct path, where accept() can be replaced; tests/test_faults.py covers the others."""
    monkeypatch.setattr("greeter.server.accept_pause.RETRY_SECONDS", 0.02)
    monkeypatch.setattr("greeter.server.accept_pause.LOG_INTERVAL", PATIENCE)
    async with here(accept="direct") as server:
        (listener,) = server._listeners
        really = listener.accept_fd
        failing = iter([errno.EMFILE, errno.ECONNABORTED, errno.ENOBUFS, errno.EPERM])

        def accept_fd() -> Any:
            if number := next(failing, None):
                raise OSError(number, os.strerror(number))
            return really()

        listener.accept_fd = accept_fd
        outcomes = await asyncio.gather(*(send_then_read(server.port, 18) for _ in range(10)))
        assert outcomes == [GREETED] * 10
        assert server.stats.accept_errors == 2
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("cannot accept (too many open files): accepting is paused")


# -- how it ends -------------------------------------------------------------------------------------------


async def test_serve_forever_ends_with_close() -> None:
    server = await here()
    serving = asyncio.create_task(server.serve_forever())
    await asyncio.sleep(0)
    assert server.is_serving()
    assert not serving.done()
    server.close()
    await in_time(serving)
    assert not server.is_serving()
    await in_time(server.serve_forever())  # there is nothing left to wait for
    await in_time(server.wait_closed())


async def test_serve_forever_drains_when_it_is_cancelled(accept: Accept) -> None:
    server = await here(accept=accept, linger_timeout=PATIENCE)
    client = await connect(server.port)
    await until(lambda: server.stats.greeted == 1, "greeted")
    serving = asyncio.create_task(server.serve_forever())
    await asyncio.sleep(0)
    serving.cancel()
    await until(lambda: server.sockets == (), "the listening socket is closed")
    assert not serving.done()
    assert await read_to_end(client) == GREETED
    with pytest.raises(asyncio.CancelledError):
        await in_time(serving)
    assert server.stats.open == 0


async def test_it_can_be_closed_twice(accept: Accept) -> None:
    server = await here(accept=accept)
    server.close()
    server.close()
    assert await in_time(server.drain()) is True
    assert await in_time(server.drain()) is True
    await in_time(server.wait_closed())
    assert (server.sockets, server.is_serving(), server.stats.open) == ((), False, 0)


async def test_two_who_drain_at_the_same_time(accept: Accept) -> None:
    server = await here(accept=accept)
    client = await connect(server.port)
    drains = [asyncio.create_task(server.drain()) for _ in range(2)]
    assert await read_to_end(client) == GREETED
    assert await in_time(asyncio.gather(*drains)) == [True, True]


@pytest.mark.parametrize("when", ["accepting", "closed"])
async def test_a_drain_that_is_cancelled_cuts_off_at_once(
    accept: Accept, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = await here(accept=accept, linger_timeout=PATIENCE)
    client = await connect(server.port)
    await until(lambda: server.stats.greeted == 1, "greeted")
    draining = asyncio.create_task(server.drain())
    await asyncio.sleep(0)
    if when == "closed":
        await until(lambda: server.sockets == (), "the listening socket is closed")
    draining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await in_time(draining)
    assert (server.sockets, server.stats.open) == ((), 0)
    assert "aborted 1 connection as the drain was cancelled" in caplog.text
    client.close()


@pytest.mark.parametrize("how", ["drain", "close"])
async def test_a_stop_does_not_wait_for_a_client_that_has_left(
    accept: Accept, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lingered for so long that its socket would be read again in hours."""
    monkeypatch.setattr("greeter.server.lingering.FIRST_CHECK_DELAY", 10_000.0)
    server = await here(accept=accept, linger_timeout=20_000.0)
    client = await connect(server.port)
    assert await read_to_end(client) == GREETED
    monkeypatch.undo()
    client.close()
    if how == "drain":
        assert await in_time(server.drain(PATIENCE / 2)) is True
    else:
        server.close()
    await in_time(server.wait_closed())


@pytest.mark.parametrize("turns", [1, 3, 5])  # of the event loop, in which the first one aborts what is open
async def test_a_drain_that_is_cancelled_twice_leaves_no_connection_open(accept: Accept, turns: int) -> None:
    server = await here(accept=accept, linger_timeout=PATIENCE)
    with await connect(server.port):
        await until(lambda: server.stats.greeted == 1, "greeted")
        draining = asyncio.create_task(server.drain())
        await asyncio.sleep(0)
        draining.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        draining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await in_time(draining)
        for _ in range(20):
            await asyncio.sleep(0)
        assert (server.sockets, server.stats.open) == ((), 0)


async def test_wait_closed_waits_for_the_last_client(accept: Accept) -> None:
    server = await here(accept=accept, linger_timeout=PATIENCE)
    client = await connect(server.port)
    await until(lambda: server.stats.greeted == 1, "greeted")
    waiting = asyncio.create_task(server.wait_closed())
    server.close()
    await asyncio.sleep(0.01)  # more than it would take if it did not wait
    assert not waiting.done()
    assert await read_to_end(client) == GREETED
    await in_time(waiting)


async def test_those_who_gave_up_in_the_queue_are_counted_once(accept: Accept) -> None:
    server = await here(accept=accept)
    for _ in range(20):
        reset(socket.create_connection(("127.0.0.1", server.port)))
    # No await since: all of them are in the listen queue, and gone.
    server.close()
    await in_time(server.wait_closed())
    assert server.stats.accepted == 20
    assert {why: n for why, n in server.stats.failed.items() if n} == {"reset": 20}
    assert server.stats.greeted == 0


async def test_a_close_that_cannot_accept_says_so(caplog: pytest.LogCaptureFixture, accept: Accept) -> None:
    server = await here(accept=accept)
    (listener,) = server._listeners

    def accept_fd() -> Any:
        raise OSError(errno.EMFILE, "irrelevant")

    listener.accept_fd = accept_fd
    server.close()
    assert [record.getMessage() for record in caplog.records] == [
        "closing with clients in the accept queue: too many open files"
    ]
    await in_time(server.wait_closed())


async def test_an_access_log_that_fails_costs_no_client(
    accept: Accept, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greeter.server.accept_pause.LOG_INTERVAL", PATIENCE)

    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with here(accept=accept, access_log=full, limits=Limits(max_per_ip=1)) as server:
        for _ in range(3):
            assert await send_then_read(server.port, 18) == GREETED
            await until(lambda: server.stats.open == 0, "it has left")
        assert server.stats.accept_errors == 0
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith("the access log failed for ('127.0.0.1', ")


async def test_a_drain_without_a_timeout_leaves_no_connection_open() -> None:
    """Also where the handshake has not even begun."""
    server = await here(ssl=tls(), limits=Limits(max_connections=1))
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
    await until(lambda: server.stats.open == 1, "one is let in")
    assert await in_time(server.drain(0)) is False
    await in_time(server.wait_closed())
    assert (server.stats.accepted, server.stats.failed["aborted"], server.stats.open) == (3, 3, 0)
    for client in clients:
        client.close()


async def test_the_last_server_on_an_inherited_socket_rejects_new_handshakes() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=16) as theirs:
        server = await here(listen=[f"fd:{theirs.fileno()}"], limits=Limits(max_connections=2))
        clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(10)]
        ending = asyncio.create_task(server.drain(last=True))
        for client in clients:
            client.setblocking(False)
            assert await read_to_end(client) == GREETED
        assert await in_time(ending) is True
        with socket.socket() as late:
            late.settimeout(0.05)  # its SYN is dropped
            with pytest.raises(TimeoutError):
                late.connect(("127.0.0.1", server.port))


async def test_one_that_died_in_the_queue_costs_no_client_behind_it(accept: Accept) -> None:
    server = await here(accept=accept)
    (listener,) = server._listeners
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
    # No await since: all of them are in the listen queue.
    accept_fd, died = listener.accept_fd, [errno.ECONNABORTED, 0, errno.EPROTO]

    def some_died() -> tuple[int, Any]:
        if died and (number := died.pop(0)):
            raise OSError(number, "irrelevant")
        return accept_fd()

    listener.accept_fd = some_died
    server.close()
    for client in clients:
        client.setblocking(False)
        assert await read_to_end(client) == GREETED
    await in_time(server.wait_closed())
    assert (server.stats.accepted, server.stats.greeted) == (3, 3)


async def test_a_queue_that_gives_no_connection_does_not_hold_up_a_close(accept: Accept) -> None:
    server = await here(accept=accept)
    (listener,) = server._listeners
    asked = 0

    def forbidden() -> Any:
        nonlocal asked
        asked += 1
        raise OSError(errno.EPERM, "a firewall forbids them all")

    listener.accept_fd = forbidden
    server.close()
    await in_time(server.wait_closed())
    assert asked == MAX_FINAL_ACCEPTS


@pytest.fixture
def inherited() -> Iterator[socket.socket]:
    """A listening socket that another process keeps open."""
    with bound(listening=True) as sock:
        yield sock


async def test_a_socket_that_others_serve_too_outlives_us(inherited: socket.socket, accept: Accept) -> None:
    """As with systemd or a parent: a client that connects after the end waits for the next server."""
    where = f"fd:{inherited.fileno()}"
    async with here(listen=[where], accept=accept) as first:
        assert await send_then_read(first.port, 18) == GREETED
    client = await connect(first.port)
    async with here(listen=[where], accept=accept) as second:
        assert second.port == first.port
        assert await read_to_end(client) == GREETED


async def test_a_server_that_was_awaited_is_a_context_manager_as_asyncios() -> None:
    async with await here() as server:
        assert server.get_loop() is asyncio.get_running_loop()
        await server.start_serving()
        assert server.is_serving()
        with await connect(server.port) as client:
            assert await read_to_end(client) == GREETED
    assert (server.sockets, server.is_serving()) == ((), False)


async def test_what_serve_returned_starts_one_server_only() -> None:
    serving = here()
    async with serving:
        with pytest.raises(RuntimeError, match="only once"):
            await serving
        with pytest.raises(RuntimeError, match="only once"):
            async with serving:
                pass
