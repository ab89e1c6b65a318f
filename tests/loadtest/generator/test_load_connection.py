"""TLS, and single connections. The classes of plain connections are tested in test_engine.py."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from greeter import serve
from greeter.loadtest import LoadPlan
from greeter.loadtest.generator.engine import Engine
from greeter.loadtest.generator.event_poller import ENDED, FAILED, READABLE, WRITABLE
from greeter.loadtest.generator.load_connection import ConnectionSpec, LoadConnection
from greeter.loadtest.generator.target import Target, resolve
from greeter.loadtest.plan.outcome import GREETED
from tests.support.loadtest_peers import (
    GREETING,
    abort_with_reset,
    close_at_once,
    greet,
    greet_and_stay,
    serving,
    wait_for_close,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.loadtest_peers import Handler


class Authority:
    """A certificate authority, the TLS context of a server, and PEM files for plans."""

    def __init__(self, folder: Path) -> None:
        ca = trustme.CA()
        self.ca = str(folder / "ca.pem")
        self.client = str(folder / "client.pem")
        ca.cert_pem.write_to_path(self.ca)
        ca.issue_cert("client.example").private_key_and_cert_chain_pem.write_to_path(self.client)
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("127.0.0.1", "greeter.example").configure_cert(self.server)
        ca.configure_trust(self.server)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


async def run(target: str, **options: Any) -> dict[str, int]:
    plan = LoadPlan(target, count=6, connections=6, tls=True, **options)
    metrics = await Engine(plan, await resolve(plan)).run()
    return {outcome: count for outcome, count in metrics.outcomes.items() if count}


async def large(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes(50_000))
    await writer.drain()


@pytest.mark.usefixtures("no_fd_leak")
@pytest.mark.parametrize(
    ("handler", "options", "outcome"),
    [
        (greet, {}, GREETED),
        (greet, {"expect": "Thank you", "server_name": "greeter.example"}, GREETED),
        (greet_and_stay, {"until": "line", "hold": 0.05}, GREETED),
        (large, {}, GREETED),
        (large, {"max_bytes": 49_999}, "too_large"),
        (close_at_once, {}, "empty"),
        (wait_for_close, {"timeout": 0.2}, "connected_no_greeting"),
        (greet, {"server_name": "else.example"}, "tls_error"),
    ],
)
async def test_tls_connections_end_in_the_same_classes(
    handler: Handler, options: dict[str, Any], outcome: str, authority: Authority
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)  # the server logs clients that abort
    async with serving(handler, ssl_context=authority.server) as target:
        assert await run(target, tls_ca=authority.ca, **options) == {outcome: 6}


@pytest.mark.usefixtures("no_fd_leak")
async def test_a_failed_handshake_has_its_class(authority: Authority) -> None:
    # The servers read the ClientHello first: closing with unread data would be a reset.
    async def send_plain_text(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(b"220 plain text, and not a little of it\r\n")

    async def read_and_close(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(65536)

    async def read_and_reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        abort_with_reset(writer)

    for handler, outcome in (
        (send_plain_text, "tls_error"),
        (read_and_close, "tls_error"),
        (read_and_reset, "reset"),
    ):
        async with serving(handler) as target:
            assert await run(target, tls_ca=authority.ca) == {outcome: 6}
    async with serving(wait_for_close) as target:
        assert await run(target, tls_ca=authority.ca, timeout=0.1) == {"connected_no_greeting": 6}


@pytest.mark.usefixtures("no_fd_leak")
@pytest.mark.parametrize("until", ["eof", "line", "idle:60s"])
async def test_a_tls_stream_without_close_notify_is_greeted_and_counted_apart(
    until: str, authority: Authority
) -> None:
    async def cut(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        await writer.drain()
        with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as below_tls:
            below_tls.shutdown(socket.SHUT_WR)

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    for handler, truncated in ((cut, 6), (greet, 0)):
        async with serving(handler, ssl_context=authority.server) as target:
            plan = LoadPlan(target, count=6, connections=6, tls=True, tls_ca=authority.ca, until=until)
            metrics = await Engine(plan, await resolve(plan)).run()
        assert metrics.outcomes[GREETED] == 6
        assert (metrics.truncated, metrics.reset_after_greeting) == (truncated, 0)


@pytest.mark.usefixtures("no_fd_leak")
async def test_with_tls_the_proxy_header_precedes_the_handshake_and_the_rest_follows_it(
    authority: Authority,
) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())

    async with serving(echo, ssl_context=authority.server) as target:
        assert await run(target, tls_ca=authority.ca, send=b"HELLO\n", expect="HELLO") == {GREETED: 6}
    async with serve(port=0, proxy_from=["127.0.0.1/32"], ssl=authority.server) as server:
        for version in ("v1", "v2"):
            found = await run(str(server.addresses[0]), tls_ca=authority.ca, proxy_protocol=version)
            assert found == {GREETED: 6}


@pytest.mark.usefixtures("no_fd_leak")
async def test_a_client_certificate_is_sent(authority: Authority) -> None:
    strict = authority.server
    strict.verify_mode = ssl.CERT_REQUIRED
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    try:
        async with serving(greet, ssl_context=strict) as target:
            assert await run(target, tls_ca=authority.ca, tls_cert=authority.client) == {GREETED: 6}
            assert GREETED not in await run(target, tls_ca=authority.ca)
    finally:
        strict.verify_mode = ssl.CERT_NONE


# -- a single connection, with events made by the test


@pytest.fixture
def pair() -> Iterator[tuple[LoadConnection, socket.socket]]:
    """A connected connection, and its socket at the server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = Target(socket.AF_INET, ("127.0.0.1", listener.getsockname()[1]))
        connection = LoadConnection(ConnectionSpec(LoadPlan(), target), 0.0, 0.0)
        assert connection.open() is None
        assert connection.fd >= 0
        peer, _ = listener.accept()
        assert connection.on_event(WRITABLE, 1.0) is None
        assert connection.connected == 1.0
        yield connection, peer
        peer.close()
        connection.close()


def wait_for(connection: LoadConnection, mask: int) -> int:
    """Wait until the kernel reports all bits of ``mask`` for a connection. Returns all reported bits."""
    with select.epoll() as poll:
        poll.register(connection.fd, READABLE | ENDED)
        while True:
            for _, found in poll.poll(5):
                if found & mask == mask:
                    return found


def test_the_first_byte_and_the_end_are_timestamped(pair: tuple[LoadConnection, socket.socket]) -> None:
    connection, peer = pair
    peer.sendall(b"Thank you ")
    assert connection.on_event(wait_for(connection, READABLE), 2.0) is None
    peer.sendall(b"for connecting")
    peer.close()
    assert connection.on_event(wait_for(connection, READABLE | ENDED), 3.0) == GREETED
    assert (connection.first_byte, connection.received, connection.ended) == (2.0, len(GREETING), True)


def test_a_spurious_event_changes_nothing(pair: tuple[LoadConnection, socket.socket]) -> None:
    connection, _ = pair
    assert connection.on_event(READABLE, 2.0) is None
    assert connection.on_event(READABLE | FAILED, 2.0) is None
    assert (connection.first_byte, connection.received) == (0.0, 0)
    assert connection.classify_timeout() == "connected_no_greeting"


def test_a_reset_between_poll_and_read_is_a_reset(pair: tuple[LoadConnection, socket.socket]) -> None:
    connection, peer = pair
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()
    wait_for(connection, FAILED)
    assert connection.on_event(READABLE, 2.0) == "reset"
    assert connection.error == errno.ECONNRESET
    assert connection.error_text == ""


def test_a_reset_after_a_complete_line_does_not_affect_the_greeting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = Target(socket.AF_INET, ("127.0.0.1", listener.getsockname()[1]))
        connection = LoadConnection(ConnectionSpec(LoadPlan(until="line"), target), 0.0, 0.0)
        assert connection.open() is None
        peer, _ = listener.accept()
        peer.sendall(b"220 ready\r\n")
        wait_for(connection, READABLE)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        assert connection.on_event(wait_for(connection, READABLE | FAILED), 2.0) == GREETED
        assert connection.error == errno.ECONNRESET
        connection.close()


def test_an_error_other_than_a_reset_has_its_text(pair: tuple[LoadConnection, socket.socket]) -> None:
    connection, _ = pair
    connection.error = errno.ETIMEDOUT
    assert connection.classify() == "reset"
    assert connection.error_text == "Connection timed out"


def test_a_reset_after_the_end_is_recorded(pair: tuple[LoadConnection, socket.socket]) -> None:
    connection, peer = pair
    peer.sendall(GREETING)
    peer.shutdown(socket.SHUT_WR)
    wait_for(connection, READABLE | ENDED)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()
    assert connection.on_event(wait_for(connection, FAILED), 2.0) == GREETED
    assert connection.error == errno.EPIPE


def test_a_held_connection_discards_data_until_its_end(pair: tuple[LoadConnection, socket.socket]) -> None:
    connection, peer = pair
    peer.sendall(b"250 more\r\n")
    wait_for(connection, READABLE)
    assert not connection.drain()
    peer.close()
    wait_for(connection, ENDED)
    assert connection.drain()


def test_a_held_connection_reports_a_reset(pair: tuple[LoadConnection, socket.socket]) -> None:
    connection, peer = pair
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()
    wait_for(connection, FAILED)
    assert connection.drain()
    assert connection.error == errno.ECONNRESET
