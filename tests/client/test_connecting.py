"""Connecting: names with several addresses, scopes, resets at once, the same on every loop."""

from __future__ import annotations

import asyncio
import select
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

from greeter import ConnectFailed, GreetReset, GreetTimeout, greet, open_connection
from greeter.client import connecting
from tests.client.test_oneshot import HELLO, RawServer, full_accept_queue, raw_server, received_byte
from tests.conftest import PATIENCE, ROOT, open_fds
from tests.support.peers import reset, until

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["raw_server"]  # a fixture

pytestmark = pytest.mark.usefixtures("no_fd_leak")

DEAD, LIVING, CLOSED = "127.0.0.1", "127.0.0.2", "127.0.0.3"  # on one port


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port that is dead on DEAD, refused on CLOSED, and can be listened on at LIVING."""
    with full_accept_queue() as port:
        yield port


def resolve_to(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Let the resolver return these addresses, in this order, for any name."""

    def getaddrinfo(_host: object, port: int, *_: object, **__: object) -> list[Any]:
        family = {True: socket.AF_INET6, False: socket.AF_INET}
        return [(family[":" in host], socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


# -- several addresses (RFC 8305) -------------------------------------------------------------------------


async def test_a_dead_address_delays_the_next_and_no_more(
    dead_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "ATTEMPT_DELAY", 0.01)
    resolve_to(monkeypatch, DEAD, DEAD, LIVING)
    with socket.create_server((LIVING, dead_port)) as sock:
        server = RawServer(sock)
        task = asyncio.create_task(greet("n.example", dead_port, connect_timeout=PATIENCE, timeout=PATIENCE))
        connection = await server.accept()
        connection.sendall(HELLO)
        connection.close()
        assert (await task).data == HELLO


async def test_a_refused_address_does_not_delay_the_next(
    dead_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "ATTEMPT_DELAY", 2 * PATIENCE)
    resolve_to(monkeypatch, CLOSED, LIVING)
    with socket.create_server((LIVING, dead_port)) as sock:
        task = asyncio.create_task(open_connection("n.example", dead_port))
        connection = await RawServer(sock).accept()
        connection.sendall(b"220 here\r\n")
        reply, _reader, writer = await task
        assert reply.data == b"220 here\r\n"
        writer.close()
        await writer.wait_closed()
        connection.close()


@pytest.mark.thorough
async def test_the_error_is_that_of_the_last_address(dead_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "::ffff:0:0:1", CLOSED, CLOSED)
    with pytest.raises(ConnectFailed, match=f"^cannot connect to n.example:{dead_port}: connection refused$"):
        await greet("n.example", dead_port)


async def test_every_address_dead_is_a_timeout_that_leaks_nothing(
    dead_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "ATTEMPT_DELAY", 0.01)
    resolve_to(monkeypatch, DEAD, DEAD, DEAD)
    with pytest.raises(GreetTimeout) as caught:
        await greet("n.example", dead_port, connect_timeout=0.1)
    assert caught.value.phase == "connect"


async def test_a_cancelled_race_leaks_nothing(dead_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "ATTEMPT_DELAY", 0.001)
    resolve_to(monkeypatch, *[DEAD] * 5)
    before = open_fds()
    task = asyncio.create_task(greet("n.example", dead_port))
    await until(lambda: len(open_fds()) >= len(before) + 5, "five attempts")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert open_fds().keys() <= before.keys()


async def test_a_race_that_is_cancelled_in_any_turn_closes_its_sockets(
    raw_server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def established(sock: socket.socket) -> bool:
        return bool(select.select([], [sock], [], PATIENCE)[1])

    monkeypatch.setattr(connecting, "_is_established", established)  # the same turns on a slow machine
    loop = asyncio.get_running_loop()
    addresses = [(socket.AF_INET, ("127.0.0.1", raw_server.port))] * 2
    won = []
    for turns in range(20):
        task = asyncio.create_task(connecting._race(loop, addresses))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        won.append(not task.cancelled())
        if won[-1]:
            task.result().sock.close()
        del task  # a socket that is still open is a ResourceWarning now, which fails the test
    assert won == sorted(won)
    assert set(won) == {False, True}


async def test_of_two_addresses_that_answer_at_once_one_is_closed(
    raw_server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "ATTEMPT_DELAY", 0)
    monkeypatch.setattr(connecting, "_is_established", lambda _sock: False)  # as over a network
    resolve_to(monkeypatch, DEAD, DEAD)
    task = asyncio.create_task(greet("n.example", raw_server.port))
    connections = [await raw_server.accept(), await raw_server.accept()]
    reading = {asyncio.create_task(received_byte(connection)): connection for connection in connections}
    closed, left = await asyncio.wait(reading, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    assert [reader.result() for reader in closed] == [b""]
    (reader,) = left
    reader.cancel()
    await asyncio.wait([reader])
    connection = reading[reader]
    connection.sendall(HELLO)
    connection.shutdown(socket.SHUT_WR)
    assert (await task).data == HELLO


def test_the_families_alternate() -> None:
    six, four = socket.AF_INET6, socket.AF_INET
    addresses: list[connecting.Address] = [(six, "a"), (six, "b"), (six, "c"), (four, "d")]
    assert connecting._interleaved(addresses) == [(six, "a"), (four, "d"), (six, "b"), (six, "c")]
    assert connecting._interleaved(addresses[::-1])[:2] == [(four, "d"), (six, "c")]


async def test_a_unix_socket_with_a_full_queue_is_connected_when_there_is_space(tmp_path: Any) -> None:
    with socket.socket(socket.AF_UNIX) as sock, ExitStack() as stack:
        sock.bind(f"{tmp_path}/x")
        sock.listen(0)
        with suppress(BlockingIOError):
            while True:
                connection = stack.enter_context(socket.socket(socket.AF_UNIX))
                connection.setblocking(False)
                connection.connect(sock.getsockname())
        task = asyncio.create_task(greet(path=f"{tmp_path}/x", timeout=PATIENCE, connect_timeout=PATIENCE))
        await asyncio.sleep(0)
        while not task.done():
            peer, _ = await asyncio.to_thread(sock.accept)
            with peer, suppress(OSError):
                peer.sendall(HELLO)
            await asyncio.sleep(0.01)
        assert (await task).data == HELLO


# -- a reset in the turn in which the connection is established -------------------------------------------


@pytest.mark.parametrize("seen_at_once", [True, False])
@pytest.mark.parametrize("data", [HELLO, b""])
@pytest.mark.parametrize("send", [None, b"EHLO x\r\n"])
async def test_a_reset_right_after_the_connection_loses_no_byte(
    raw_server: RawServer,
    data: bytes,
    send: bytes | None,
    seen_at_once: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not seen_at_once:  # as over a network
        monkeypatch.setattr(connecting, "_is_established", lambda _sock: False)
    task = asyncio.create_task(greet(port=raw_server.port, send=send))
    await asyncio.sleep(0)  # the client connects, and waits
    raw_server.sock.setblocking(True)
    connection, _ = raw_server.sock.accept()
    if data:
        connection.sendall(data)
    reset(connection)
    if data:
        reply = await task
        assert (reply.data, reply.reset) == (data, True)
    else:
        with pytest.raises(GreetReset, match="connection reset before the greeting$"):
            await task


# -- scopes -----------------------------------------------------------------------------------------------

LINK_LOCAL = """
import asyncio, os, socket, sys
import uvloop
import greeter
target = "[fe80::5%lo]:4025"
server = socket.create_server(("fe80::5", 4025, 0, socket.if_nametoindex("lo")), family=socket.AF_INET6)
for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
    async def main():
        task = asyncio.create_task(greeter.greet(target, proxy_protocol="v1"))
        connection, _ = await asyncio.to_thread(server.accept)
        print(connection.recv(100))
        connection.sendall(b"here")
        connection.close()
        reply = await task
        print(reply.target, reply.text)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
"""


def test_a_scope_reaches_the_socket_on_every_loop() -> None:
    pytest.importorskip("uvloop")
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("needs unshare and ip")
    script = 'ip link set lo up && ip addr add fe80::5/64 dev lo nodad && exec "$0" -c "$1"'
    command = ["unshare", "-rn", "sh", "-c", script, sys.executable, LINK_LOCAL]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE)
    if "unshare" in done.stderr or "RTNETLINK" in done.stderr:
        pytest.skip(f"no network namespace: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1::2] == ["[fe80::5%lo]:4025 here"] * 2
    assert all(line.startswith("b'PROXY TCP6 fe80::5 fe80::5 ") for line in lines[::2])
