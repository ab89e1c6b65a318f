"""The HTTP endpoint on raw sockets: what it answers, to whom, and how little it can be made to do."""

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

from greeter import Endpoint, ListenFailed, httpd
from greeter.httpd import CONNECTIONS, TEXT, Answer, PageServer, serve_pages
from tests.conftest import PATIENCE
from tests.peers import connect, read_to_end, reset, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HERE = Endpoint.parse("127.0.0.1:0")
GOOD = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"


class Site:
    """Some pages, and what became of those who asked for them."""

    def __init__(self) -> None:
        self.asked = 0
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.pages = {"/page": self.page, "/broken": self.broken, "/slow": self.slow}

    async def page(self) -> Answer:
        self.asked += 1
        return Answer(TEXT, b"hello\n")

    async def broken(self) -> Answer:
        raise ValueError("no such number")

    async def slow(self) -> Answer:
        self.asked += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Answer(TEXT, b"x" * 3_000_000)


@contextlib.asynccontextmanager
async def serving(endpoint: Endpoint = HERE) -> AsyncIterator[tuple[PageServer, Site]]:
    site = Site()
    server = await serve_pages(endpoint, site.pages)
    try:
        yield server, site
    finally:
        server.close()
        async with asyncio.timeout(PATIENCE):
            await server.wait_closed()


def port_of(server: PageServer) -> int:
    return int(server.address.rpartition(":")[2])


async def say(server: PageServer, *pieces: bytes, end: bool = False) -> socket.socket:
    sock = await connect(port_of(server))
    for piece in pieces:
        await asyncio.get_running_loop().sock_sendall(sock, piece)
    if end:
        sock.shutdown(socket.SHUT_WR)
    return sock


async def ask(server: PageServer, *pieces: bytes, end: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Status, fields and body of the answer; a reset instead of an end is an error."""
    outcome = await read_to_end(await say(server, *pieces, end=end))
    assert not outcome.reset
    head, _, body = outcome.data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    version, status, _ = first.split(" ", 2)
    assert version == "HTTP/1.1"
    return int(status), dict(line.split(": ", 1) for line in lines), body


# -- answers ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_fd_leak")
async def test_a_page_by_a_real_client() -> None:
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
        assert site.asked == 2


async def test_what_an_answer_says_and_that_nothing_runs_after_it() -> None:
    async with serving() as (server, _):
        sock = await say(server)
        await until(lambda: len(server._exchanges) == 1, "it arrives")
        (exchange,) = server._exchanges
        sock.close()
        await until(lambda: not server._exchanges, "it has left")
        assert exchange._timer.cancelled()
        status, fields, body = await ask(server, GOOD)
    assert (status, body) == (200, b"hello\n")
    assert fields.pop("Date").endswith(" GMT")
    assert fields == {"Content-Type": TEXT, "Content-Length": "6", "Connection": "close"}


@pytest.mark.parametrize(
    "pieces",
    [
        [b"GET /page HTTP/1.0\r\n\r\n"],
        [b"GET http://example.org/page HTTP/1.1\r\nHost: example.org\r\n\r\n"],
        [b"\r\nGET /page HTTP/1.1\nHOST : x\n\n"],
        [bytes([byte]) for byte in GOOD],
        [GOOD, b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n", b"x" * 20_000],
    ],
    ids=["old", "absolute", "lax", "byte by byte", "more than one"],
)
@pytest.mark.parametrize("end", [False, True])
async def test_requests_that_are_fine(pieces: list[bytes], end: bool) -> None:
    async with serving() as (server, site):
        assert (await ask(server, *pieces, end=end))[0] == 200
        assert site.asked == 1


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /page/ HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /../page HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"get /page HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET /page HTTP/1.1\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET  /page HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /page\r\n\r\n", 400),
        (b"GET /p\xe4ge HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nHost: x\r\nX: " + b"x" * httpd.REQUEST_BYTES + b"\r\n\r\n", 431),
    ],
)
async def test_requests_that_are_not(request_: bytes, status: int) -> None:
    async with serving() as (server, site):
        found, fields, body = await ask(server, request_)
        assert found == status
        assert body.decode().startswith(f"{status} ")
        assert fields.get("Allow") == ("GET, HEAD" if status == 405 else None)
        assert site.asked == 0
        assert (await ask(server, GOOD))[0] == 200


async def test_head_has_no_body_whatever_the_answer() -> None:
    async with serving() as (server, _):
        for path in (b"/page", b"/nothing", b"/broken"):
            _, fields, body = await ask(server, b"HEAD " + path + b" HTTP/1.0\r\n\r\n")
            assert int(fields["Content-Length"]) > 0
            assert body == b""


async def test_a_page_that_fails_costs_one_request(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as (server, _):
        assert (await ask(server, b"GET /broken HTTP/1.0\r\n\r\n"))[0] == 500
        assert (await ask(server, GOOD))[0] == 200
    (record,) = (each for each in caplog.records if each.levelno >= logging.ERROR)
    assert record.getMessage() == "cannot answer a request for /broken: ValueError: no such number"


# -- those who do not behave -----------------------------------------------------------------------------


async def test_the_one_that_is_here_longest_goes_when_there_are_too_many() -> None:
    async with serving() as (server, site):
        silent = [await say(server, b"GET /p") for _ in range(CONNECTIONS)]
        assert (await ask(server, GOOD))[0] == 200
        assert (await read_to_end(silent[0])).data == b""
        assert (await ask(server, GOOD))[0] == 200
        for sock in silent[1:]:
            with pytest.raises(BlockingIOError):
                sock.recv(1)
            sock.close()
        assert site.asked == 2


@pytest.mark.usefixtures("no_fd_leak")
async def test_a_crowd_is_served_by_and_by() -> None:
    async with serving() as (server, _):
        crowd = [await say(server) for _ in range(40)]
        assert (await ask(server, GOOD))[0] == 200
        for sock in crowd:
            sock.close()


@pytest.mark.parametrize("beginning", [b"", b"GET /pa", b"GET /slow HTTP/1.0\r\n\r\n", GOOD])
@pytest.mark.usefixtures("no_fd_leak")
async def test_an_exchange_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch, beginning: bytes) -> None:
    monkeypatch.setattr(httpd, "EXCHANGE_SECONDS", 0.05)
    async with serving() as (server, site):
        sock = await say(server, beginning)
        await until(lambda: len(server._exchanges) == 1, "it arrives")
        await until(lambda: not server._exchanges, "it is cut off")
        assert (await read_to_end(sock)).data.endswith(b"\r\n\r\nhello\n" if beginning == GOOD else b"")
        await until(lambda: site.cancelled == (b"slow" in beginning), "nobody makes it a page")


async def test_one_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpd, "EXCHANGE_SECONDS", 0.05)
    async with serving() as (server, site):
        site.gate.set()
        sock = await connect(port_of(server), receive_buffer=4096)
        sock.send(b"GET /slow HTTP/1.0\r\n\r\n")
        await until(lambda: site.asked == 1, "it is asked")
        await until(lambda: not server._exchanges, "it is cut off")
        sock.close()


async def test_one_that_talks_on_and_on_is_cut_off() -> None:
    async with serving() as (server, _):
        sock = await say(server, GOOD)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await asyncio.get_running_loop().sock_sendall(sock, b"x" * 50_000_000)
        sock.close()


@pytest.mark.parametrize("beginning", [b"", b"GET /", b"GET /slow HTTP/1.0\r\n\r\n"])
async def test_one_that_goes_away(beginning: bytes) -> None:
    async with serving() as (server, site):
        for leave in (socket.socket.close, reset):
            sock = await say(server, beginning)
            await until(lambda: len(server._exchanges) == 1, "it arrives")
            if b"slow" in beginning:
                await until(lambda: site.asked > site.cancelled, "it has asked")
            leave(sock)
            site.gate.set()
            await until(lambda: not server._exchanges, "it has left")


async def test_one_that_is_cut_off_while_its_page_is_made() -> None:
    async with serving() as (server, _):

        async def page() -> Answer:
            for exchange in server._exchanges:
                exchange.abort()
            return Answer(TEXT, b"too late")

        server.pages = {"/": page}
        assert (await read_to_end(await say(server, b"GET / HTTP/1.0\r\n\r\n"))).data == b""


class GoneTransport(asyncio.Transport):
    """A connection that is reset between the answer and its end."""

    aborted = False

    def is_closing(self) -> bool:
        return self.aborted

    def write(self, data: object) -> None:
        pass

    def write_eof(self) -> None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    def abort(self) -> None:
        self.aborted = True


async def test_one_that_goes_away_between_the_answer_and_its_end() -> None:
    exchange = httpd._Exchange(PageServer([], {}))
    transport = GoneTransport()
    exchange.connection_made(transport)
    exchange.data_received(b"nonsense\r\n\r\n")
    assert transport.aborted
    exchange.connection_lost(None)


# -- the server ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_fd_leak")
async def test_closing_cuts_off_and_leaves_nothing() -> None:
    async with serving() as (server, site):
        socks = [await say(server, b"GET /slow HTTP/1.0\r\n\r\n") for _ in range(3)]
        await until(lambda: site.asked == 3, "they have asked")
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


async def test_a_unix_socket_and_its_file(tmp_path: Path) -> None:
    path = f"{tmp_path}/x"
    async with serving(Endpoint.unix(path)) as (server, _):
        assert server.address == f"unix:{path}"
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(GOOD)
        assert (await reader.read()).endswith(b"hello\n")
        writer.close()
    assert not os.listdir(tmp_path)


async def test_where_it_cannot_listen() -> None:
    async with serving() as (server, _):
        with pytest.raises(ListenFailed, match="cannot listen on 127.0.0.1:.*: address already in use"):
            await serve_pages(Endpoint.parse(server.address), {})


@pytest.mark.usefixtures("no_fd_leak")
async def test_a_start_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(_self: PageServer) -> None:
        raise OSError("out of luck")

    monkeypatch.setattr(PageServer, "_start", start)
    with pytest.raises(OSError, match="out of luck"):
        await serve_pages(HERE, {})
