"""greet() against services for datagrams: sockets of the test, and programs of others."""

from __future__ import annotations

import asyncio
import getpass
import re
import shutil
import socket
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

import greeter
from greeter import (
    ConfigError,
    ConnectFailed,
    GreetTimeout,
    NoGreeting,
    ReplyTooLarge,
    UnexpectedGreeting,
    greet,
)
from greeter.client import datagram_exchange
from tests.conftest import PATIENCE
from tests.support.free_ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from greeter import Reply

HELLO = b"Thank you for connecting"

pytestmark = pytest.mark.usefixtures("no_fd_leak")


class RawService:
    """A bound socket, which answers when the test does."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.setblocking(False)

    @property
    def target(self) -> str:
        return f"udp:127.0.0.1:{self.sock.getsockname()[1]}"

    async def receive(self) -> tuple[bytes, Any]:
        """The next datagram and its source."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()  # uvloop has no sock_recvfrom()
        loop.add_reader(self.sock, readable.set)
        try:
            async with asyncio.timeout(PATIENCE):
                await readable.wait()
        finally:
            loop.remove_reader(self.sock)
        return self.sock.recvfrom(65536)

    async def greet(self, **options: Any) -> tuple[asyncio.Task[Reply], bytes, Any]:
        """Start a greet(). Return its task, its first datagram and where that came from."""
        task = asyncio.create_task(greet(self.target, **options))
        return task, *await self.receive()


@pytest.fixture
def service() -> Iterator[RawService]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", free_port()))  # some tests bind it on another address as well
        yield RawService(sock)


async def test_a_reply_and_a_request_of_a_third_of_512_bytes(service: RawService) -> None:
    task, request, source = await service.greet()
    assert len(request) == 171
    service.sock.sendto(HELLO, source)
    reply = await task
    assert (reply.data, reply.target, reply.attempts) == (HELLO, service.target, 1)
    assert reply.first_byte_time is not None
    assert 0 <= reply.connect_time <= reply.first_byte_time <= reply.total_time


@pytest.mark.parametrize("payload", [b"", b"HELLO", bytes(65_507)])
async def test_send_is_the_payload(service: RawService, payload: bytes) -> None:
    task, request, source = await service.greet(send=payload)
    assert request == payload
    service.sock.sendto(payload, source)  # of any size, too
    assert (await task).data == payload


async def test_a_silent_service_is_asked_again_within_the_deadline(
    service: RawService, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        """The event loop, whose time passes only while a reply is waited for."""

        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            self.loop, self.now = loop, 100.0

        def time(self) -> float:
            return self.now

        def __getattr__(self, name: str) -> Any:
            return getattr(self.loop, name)

    async def receive(_sockets: object, deadline: float) -> None:
        clock.now = deadline

    clock = Clock(asyncio.get_running_loop())
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: clock)
    monkeypatch.setattr(datagram_exchange._Sockets, "receive", receive)
    with pytest.raises(GreetTimeout) as caught:
        await greet(service.target, timeout=2)
    monkeypatch.undo()
    assert (caught.value.attempts, clock.now) == (3, 102.0)  # at 0, 0.5 and 1.5 s
    assert (caught.value.phase, caught.value.received) == ("reply", b"")
    assert str(caught.value) == f"{service.target}: no reply to 3 datagrams within 2 s"
    assert [len((await service.receive())[0]) for _ in range(3)] == [171] * 3
    with pytest.raises(BlockingIOError):
        service.sock.recv(1)


async def test_the_reply_to_a_later_datagram_says_to_which(
    service: RawService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagram_exchange, "FIRST_PAUSE", 0.001)
    task, _, first = await service.greet()
    _, second = await service.receive()
    assert second == first  # the reply to any of them is the reply
    service.sock.sendto(HELLO, second)
    reply = await task
    assert reply.attempts >= 2
    assert f"at attempt {reply.attempts}>" in repr(reply)


async def test_a_port_that_is_unreachable_fails_at_once() -> None:
    port = free_port()
    with pytest.raises(ConnectFailed, match=f"^cannot connect to udp:127.0.0.1:{port}: connection refused$"):
        await greet(f"udp:127.0.0.1:{port}", timeout=2 * PATIENCE)


async def test_a_service_that_closes_fails_the_next_attempt(
    service: RawService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagram_exchange, "FIRST_PAUSE", 0.001)
    task, *_ = await service.greet(timeout=2 * PATIENCE)
    service.sock.close()
    with pytest.raises(ConnectFailed, match="connection refused"):
        await task


async def test_a_reply_from_another_source_is_not_taken(service: RawService) -> None:
    task, _, source = await service.greet()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))  # the same host, another port
        other.sendto(b"forged", source)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.2", service.sock.getsockname()[1]))  # another host, the same port
        other.sendto(b"forged", source)
    service.sock.sendto(HELLO, source)
    assert (await task).data == HELLO


async def test_the_next_address_of_a_name_is_asked_if_one_refuses(
    service: RawService, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = service.sock.getsockname()[1]
    found = [(socket.AF_INET, ("127.0.0.3", port)), (socket.AF_INET, ("127.0.0.1", port))]

    async def resolve(*_: object) -> list[Any]:
        return found

    monkeypatch.setattr(datagram_exchange, "resolve", resolve)
    task = asyncio.create_task(greet(f"udp:two.example:{port}", timeout=2 * PATIENCE))
    _, source = await service.receive()
    service.sock.sendto(HELLO, source)
    assert (await task).attempts == 2
    # A silent address is not the last that is asked either.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.3", port))
        task = asyncio.create_task(greet(f"udp:two.example:{port}", timeout=2 * PATIENCE))
        _, source = await service.receive()
        service.sock.sendto(HELLO, source)
        assert (await task).data == HELLO
        assert silent.recv(1000)


async def test_a_name_that_cannot_be_resolved() -> None:
    with pytest.raises(ConnectFailed, match=r"^cannot connect to udp:no\.such\.host\.invalid:9: "):
        await greet("udp:no.such.host.invalid:9")


async def test_limits_and_expectations_of_a_reply(service: RawService) -> None:
    cases: list[tuple[bytes, dict[str, Any], type[greeter.GreetFailed]]] = [
        (b"", {"expect": "220"}, NoGreeting),
        (b"421 no", {"expect": "220"}, UnexpectedGreeting),
        (b"12345", {"max_bytes": 4}, ReplyTooLarge),
    ]
    for data, options, error in cases:
        task, _, source = await service.greet(**options)
        service.sock.sendto(data, source)
        with pytest.raises(error):
            await task
    task, _, source = await service.greet(max_bytes=4)
    service.sock.sendto(b"1234", source)
    assert (await task).data == b"1234"


async def test_an_empty_datagram_is_an_empty_reply(service: RawService) -> None:
    task, _, source = await service.greet()
    service.sock.sendto(b"", source)
    reply = await task
    assert not reply
    assert reply.first_byte_time is None


async def test_a_reply_that_came_before_the_deadline_is_read_after_it(service: RawService) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(greet(service.target, timeout=0.05))
    await asyncio.sleep(0)  # it has asked, and waits in a later turn of the loop
    service.sock.settimeout(PATIENCE)
    service.sock.sendto(HELLO, service.sock.recvfrom(1000)[1])
    end = loop.time() + 0.1
    while loop.time() < end:  # the loop is busy past the deadline, as in a process that was stopped
        pass
    assert (await task).data == HELLO


async def test_a_cancelled_greet_leaves_nothing(service: RawService) -> None:
    task, *_ = await service.greet()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"ssl": True}, "ssl needs a stream, and udp:h:1 is"),
        ({"until": "line"}, "until 'line' needs a stream, and udp:h:1 is"),
        ({"proxy_protocol": "v1"}, "proxy_protocol needs a stream, and udp:h:1 is"),
        ({"send": bytes(65_508)}, "send has 65508 bytes, and a datagram 65507 at most"),
        ({"server_hostname": "h"}, "server_hostname 'h' requires ssl"),
    ],
)
async def test_what_needs_a_stream_is_an_error(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=f"^{what}"):
        await greet("udp:h:1", **options)
    with pytest.raises(ConfigError, match=f"^{what}"):
        async with aclosing(greeter.greet_many(["udp:h:1"], **options)) as results:
            await anext(results)


async def test_open_connection_needs_a_stream() -> None:
    with pytest.raises(ConfigError, match=r"^open_connection\(\) needs a stream, and udp:h:1 is"):
        await greeter.open_connection("udp:h:1")


async def test_many_targets_of_both_kinds(service: RawService) -> None:
    async def answer() -> None:
        _, source = await service.receive()
        service.sock.sendto(HELLO, source)

    found = {}
    async with greeter.serve("stream", port=0) as server, asyncio.TaskGroup() as group:
        group.create_task(answer())
        async for target, result in greeter.greet_many([service.target, f"127.0.0.1:{server.port}"]):
            found[target] = str(result)
    assert sorted(found.values()) == [HELLO.decode(), "stream"]


async def test_wait_covers_a_service_that_is_not_up_yet() -> None:
    port = free_port()
    task = asyncio.create_task(greet(f"udp:127.0.0.1:{port}", wait=PATIENCE))
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ConnectFailed):
            await greet(f"udp:127.0.0.1:{port}")
        async with greeter.serve(HELLO, listen=[f"udp:127.0.0.1:{port}"]):
            assert (await task).data == HELLO


@pytest.mark.parametrize("endpoint", ["udp:127.0.0.1:0", "udp:[::1]:0"])
async def test_our_own_service(endpoint: str) -> None:
    async with greeter.serve("Hello $host", listen=[endpoint]) as server:
        host, port, *_ = server.sockets[0].getsockname()
        target = greeter.Endpoint.udp(host, port)
        assert (await greet(target)).text == f"Hello {host}"


@pytest.mark.one_interpreter
@pytest.mark.skipif(shutil.which("socat") is None, reason="needs socat")
async def test_socat_as_a_service() -> None:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        "socat", f"UDP4-RECVFROM:{port},bind=127.0.0.1,fork", "SYSTEM:echo Hello from socat"
    )
    try:
        reply = await greet(f"udp:127.0.0.1:{port}", wait=PATIENCE)
    finally:
        process.terminate()
        await process.wait()
    assert reply.data == b"Hello from socat\n"


@pytest.mark.one_interpreter
@pytest.mark.skipif(shutil.which("nc") is None, reason="needs nc")
async def test_netcat_as_a_service() -> None:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        "nc",
        "-u",
        "-l",
        "127.0.0.1",
        str(port),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(b"Hello from nc\n")  # it is sent to the source of the first datagram
    try:
        reply = await greet(f"udp:127.0.0.1:{port}", wait=PATIENCE, send=b"anybody?")
    finally:
        process.terminate()
        await process.communicate()
    assert reply.data == b"Hello from nc\n"


XINETD = """
service daytime
{{
    type        = INTERNAL UNLISTED
    id          = daytime-dgram
    socket_type = dgram
    protocol    = udp
    wait        = yes
    user        = {user}
    bind        = 127.0.0.1
    port        = {port}
}}
"""


@pytest.mark.one_interpreter
@pytest.mark.skipif(shutil.which("xinetd") is None, reason="needs xinetd")
async def test_daytime_of_xinetd(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "conf").write_text(XINETD.format(user=getpass.getuser(), port=port))
    files = ("-f", "conf", "-pidfile", "pid", "-filelog", "log")
    process = await asyncio.create_subprocess_exec("xinetd", "-dontfork", *files, cwd=tmp_path)
    try:
        reply = await greet(f"udp:127.0.0.1:{port}", wait=PATIENCE)
    finally:
        process.terminate()
        await process.wait()
    assert re.fullmatch(rb"\d\d [A-Z]{3} \d{4} \d\d:\d\d:\d\d [A-Z]+\r\n", reply.data)
