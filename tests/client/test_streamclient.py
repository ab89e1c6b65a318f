"""open_connection() against peers that behave, misbehave or do nothing, on raw sockets of the test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
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
    open_connection,
)
from greeter.client import streamclient
from tests.client.test_oneshot import RawServer, full_accept_queue, received_byte
from tests.conftest import PATIENCE, open_fds
from tests.support.peers import reset, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Opened = tuple[Reply, asyncio.StreamReader, asyncio.StreamWriter]

EHLO_REPLY = b"250-mail.example\r\n250-SIZE 1000\r\n250 HELP\r\n"

pytestmark = pytest.mark.usefixtures("no_fd_leak")


@pytest.fixture
async def raw_server() -> AsyncIterator[RawServer]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        server = RawServer(sock)
        yield server
        for connection in server.connections:
            connection.close()


async def begin(raw_server: RawServer, **options: Any) -> tuple[asyncio.Task[Opened], socket.socket]:
    """Start an open_connection(). Return its task and the server side of its connection."""
    task = asyncio.create_task(open_connection(port=raw_server.port, **options))
    server = await raw_server.accept()
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return task, server


class Deadline:
    """The deadline for the greeting of the next open_connection(): it passes when the test says so.

    So none passes early in a process that stands still for a moment.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = PATIENCE  # what the call is given as its timeout
        self._timeouts: list[asyncio.Timeout] = []
        self._received: list[tuple[Any, bytearray]] = []
        timeout_at, receive = asyncio.timeout_at, streamclient._receive
        begun = asyncio.get_running_loop().time()

        def watched_timeout(when: float) -> asyncio.Timeout:
            assert begun + self.seconds <= when <= asyncio.get_running_loop().time() + self.seconds
            self._timeouts.append(timeout_at(when))
            return self._timeouts[-1]

        async def watched_receive(reader: asyncio.StreamReader, held: bytearray, *rest: Any) -> float:
            self._received.append((reader, held))
            return await receive(reader, held, *rest)

        monkeypatch.setattr(asyncio, "timeout_at", watched_timeout)
        monkeypatch.setattr(streamclient, "_receive", watched_receive)

    @property
    def received(self) -> bytes:
        """What the client has received."""
        return b"".join(bytes(held + reader._buffer) for reader, held in self._received[-1:])

    async def passes_after(self, data: bytes) -> None:
        """Let it pass when the client has received ``data`` and waits for more."""
        await until(lambda: bool(self._received) and self.received == data, f"{data!r} is received")
        self.passes()

    def passes(self) -> None:
        (timeout,) = self._timeouts
        timeout.reschedule(asyncio.get_running_loop().time())


@pytest.fixture
async def deadline(monkeypatch: pytest.MonkeyPatch) -> Deadline:
    return Deadline(monkeypatch)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def wait_closed(server: socket.socket) -> None:
    """Wait until the client has closed or reset its connection."""
    server.setblocking(False)
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(PATIENCE):
            while await loop.sock_recv(server, 65536):
                pass


# -- a greeting, and what follows it ----------------------------------------------------------------------


async def test_the_conversation_continues_after_the_greeting(raw_server: RawServer) -> None:
    task, server = await begin(raw_server)
    server.sendall(b"220 here\r\n250 more\r\nand")
    reply, reader, writer = await task
    assert (reply.data, reply.reset, reply.target) == (b"220 here\r\n", False, f"127.0.0.1:{raw_server.port}")
    assert reply.first_byte_time is not None
    assert 0 < reply.connect_time <= reply.first_byte_time <= reply.total_time
    assert await reader.readline() == b"250 more\r\n"
    writer.write(b"QUIT")
    assert await received_byte(server) == b"Q"
    server.sendall(b" end")
    server.shutdown(socket.SHUT_WR)
    assert await reader.read() == b"and end"
    await close(writer)


async def test_a_reply_has_every_line(raw_server: RawServer) -> None:
    task, server = await begin(raw_server, until="reply")
    server.sendall(EHLO_REPLY + b"354 ")
    reply, reader, writer = await task
    assert reply.data == EHLO_REPLY
    assert await reader.readexactly(4) == b"354 "
    await close(writer)


@pytest.mark.parametrize(
    ("until", "reply"),
    [
        ("line", b"SSH-2.0-OpenSSH_9.2\r\n"),
        ("line", b"250-mail.example\r\n"),
        ("line", b"\n"),
        ("line", b"\0\xff\r\0\n"),
        ("reply", b"220 here\r\n"),
        ("reply", b"250\n"),
        ("reply", EHLO_REPLY),
        ("reply", b"220-a\r\n221 b\r\n\r\n 220 c\r\n\0\n220\r\n"),
    ],
)
async def test_a_greeting_in_any_two_segments(raw_server: RawServer, until: str, reply: bytes) -> None:
    data = reply + b"250 more\r\n"
    for cut in range(1, len(data)):
        task, server = await begin(raw_server, until=until)
        server.sendall(data[:cut])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        server.sendall(data[cut:])
        got, reader, writer = await task
        assert got.data == reply
        assert await reader.readexactly(len(data) - len(reply)) == b"250 more\r\n"
        await close(writer)


async def test_a_reply_one_byte_at_a_time(raw_server: RawServer) -> None:
    task, server = await begin(raw_server, until="reply")
    for byte in EHLO_REPLY:
        server.sendall(bytes([byte]))
        for _ in range(3):
            await asyncio.sleep(0)
    reply, _reader, writer = await task
    assert reply.data == EHLO_REPLY
    await close(writer)


async def test_a_reply_of_ten_thousand_lines(raw_server: RawServer) -> None:
    data = b"250-\n" * 10_000 + b"250 \n"
    task, server = await begin(raw_server, until="reply")
    await asyncio.get_running_loop().run_in_executor(None, server.sendall, data + b"x")
    reply, reader, writer = await task
    assert reply.data == data
    assert await reader.readexactly(1) == b"x"
    await close(writer)


async def test_the_deadlines_end_with_the_greeting(raw_server: RawServer, deadline: Deadline) -> None:
    task, server = await begin(raw_server, timeout=deadline.seconds)
    server.sendall(b"220 here\r\n")
    _reply, reader, writer = await task
    with pytest.raises(RuntimeError, match="finished Timeout"):  # it can pass no more
        deadline.passes()
    assert not writer.transport.is_closing()
    server.sendall(b"250 more\r\n")
    assert await reader.readline() == b"250 more\r\n"
    await close(writer)


# -- sending first ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_data_is_sent_before_the_greeting_is_read(raw_server: RawServer, kind: type) -> None:
    task, server = await begin(raw_server, send=kind(b"EHLO x\r\n"), until="reply")
    assert await received_byte(server) == b"E"
    server.sendall(EHLO_REPLY)
    reply, _reader, writer = await task
    assert reply.data == EHLO_REPLY
    await close(writer)


async def test_a_peer_that_does_not_read_can_send_its_greeting(raw_server: RawServer) -> None:
    task, server = await begin(raw_server, send=b"x" * 20_000_000)
    server.sendall(b"220 here\r\n")
    reply, _reader, writer = await task
    assert reply.data == b"220 here\r\n"
    assert writer.transport.get_write_buffer_size() > 0
    writer.transport.abort()


async def test_a_peer_that_neither_reads_nor_sends(raw_server: RawServer, deadline: Deadline) -> None:
    task, _server = await begin(raw_server, send=b"x" * 20_000_000, timeout=deadline.seconds)
    await deadline.passes_after(b"")
    with pytest.raises(GreetTimeout, match=rf"connected, but no greeting within {deadline.seconds:g} s"):
        await task


# -- the end of the stream --------------------------------------------------------------------------------


async def test_closing_without_a_byte(raw_server: RawServer) -> None:
    task, server = await begin(raw_server)
    server.close()
    with pytest.raises(NoGreeting) as caught:
        await task
    assert str(caught.value) == f"127.0.0.1:{raw_server.port}: closed without a greeting"
    assert caught.value.received == b""


@pytest.mark.parametrize(
    ("until", "data"),
    [
        ("line", b"220 her"),
        ("line", b"\r"),
        ("reply", b"220 her"),
        ("reply", b"25"),
        ("reply", b"250-a\n250"),
    ],
)
async def test_the_end_of_the_stream_ends_a_line(raw_server: RawServer, until: str, data: bytes) -> None:
    task, server = await begin(raw_server, until=until)
    server.sendall(data)
    server.shutdown(socket.SHUT_WR)
    reply, reader, writer = await task
    assert reply.data == data
    assert await reader.read() == b""
    writer.write(b"Q")  # the other direction is still open
    assert await received_byte(server) == b"Q"
    await close(writer)


@pytest.mark.parametrize("data", [b"250-a", b"250-a\r\n", b"250-a\r\n25", b"250-a\r\n251 b\r\n"])
async def test_the_end_of_the_stream_in_the_middle_of_a_reply(raw_server: RawServer, data: bytes) -> None:
    task, server = await begin(raw_server, until="reply")
    server.sendall(data)
    server.close()
    with pytest.raises(
        NoGreeting, match=rf"closed before the greeting ended \({len(data)} bytes received\)$"
    ) as e:
        await task
    assert e.value.received == data


async def test_the_greeting_of_greeter_has_no_line_end() -> None:
    async with greeter.serve("Thank you for connecting", port=0) as server:
        reply, reader, writer = await open_connection(port=server.port)
        assert str(reply) == "Thank you for connecting"
        assert await reader.read() == b""
        await close(writer)


# -- resets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"220 her", b"250-a\r\n", b"250-a\r\n25"])
async def test_a_reset_before_the_greeting_is_complete(raw_server: RawServer, data: bytes) -> None:
    task, server = await begin(raw_server, until="reply")
    if data:
        server.sendall(data)
    reset(server)
    with pytest.raises(GreetReset, match="connection reset before the greeting") as caught:
        await task
    assert data.startswith(caught.value.received)
    assert isinstance(caught.value.__cause__, ConnectionResetError)


@pytest.mark.parametrize("turns", [0, 3])
async def test_sending_to_a_peer_that_has_reset_the_connection(
    raw_server: RawServer, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = asyncio.open_connection

    async def delayed(**arguments: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        opened = await real(**arguments)
        for _ in range(turns):  # the transport sees the reset before the send
            await asyncio.sleep(0)
        return opened

    monkeypatch.setattr(asyncio, "open_connection", delayed)
    client = socket.create_connection(("127.0.0.1", raw_server.port))
    reset(await raw_server.accept())
    with pytest.raises(GreetReset) as caught:
        await open_connection(sock=client, send=b"EHLO x\r\n")
    assert isinstance(caught.value.__cause__, ConnectionError)


async def test_a_reset_after_the_greeting_is_raised_by_the_reader(raw_server: RawServer) -> None:
    task, server = await begin(raw_server)
    server.sendall(b"220 here\r\n")
    reply, reader, writer = await task
    reset(server)
    assert reply.data == b"220 here\r\n"
    with pytest.raises(ConnectionResetError):
        await reader.readline()
    await close(writer)


# -- deadlines --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{"connect_timeout": 0.05}, {"timeout": 0.05}])
async def test_no_connection_within_the_deadline(limits: dict[str, Any]) -> None:
    with full_accept_queue() as port, pytest.raises(GreetTimeout) as caught:
        await open_connection(port=port, **limits)
    assert str(caught.value) == f"127.0.0.1:{port}: no connection within 0.05 s"
    assert (caught.value.phase, caught.value.seconds) == ("connect", 0.05)


@pytest.mark.parametrize(
    ("data", "phase"),
    [
        (b"", "first byte"),
        (b"2", "end"),
        (b"250-a", "end"),
        (b"250-a\r\n", "end"),
        (b"250-a\r\n251 b\r\n25", "end"),
        (b"\0\xff", "end"),
    ],
)
async def test_a_server_that_stops_sending(
    raw_server: RawServer, deadline: Deadline, data: bytes, phase: str
) -> None:
    task, server = await begin(raw_server, until="reply", timeout=deadline.seconds)
    server.sendall(data)
    await deadline.passes_after(data)
    with pytest.raises(GreetTimeout) as caught:
        await task
    assert (caught.value.phase, caught.value.received) == (phase, data)
    assert await asyncio.wait_for(asyncio.to_thread(server.recv, 1), PATIENCE) == b""


@pytest.mark.parametrize("first", [b"", b"2", b"220-one\r\n220"])
async def test_after_a_pause_what_came_before_the_deadline_is_read(
    raw_server: RawServer, deadline: Deadline, first: bytes
) -> None:
    whole = b"220-one\r\n220 two\r\n"
    task, server = await begin(raw_server, until="reply", timeout=deadline.seconds)
    server.sendall(first)
    await deadline.passes_after(first)
    server.sendall(whole[len(first) :])  # before the loop turns, and finds the deadline passed
    reply, _reader, writer = await task
    assert reply.data == whole
    await close(writer)


async def until_done(task: asyncio.Task[Opened], sending: Callable[[], None]) -> None:
    """Let the server send until the client closes."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
        while not task.done():
            sending()
            await asyncio.sleep(0.001)


async def test_a_server_that_sends_single_bytes(raw_server: RawServer, deadline: Deadline) -> None:
    task, server = await begin(raw_server, timeout=deadline.seconds)
    passing = False

    def sending() -> None:
        nonlocal passing
        server.sendall(b"x")
        if not passing and len(deadline.received) > 3:
            passing = True
            deadline.passes()

    await until_done(task, sending)
    with pytest.raises(GreetTimeout, match="but no end of the greeting within") as caught:
        await task
    assert set(caught.value.received) == {ord("x")}


# -- bounds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("until", "reply", "end"),
    [
        ("line", b"220 here\r\n", ""),
        ("line", b"\n", ""),
        ("line", b"2\n", ""),
        ("reply", EHLO_REPLY, ""),
        ("reply", b"250-a\n250\n", ""),
        ("line", b"220 her", "eof"),
        ("line", b"2", "eof"),
        ("reply", b"250-a\n250", "eof"),
    ],
)
async def test_the_limit_is_exact_to_the_byte(
    raw_server: RawServer, until: str, reply: bytes, end: str
) -> None:
    task, server = await begin(raw_server, until=until, max_bytes=len(reply))
    server.sendall(reply if end else reply + b"x" * 1000)
    if end:
        server.shutdown(socket.SHUT_WR)
    got, reader, writer = await task
    assert got.data == reply
    assert len(await reader.read(1)) == (not end)
    await close(writer)
    if len(reply) == 1:
        return
    task, server = await begin(raw_server, until=until, max_bytes=len(reply) - 1)
    server.sendall(reply)
    if end:
        server.shutdown(socket.SHUT_WR)
    with pytest.raises(ReplyTooLarge) as caught:
        await task
    assert str(caught.value) == (
        f"127.0.0.1:{raw_server.port}: the greeting is longer than {len(reply) - 1} bytes"
    )
    assert (caught.value.limit, caught.value.received) == (len(reply) - 1, reply[:-1])


@pytest.mark.parametrize("size", [1, 2, 3, 10, 65536])
async def test_a_line_without_an_end_is_too_long_at_once(raw_server: RawServer, size: int) -> None:
    task, server = await begin(raw_server, max_bytes=size, timeout=2 * PATIENCE)
    server.sendall(b"x" * (size + 1))  # and nothing more: the limit applies before the deadline
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ReplyTooLarge) as caught:
            await task
    assert caught.value.received == b"x" * size


async def test_an_incomplete_line_above_the_limit_is_too_long_at_the_deadline(
    raw_server: RawServer, deadline: Deadline
) -> None:
    task, server = await begin(raw_server, until="reply", max_bytes=10, timeout=deadline.seconds)
    server.sendall(b"250-abc\r\nx" + b"x" * 4)
    await deadline.passes_after(b"250-abc\r\nx" + b"x" * 4)
    with pytest.raises(ReplyTooLarge) as caught:
        await task
    assert caught.value.received == b"250-abc\r\nx"


@pytest.mark.parametrize(
    "piece", [b"x" * 4096, b"250-x\r\n" * 1000, b"\0" * 1000], ids=["line", "reply", "NUL"]
)
async def test_a_server_that_never_stops_sending(raw_server: RawServer, piece: bytes) -> None:
    task, server = await begin(raw_server, until="reply")
    server.sendall(b"250-x" if piece.startswith(b"250") else b"2")
    server.setblocking(False)

    def sending() -> None:
        with contextlib.suppress(BlockingIOError):
            server.send(piece)

    await until_done(task, sending)
    with pytest.raises(ReplyTooLarge, match="longer than 65536 bytes") as caught:
        await task
    assert len(caught.value.received) == 65536


# -- the descriptor is closed when the error is raised ----------------------------------------------------


@pytest.mark.parametrize(
    ("options", "data", "end", "error"),
    [
        ({}, b"", socket.socket.close, NoGreeting),
        ({"until": "reply"}, b"250-a", socket.socket.close, NoGreeting),
        ({}, b"", reset, GreetReset),
        ({"max_bytes": 3}, b"xxxx", None, ReplyTooLarge),
        ({"timeout": 0.05}, b"2", None, GreetTimeout),
    ],
)
async def test_the_descriptor_is_closed_when_an_error_is_raised(
    raw_server: RawServer,
    options: dict[str, Any],
    data: bytes,
    end: Callable[[socket.socket], None] | None,
    error: type[Exception],
) -> None:
    server, client = socket.socketpair()
    fd = str(client.fileno())
    with server:
        server.sendall(data)
        if end is reset:  # Unix sockets have no reset
            client.close()
            client = socket.create_connection(("127.0.0.1", raw_server.port))
            fd = str(client.fileno())
            reset(await raw_server.accept())
        elif end is not None:
            end(server)
        with pytest.raises(error):
            await open_connection(sock=client, **options)
        assert fd not in open_fds()


# -- targets ----------------------------------------------------------------------------------------------


async def greeted(call: Awaitable[Opened], server: Awaitable[socket.socket], target: str) -> None:
    task = asyncio.ensure_future(call)
    sock = await server
    sock.sendall(b"220 here\n")
    reply, _reader, writer = await task
    assert (reply.data, reply.target) == (b"220 here\n", target)
    await close(writer)


async def test_targets(raw_server: RawServer) -> None:
    text = f"127.0.0.1:{raw_server.port}"
    for call in (
        open_connection(text),
        open_connection("127.0.0.1", raw_server.port),
        open_connection("127.0.0.1", str(raw_server.port)),
        open_connection(target=Endpoint.parse(text)),
        open_connection(2130706433, raw_server.port),
    ):
        await greeted(call, raw_server.accept(), text)
    await greeted(
        open_connection("localhost", raw_server.port), raw_server.accept(), f"localhost:{raw_server.port}"
    )


async def test_ipv6() -> None:
    with socket.socket(socket.AF_INET6) as sock:
        try:
            sock.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        sock.listen()
        raw_server = RawServer(sock)
        text = f"[::1]:{raw_server.port}"
        for call in (open_connection("::1", raw_server.port), open_connection(text)):
            await greeted(call, raw_server.accept(), text)
        for connection in raw_server.connections:
            connection.close()


@pytest.mark.parametrize("name", ["file", "@"])
async def test_unix_sockets(tmp_path: Path, name: str) -> None:
    path = f"{tmp_path}/x" if name == "file" else f"@greeter-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path.replace("@", "\0", 1) if name == "@" else path)
        sock.listen()
        raw_server = RawServer(sock)
        for call in (open_connection(path=path), open_connection(f"unix:{path}")):
            await greeted(call, raw_server.accept(), f"unix:{path}")
        for connection in raw_server.connections:
            connection.close()


async def test_a_connected_socket_and_a_descriptor(raw_server: RawServer) -> None:
    client = socket.create_connection(("127.0.0.1", raw_server.port))
    await greeted(open_connection(sock=client), raw_server.accept(), f"fd:{client.fileno()}")
    assert client.fileno() == -1
    with socket.create_connection(("127.0.0.1", raw_server.port)) as client:
        await greeted(open_connection(f"fd:{client.fileno()}"), raw_server.accept(), f"fd:{client.fileno()}")
        assert client.fileno() >= 0


async def test_a_refused_connection(raw_server: RawServer) -> None:
    port = raw_server.port
    raw_server.sock.close()
    with pytest.raises(ConnectFailed, match=f"^cannot connect to 127.0.0.1:{port}: connection refused$"):
        await open_connection(port=port)
    with pytest.raises(ConnectFailed, match="bad file descriptor"):
        await open_connection("fd:999999")
    with pytest.raises(ConnectFailed, match="^cannot connect to unix:/no/such: no such file or directory$"):
        await open_connection("unix:/no/such")
    udp = socket.socket(type=socket.SOCK_DGRAM)
    with pytest.raises(ConnectFailed, match="protocol wrong type for socket"):
        await open_connection(sock=udp)
    assert udp.fileno() == -1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"until": "eof"}, "until must be line or reply, not 'eof'"),
        ({"max_bytes": 0}, "max_bytes must be an integer of at least 1, not 0"),
        ({"timeout": 0}, "timeout must be a positive number of seconds, not 0"),
        ({"connect_timeout": "5"}, "connect_timeout must be a positive number of seconds, not '5'"),
        ({"send": "EHLO"}, "send must be bytes, not str"),
        ({"send": 1}, "send must be bytes, not int"),
        ({"ssl": 1.5}, "ssl must be True or an SSLContext, not float"),
        ({"server_hostname": "x"}, "server_hostname 'x' requires ssl"),
        ({"target": "unix:/x", "ssl": True}, "TLS to unix:/x needs server_hostname, the name to verify"),
        ({"target": "h:1", "port": 1}, "port 1 requires a host, and 'h:1' is not one"),
        ({"target": b"h"}, "a target must be a string, an integer or an Endpoint, not bytes"),
        ({"target": ["h"]}, "a target must be a string, an integer or an Endpoint, not list"),
        ({"port": {}}, "a port must be an integer or a string, not dict"),
        ({"path": "/x", "port": 1}, "path cannot be combined with a target or a port"),
        ({"path": "/x", "target": "h"}, "path cannot be combined with a target or a port"),
        ({"sock": 3}, "sock must be a socket, not int"),
        ({"path": b"/x"}, "path must be a string, not bytes"),
    ],
)
async def test_invalid_arguments(arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await open_connection(**arguments)
    assert str(caught.value) == why


# -- cancelling -------------------------------------------------------------------------------------------


async def cancel(task: asyncio.Task[Opened]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelling_while_connecting() -> None:
    for host in ("127.0.0.1", "localhost"):
        with full_accept_queue() as port:
            before = open_fds()
            task = asyncio.create_task(open_connection(host, port))
            await until(lambda: open_fds() != before, "a socket to leak")  # noqa: B023  # called at once
            await cancel(task)


async def test_cancelling_a_handshake(raw_server: RawServer) -> None:
    task, server = await begin(raw_server, ssl=True)
    assert await received_byte(server) == b"\x16"  # the ClientHello, which is not answered
    await cancel(task)


@pytest.mark.parametrize("data", [b"", b"2", b"250-a\r\n", b"250-a\r\n25"])
async def test_cancelling_while_the_greeting_is_read(
    raw_server: RawServer, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = asyncio.Event()
    real = streamclient._receive

    async def watched(reader: asyncio.StreamReader, held: bytearray, *rest: Any) -> float:
        reading.set()
        return await real(reader, held, *rest)

    monkeypatch.setattr(streamclient, "_receive", watched)
    task, server = await begin(raw_server, until="reply")
    server.sendall(data)
    async with asyncio.timeout(PATIENCE):
        await reading.wait()
    for _ in range(5):  # in some cases the data was read by then
        await asyncio.sleep(0)
    await cancel(task)
    await wait_closed(server)


@pytest.mark.parametrize("turns", range(12))
async def test_cancelling_in_every_iteration_of_the_loop(raw_server: RawServer, turns: int) -> None:
    task = asyncio.create_task(open_connection(port=raw_server.port, until="reply", send=b"EHLO x\r\n"))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# -- TLS --------------------------------------------------------------------------------------------------


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
    """A service over TLS that sends a greeting, and then echoes every line in upper case."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("mail.example", "127.0.0.1").configure_cert(context)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            writer.write(b"220-mail.example\r\n220 here\r\n250 more\r\n")
            while line := await reader.readline():
                writer.write(line.upper())
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


async def test_a_conversation_over_tls(tls_port: int, client_tls: ssl.SSLContext) -> None:
    reply, reader, writer = await open_connection(
        f"127.0.0.1:{tls_port}", until="reply", ssl=client_tls, server_hostname="mail.example"
    )
    assert reply.data == b"220-mail.example\r\n220 here\r\n"
    assert await reader.readline() == b"250 more\r\n"
    writer.write(b"quit\r\n")
    assert await reader.readline() == b"QUIT\r\n"
    await close(writer)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # asyncio's server, for the failed handshake
async def test_a_certificate_for_another_name(tls_port: int, client_tls: ssl.SSLContext) -> None:
    with pytest.raises(ConnectFailed, match="certificate verify failed: Hostname mismatch.*'mail.test'"):
        await open_connection(port=tls_port, ssl=client_tls, server_hostname="mail.test")
    with pytest.raises(ConnectFailed, match="certificate verify failed"):
        await open_connection(port=tls_port, ssl=True)


async def test_deadlines_and_bounds_over_tls(tls_port: int, client_tls: ssl.SSLContext) -> None:
    with pytest.raises(ReplyTooLarge) as large:
        await open_connection(port=tls_port, until="reply", ssl=client_tls, max_bytes=20)
    assert large.value.received == b"220-mail.example\r\n22"
    reply, reader, writer = await open_connection(port=tls_port, ssl=client_tls, timeout=PATIENCE)
    assert reply.data == b"220-mail.example\r\n"
    await close(writer)


@pytest.mark.parametrize("data", [b"", b"250-a\r\n25"])
async def test_timeout_end_of_stream_and_cancellation_over_tls(
    authority: trustme.CA, client_tls: ssl.SSLContext, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    ending = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            writer.write(data)
            if not ending.is_set():
                await reader.read()
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    with monkeypatch.context() as patched:
        deadline = Deadline(patched)
        opening = asyncio.create_task(
            open_connection(
                port=port,
                until="reply",
                ssl=client_tls,
                timeout=deadline.seconds,
                connect_timeout=deadline.seconds,
            )
        )
        await deadline.passes_after(data)
        with pytest.raises(GreetTimeout) as timeout:
            await opening
    assert (timeout.value.phase, timeout.value.received) == ("end" if data else "first byte", data)
    reading = asyncio.create_task(open_connection(port=port, until="reply", ssl=client_tls))
    await asyncio.sleep(0.2)  # during the handshake or after it: both must be clean
    await cancel(reading)
    ending.set()
    with pytest.raises(NoGreeting) as cut:
        await open_connection(port=port, until="reply", ssl=client_tls)
    assert cut.value.received == data
    server.close()
    await server.wait_closed()


async def test_a_handshake_has_the_deadline_of_connecting(
    raw_server: RawServer, client_tls: ssl.SSLContext
) -> None:
    task, _server = await begin(raw_server, ssl=client_tls, connect_timeout=0.05)
    with pytest.raises(GreetTimeout) as caught:
        await task
    assert caught.value.phase == "handshake"
    assert "connected, but no TLS handshake within 0.05 s" in str(caught.value)
    task, server = await begin(raw_server, ssl=client_tls)
    server.sendall(b"220 here\r\n")
    with pytest.raises(ConnectFailed, match="the server does not speak TLS$"):
        await task
    task, server = await begin(raw_server, ssl=client_tls)
    reset(server)
    with pytest.raises(ConnectFailed, match="connection reset by peer"):
        await task


# -- whole conversations ----------------------------------------------------------------------------------


async def test_an_smtp_conversation_with_a_real_server() -> None:
    smtp = pytest.importorskip("aiosmtpd.smtp")
    server = await asyncio.get_running_loop().create_server(
        lambda: smtp.SMTP(None, hostname="mail.example"), "127.0.0.1", 0
    )
    async with server:
        port = server.sockets[0].getsockname()[1]
        reply, reader, writer = await open_connection("127.0.0.1", port, until="reply", timeout=PATIENCE)
        assert reply.data.startswith(b"220 mail.example ")
        async with asyncio.timeout(PATIENCE):
            writer.write(b"EHLO client.example\r\n")
            lines = [await reader.readline()]
            while lines[-1][3:4] == b"-":
                lines.append(await reader.readline())
            assert lines[0] == b"250-mail.example\r\n"
            assert lines[-1].startswith(b"250 ")
            writer.write(b"QUIT\r\n")
            assert await reader.readline() == b"221 Bye\r\n"
            assert await reader.read() == b""
        await close(writer)
        sent_first = await open_connection(
            "127.0.0.1", port, until="reply", send=b"EHLO client.example\r\nQUIT\r\n", timeout=PATIENCE
        )
        reply, reader, writer = sent_first
        assert reply.data.startswith(b"220 mail.example ")
        async with asyncio.timeout(PATIENCE):
            rest = await reader.read()
        assert rest.startswith(b"250-mail.example\r\n")
        assert rest.endswith(b"221 Bye\r\n")
        await close(writer)


async def test_an_ftp_conversation(raw_server: RawServer) -> None:
    welcome = b"220-Welcome\r\n  to the archive\r\n221 files\r\n220-\r\n220 Ready.\r\n"
    task, server = await begin(raw_server, until="reply")
    server.sendall(welcome)
    reply, reader, writer = await task
    assert reply.data == welcome
    writer.write(b"USER anonymous\r\n")
    assert await received_byte(server) == b"U"
    server.sendall(b"331 Send your address.\r\n")
    assert await reader.readline() == b"331 Send your address.\r\n"
    await close(writer)


async def test_an_ssh_banner_followed_by_binary_packets(raw_server: RawServer) -> None:
    task, server = await begin(raw_server)
    packet = bytes(range(256)) * 1000
    asyncio.get_running_loop().run_in_executor(None, server.sendall, b"SSH-2.0-x\r\n" + packet)
    reply, reader, writer = await task
    assert reply.data == b"SSH-2.0-x\r\n"
    assert await reader.readexactly(len(packet)) == packet
    await close(writer)


def test_open_connection_is_public() -> None:
    assert greeter.open_connection is open_connection
