"""Which clients are admitted, and how many: limits on every loop, path and kind of connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest
import trustme

import greeter
from greeter import Greeting, Peer, serve
from greeter.core.admission import Limits
from greeter.system.tls import client_context, server_context
from tests.conftest import PATIENCE, Process, greeter_process, one_loop
from tests.core.test_proxy_protocol import tcp4
from tests.support.peers import Outcome, read_to_end, reset, until
from tests.support.service_peers import HELLO, descriptors, on_every_stage, started_by_init

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from pathlib import Path

    from greeter.server import Server, Serving
    from tests.server.conftest import Clock

GREETED = Outcome(HELLO, reset=False)
LARGE = b"g" * 4_000_000  # more than the kernel takes at once

pytestmark = pytest.mark.usefixtures("no_fd_leak", "no_client_outlives_its_test")


_clients: list[socket.socket] = []


@pytest.fixture
def no_client_outlives_its_test() -> Iterator[None]:
    yield
    while _clients:
        _clients.pop().close()


@pytest.fixture(autouse=True)
def _handshakes_get_no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """No handshake is under way when these servers close; a real one waits 50 ms for them."""
    monkeypatch.setattr("greeter.server.server.HANDSHAKE_GRACE", 0.0)


async def connect_from(host: str, port: int, *, receive_buffer: int = 0) -> socket.socket:
    """A client with this address; all of 127.0.0.0/8 is this machine."""
    sock = socket.socket()
    _clients.append(sock)
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.bind((host, 0))
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return sock


async def visit(host: str, port: int) -> bytes:
    """What a client with this address hears before it closes."""
    return (await read_to_end(await connect_from(host, port))).data


async def hold(host: str, port: int) -> socket.socket:
    """A client that has heard the greeting and stays."""
    sock = await connect_from(host, port)
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.get_running_loop().sock_recv(sock, 99) == HELLO
    return sock


def limited(accept: str, greeting: Any = HELLO, **options: Any) -> Serving:
    """A server with limits and a patience that a test could not wait for."""
    limits = ("max_connections", "max_per_ip", "rate_per_ip", "allow", "deny")
    chosen = Limits(**{name: options.pop(name) for name in limits if name in options})
    defaults: dict[str, Any] = {"linger_timeout": 600, "greet_timeout": 600, "access_log": False}
    where = {} if "path" in options else {"port": 0}
    return serve(greeting, accept=accept, limits=chosen, **{**defaults, **where, **options})  # type: ignore[arg-type]  # a fixture's text


def rejected(server: Server) -> dict[str, int]:
    return {why: count for why, count in server.stats.rejected.items() if count}


async def none_is_open(server: Server) -> None:
    """No connection is open, and each is in one of the counters."""
    await until(lambda: server.stats.open == 0, "no connection is open")
    stats = server.stats
    assert stats.accepted == stats.greeted + sum(stats.failed.values()) + sum(stats.rejected.values())


# -- which, and how often --------------------------------------------------------------------------------


async def test_so_many_at_a_time_from_one_address(accept: str) -> None:
    async with limited(accept, max_per_ip=2) as server:
        first, second = await hold("127.0.0.1", server.port), await hold("127.0.0.1", server.port)
        for _ in range(3):
            assert await visit("127.0.0.1", server.port) == b""
        assert await visit("127.0.0.2", server.port) == HELLO
        other = await hold("127.0.0.3", server.port)
        first.close()
        await until(lambda: server.stats.open == 2, "there is a place")
        third = await hold("127.0.0.1", server.port)
        assert await visit("127.0.0.1", server.port) == b""
        for sock in (second, third, other):
            sock.close()
        await until(lambda: server.stats.open == 0, "all have left")
        assert await visit("127.0.0.1", server.port) == HELLO
        assert rejected(server) == {"per_ip": 4}
        await none_is_open(server)


async def test_so_many_a_second_from_one_address(accept: str, rate_clock: Clock) -> None:
    loop = asyncio.get_running_loop()
    since = loop.time()
    async with limited(accept, rate_per_ip=8) as server:
        for host in ("127.0.0.1", "127.0.0.2"):
            heard = [await visit(host, server.port) for _ in range(9)]
            assert heard[:8] == [HELLO] * 8
            assert heard[8] == b""
        assert rejected(server) == {"rate": 2}
        rate_clock.now += 0.124
        assert await visit("127.0.0.1", server.port) == b""
        rate_clock.now += 0.001
        assert await visit("127.0.0.1", server.port) == HELLO
        assert await visit("127.0.0.1", server.port) == b""
        assert rejected(server) == {"rate": 4}
        assert since <= rate_clock.real <= loop.time()
        await none_is_open(server)


@pytest.mark.parametrize(
    ("networks", "welcome"),
    [
        ({"allow": ["127.0.0.2", "127.0.1.0/24"]}, ["127.0.0.2", "127.0.1.9"]),
        ({"deny": ["127.0.0.2", "127.0.1.0/24"]}, ["127.0.0.1", "127.0.0.3"]),
        ({"allow": ["127.0.0.0/16"], "deny": ["127.0.0.2/31"]}, ["127.0.0.1", "127.0.1.9"]),
    ],
    ids=["allow", "deny", "deny wins"],
)
async def test_networks(accept: str, networks: dict[str, list[str]], welcome: list[str]) -> None:
    hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.1.9"]
    log: list[Any] = []
    async with limited(accept, **networks, access_log=log.append) as server:
        heard = {host: await visit(host, server.port) for host in hosts}
        assert heard == {host: HELLO if host in welcome else b"" for host in hosts}
        assert rejected(server) == {"denied": len(hosts) - len(welcome)}
        await none_is_open(server)
    assert [address[0] for address in log] == welcome, "only those are written down"


async def test_clients_of_a_unix_socket_have_no_address(accept: str, tmp_path: Path) -> None:
    path = f"{tmp_path}/sock"
    limits = {"max_per_ip": 1, "rate_per_ip": 1, "allow": ["192.0.2.1"]}
    async with limited(accept, path=path, **limits) as server:
        for _ in range(5):
            assert (await greeter.greet(path=path)).data == HELLO
        assert rejected(server) == {}


async def test_those_turned_away_are_one_line_a_second(accept: str, caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    async with limited(accept, deny=["127.0.0.2"], max_per_ip=1) as server:
        inside = await hold("127.0.0.1", server.port)
        since = loop.time()
        for _ in range(50):
            assert await visit("127.0.0.2", server.port) == b""
            assert await visit("127.0.0.1", server.port) == b""
        seconds = loop.time() - since
        assert rejected(server) == {"denied": 50, "per_ip": 50}
        inside.close()
        await none_is_open(server)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("rejected clients: denied 1 so far, last ('127.0.0.2', ")
    assert 1 <= len(lines) <= 1 + seconds
    assert all(
        re.fullmatch(r"rejected clients: denied \d+(, per_ip \d+)? so far, last .*", line) for line in lines
    )


# -- a place is free again when its client has left, whatever became of it -------------------------------


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of a server and of a client that trusts it."""
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    authority.cert_pem.write_to_path(directory / "ca")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(directory / "cert")
    return server_context(directory / "cert"), client_context(directory / "ca")


def fails(peer: Peer) -> str:
    raise ValueError("not today")


async def fails_later(peer: Peer) -> str:
    await asyncio.sleep(0)
    raise ValueError("not today")


async def never(peer: Peer) -> str:
    await asyncio.Event().wait()
    return ""


@pytest.mark.parametrize(
    ("fate", "greeting", "accept"),
    [
        ("greeted", HELLO, "direct"),
        ("greeted", HELLO, "streams"),
        ("resets", HELLO, "direct"),
        ("resets", HELLO, "streams"),
        ("stays", HELLO, "direct"),
        ("stays", HELLO, "streams"),
        ("reads all of it", LARGE, "direct"),  # which sends it in parts
        ("reads all of it", LARGE, "streams"),
        ("never reads", LARGE, "direct"),
        ("never reads", LARGE, "streams"),
        ("hears nothing", Greeting(fails, quick=True), "direct"),
        ("hears nothing", Greeting(fails, quick=True), "streams"),
        ("hears nothing", fails, "streams"),
        ("hears nothing", fails_later, "streams"),
        ("waits in vain", never, "streams"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_place_is_free_again(fate: str, greeting: Any, accept: str) -> None:
    """The second client is admitted although only one from its address may be connected."""
    patience = {
        "linger_timeout": 0.05,
        "greet_timeout": 0.1 if fate in ("never reads", "waits in vain") else 600,
    }
    async with limited(accept, greeting, max_per_ip=1, **patience) as server:
        for turn in (1, 2):
            sock = await connect_from("127.0.0.1", server.port, receive_buffer=4096)
            await until(lambda turn=turn: server.stats.accepted == turn, "it was accepted")  # type: ignore[misc]  # mypy #15459
            if fate == "resets":
                reset(sock)
            elif fate in ("stays", "never reads"):
                await until(lambda: server.stats.open == 0, "cut off")
                sock.close()
            else:
                data = (await read_to_end(sock)).data
                assert data == {"greeted": HELLO, "reads all of it": LARGE}.get(fate, b"")
            await until(lambda: server.stats.open == 0, "it has left")
            assert rejected(server) == {}, f"at client {turn}"
        await none_is_open(server)


@pytest.mark.parametrize("fate", ["greeted", "no handshake", "resets"])
async def test_a_place_is_free_again_with_tls(fate: str, tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async with limited("auto", ssl=tls[0], max_per_ip=1) as server:
        for turn in (1, 2):
            if fate == "greeted":
                assert (await greeter.greet(port=server.port, ssl=tls[1])).data == HELLO
            else:
                sock = await connect_from("127.0.0.1", server.port)
                await until(lambda turn=turn: server.stats.accepted == turn, "it was accepted")  # type: ignore[misc]  # mypy #15459
                if fate == "resets":
                    reset(sock)
                else:
                    sock.send(b"GET / HTTP/1.0\r\n\r\n" * 10)
                    await read_to_end(sock)
            await until(lambda: server.stats.open == 0, "it has left")
            assert rejected(server) == {}, f"at client {turn}"
        await none_is_open(server)


async def test_limits_come_before_the_handshake(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async with limited("auto", ssl=tls[0], max_per_ip=1) as server:
        inside = await connect_from("127.0.0.1", server.port)
        await until(lambda: server.stats.open == 1, "it is there, and has said nothing yet")
        assert await visit("127.0.0.1", server.port) == b""
        assert rejected(server) == {"per_ip": 1}
        inside.close()
        await none_is_open(server)


# -- other limits while it serves ------------------------------------------------------------------------


async def test_limits_can_be_changed_while_clients_are_there(accept: str) -> None:
    async with limited(accept) as server:
        early = await hold("127.0.0.1", server.port)  # before there was a limit: it is not counted
        server.update(limits=Limits(max_per_ip=1))
        inside = await hold("127.0.0.1", server.port)
        early.close()
        await until(lambda: server.stats.open == 1, "it has left")
        assert await visit("127.0.0.1", server.port) == b""
        server.update(limits=Limits(max_per_ip=2, deny=["127.0.0.2"]))
        assert await visit("127.0.0.1", server.port) == HELLO
        assert await visit("127.0.0.2", server.port) == b""
        server.update(limits=Limits())
        socks = [await hold("127.0.0.2", server.port) for _ in range(3)]
        for sock in (inside, *socks):
            sock.close()
        await until(lambda: server.stats.open == 0, "all have left")
        server.update(limits=Limits(max_per_ip=1))
        assert await visit("127.0.0.1", server.port) == HELLO
        assert rejected(server) == {"per_ip": 1, "denied": 1}
        await none_is_open(server)


# -- how many at a time ----------------------------------------------------------------------------------

CAP = 5
# asyncio goes on accepting for a wake-up or two after it was told to pause, eight at a time.
OVERSHOOT = 16


@pytest.mark.parametrize("kind", ["direct", "streams", "TLS", "PROXY"])
async def test_at_the_cap_the_others_wait_and_are_greeted(
    kind: str, tls: tuple[ssl.SSLContext, ssl.SSLContext], caplog: pytest.LogCaptureFixture
) -> None:
    """No client sends anything until the cap is reached, so that open connections stay open."""
    loop = asyncio.get_running_loop()
    kinds: dict[str, dict[str, Any]] = {"TLS": {"ssl": tls[0]}, "PROXY": {"proxy_from": ["127.0.0.1"]}}
    accept = kind if kind in ("direct", "streams") else "auto"
    since = loop.time()
    async with limited(accept, max_connections=CAP, **kinds.get(kind, {})) as server:
        socks = [await connect_from("127.0.0.1", server.port) for _ in range(40)]
        await until(lambda: server.stats.open >= CAP, "at the cap")
        for _ in range(100):  # turns of the loop: if it went on accepting, it would do so now
            await asyncio.sleep(0)
            assert server.stats.open <= (CAP + OVERSHOOT if kind == "streams" else CAP)
        assert server.stats.accepted < len(socks)

        async def finish(sock: socket.socket) -> bytes:
            if kind == "TLS":
                with sock:
                    reader, writer = await asyncio.open_connection(
                        sock=sock, ssl=tls[1], server_hostname="127.0.0.1"
                    )
                    data = await reader.read()
                    writer.close()
                    with contextlib.suppress(ConnectionError):
                        await writer.wait_closed()
                    return data
            if kind == "PROXY":
                sock.send(tcp4())
            return (await read_to_end(sock)).data

        async with asyncio.timeout(PATIENCE):
            assert await asyncio.gather(*(finish(sock) for sock in socks)) == [HELLO] * len(socks)
        await none_is_open(server)
        assert server.stats.greeted == len(socks)
        seconds = loop.time() - since
    lines = [record.getMessage() for record in caplog.records if record.name == "greeter"]
    assert 1 <= len(lines) <= 1 + seconds
    expected = f"at {CAP} connections: accepting is paused, new connections wait in the accept queue"
    assert set(lines) == {expected}


async def test_a_higher_cap_lets_in_those_who_wait(accept: str) -> None:
    async with limited(accept, max_connections=CAP) as server:
        socks = [await connect_from("127.0.0.1", server.port) for _ in range(60)]
        await until(lambda: server.stats.open >= CAP, "at the cap")
        server.update(limits=Limits(max_connections=100))
        await until(lambda: server.stats.greeted == len(socks), "greeted, and none of them has left")
        for sock in socks:
            assert await read_to_end(sock) == GREETED
        await none_is_open(server)


async def test_a_lower_cap_is_kept_as_clients_leave(accept: str) -> None:
    async with limited(accept, max_connections=30) as server:
        inside = [await hold("127.0.0.1", server.port) for _ in range(25)]
        server.update(limits=Limits(max_connections=CAP))
        waiting = [await connect_from("127.0.0.1", server.port) for _ in range(40)]
        for sock in inside:
            sock.close()
        most = CAP + OVERSHOOT if accept == "streams" else CAP
        await until(lambda: server.stats.greeted > 25 and server.stats.open <= most, "at the new cap")
        for _ in range(100):
            await asyncio.sleep(0)
            assert server.stats.open <= most
        outcomes = await asyncio.gather(*(read_to_end(sock) for sock in waiting))
        assert outcomes == [GREETED] * 40
        await none_is_open(server)


# -- in a process of its own -----------------------------------------------------------------------------


@one_loop
async def test_the_limits_of_the_command_line() -> None:
    args = ["--listen", "127.0.0.1:0", "--max-per-ip", "2", "--rate-per-ip", "3"]
    args += ["--deny", "127.0.0.2", "--allow", "127.0.0.0/24", "--linger-timeout", "60"]
    loop = asyncio.get_running_loop()
    async with greeter_process("serve", *args) as service:
        for host in ("127.0.0.1", "127.0.0.3"):
            for _ in range(2):
                await hold(host, service.port)
        since = loop.time()
        for host in ("127.0.0.1", "127.0.0.2", "127.0.1.1"):
            assert await visit(host, service.port) == b""
        seconds = loop.time() - since
        for sock in _clients:
            sock.close()
        assert await service.stop() == 0
    assert service.lines[-1] == "Stopped: 4 greeted of 7 accepted, 0 failed, 3 rejected"
    lines = [line for line in service.lines if "rejected clients" in line]
    assert 1 <= len(lines) <= 1 + seconds
    assert lines[0].startswith("warning: rejected clients: per_ip 1 so far, last ('127.0.0.1', ")


FILES = 64
CLIENTS = 150
HELD_SECONDS = 2.0
LOG_BYTES = 4096


def cpu_seconds(service: Process) -> float:
    with open(f"/proc/{service.pid}/stat") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@one_loop
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are counted in /proc")
async def test_more_clients_than_descriptors(capsys: pytest.CaptureFixture[str]) -> None:
    """64 descriptors, 150 clients that stay: none is lost, and nothing spins or floods the log."""
    used: dict[str, float] = {}
    # In debug mode it is slower than what it watches.
    asyncio.get_running_loop().set_debug(False)

    async def play(loop: str, path: str) -> None:
        args = ("--listen", "127.0.0.1:0", "--loop", loop, "--accept", path, "--linger-timeout", "2.5")
        async with started_by_init("serve", *args, "--no-access-log", files=FILES) as service:
            listening = descriptors(service.pid, "socket:")
            assert await visit("127.0.0.1", service.port) == HELLO  # a loop opens things for the first one
            await until(lambda: descriptors(service.pid, "socket:") == listening, "it has left")
            at_rest = descriptors(service.pid)
            socks = [await connect_from("127.0.0.1", service.port) for _ in range(CLIENTS)]
            await service.line_with("accepting is paused")
            cpu = cpu_seconds(service)
            await asyncio.sleep(HELD_SECONDS)
            used[f"{loop}-{path}"] = cpu_seconds(service) - cpu
            assert descriptors(service.pid) <= FILES
            outcomes = await asyncio.gather(*(read_to_end(sock) for sock in socks))
            assert outcomes == [GREETED] * CLIENTS
            await until(lambda: descriptors(service.pid) == at_rest, "as many descriptors as before")
            assert await service.stop() == 0
        log = "\n".join(line for line in service.lines if "Listening" not in line)
        assert len(log) <= LOG_BYTES
        greeted = CLIENTS + 1
        assert service.lines[-1] == f"Stopped: {greeted} greeted of {greeted} accepted, 0 failed"

    await on_every_stage(play)
    with capsys.disabled():
        shown = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in used.items())
        print(f"\nCPU at the cap, s in {HELD_SECONDS:g} s: {shown}")
