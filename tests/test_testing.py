"""The fixtures of ``greeter.testing``: what a client sees of each server, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from greeter import ConfigError, GreetTimeout, Limits, ReplyTooLarge, UnexpectedGreeting, greet
from tests.conftest import PATIENCE, ROOT, open_fds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from greeter.testing import StartGreetingServer, StartHostileServer

pytest_plugins = ["greeter.testing"]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Set up before the fixtures under test, and checked after them."""
    before = threading.active_count()
    yield
    assert threading.active_count() <= before + 1  # asyncio's resolver, of the test itself
    assert not any(thread.name == "greeter.testing" for thread in threading.enumerate())


async def test_servers_with_greetings(greeting_server: StartGreetingServer) -> None:
    first, second = greeting_server(), greeting_server(b"\0\xff")
    assert (await greet(first.address)).data == b"220 ready\r\n"
    assert (await greet(second.host, second.port)).data == b"\0\xff"
    replies = await asyncio.gather(*[greet(first.address, send=b"x" * 1000) for _ in range(50)])
    assert {(reply.data, reply.reset) for reply in replies} == {(b"220 ready\r\n", False)}


async def test_a_server_with_tls_and_limits(greeting_server: StartGreetingServer) -> None:
    authority = trustme.CA()
    context, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(client)
    assert (await greet(greeting_server("hi", ssl=context).address, ssl=client)).text == "hi"
    assert not await greet(greeting_server("hi", limits=Limits(deny=["127.0.0.1"])).address)


def test_a_blocking_client(greeting_server: StartGreetingServer) -> None:
    server = greeting_server("hello")
    with socket.create_connection((server.host, server.port)) as client:
        assert client.recv(100) == b"hello"


async def test_a_reset_after_the_greeting(hostile_server: StartHostileServer) -> None:
    reply = await greet(hostile_server("reset").address)
    assert (reply.data, reply.reset) == (b"220 ready\r\n", True)
    reply = await greet(hostile_server("reset", b"x" * 60_000).address)
    assert reply.reset


async def test_a_drip(hostile_server: StartHostileServer) -> None:
    reply = await greet(hostile_server("drip", "abcdef", interval=0.01).address)
    assert reply.first_byte_time is not None
    assert reply.total_time - reply.first_byte_time >= 0.04
    assert (reply.text, reply.reset) == ("abcdef", False)


async def test_silence(hostile_server: StartHostileServer) -> None:
    with pytest.raises(GreetTimeout) as caught:
        await greet(hostile_server("silence").address, timeout=0.2)
    assert caught.value.phase == "first byte"


async def test_an_endless_greeting(hostile_server: StartHostileServer) -> None:
    with pytest.raises(ReplyTooLarge):
        await greet(hostile_server("endless").address)


async def test_a_refusal_in_words(hostile_server: StartHostileServer) -> None:
    with pytest.raises(UnexpectedGreeting) as caught:
        await greet(hostile_server("refuse").address, expect="220", send=b"EHLO x\r\n")
    assert caught.value.received == b"421 too many connections\r\n"
    assert (await greet(hostile_server("refuse", "No.").address)).text == "No."


def test_an_unknown_kind_is_named(hostile_server: Any) -> None:
    with pytest.raises(ConfigError, match="^kind must be one of reset, .*, refuse, not 'x'$"):
        hostile_server("x")


@pytest.fixture
def held() -> Iterator[list[socket.socket]]:
    """Sockets that a test leaves connected. Set up before the fixtures under test, and checked after them."""
    before = open_fds()
    sockets: list[socket.socket] = []
    yield sockets
    for sock in sockets:
        sock.settimeout(PATIENCE)
        with sock, contextlib.suppress(ConnectionResetError):
            while sock.recv(65536):
                pass
    assert open_fds().keys() <= before.keys()


def test_clients_that_are_connected_at_the_end_are_closed(
    held: list[socket.socket], greeting_server: StartGreetingServer, hostile_server: StartHostileServer
) -> None:
    servers = [hostile_server("silence"), hostile_server("endless"), hostile_server("drip", interval=60)]
    servers += [hostile_server("refuse"), greeting_server()]
    held.extend(socket.create_connection((server.host, server.port)) for server in servers)


def test_the_import_needs_pytest_only() -> None:
    others = "click", "uvloop", "pytest_asyncio"
    code = f"import sys; sys.modules |= dict.fromkeys({others}); import greeter.testing"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
