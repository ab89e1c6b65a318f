"""``greeter.handler`` in a server of one's own: TCP, Unix sockets, asyncio's TLS."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme

import greeter
from greeter import ConfigError, Peer
from tests.conftest import PATIENCE
from tests.support.peers import Outcome, connect, read_to_end, reset, send_then_read, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("no_fd_leak")

HELLO = Outcome(b"Hello", reset=False)
SIZES = [0, 18, 5_000, 200_000]
# Every byte and the end of the stream come at once: before the deadlines, which are minutes away.
PATIENT: dict[str, Any] = {"access_log": False, "greet_timeout": 600, "linger_timeout": 600}


@contextlib.asynccontextmanager
async def own_server(client_connected: Callable[..., Any], **options: Any) -> AsyncIterator[int]:
    """A server as asyncio documents it; gives its port."""
    server = await asyncio.start_server(client_connected, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def later(peer: Peer) -> str:
    await asyncio.sleep(0)
    return "Hello"


GREETINGS: dict[str, Any] = {"fixed": "Hello", "async": later, "thread": lambda _: "Hello"}


@pytest.mark.parametrize("greeting", GREETINGS.values(), ids=GREETINGS)
@pytest.mark.parametrize("size", SIZES)
async def test_clients_that_speak_first_are_greeted(size: int, greeting: Any) -> None:
    async with own_server(greeter.handler(greeting, **PATIENT)) as port:
        outcomes = await asyncio.gather(*(send_then_read(port, size) for _ in range(50)))
        assert outcomes == [HELLO] * 50


async def test_a_client_that_resets_cancels_its_callable() -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def greeting(_: Peer) -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return ""

    async with own_server(greeter.handler(greeting)) as port, asyncio.timeout(PATIENCE):
        client = await connect(port)
        await begun.wait()
        reset(client)
        await cancelled.wait()


async def test_deadlines_and_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def never(_: Peer) -> str:
        await asyncio.Event().wait()
        return ""

    with caplog.at_level(logging.INFO, "greeter"):
        async with own_server(greeter.handler(never, greet_timeout=0.05)) as port:
            client = await connect(port)
            name = client.getsockname()
            assert (await read_to_end(client)).data == b""
        async with own_server(greeter.handler("Hello", linger_timeout=0.05, access_log=False)) as port:
            client = await connect(port)
            async with asyncio.timeout(PATIENCE):  # greeted, half-closed, and closed at the linger deadline
                assert await asyncio.get_running_loop().sock_recv(client, 100) == b"Hello"
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    while True:
                        client.send(b"x")
                        await asyncio.sleep(0.005)  # the pace of a talker
            client.close()
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"Got a connection from {name}", f"{name}: not greeted within 0.05 s"]


async def test_the_peer_knows_both_ends() -> None:
    peers: list[Peer] = []

    async def greeting(peer: Peer) -> str:
        peers.append(peer)
        return ""

    log: list[Any] = []
    async with own_server(greeter.handler(greeting, access_log=log.append)) as port:
        sockets = [await connect(port) for _ in range(2)]
        names = [sock.getsockname() for sock in sockets]
        for sock in sockets:
            await read_to_end(sock)
    assert [(peer.host, peer.port, peer.count) for peer in peers] == [
        (*name, count) for count, name in enumerate(names, 1)
    ]
    assert {(peer.server, peer.family) for peer in peers} == {(f"127.0.0.1:{port}", socket.AF_INET)}
    assert [address[:2] for address in log] == names


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    server = await asyncio.start_unix_server(greeter.handler("Hello"), path)
    assert (await greeter.greet(path=path)).data == b"Hello"
    server.close()


async def test_one_handler_serves_several_servers() -> None:
    client_connected = greeter.handler("$count", access_log=False)
    async with own_server(client_connected) as first, own_server(client_connected) as second:
        assert [(await send_then_read(port, 18)).data for port in (first, second, first)] == [
            b"1",
            b"2",
            b"3",
        ]


def test_one_handler_serves_one_event_loop_after_the_other() -> None:
    client_connected = greeter.handler("Hello", access_log=False)

    async def play() -> Outcome:
        async with own_server(client_connected) as port:
            return await send_then_read(port, 18)

    assert [asyncio.run(play()) for _ in range(2)] == [HELLO] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"greeting": "$nobody"}, "unknown name"),
        ({"greeting": 42}, "a greeting must be text"),
        ({"greet_timeout": -1}, "greet_timeout must be a number of seconds from 0, not -1"),
        ({"linger_timeout": "1"}, "linger_timeout must be a number of seconds from 0, not '1'"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_right_is_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        greeter.handler(**arguments)


# -- asyncio's TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"])
def client_context(authority: trustme.CA, request: pytest.FixtureRequest) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    context.minimum_version = context.maximum_version = request.param
    return context


class Client:
    """A TLS client on a raw socket, which sees a reset and a missing close_notify."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="127.0.0.1")

    async def flush(self) -> None:
        if data := self.outgoing.read():
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        while True:
            try:
                result = function(*arguments)
            except ssl.SSLWantReadError:
                await self.flush()
                data = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
                assert data, "an end of stream without close_notify"
                self.incoming.write(data)
            else:
                await self.flush()
                return result

    async def read_to_close_notify(self) -> bytes:
        received = b""
        try:
            while data := await self.call(self.tls.read, 65536):
                received += data
        except ssl.SSLZeroReturnError:
            pass
        return received


async def tls_client(port: int, context: ssl.SSLContext, size: int, *, talks: bool = False) -> Outcome:
    """Do the handshake, send ``size`` bytes, and only then read; perhaps send more after close_notify."""
    sock = await connect(port)
    client = Client(sock, context)
    try:
        async with asyncio.timeout(PATIENCE):
            await client.call(client.tls.do_handshake)
            if size:
                client.tls.write(b"x" * size)
                await client.flush()
            received = await client.read_to_close_notify()
            if talks:
                client.tls.write(b"x" * 5_000)
                await client.flush()
            with contextlib.suppress(ssl.SSLError):
                client.tls.unwrap()
            await client.flush()
            return Outcome(received, reset=False)
    except (ConnectionResetError, BrokenPipeError):
        return Outcome(b"", reset=True)
    finally:
        sock.close()


@pytest.mark.parametrize("greeting", GREETINGS.values(), ids=GREETINGS)
@pytest.mark.parametrize("size", SIZES)
async def test_tls_clients_that_speak_first_are_greeted(
    size: int, greeting: Any, context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async with own_server(greeter.handler(greeting, **PATIENT), ssl=context) as port:
        outcomes = await asyncio.gather(*(tls_client(port, client_context, size) for _ in range(10)))
        assert outcomes == [HELLO] * 10


async def test_a_tls_client_leaves_no_task_behind(
    context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """What reads from it while its greeting is made ends with the connection; asyncio would log it."""
    before = asyncio.all_tasks()
    async with own_server(greeter.handler(later, **PATIENT), ssl=context) as port:
        assert await tls_client(port, client_context, 18) == HELLO
        await until(lambda: asyncio.all_tasks() <= before, "only this test's own task is left")


async def test_a_tls_client_that_sends_data_after_close_notify_is_not_reset(
    context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async with own_server(greeter.handler("Hello", **PATIENT), ssl=context) as port:
        outcomes = await asyncio.gather(
            *(tls_client(port, client_context, 18, talks=True) for _ in range(20))
        )
        assert outcomes == [HELLO] * 20


async def test_a_large_greeting_over_tls_arrives_whole(
    context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    greeting = bytes(range(256)) * 16_000
    async with own_server(greeter.handler(greeting, **PATIENT), ssl=context) as port:
        for size in SIZES:
            assert await tls_client(port, client_context, size) == Outcome(greeting, reset=False)


async def test_asyncios_own_client_is_greeted_over_tls(
    context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    peers: list[Peer] = []

    async def greeting(peer: Peer) -> str:
        peers.append(peer)
        return "Hello"

    async with own_server(greeter.handler(greeting, access_log=False), ssl=context) as port:
        for _ in range(20):
            reply = await greeter.greet("127.0.0.1", port, ssl=client_context)
            assert (reply.data, reply.reset) == (b"Hello", False)
    assert {peer.tls_version for peer in peers} == {client_context.maximum_version.name.replace("_", ".")}


async def test_a_tls_client_that_resets_a_large_greeting_is_no_line_of_asyncio(
    context: ssl.SSLContext, client_context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio warns of each write after the fifth one that a broken connection does not take."""

    def read_and_reset(port: int) -> None:  # in a thread, so that the reset comes between two writes
        sock = socket.create_connection(("127.0.0.1", port))
        with client_context.wrap_socket(sock, server_hostname="127.0.0.1") as client:
            client.recv(1000)
            reset(client)

    before = asyncio.all_tasks()
    async with own_server(greeter.handler(bytes(64_000_000), access_log=False), ssl=context) as port:
        await asyncio.to_thread(read_and_reset, port)
        await until(lambda: asyncio.all_tasks() <= before, "the connection has ended")
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


async def test_a_callable_learns_the_address_of_the_server_as_an_endpoint_has_it() -> None:
    peers: list[Peer] = []

    def remember(peer: Peer) -> str:
        peers.append(peer)
        return "Hello"

    handler = greeter.handler(greeter.Greeting(remember, quick=True))
    name = f"greeter-handler-{os.getpid()}"
    tcp = await asyncio.start_server(handler, "::1", 0)
    unix = await asyncio.start_unix_server(handler, f"\0{name}")
    try:
        targets = [f"[::1]:{tcp.sockets[0].getsockname()[1]}", f"unix:@{name}"]
        for target in targets:
            await greeter.greet(target)
    finally:
        tcp.close()
        unix.close()
    assert [peer.server for peer in peers] == targets
