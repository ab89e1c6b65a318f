"""The HTTP server on raw sockets: responses, refusals, bounds and deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import logging
import os
import socket
from typing import TYPE_CHECKING

import pytest

from greeter import ConfigError, Endpoint, ListenFailed
from greeter.server.timeouts import PAUSE_SECONDS
from greeter.service import httpd
from greeter.service.httpd import MAX_CONNECTIONS, TEXT, HTTPServer, Response, serve_http
from tests.conftest import PATIENCE
from tests.support.peers import connect, read_to_end, reset, stand_still, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HERE = Endpoint.parse("127.0.0.1:0")
GOOD = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"


class Site:
    """Some handlers, and counts of their calls and cancellations."""

    def __init__(self) -> None:
        self.calls = 0
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.handlers = {"/page": self.page, "/broken": self.broken, "/slow": self.slow}

    async def page(self) -> Response:
        self.calls += 1
        return Response(TEXT, b"hello\n")

    async def broken(self) -> Response:
        raise ValueError("no such number")

    async def slow(self) -> Response:
        self.calls += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Response(TEXT, b"x" * 3_000_000)


@contextlib.asynccontextmanager
async def serving(endpoint: Endpoint = HERE) -> AsyncIterator[tuple[HTTPServer, Site]]:
    site = Site()
    server = await serve_http(endpoint, site.handlers)
    try:
        yield server, site
    finally:
        server.close()
        async with asyncio.timeout(PATIENCE):
            await server.wait_closed()


def port_of(server: HTTPServer) -> int:
    return int(server.address.rpartition(":")[2])


async def send(server: HTTPServer, *pieces: bytes, end: bool = False) -> socket.socket:
    sock = await connect(port_of(server))
    for piece in pieces:
        await asyncio.get_running_loop().sock_sendall(sock, piece)
    if end:
        sock.shutdown(socket.SHUT_WR)
    return sock


async def request(server: HTTPServer, *pieces: bytes, end: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Status, fields and body of the response; a reset instead of an end of stream is an error."""
    outcome = await read_to_end(await send(server, *pieces, end=end))
    assert not outcome.reset
    head, _, body = outcome.data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    version, status, _ = first.split(" ", 2)
    assert version == "HTTP/1.1"
    return int(status), dict(line.split(": ", 1) for line in lines), body


async def test_a_pause_of_the_process_costs_no_client_that_spoke_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(httpd, "EXCHANGE_SECONDS", 1.0)
    async with serving() as (server, _):
        sock = await send(server)
        await until(lambda: len(server._connections) == 1, "it is accepted")
        sock.send(GOOD)
        stand_still(1.0 + 1.5 * PAUSE_SECONDS)
        assert (await read_to_end(sock)).data.endswith(b"hello\n")


# -- responses -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_fd_leak")
async def test_a_socket_for_datagrams_is_refused() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(
            ConfigError, match=r"^HTTP needs a stream, and udp:127\.0\.0\.1:\d+ is an endpoint"
        ):
            await serve_http(Endpoint.inherited(sock.fileno()), {})


async def test_get_and_head_by_http_client() -> None:
    def fetch(method: str) -> tuple[int, str | None, bytes]:
        client = http.client.HTTPConnection("127.0.0.1", port_of(server), timeout=PATIENCE)
        client.request(method, "/page?x=y")
        response = client.getresponse()
        found = response.status, response.headers["Content-Length"], response.read()
        client.close()
        return found

    async with serving() as (server, site):
        assert await asyncio.to_thread(fetch, "GET") == (200, "6", b"hello\n")
        assert await asyncio.to_thread(fetch, "HEAD") == (200, "6", b"")
        assert site.calls == 2


async def test_fields_of_a_response_and_no_timer_after_the_connection() -> None:
    async with serving() as (server, _):
        sock = await send(server)
        await until(lambda: len(server._connections) == 1, "it is accepted")
        (connection,) = server._connections
        sock.close()
        await until(lambda: not server._connections, "it is closed")
        assert connection._deadline.cancelled()
        status, fields, body = await request(server, GOOD)
    assert (status, body) == (200, b"hello\n")
    assert fields.pop("Date").endswith(" GMT")
    assert fields == {"Content-Type": TEXT, "Content-Length": "6", "Connection": "close"}


@pytest.mark.parametrize(
    "pieces",
    [
        [b"GET /page HTTP/1.0\r\n\r\n"],
        # RFC 9110, 2.5: a higher minor version is processed as the highest one that is implemented.
        [b"GET /page HTTP/1.9\r\nHost: x\r\n\r\n"],
        # RFC 9112, 3.2.2: a server must accept the absolute form.
        [b"GET http://example.org/page HTTP/1.1\r\nHost: example.org\r\n\r\n"],
        [b"GET HTTP://example.org/page?x=http://y/ HTTP/1.1\r\nHost: example.org\r\n\r\n"],
        # RFC 9112, 2.2: a recipient may take a single LF as a line terminator.
        [b"GET /page HTTP/1.1\nHOST:x \n\n"],
        # RFC 9112, 5.2: the alternative to a refusal of an obsolete line folding is a space in its place.
        [b"GET /page HTTP/1.1\r\nHost: x\r\nX: y\r\n z\r\n\r\n"],
        [bytes([byte]) for byte in GOOD],
        [GOOD, b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n", b"x" * 20_000],
        [GOOD * 100],
        # RFC 9110, 7.8: a server may ignore an upgrade.
        [b"GET /page HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"],
        # RFC 9110, 10.1.1: a final status may be sent in place of 100.
        [b"GET /page HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"],
        # RFC 9110, 9.3.1: content of a GET has no meaning. It is discarded unparsed, whatever its framing.
        [b"GET /page HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nab"],
        [b"GET /page HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"],
        [b"GET /page HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n\r\n"],
    ],
    ids=[
        "1.0",
        "1.9",
        "absolute",
        "absolute with query",
        "LF",
        "folded",
        "byte by byte",
        "trailing data",
        "pipelined",
        "upgrade",
        "expect",
        "content",
        "chunked",
        "not chunked",
    ],
)
@pytest.mark.parametrize("end", [False, True])
async def test_a_valid_request_gets_one_response(pieces: list[bytes], end: bool) -> None:
    async with serving() as (server, site):
        assert (await request(server, *pieces, end=end))[0] == 200
        assert site.calls == 1


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /page/ HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET //x/page HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /../page HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n", 404),
        (b"CONNECT /page HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"get /page HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET /page HTTP/1.1\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET  /page HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /page\r\n\r\n", 400),
        (b"GET /page HTTP/0.9\r\n\r\n", 400),
        (b"GET /page HTTP/2.0\r\nHost: x\r\n\r\n", 400),
        (b"GET /p\xe4ge HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET /page HTTP/1.1\r\nHost: x\r\nX: " + b"x" * httpd.REQUEST_BYTES + b"\r\n\r\n", 431),
        # RFC 9112, 5.1: a request with whitespace before a colon must be refused with 400.
        (b"GET /page HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nHost: x\r\nX\t: y\r\n\r\n", 400),
        # RFC 9112, 2.2: an empty line before a request follows the content of an earlier one, and there is
        # none on this connection; whitespace before the first field must be refused or skipped.
        (b"\r\nGET /page HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\n X: y\r\nHost: x\r\n\r\n", 400),
        # RFC 9112, 5: a field line is a token, a colon and a value.
        (b"GET /page HTTP/1.1\r\nHost: x\r\nno field\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nHost: x\r\nX(y): z\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n", 400),
        # RFC 9110, 5.5: CR, LF and NUL in a value are dangerous and must be refused or replaced; other
        # control characters are invalid, of which h11 refuses VT and FF.
        (b"GET /page HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nHost: x\r\nX: a\vb\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nHost: x\r\nX: a\fb\r\n\r\n", 400),
        # RFC 9112, 3.2: any request with more than one Host must be refused, also of version 1.0.
        (b"GET /page HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n", 400),
        # RFC 9112, 6.3, rule 5: an invalid Content-Length must be refused with 400.
        (b"GET /page HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        # RFC 9112, 6.1: a transfer coding that is not understood should be refused with 501; chunked must
        # not be applied more than once.
        (b"GET /page HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"GET /page HTTP/1.1\r\nHost: x\r\n" + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n", 501),
    ],
)
async def test_other_requests_are_refused(
    request_: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as (server, site):
        found, fields, body = await request(server, request_)
        assert found == status
        assert body.decode().startswith(f"{status} ")
        assert fields.get("Allow") == ("GET, HEAD" if status == 405 else None)
        assert site.calls == 0
        assert (await request(server, GOOD))[0] == 200
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]


@pytest.mark.parametrize("split", [1, 100, httpd.REQUEST_BYTES - 1])
@pytest.mark.parametrize(("excess", "status"), [(0, 200), (1, 431)])
async def test_a_request_head_at_the_limit(split: int, excess: int, status: int) -> None:
    start, end = b"GET /page HTTP/1.1\r\nHost: x\r\nX: ", b"\r\n\r\n"
    head = start + b"x" * (httpd.REQUEST_BYTES + excess - len(start + end)) + end
    async with serving() as (server, _):
        assert (await request(server, head))[0] == status
        assert (await request(server, head + GOOD))[0] == status
        assert (await request(server, head[:-split], head[-split:]))[0] == status


async def test_a_response_to_head_has_no_body_whatever_its_status() -> None:
    async with serving() as (server, _):
        for path in (b"/page", b"/nothing", b"/broken"):
            _, fields, body = await request(server, b"HEAD " + path + b" HTTP/1.0\r\n\r\n")
            assert int(fields["Content-Length"]) > 0
            assert body == b""


async def test_a_handler_that_raises_is_500_and_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as (server, _):
        assert (await request(server, b"GET /broken HTTP/1.0\r\n\r\n"))[0] == 500
        assert (await request(server, GOOD))[0] == 200
    (record,) = (each for each in caplog.records if each.levelno >= logging.ERROR)
    assert record.getMessage() == "cannot respond to a request for /broken: ValueError: no such number"


# -- misbehaving clients ---------------------------------------------------------------------------------


async def test_the_oldest_connection_is_aborted_when_another_client_waits() -> None:
    async with serving() as (server, site):
        silent = [await send(server, b"GET /p") for _ in range(MAX_CONNECTIONS)]
        assert (await request(server, GOOD))[0] == 200
        assert (await read_to_end(silent[0])).data == b""
        assert (await request(server, GOOD))[0] == 200
        for sock in silent[1:]:
            with pytest.raises(BlockingIOError):
                sock.recv(1)
            sock.close()
        assert site.calls == 2


async def test_simultaneous_clients_above_the_limit_do_not_cut_each_other_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each sends its request when all have connected, as clients do that are far away."""
    monkeypatch.setattr(httpd, "EXCHANGE_SECONDS", PATIENCE)
    monkeypatch.setattr(httpd, "GRACE_SECONDS", PATIENCE)
    async with serving() as (server, site):
        socks = [await send(server) for _ in range(3 * MAX_CONNECTIONS)]
        responses = [asyncio.ensure_future(read_to_end(sock)) for sock in socks]
        await until(lambda: len(server._connections) == MAX_CONNECTIONS, "as many as may be are accepted")
        for sock in socks:
            sock.send(GOOD)
        for outcome in await asyncio.gather(*responses):
            assert outcome.data.endswith(b"hello\n")
            assert not outcome.reset
        assert site.calls == len(socks)


@pytest.mark.usefixtures("no_fd_leak")
async def test_a_request_after_many_idle_connections_gets_a_response(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpd, "GRACE_SECONDS", 0.05)
    async with serving() as (server, _):
        idle = [await send(server) for _ in range(100)]
        assert (await request(server, GOOD))[0] == 200
        for sock in idle:
            sock.close()


async def test_accepting_goes_on_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpd, "RETRY_SECONDS", 0.01)
    loop = asyncio.get_running_loop()
    errors = [errno.EMFILE, errno.ECONNABORTED]
    accept = loop.sock_accept

    async def failing(sock: socket.socket) -> object:
        if errors:
            raise OSError(errors.pop(), "accept")
        return await accept(sock)

    monkeypatch.setattr(loop, "sock_accept", failing)
    async with serving() as (server, _):
        assert (await request(server, GOOD))[0] == 200
        assert errors == []


@pytest.mark.parametrize("beginning", [b"", b"GET /pa", b"GET /slow HTTP/1.0\r\n\r\n", GOOD])
@pytest.mark.usefixtures("no_fd_leak")
async def test_a_connection_is_aborted_at_its_deadline(
    monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    complete = beginning.endswith(b"\r\n\r\n")  # then, its handler is called before the deadline
    monkeypatch.setattr(httpd, "EXCHANGE_SECONDS", 0.5 if complete else 0.05)
    async with serving() as (server, site):
        opened: list[object] = []
        add = server.on_opened

        def on_opened(connection: httpd._HTTPConnection) -> None:
            opened.append(connection)
            add(connection)

        monkeypatch.setattr(server, "on_opened", on_opened)
        sock = await send(server, beginning)
        await until(lambda: len(opened) == 1, "it is accepted")
        await until(lambda: not server._connections, "it is aborted")
        assert (await read_to_end(sock)).data.endswith(b"\r\n\r\nhello\n" if beginning == GOOD else b"")
        await until(lambda: site.cancelled == (b"slow" in beginning), "its handler is cancelled")


@pytest.mark.parametrize(
    "beginning", [b"", b"GET /pa", GOOD, b"GET /slow HTTP/1.0\r\n\r\n", b"no request\r\n\r\n"]
)
@pytest.mark.usefixtures("no_fd_leak")
async def test_a_half_closed_connection_is_closed_before_its_deadline(
    monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    monkeypatch.setattr(httpd, "EXCHANGE_SECONDS", 2 * PATIENCE)
    async with serving() as (server, site):
        sock = await send(server, beginning, end=True)
        if b"slow" in beginning:
            await until(lambda: any(each._eof_received for each in server._connections), "it is half-closed")
            site.gate.set()
        outcome = await read_to_end(sock)
        assert outcome.data.startswith(b"HTTP/1.1 ") == beginning.endswith(b"\r\n\r\n")
        assert not outcome.reset
        await until(lambda: not server._connections, "it is closed")


async def test_a_client_that_does_not_read_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpd, "EXCHANGE_SECONDS", 0.5)
    async with serving() as (server, site):
        site.gate.set()
        sock = await connect(port_of(server), receive_buffer=4096)
        sock.send(b"GET /slow HTTP/1.0\r\n\r\n")
        await until(lambda: site.calls == 1, "the handler runs")
        await until(lambda: not server._connections, "it is aborted")
        sock.close()


async def test_a_client_that_keeps_sending_is_aborted() -> None:
    async with serving() as (server, _):
        sock = await send(server, GOOD)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await asyncio.get_running_loop().sock_sendall(sock, b"x" * 50_000_000)
        sock.close()


@pytest.mark.parametrize("beginning", [b"", b"GET /", b"GET /slow HTTP/1.0\r\n\r\n"])
async def test_a_client_that_closes_or_resets_before_the_response(beginning: bytes) -> None:
    async with serving() as (server, site):
        for close_client in (socket.socket.close, reset):
            sock = await send(server, beginning)
            await until(lambda: len(server._connections) == 1, "it is accepted")
            if b"slow" in beginning:
                await until(lambda: site.calls > site.cancelled, "the handler runs")
            close_client(sock)
            site.gate.set()
            await until(lambda: not server._connections, "it is closed")


async def test_an_abort_while_the_handler_runs() -> None:
    async with serving() as (server, _):

        async def page() -> Response:
            for connection in server._connections:
                connection.abort()
            return Response(TEXT, b"too late")

        server.handlers = {"/": page}
        assert (await read_to_end(await send(server, b"GET / HTTP/1.0\r\n\r\n"))).data == b""


class GoneTransport(asyncio.Transport):
    """A connection that is reset between the response and the half-close."""

    aborted = False

    def is_closing(self) -> bool:
        return self.aborted

    def write(self, data: object) -> None:
        pass

    def write_eof(self) -> None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    def abort(self) -> None:
        self.aborted = True


async def test_a_reset_between_the_response_and_the_half_close() -> None:
    connection = httpd._HTTPConnection(HTTPServer([], {}))
    transport = GoneTransport()
    connection.connection_made(transport)
    connection.data_received(b"nonsense\r\n\r\n")
    assert transport.aborted
    connection.connection_lost(None)


async def test_a_close_between_accept_and_connection_made_aborts_the_connection() -> None:
    server, transport = HTTPServer([], {}), GoneTransport()
    connection = httpd._HTTPConnection(server)
    server.close()
    connection.connection_made(transport)
    assert transport.aborted
    connection.connection_lost(None)


# -- the server ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_fd_leak")
async def test_close_aborts_every_connection_and_leaks_nothing() -> None:
    async with serving() as (server, site):
        socks = [await send(server, b"GET /slow HTTP/1.0\r\n\r\n") for _ in range(3)]
        await until(lambda: site.calls == 3, "the handlers run")
        waiting = asyncio.create_task(server.wait_closed())
        await asyncio.sleep(0)
        assert not waiting.done()
        server.close()
        server.close()
        await waiting
        assert site.cancelled == 3
        for sock in socks:
            assert (await read_to_end(sock)).data == b""
        with pytest.raises(ConnectionRefusedError):
            await connect(port_of(server))


async def test_a_unix_socket_is_served_and_its_file_removed(tmp_path: Path) -> None:
    path = f"{tmp_path}/x"
    async with serving(Endpoint.unix(path)) as (server, _):
        assert server.address == f"unix:{path}"
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(GOOD)
        assert (await reader.read()).endswith(b"hello\n")
        writer.close()
    assert not os.listdir(tmp_path)


async def test_an_address_in_use_is_refused() -> None:
    async with serving() as (server, _):
        with pytest.raises(ListenFailed, match="cannot listen on 127.0.0.1:.*: address already in use"):
            await serve_http(Endpoint.parse(server.address), {})
