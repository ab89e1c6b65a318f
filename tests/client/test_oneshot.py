"""greet() against peers that behave, misbehave or do nothing, on raw sockets of the test."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import socket
import ssl
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest
import trustme

import greeter
from greeter import (
    ConfigError,
    ConnectFailed,
    Endpoint,
    GreetReset,
    GreetTimeout,
    NoGreeting,
    Reply,
    ReplyTooLarge,
    UnexpectedGreeting,
    greet,
)
from greeter.client import oneshot
from greeter.client.socket_receiver import SocketReceiver
from greeter.core import proxy_protocol
from tests.conftest import PATIENCE, greeter_process, one_loop, open_fds
from tests.support.peers import reset, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from greeter.client.connecting import Connected

HELLO = b"Thank you for connecting"
once = one_loop  # does not depend on the loop

pytestmark = pytest.mark.usefixtures("no_fd_leak")


class RawServer:
    """A listening socket, and the connections that the test accepted from it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.setblocking(False)
        self.connections: list[socket.socket] = []

    @property
    def port(self) -> int:
        return int(self.sock.getsockname()[1])

    async def accept(self) -> socket.socket:
        """Accept a connection. The socket is blocking, and is closed at the end of the test."""
        async with asyncio.timeout(PATIENCE):
            connection, _ = await asyncio.get_running_loop().sock_accept(self.sock)
        self.connections.append(connection)
        connection.setblocking(True)
        return connection

    async def greet(self, **options: Any) -> tuple[asyncio.Task[Reply], socket.socket]:
        """Start a greet(). Return its task and the server side of its connection."""
        task = asyncio.create_task(greet(port=self.port, **options))
        return task, await self.accept()


@pytest.fixture
async def raw_server() -> AsyncIterator[RawServer]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        server = RawServer(sock)
        yield server
        for connection in server.connections:
            connection.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
async def tls_port(authority: trustme.CA) -> AsyncIterator[int]:
    """A greeting server over TLS, with a certificate for localhost and 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


# -- a greeting ------------------------------------------------------------------------------------------


async def test_a_greeting(raw_server: RawServer) -> None:
    task, server = await raw_server.greet()
    server.sendall(HELLO)
    server.close()
    reply = await task
    assert reply.data == bytes(reply) == HELLO
    assert str(reply) == "Thank you for connecting"
    assert (reply.target, reply.reset) == (f"127.0.0.1:{raw_server.port}", False)
    assert reply.first_byte_time is not None
    assert 0 < reply.connect_time <= reply.first_byte_time <= reply.total_time


async def test_a_greeting_in_pieces_of_any_bytes(raw_server: RawServer) -> None:
    data = os.urandom(60_000)
    task, server = await raw_server.greet()
    for at in range(0, len(data), 1000):
        server.sendall(data[at : at + 1000])
        await asyncio.sleep(0)
    server.shutdown(socket.SHUT_WR)
    assert (await task).data == data


def test_str_of_a_reply_escapes_undecodable_bytes() -> None:
    reply = Reply("grüße ".encode() + b"\xff\x00", "x:1", 0.0, None, 0.0)
    assert str(reply) == "grüße \\xff\0"


async def test_closing_without_a_byte_is_an_empty_reply(raw_server: RawServer) -> None:
    task, server = await raw_server.greet()
    server.close()
    reply = await task
    assert (reply.data, reply.reset, reply.first_byte_time) == (b"", False, None)


async def test_a_reset_after_the_greeting_returns_it(raw_server: RawServer) -> None:
    task, server = await raw_server.greet()
    server.sendall(HELLO)
    reset(server)
    reply = await task
    assert (reply.data, reply.reset) == (HELLO, True)


async def test_a_reset_before_the_greeting(raw_server: RawServer) -> None:
    task, server = await raw_server.greet()
    reset(server)
    with pytest.raises(
        GreetReset, match=f"127.0.0.1:{raw_server.port}: connection reset before the"
    ) as caught:
        await task
    assert isinstance(caught.value.__cause__, ConnectionResetError)


# -- targets ----------------------------------------------------------------------------------------------


async def received_byte(connection: socket.socket) -> bytes:
    """Return the next byte that the client sends; empty at the end of the stream."""
    connection.setblocking(False)
    async with asyncio.timeout(PATIENCE):
        return await asyncio.get_running_loop().sock_recv(connection, 1)


async def greeted(task: asyncio.Task[Reply], connection: socket.socket, target: str) -> bool:
    connection.sendall(HELLO)
    connection.close()
    reply = await task
    assert reply.target == target
    return reply.data == HELLO


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", 2130706433, "", None])
async def test_hosts(raw_server: RawServer, host: str | int | None) -> None:
    task = asyncio.create_task(greet(host, str(raw_server.port)))
    connection = await raw_server.accept()
    target = "127.0.0.1" if isinstance(host, int) else host or ""
    assert await greeted(task, connection, f"{target}:{raw_server.port}")


async def test_targets_as_text(raw_server: RawServer) -> None:
    text = f"127.0.0.1:{raw_server.port}"
    for call in (
        greet(text),
        greet(target=text),
        greet(host="127.0.0.1", port=raw_server.port),
        greet(host=text),
    ):
        task = asyncio.create_task(call)
        assert await greeted(task, await raw_server.accept(), text)


@pytest.mark.parametrize("name", ["file", "@"])
async def test_unix_sockets(tmp_path: Path, name: str) -> None:
    path = f"{tmp_path}/x" if name == "file" else f"@greeter-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path.replace("@", "\0", 1) if name == "@" else path)
        sock.listen()
        for call in (greet(path=path), greet(Endpoint.unix(path)), greet(f"unix:{path}")):
            task = asyncio.create_task(call)
            assert await greeted(task, await RawServer(sock).accept(), f"unix:{path}")


async def test_a_connected_socket_is_closed_by_greet(raw_server: RawServer) -> None:
    client = socket.create_connection(("127.0.0.1", raw_server.port))
    task = asyncio.create_task(greet(sock=client))
    assert await greeted(task, await raw_server.accept(), f"fd:{client.fileno()}")
    assert client.fileno() == -1


async def test_a_descriptor_is_not_closed_by_greet() -> None:
    client, peer = socket.socketpair()
    with client, peer:
        peer.sendall(HELLO)
        peer.shutdown(socket.SHUT_WR)
        target = Endpoint.inherited(client.fileno())
        assert (await greet(target)).data == HELLO
        assert client.fileno() >= 0


# -- errors of connecting ---------------------------------------------------------------------------------


async def test_a_refused_connection(raw_server: RawServer) -> None:
    port = raw_server.port
    raw_server.sock.close()
    with pytest.raises(ConnectFailed) as caught:
        await greet(port=port)
    assert str(caught.value) == f"cannot connect to 127.0.0.1:{port}: connection refused"
    assert (caught.value.errno, caught.value.target) == (errno.ECONNREFUSED, f"127.0.0.1:{port}")


async def test_every_address_refused_is_one_short_line(
    raw_server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getaddrinfo(_host: object, port: int, *_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (f"127.0.0.{n}", port)) for n in (2, 1)]

    port = raw_server.port
    raw_server.sock.close()
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(ConnectFailed) as caught:
        await greet("localhost", port)
    assert str(caught.value) == f"cannot connect to localhost:{port}: connection refused"
    assert caught.value.errno == errno.ECONNREFUSED


@pytest.mark.parametrize(
    ("host", "port", "why"),
    [
        ("nosuchhost.invalid", 1, "name or service not known|temporary failure|no address"),
        ("127.0.0.1", "nosuchservice", "servname not supported|service not|unrecognized service"),
        ("xn--é", 1, "not a host name"),
    ],
)
async def test_a_name_that_cannot_be_resolved(host: str, port: int | str, why: str) -> None:
    with pytest.raises(ConnectFailed, match=f"^cannot connect to {host}:{port}: ({why})"):
        await greet(host, port)


async def test_a_missing_unix_socket(tmp_path: Path) -> None:
    with pytest.raises(ConnectFailed, match=f"^cannot connect to unix:{tmp_path}/x: no such file or dir"):
        await greet(path=f"{tmp_path}/x")


async def test_descriptors_that_are_not_stream_sockets() -> None:
    reading, writing = os.pipe()
    udp = socket.socket(type=socket.SOCK_DGRAM)
    before = open_fds()
    with pytest.raises(
        ConnectFailed, match=f"cannot connect to fd:{reading}: socket operation on non-socket"
    ):
        await greet(Endpoint.inherited(reading))
    with pytest.raises(ConnectFailed, match=f"fd:{udp.fileno()}: protocol wrong type for socket"):
        await greet(Endpoint.inherited(udp.fileno()))
    assert open_fds() == before
    with pytest.raises(ConnectFailed, match="protocol wrong type for socket"):
        await greet(sock=udp)
    assert udp.fileno() == -1
    os.close(reading)
    os.close(writing)
    with pytest.raises(ConnectFailed, match=f"cannot connect to fd:{reading}: bad file descriptor"):
        await greet(Endpoint.inherited(reading))


async def test_etimedout_is_connect_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unreachable(*_: object, **__: object) -> Connected:
        raise TimeoutError(errno.ETIMEDOUT, "Connect call failed")

    monkeypatch.setattr(oneshot, "begin_to_connect", lambda _: None)
    monkeypatch.setattr(oneshot, "connect", unreachable)
    with pytest.raises(ConnectFailed, match="cannot connect to 192.0.2.1:1: connection timed out") as caught:
        await greet("192.0.2.1", 1)
    assert caught.value.errno == errno.ETIMEDOUT


# -- deadlines and bounds ---------------------------------------------------------------------------------


@contextlib.contextmanager
def full_accept_queue() -> Iterator[int]:
    """A port that completes no handshake: its accept queue is full and stays full."""

    def is_full() -> bool:
        # Of a listening socket, tcpi_unacked and tcpi_sacked are the accept queue and its limit (tcp(7)).
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        queued, limit = struct.unpack_from("II", info, 24)
        return bool(queued > limit)

    with socket.socket() as sock, contextlib.ExitStack() as stack:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        while True:  # until a handshake does not complete
            connection = stack.enter_context(socket.socket())
            connection.settimeout(0.1)
            try:
                connection.connect(sock.getsockname())
            except TimeoutError:
                if is_full():  # and this machine was not merely slow
                    break
        yield sock.getsockname()[1]


@pytest.mark.parametrize("limits", [{"connect_timeout": 0.05}, {"timeout": 0.05}])
async def test_no_connection_within_the_deadline(limits: dict[str, Any]) -> None:
    with full_accept_queue() as port, pytest.raises(GreetTimeout) as caught:
        await greet(port=port, **limits)
    assert str(caught.value) == f"127.0.0.1:{port}: no connection within 0.05 s"
    assert (caught.value.phase, caught.value.seconds, caught.value.received) == ("connect", 0.05, b"")


async def test_a_silent_server(raw_server: RawServer) -> None:
    task, _server = await raw_server.greet(timeout=0.05)
    with pytest.raises(GreetTimeout) as caught:
        await task
    assert str(caught.value) == f"127.0.0.1:{raw_server.port}: connected, but no greeting within 0.05 s"
    assert (caught.value.phase, caught.value.received) == ("first byte", b"")


async def test_a_greeting_that_does_not_end(raw_server: RawServer) -> None:
    task, server = await raw_server.greet(timeout=0.1)
    server.sendall(b"220 wait")
    with pytest.raises(GreetTimeout) as caught:
        await task
    address = f"127.0.0.1:{raw_server.port}"
    assert str(caught.value) == f"{address}: '220 wait' came, but no end of the greeting within 0.1 s"
    assert (caught.value.phase, caught.value.received) == ("end", b"220 wait")


async def test_the_longest_reply(raw_server: RawServer) -> None:
    task, server = await raw_server.greet(max_bytes=len(HELLO))
    server.sendall(HELLO)
    server.close()
    assert (await task).data == HELLO


async def test_a_reply_that_is_too_long(raw_server: RawServer) -> None:
    task, server = await raw_server.greet(max_bytes=5)
    server.sendall(HELLO)  # without an end: the limit applies before it
    with pytest.raises(ReplyTooLarge) as caught:
        await task
    assert str(caught.value) == f"127.0.0.1:{raw_server.port}: the greeting is longer than 5 bytes"
    assert (caught.value.limit, caught.value.received) == (5, b"Thank")


async def test_a_server_that_never_stops_sending(raw_server: RawServer) -> None:
    task, server = await raw_server.greet()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while True:  # until the client closes
            server.sendall(b"x" * 4096)
            await asyncio.sleep(0)
    with pytest.raises(ReplyTooLarge, match="longer than 65536 bytes"):
        await task


# -- one line ---------------------------------------------------------------------------------------------


async def test_a_line_from_a_service_that_stays_connected(raw_server: RawServer) -> None:
    task, server = await raw_server.greet(until="line")
    server.sendall(b"220 here")
    await asyncio.sleep(0)
    server.sendall(b"\r\n250 more")
    reply = await task
    assert (reply.data, reply.reset) == (b"220 here\r\n", False)


async def test_a_line_that_ends_with_the_stream(raw_server: RawServer) -> None:
    task, server = await raw_server.greet(until="line")
    server.sendall(b"220 here")
    server.close()
    assert (await task).data == b"220 here"


async def test_the_bound_is_on_the_line_only(raw_server: RawServer) -> None:
    task, server = await raw_server.greet(until="line", max_bytes=9)
    server.sendall(b"220 here\n" + b"x" * 1000)
    assert (await task).data == b"220 here\n"
    task, server = await raw_server.greet(until="line", max_bytes=8)
    server.sendall(b"220 here\n")
    with pytest.raises(ReplyTooLarge) as caught:
        await task
    assert caught.value.received == b"220 here"


# -- a reply of several lines -----------------------------------------------------------------------------

EHLO_REPLY = b"250-mail.example\r\n250-SIZE 1000\r\n250 HELP\r\n"


async def test_a_reply_from_a_service_that_stays_connected(raw_server: RawServer) -> None:
    for cut in range(1, len(EHLO_REPLY)):
        task, server = await raw_server.greet(until="reply")
        server.sendall(EHLO_REPLY[:cut])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        server.sendall(EHLO_REPLY[cut:] + b"354 more\r\n")
        reply = await task
        assert (reply.data, reply.reset) == (EHLO_REPLY, False)


async def test_a_reply_of_one_line(raw_server: RawServer) -> None:
    task, server = await raw_server.greet(until="reply")
    server.sendall(b"220 here\r\n220 there\r\n")
    assert (await task).data == b"220 here\r\n"


async def test_a_reply_of_ten_thousand_lines(raw_server: RawServer) -> None:
    data = b"250-\n" * 10_000 + b"250\n"
    task, server = await raw_server.greet(until="reply")
    await asyncio.to_thread(server.sendall, data + b"x")
    assert (await task).data == data


@pytest.mark.parametrize("data", [b"220 her", b"25", b"250-a\r\n250 b", b"250-a\r\n250"])
async def test_the_end_of_the_stream_ends_a_line_of_a_reply(raw_server: RawServer, data: bytes) -> None:
    task, server = await raw_server.greet(until="reply")
    server.sendall(data)
    server.close()
    assert (await task).data == data


@pytest.mark.parametrize("data", [b"250-a", b"250-a\r\n", b"250-a\r\n25", b"250-a\r\n251 b\r\n"])
async def test_a_reply_without_its_last_line(raw_server: RawServer, data: bytes) -> None:
    task, server = await raw_server.greet(until="reply")
    server.sendall(data)
    server.close()
    with pytest.raises(
        NoGreeting, match=rf"closed before the greeting ended \({len(data)} bytes received\)$"
    ) as e:
        await task
    assert e.value.received == data
    task, server = await raw_server.greet(until="reply")
    server.sendall(data)
    reset(server)
    with pytest.raises(GreetReset, match="connection reset before the greeting ended$") as r:
        await task
    assert r.value.received == data
    task, server = await raw_server.greet(until="reply", timeout=0.05)
    server.sendall(data)
    with pytest.raises(GreetTimeout) as t:
        await task
    assert (t.value.phase, t.value.received) == ("end", data)


async def test_the_bound_is_on_the_reply_only(raw_server: RawServer) -> None:
    task, server = await raw_server.greet(until="reply", max_bytes=len(EHLO_REPLY))
    server.sendall(EHLO_REPLY + b"x" * 1000)
    assert (await task).data == EHLO_REPLY
    task, server = await raw_server.greet(until="reply", max_bytes=len(EHLO_REPLY) - 1)
    server.sendall(EHLO_REPLY)
    with pytest.raises(ReplyTooLarge) as caught:
        await task
    assert caught.value.received == EHLO_REPLY[:-1]


# -- arguments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"until": "word"},
        {"until": None},
        {"until": ["line"]},
        {"max_bytes": 0},
        {"max_bytes": 1.5},
        {"max_bytes": "1"},
        {"max_bytes": True},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": math.nan},
        {"timeout": None},
        {"timeout": "1"},
        {"connect_timeout": 0},
        {"ssl": "yes"},
        {"server_hostname": b"x"},
        {"send": "text"},
        {"expect": ""},
        {"expect": b""},
        {"expect": 220},
        {"proxy_protocol": "v3"},
        {"proxy_protocol": True},
        {"wait": -1},
        {"wait": "5"},
        {"wait": math.nan},
    ],
)
async def test_invalid_arguments(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(options))} must be "):
        await greet(port=1, **options)


async def test_contradictory_targets(tmp_path: Path) -> None:
    with socket.socket() as sock, pytest.raises(ConfigError, match="give one of path and sock"):
        await greet(path=f"{tmp_path}/x", sock=sock)
    with pytest.raises(ConfigError, match="give one of target and host"):
        await greet("x", host="x")
    with pytest.raises(ConfigError, match="path cannot be combined with a target or a port"):
        await greet(Endpoint.tcp(), path="/x")
    with pytest.raises(ConfigError, match="port 1 requires a host, and 'h:1' is not one"):
        await greet(Endpoint.tcp("h", 1), 1)
    for target in (["h"], b"h", True, 1.5):
        with pytest.raises(ConfigError, match="a target must be a string, an integer or an Endpoint, not "):
            await greet(target)  # type: ignore[arg-type]  # the test is that it is rejected
    with pytest.raises(ConfigError, match="a port must be an integer or a string, not list"):
        await greet("h", [1])  # type: ignore[arg-type]  # as above
    with pytest.raises(ConfigError, match="endpoint 'fd:-1' has no descriptor number"):
        await greet(sock=sock)
    with pytest.raises(ConfigError, match="endpoint 'a b:9999' has invalid characters in host name 'a b'"):
        await greet("a b")


# -- cancelling -------------------------------------------------------------------------------------------


async def test_cancelling_while_connecting_leaks_nothing() -> None:
    for host in ("127.0.0.1", "localhost"):
        with full_accept_queue() as port:
            before = open_fds()
            task = asyncio.create_task(greet(host, port))
            await until(lambda: open_fds() != before, "a socket to leak")  # noqa: B023  # called at once
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_cancelling_while_waiting_leaks_nothing(
    raw_server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = asyncio.Event()

    class Watched(SocketReceiver):
        def receive(self, data: bytes) -> None:
            super().receive(data)
            arrived.set()

    monkeypatch.setattr(oneshot, "SocketReceiver", Watched)
    task, server = await raw_server.greet()
    server.sendall(b"half a greet")
    async with asyncio.timeout(PATIENCE):
        await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await received_byte(server) == b""  # the client has closed


async def test_cancelling_a_unix_connect_leaks_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{tmp_path}/x")
        sock.listen(0)
        with contextlib.ExitStack() as stack, contextlib.suppress(BlockingIOError):
            while True:
                connection = stack.enter_context(socket.socket(socket.AF_UNIX))
                connection.setblocking(False)
                connection.connect(sock.getsockname())
        task = asyncio.create_task(greet(path=f"{tmp_path}/x", timeout=5))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, ConnectFailed)):
            await task


async def test_cancelling_a_handshake_leaks_nothing(raw_server: RawServer) -> None:
    task, server = await raw_server.greet(ssl=True)
    assert await received_byte(server) == b"\x16"  # the ClientHello, which gets no reply
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# -- the descriptor is closed when greet() returns --------------------------------------------------------


async def test_the_descriptor_is_closed_when_greet_returns() -> None:
    async with greeter_process("serve", "--listen", "127.0.0.1:0", "--no-access-log") as server:
        await greet(port=server.port)  # the loop itself opens descriptors on first use
        for until in ("eof", "line"):
            before = open_fds()
            assert (await greet(port=server.port, until=until)).data == HELLO
            assert open_fds() == before
        assert await server.stop() == 0


# -- TLS --------------------------------------------------------------------------------------------------


async def test_a_greeting_over_tls(tls_port: int, client_tls: ssl.SSLContext) -> None:
    assert (await greet("localhost", tls_port, ssl=client_tls)).data == HELLO
    assert (await greet(port=tls_port, ssl=client_tls)).data == HELLO
    assert (await greet(port=tls_port, ssl=client_tls, server_hostname="localhost")).data == HELLO


@pytest.mark.parametrize(
    "name", [".", ".x", "a..b", "é" * 60, "a\0b", "a." * 128], ids=lambda name: ascii(name)[:9]
)
async def test_a_name_that_tls_cannot_send_is_found_before_a_socket_is_opened(name: str) -> None:
    for call in greet, greeter.open_connection:
        with pytest.raises(ConfigError) as caught:
            await call(port=1, ssl=True, server_hostname=name)
        assert str(caught.value) == f"server_hostname {name!r} is not a host name"


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
async def test_a_missing_client_certificate_is_a_failed_connection(
    version: str, authority: trustme.CA, client_tls: ssl.SSLContext
) -> None:
    # With TLS 1.3, the alert comes after the handshake, as far as a client can tell.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    context.verify_mode, context.maximum_version = ssl.CERT_REQUIRED, ssl.TLSVersion[version]
    async with greeter.serve(port=0, ssl=context) as server:
        for call in greet, greeter.open_connection:
            with pytest.raises(ConnectFailed, match="alert (certificate required|handshake failure)$"):
                await call("localhost", server.port, ssl=client_tls)


async def test_tls_over_a_connected_socket(tls_port: int, client_tls: ssl.SSLContext) -> None:
    with pytest.raises(ConfigError, match=r"^server_hostname 'localhost' requires ssl$"):
        await greet(port=tls_port, server_hostname="localhost")
    with socket.socket() as sock, pytest.raises(ConfigError, match=r"^TLS to fd:\d+ needs server_hostname,"):
        await greet(sock=sock, ssl=client_tls)
    with pytest.raises(ConfigError, match="^TLS to unix:/x needs server_hostname, the name to verify$"):
        await greet(path="/x", ssl=True)
    sock = socket.create_connection(("127.0.0.1", tls_port))
    assert (await greet(sock=sock, ssl=client_tls, server_hostname="localhost")).data == HELLO
    client_tls.check_hostname = False
    sock = socket.create_connection(("127.0.0.1", tls_port))
    assert (await greet(sock=sock, ssl=client_tls)).data == HELLO


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # asyncio's server, for the failed handshake
async def test_a_certificate_that_is_not_trusted(tls_port: int) -> None:
    with pytest.raises(ConnectFailed) as caught:
        await greet("localhost", tls_port, ssl=True)
    assert str(caught.value) == (
        f"cannot connect to localhost:{tls_port}: certificate verify failed: "
        "unable to get local issuer certificate"
    )
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # as above
async def test_a_certificate_for_another_name(tls_port: int, client_tls: ssl.SSLContext) -> None:
    with pytest.raises(ConnectFailed, match="certificate verify failed: Hostname mismatch.*'example.org'"):
        await greet(port=tls_port, ssl=client_tls, server_hostname="example.org")


async def test_tls_to_a_server_without_tls(raw_server: RawServer, client_tls: ssl.SSLContext) -> None:
    task, server = await raw_server.greet(ssl=client_tls)
    server.sendall(HELLO)
    with pytest.raises(ConnectFailed, match="the server does not speak TLS$"):
        await task
    task, server = await raw_server.greet(ssl=client_tls, connect_timeout=0.05)
    with pytest.raises(GreetTimeout) as caught:  # the limit includes the handshake
        await task
    assert caught.value.phase == "handshake"
    task, server = await raw_server.greet(ssl=client_tls)
    reset(server)
    with pytest.raises(ConnectFailed, match="connection reset by peer"):
        await task


# -- waiting for a service --------------------------------------------------------------------------------


async def test_wait_retries_until_the_service_greets(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = asyncio.Event()
    real = oneshot.exchange_once

    async def watched(*args: Any, **options: Any) -> Reply:
        try:
            return await real(*args, **options)
        except ConnectFailed:
            failed.set()
            raise

    monkeypatch.setattr(oneshot, "exchange_once", watched)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # bound and not listening: refused
        target = Endpoint.tcp("127.0.0.1", sock.getsockname()[1])
        task = asyncio.create_task(greet(target, wait=PATIENCE, timeout=5))
        async with asyncio.timeout(PATIENCE):
            await failed.wait()
        sock.listen()
        raw_server = RawServer(sock)
        (await raw_server.accept()).close()  # closed without a greeting: not ready
        connection = await raw_server.accept()
        connection.sendall(HELLO)
        for connection in raw_server.connections:
            connection.close()
        assert (await task).data == HELLO


async def test_wait_ends_with_the_last_failure(raw_server: RawServer) -> None:
    task, server = await raw_server.greet(wait=1e-9)
    server.close()
    with pytest.raises(NoGreeting, match=f"^127.0.0.1:{raw_server.port}: closed without a greeting$"):
        await task
    port = raw_server.port
    raw_server.sock.close()
    with pytest.raises(ConnectFailed, match="connection refused"):
        await greet(port=port, wait=0.05)


async def test_wait_needs_a_target_to_connect_to_again() -> None:
    client, peer = socket.socketpair()
    with (
        client,
        peer,
        pytest.raises(ConfigError, match=f"^wait cannot be combined with fd:{client.fileno()}:"),
    ):
        await greet(sock=client, wait=1)


@pytest.mark.parametrize("wait", [0.005, 0.85, 1.0, 4.6])
async def test_the_last_attempt_is_at_the_end_of_the_time(
    wait: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    tries: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    async def refused(*_: Any) -> Reply:
        tries.append(now)
        if now >= up:
            return Reply(HELLO, "x:1", 0.0, 0.0, 0.0)
        raise ConnectFailed("x:1", "connection refused")

    monkeypatch.setattr(oneshot, "perf_counter", lambda: now)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(oneshot, "exchange_once", refused)
    up = 100.0 + wait
    assert (await greet("x", 1, wait=wait)).data == HELLO  # ready at the last moment
    up, now, tries[:] = math.inf, 100.0, []
    with pytest.raises(ConnectFailed):
        await greet("x", 1, wait=wait)
    assert tries[-1] == 100.0 + wait
    assert len(set(tries)) == len(tries), "the last attempt is made once"


# -- what ends a greeting ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("until", "size"),
    [("text:ready", 12), (r"text:\r\n", 7), ("bytes:7", 7), ("text:l", 1), ("bytes:9", 9)],
)
async def test_a_text_or_a_size_ends_a_greeting(raw_server: RawServer, until: str, size: int) -> None:
    data = b"login\r\nready> "
    task, server = await raw_server.greet(until=until)
    for byte in data[:size]:
        server.sendall(bytes([byte]))
        await asyncio.sleep(0)
    assert (await task).data == data[:size]
    task, server = await raw_server.greet(until=until)
    server.sendall(data)
    assert (await task).data == data[:size]


@pytest.mark.parametrize("until", ["text:ready", "bytes:8"])
async def test_the_end_of_the_stream_does_not_replace_a_text_or_a_size(
    raw_server: RawServer, until: str
) -> None:
    task, server = await raw_server.greet(until=until)
    server.sendall(b"login\r\n")
    server.close()
    with pytest.raises(NoGreeting, match=r"closed before the greeting ended \(7 bytes received\)$"):
        await task


async def test_a_pause_ends_a_greeting_at_its_last_byte(raw_server: RawServer) -> None:
    begun = time.perf_counter()
    task, server = await raw_server.greet(until="idle:300ms")
    server.sendall(b"login: ")
    reply = await task
    assert reply.data == b"login: "
    elapsed = time.perf_counter() - begun
    assert reply.first_byte_time is not None
    assert reply.first_byte_time <= reply.total_time <= elapsed - 0.3  # the pause is in no figure


async def test_a_pause_counts_from_the_last_byte(raw_server: RawServer) -> None:
    task, server = await raw_server.greet(until="idle:300ms")
    for byte in b"login: ":
        server.sendall(bytes([byte]))
        await asyncio.sleep(0.1)  # together they are longer than the pause
    assert (await task).data == b"login: "
    task, server = await raw_server.greet(until="idle:60s")
    server.sendall(b"login: ")
    server.close()
    assert (await task).data == b"login: "


async def test_a_silent_service_is_not_idle(raw_server: RawServer) -> None:
    task, _server = await raw_server.greet(until="idle:1ms", timeout=0.1)
    with pytest.raises(GreetTimeout) as caught:
        await task
    assert caught.value.phase == "first byte"


async def test_what_arrived_before_a_deadline_that_passed_in_a_pause_is_read(raw_server: RawServer) -> None:
    """As after SIGSTOP: the deadline has passed, and the greeting is in the kernel."""
    client = socket.create_connection(("127.0.0.1", raw_server.port))
    server = await raw_server.accept()
    task = asyncio.create_task(greet(sock=client, timeout=0.05))
    await asyncio.sleep(0)  # the deadline is set, and the transport reads in a later turn of the loop
    server.sendall(HELLO)
    server.close()
    time.sleep(0.1)  # noqa: ASYNC251  # the loop is stopped
    assert (await task).data == HELLO


# -- speaking first ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_bytes_are_sent_first(raw_server: RawServer, kind: Any) -> None:
    task, server = await raw_server.greet(send=kind(b"EHLO x\r\n"))
    assert await asyncio.to_thread(server.recv, 100) == b"EHLO x\r\n"
    server.sendall(HELLO)
    server.close()
    assert (await task).data == HELLO


@pytest.mark.parametrize("size", [10, 20_000_000])
async def test_sending_to_a_peer_that_reads_nothing_loses_no_greeting(
    raw_server: RawServer, size: int
) -> None:
    task, server = await raw_server.greet(send=bytes(size))
    await asyncio.to_thread(server.recv, 1, socket.MSG_PEEK)  # it has arrived
    server.sendall(HELLO)
    server.close()  # with unread input: a reset
    reply = await task
    assert (reply.data, reply.reset) == (HELLO, True)


async def test_a_proxy_header_has_the_addresses_of_the_connection(raw_server: RawServer) -> None:
    for version in ("v1", "v2"):
        task, server = await raw_server.greet(proxy_protocol=version, send=b"hello")
        data = b""
        while not data.endswith(b"hello"):
            data += await asyncio.to_thread(server.recv, 1000)
        parsed = proxy_protocol.parse(data)
        assert isinstance(parsed, proxy_protocol.Parsed)
        assert data[parsed.consumed :] == b"hello"
        ends = server.getpeername(), server.getsockname()
        assert (parsed.header.source, parsed.header.destination) == ends
        server.close()
        await asyncio.wait([task])


async def test_a_proxy_header_precedes_tls(authority: trustme.CA, client_tls: ssl.SSLContext) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    async with greeter.serve("from $host", port=0, ssl=context, proxy_from=["127.0.0.1"]) as server:
        for version in proxy_protocol.PROXY_VERSIONS:
            reply = await greet("localhost", server.port, ssl=client_tls, proxy_protocol=version)
            assert reply.text == "from 127.0.0.1"


# -- what is expected -------------------------------------------------------------------------------------


@pytest.mark.parametrize("expect", ["Thank you", b"connecting", HELLO])
async def test_a_greeting_with_what_is_expected(raw_server: RawServer, expect: str | bytes) -> None:
    task, server = await raw_server.greet(expect=expect)
    server.sendall(HELLO)
    server.close()
    assert (await task).data == HELLO


async def test_a_refusal_in_words_is_not_what_is_expected(raw_server: RawServer) -> None:
    task, server = await raw_server.greet(expect="220 ", until="line")
    server.sendall(b"421 too many connections\r\n")
    with pytest.raises(UnexpectedGreeting) as caught:
        await task
    assert str(caught.value) == (
        f"127.0.0.1:{raw_server.port}: the greeting '421 too many connections' does not contain '220 '"
    )
    assert (caught.value.expected, caught.value.received) == (b"220 ", b"421 too many connections\r\n")


async def test_no_greeting_is_not_what_is_expected(raw_server: RawServer) -> None:
    task, server = await raw_server.greet(expect="220 ")
    server.close()
    with pytest.raises(NoGreeting, match="closed without a greeting$"):
        await task


# -- TLS that is cut off, and TLS on one side -------------------------------------------------------------


@pytest.mark.parametrize("orderly", [True, False])
async def test_tls_that_ends_without_close_notify_is_truncated(
    raw_server: RawServer, authority: trustme.CA, client_tls: ssl.SSLContext, orderly: bool
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    task, server = await raw_server.greet(ssl=client_tls)

    def serve() -> None:
        with context.wrap_socket(server, server_side=True) as session:
            session.sendall(b"220 half a gree")
            if orderly:
                session.unwrap().close()
            else:
                os.close(session.detach())

    await asyncio.to_thread(serve)
    reply = await task
    assert (reply.data, reply.truncated, reply.reset) == (b"220 half a gree", not orderly, False)


async def test_a_name_with_a_trailing_dot_is_verified_without_it(
    tls_port: int, client_tls: ssl.SSLContext
) -> None:
    reply = await greet("localhost.", tls_port, ssl=client_tls)
    assert (reply.data, reply.truncated, reply.target) == (HELLO, False, f"localhost.:{tls_port}")
    assert (await greet(port=tls_port, ssl=client_tls, server_hostname="localhost.")).data == HELLO


async def test_a_server_that_answers_with_a_tls_alert_speaks_tls(
    raw_server: RawServer, authority: trustme.CA
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    task, server = await raw_server.greet(send=b"\x16\x03\x01\0\5hello")  # no TLS handshake

    def serve() -> None:
        with contextlib.suppress(ssl.SSLError):
            context.wrap_socket(server, server_side=True)

    await asyncio.to_thread(serve)
    with pytest.raises(ConnectFailed, match="^cannot connect to 127.0.0.1:[0-9]+: the server speaks TLS$"):
        await task


def test_greet_is_public() -> None:
    assert greeter.greet is oneshot.greet
