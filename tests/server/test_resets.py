"""Clients that reset the connection between any two steps: PROXY header, TLS handshake and an async greeting.

The server counts each of them once, keeps nothing of them, and logs no traceback.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from greeter import serve
from greeter.system.tls import client_context, server_context
from tests.core.test_proxy_protocol import tcp4
from tests.support.peers import connect, reset, until

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable
    from pathlib import Path

HEADER = tcp4("192.0.2.1", "198.51.100.7", "56324", "443")
LARGE = b"g" * 5_000_000  # more than the kernel takes to send at once (tcp_wmem), of which
RECEIVE_BUFFER = 64 * 1024  # a client holds no more than this before it reads
CLIENTS = 6  # at each step

pytestmark = pytest.mark.usefixtures("no_fd_leak")


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of a server, and of its clients."""
    directory: Path = tmp_path_factory.mktemp("tls")
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    authority.cert_pem.write_to_path(directory / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(directory / "both.pem")
    return server_context(directory / "both.pem"), client_context(directory / "ca.pem")


class Client:
    """A client that goes through a connection step by step."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    def hello(self) -> bytes:
        """Its ClientHello."""
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self._outgoing.read()

    async def handshake(self, *, finish: bool = True) -> None:
        """Send the header and complete the handshake. Without ``finish``, its last flight is not sent."""
        await self.send(HEADER + self.hello())
        while True:
            await self._receive()
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.send(self._outgoing.read())
            else:
                break
        if finish:
            await self.send(self._outgoing.read())

    async def read(self, size: int) -> bytes:
        """Up to ``size`` bytes of the greeting, none at its end."""
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                await self._receive()
            except ssl.SSLZeroReturnError:
                return b""

    async def read_to_end(self) -> bytes:
        data = b""
        while chunk := await self.read(65536):
            data += chunk
        return data

    async def _receive(self) -> None:
        data = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
        assert data, "the end of stream came within TLS"
        self._incoming.write(data)


async def _connects(client: Client) -> None:
    pass


async def _sends_part_of_the_header(client: Client) -> None:
    await client.send(HEADER[:9])


async def _sends_the_header(client: Client) -> None:
    await client.send(HEADER)


async def _sends_part_of_the_hello(client: Client) -> None:
    await client.send(HEADER)
    await client.send(client.hello()[:100])


async def _sends_the_hello(client: Client) -> None:
    await client.send(HEADER + client.hello())


async def _hears_the_servers_flight(client: Client) -> None:
    await client.handshake(finish=False)


async def _completes_the_handshake(client: Client) -> None:
    await client.handshake()


async def _reads_part_of_the_greeting(client: Client) -> None:
    await client.handshake()
    assert await client.read(10)


async def _reads_all_of_the_greeting(client: Client) -> None:
    await client.handshake()
    assert await client.read_to_end() == LARGE


# Each step, and whether the greeting may begin before the reset.
STEPS: dict[str, tuple[Callable[[Client], Awaitable[None]], bool]] = {
    "connect": (_connects, False),
    "part of the header": (_sends_part_of_the_header, False),
    "header": (_sends_the_header, False),
    "part of the ClientHello": (_sends_part_of_the_hello, False),
    "ClientHello": (_sends_the_hello, False),
    "the server's flight": (_hears_the_servers_flight, False),
    "while it is made": (_completes_the_handshake, False),
    "while it is sent": (_reads_part_of_the_greeting, True),
    "while it lingers": (_reads_all_of_the_greeting, True),
}


@pytest.mark.parametrize("step", STEPS)
async def test_a_reset_at_any_step_is_counted_once_and_leaves_nothing(
    step: str,
    accept: Any,
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As soon as the client can, and when the server has had time to get there too."""
    caplog.set_level(logging.INFO)
    open_for_business = asyncio.Event()

    async def make(peer: Any) -> bytes:
        await open_for_business.wait()
        return LARGE if peer.count <= CLIENTS else b"Hello"

    go, greeted = STEPS[step]
    if greeted:
        open_for_business.set()
    options: dict[str, Any] = {"port": 0, "access_log": False, "accept": accept, "ssl": contexts[0]}
    async with serve(make, **options, proxy_from=["127.0.0.1"], greet_timeout=600) as server:
        small = RECEIVE_BUFFER if step == "while it is sent" else 0
        socks = [await connect(server.port, receive_buffer=small) for _ in range(CLIENTS)]
        clients = [Client(sock, contexts[1]) for sock in socks]
        await asyncio.gather(*map(go, clients))
        for client in clients[: CLIENTS // 2]:
            reset(client.sock)
        await until(lambda: server.stats.accepted == CLIENTS, "all are accepted")
        for _ in range(20):
            await asyncio.sleep(0)
        for client in clients[CLIENTS // 2 :]:
            reset(client.sock)
        open_for_business.set()
        after = Client(await connect(server.port), contexts[1])
        await after.handshake()
        assert await after.read_to_end() == b"Hello"
        after.sock.close()
        await until(lambda: server.stats.open == 0, "all are closed")
        stats = server.stats
        assert stats.accepted == CLIENTS + 1
        assert stats.accepted == stats.greeted + sum(stats.failed.values()) + sum(stats.rejected.values())
        assert stats.greeted == 1 + (step == "while it lingers") * CLIENTS
        assert stats.failed["aborted"] == stats.failed["greet_timeout"] == 0
    assert {record.name for record in caplog.records} <= {"greeter"}
    assert [record for record in caplog.records if record.exc_info] == []


async def test_of_600_clients_that_wait_the_300_that_leave_are_cancelled(accept: Any) -> None:
    rung = asyncio.Event()
    waiting: set[int] = set()
    cancelled: set[int] = set()

    async def make(peer: Any) -> str:
        waiting.add(peer.port)
        try:
            await rung.wait()
        except asyncio.CancelledError:
            cancelled.add(peer.port)
            raise
        return f"Hello {peer.port}"

    async with serve(make, port=0, access_log=False, accept=accept, greet_timeout=600) as server:
        socks = [await connect(server.port) for _ in range(600)]
        await until(lambda: len(waiting) == 600, "all of them wait")
        stay, leave = socks[::2], socks[1::2]
        leavers = {sock.getsockname()[1] for sock in leave}
        for sock in leave:
            reset(sock)
        await until(lambda: server.stats.open == 300, "half of them are gone")
        await until(lambda: len(cancelled) == 300, "their callables are cancelled")
        rung.set()
        await until(lambda: server.stats.greeted == 300, "the others are greeted")
        for sock in stay:
            port = sock.getsockname()[1]
            assert await asyncio.get_running_loop().sock_recv(sock, 99) == f"Hello {port}".encode()
            sock.close()
        await until(lambda: server.stats.open == 0, "all are closed")
        assert cancelled == leavers
        assert (server.stats.greeted, server.stats.failed["reset"]) == (300, 300)
