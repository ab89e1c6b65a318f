"""The smallest HTTP/1.1 server that a scraper or a probe needs: a few pages, GET and HEAD, one answer each.

The law: whoever asks disturbs nobody. An exchange has a deadline, a request a size, and there are at most
CONNECTIONS at a time: when one more comes, the one that has been here longest goes, so those who do not
finish cannot keep out those who do. Between requests nothing runs.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

from greeter.listeners import Listener, open_listeners

if TYPE_CHECKING:
    from collections.abc import Mapping

    from greeter.endpoint import Endpoint

logger = logging.getLogger("greeter")

EXCHANGE_SECONDS = 5.0
REQUEST_BYTES = 8192
# What is read and thrown away of one who goes on after that, before it is cut off.
EXCESS_BYTES = 65536
CONNECTIONS = 8
BACKLOG = 64  # more of them, which the kernel keeps
ACCEPT_BATCH = 1  # connections that asyncio takes per wake-up: the bound above is held one by one

TEXT = "text/plain; charset=utf-8"


class Answer(NamedTuple):
    """What is said to one request; ``kind`` is the content type."""

    kind: str
    body: bytes
    status: HTTPStatus = HTTPStatus.OK


# Makes one answer.
Page: TypeAlias = Callable[[], Awaitable[Answer]]

# RFC 9112, section 3: a method, one space, a target without any, one space, the version.
_REQUEST = re.compile(rb"(?:\r?\n)*([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/1\.([0-9])\r?\n")
_HOST = re.compile(rb"^host[ \t]*:", re.IGNORECASE | re.MULTILINE)
_ORIGIN = re.compile(rb"^https?://[^/?]*", re.IGNORECASE)
_END = re.compile(rb"[^\r\n]\r?\n\r?\n")


async def serve_pages(
    endpoint: Endpoint, pages: Mapping[str, Page], *, unix_mode: int | None = None
) -> PageServer:
    """Answer on ``endpoint``; ``pages`` are found by their paths, such as ``/metrics``.

    ``unix_mode`` is the mode of a Unix socket's file.

    A page is made for each request, within the deadline of its exchange. One that raises costs its
    request: the answer is 500, and a line is logged. Raises ListenFailed.
    """
    server = PageServer(open_listeners([endpoint], backlog=BACKLOG, unix_mode=unix_mode), pages)
    try:
        await server._start()
    except BaseException:
        server.close()
        raise
    return server


class PageServer:
    """A running server, as ``serve_pages`` gives it. ``addresses`` are real, never with port 0."""

    def __init__(self, listeners: list[Listener], pages: Mapping[str, Page]) -> None:
        self.pages = pages
        self._listeners = listeners
        self._servers: list[asyncio.Server] = []
        self._exchanges: dict[_Exchange, None] = {}  # in the order in which they came
        self._gone = asyncio.Event()
        self._closed = False

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(listener.address for listener in self._listeners)

    @property
    def address(self) -> str:
        """The first of ``addresses``."""
        return self.addresses[0]

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            sock = listener.sock.dup()
            server = await loop.create_server(lambda: _Exchange(self), sock=sock, backlog=ACCEPT_BATCH)
            self._servers.append(server)
            sock.listen(BACKLOG)

    def close(self) -> None:
        """Stop listening and cut off whoever is here."""
        self._closed = True
        for server in self._servers:
            server.close()
        for listener in self._listeners:
            listener.close()
        for exchange in self._exchanges:
            exchange.abort()
        self._check()

    async def wait_closed(self) -> None:
        """Wait until it is closed and everybody has left."""
        await self._gone.wait()

    def arrived(self, exchange: _Exchange) -> None:
        """One more is here."""
        self._exchanges[exchange] = None
        here = [each for each in self._exchanges if not each.leaving]
        if len(here) > CONNECTIONS:
            here[0].abort()

    def left(self, exchange: _Exchange) -> None:
        """Its connection is closed."""
        del self._exchanges[exchange]
        self._check()

    def _check(self) -> None:
        if self._closed and not self._exchanges:
            self._gone.set()


class _Exchange(asyncio.Protocol):
    """One connection: a request, an answer, and then whatever the client says is thrown away."""

    def __init__(self, server: PageServer) -> None:
        self._server = server
        self._request = bytearray()
        self._received = 0
        self._task: asyncio.Task[None] | None = None
        self._understood = self._answered = self._client_done = self._only_head = False

    @property
    def leaving(self) -> bool:
        """Aborted, or on its way out."""
        return self._transport.is_closing()

    def abort(self) -> None:
        """Cut it off."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._timer = asyncio.get_running_loop().call_later(EXCHANGE_SECONDS, self.abort)
        self._server.arrived(self)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > REQUEST_BYTES + EXCESS_BYTES:
            self.abort()
        elif not self._understood:
            self._request += data
            if end := _END.search(self._request, 0, REQUEST_BYTES):
                self._understood = True
                self._respond(bytes(self._request[: end.end()]))
            elif len(self._request) >= REQUEST_BYTES:
                self._understood = True
                self._answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def eof_received(self) -> bool:
        self._client_done = True
        return self._understood and not self._answered  # to stay open until then

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        self._server.left(self)

    def _respond(self, request: bytes) -> None:
        match = _REQUEST.match(request)
        # RFC 9112, section 3.2: a request of version 1.1 names its host, and just once.
        if match is None or (match[3] != b"0" and len(_HOST.findall(request)) != 1):
            self._answer(HTTPStatus.BAD_REQUEST)
            return
        method = match[1]
        self._only_head = method == b"HEAD"
        path = _ORIGIN.sub(b"", match[2]).partition(b"?")[0].decode()
        page = self._server.pages.get(path)
        if page is None:
            self._answer(HTTPStatus.NOT_FOUND)
        elif method not in (b"GET", b"HEAD"):
            self._answer(HTTPStatus.METHOD_NOT_ALLOWED, more="Allow: GET, HEAD\r\n")
        else:
            self._task = asyncio.get_running_loop().create_task(self._make(path, page))

    async def _make(self, path: str, page: Page) -> None:
        try:
            kind, body, status = await page()
        except Exception as error:
            logger.error(
                "cannot answer a request for %s: %s: %s",
                path,
                type(error).__name__,
                error,
                extra={"event": "metrics"},
            )
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR)
        else:
            self._answer(status, kind, body)

    def _answer(
        self, status: HTTPStatus, kind: str = TEXT, body: bytes | None = None, *, more: str = ""
    ) -> None:
        if self.leaving:
            return
        if body is None:
            body = f"{status.value} {status.phrase}\n".encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            f"Date: {formatdate(usegmt=True)}\r\n"
            f"Content-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"{more}Connection: close\r\n\r\n"
        )
        self._answered = True
        self._transport.write(head.encode() + (b"" if self._only_head else body))
        try:
            if self._client_done:
                self._transport.close()
            else:
                self._transport.write_eof()  # a close with unread input would reset, and overtake the answer
        except OSError:  # ENOTCONN: reset meanwhile
            self.abort()
