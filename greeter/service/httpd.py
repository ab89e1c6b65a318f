"""The HTTP/1.1 server of ``greeter serve --metrics``: a few paths, GET and HEAD, one request per connection.

h11 parses requests and frames responses; this module owns the sockets, the deadline and the bounds.

Invariants:

- A connection is aborted after EXCHANGE_SECONDS, whatever state it is in.
- A request head has at most REQUEST_BYTES. What follows it is discarded, up to EXCESS_BYTES.
- When more than MAX_CONNECTIONS are open, the oldest is aborted: a client that never finishes cannot block
  others.
- The server half-closes after the response and reads to the client's end of stream: a close with unread
  input would reset the connection and could destroy the response (RFC 9112, 9.6).
- Nothing runs while no client is connected.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

from greeter.errors import MissingExtra
from greeter.system.listeners import Listener, open_listeners

try:
    import h11
except ImportError:
    raise MissingExtra("--metrics", "metrics") from None

if TYPE_CHECKING:
    from collections.abc import Mapping

    from greeter.core.endpoint import Endpoint

logger = logging.getLogger("greeter")

EXCHANGE_SECONDS = 5.0
REQUEST_BYTES = 8192
EXCESS_BYTES = 65536
MAX_CONNECTIONS = 8
BACKLOG = 64  # connections that the kernel queues beyond that
ACCEPT_BATCH = 1  # connections that asyncio accepts per wake-up, so that the limit holds after each

TEXT = "text/plain; charset=utf-8"

# What a request target has besides its path: scheme and authority (RFC 9112, 3.2.2), and the query.
_NOT_PATH = re.compile(rb"^https?://[^/?]*|\?.*", re.IGNORECASE)


class Response(NamedTuple):
    """The response to one request.

    Args:
        content_type: The value of its ``Content-Type`` field.
        body: Its content; a response to HEAD is sent without it.
        status: Its status code.
    """

    content_type: str
    body: bytes
    status: HTTPStatus = HTTPStatus.OK


# Makes the response to one request for a path.
Handler: TypeAlias = Callable[[], Awaitable[Response]]


async def serve_http(
    endpoint: Endpoint, handlers: Mapping[str, Handler], *, unix_mode: int | None = None
) -> HTTPServer:
    """Start a server.

    A handler is awaited for each request, within the deadline of its connection. If it raises, the
    response is 500 and one line is logged.

    Args:
        endpoint: Where to listen.
        handlers: The handler of each path, such as ``/metrics``. Any other path is 404.
        unix_mode: The mode of a Unix socket's file.

    Returns:
        The running server.

    Raises:
        ListenFailed: ``endpoint`` cannot be listened on.
    """
    server = HTTPServer(open_listeners([endpoint], backlog=BACKLOG, unix_mode=unix_mode), handlers)
    try:
        await server._start()
    except BaseException:
        server.close()
        raise
    return server


class HTTPServer:
    """A running server, as ``serve_http`` returns it."""

    def __init__(self, listeners: list[Listener], handlers: Mapping[str, Handler]) -> None:
        self.handlers = handlers
        self._listeners = listeners
        self._servers: list[asyncio.Server] = []
        self._connections: dict[_HTTPConnection, None] = {}  # the oldest first
        self._idle = asyncio.Event()
        self._closed = False

    @property
    def address(self) -> str:
        """The address that it listens on, with the actual port."""
        return self._listeners[0].address

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            sock = listener.sock.dup()
            server = await loop.create_server(lambda: _HTTPConnection(self), sock=sock, backlog=ACCEPT_BATCH)
            self._servers.append(server)
            sock.listen(BACKLOG)

    def close(self) -> None:
        """Stop listening and abort every connection."""
        self._closed = True
        for server in self._servers:
            server.close()
        for listener in self._listeners:
            listener.close()
        for connection in self._connections:
            connection.abort()
        self._check_idle()

    async def wait_closed(self) -> None:
        """Wait until the server and every connection are closed."""
        await self._idle.wait()

    def on_opened(self, connection: _HTTPConnection) -> None:
        """Add a connection, and abort the oldest if there are too many."""
        self._connections[connection] = None
        active = [each for each in self._connections if not each.closing]
        if self._closed:  # since the connection was accepted
            connection.abort()
        elif len(active) > MAX_CONNECTIONS:
            active[0].abort()

    def on_closed(self, connection: _HTTPConnection) -> None:
        """Remove a connection that is closed."""
        del self._connections[connection]
        self._check_idle()

    def _check_idle(self) -> None:
        if self._closed and not self._connections:
            self._idle.set()


class _HTTPConnection(asyncio.Protocol):
    """One connection: a request, its response, and then input is discarded until the client closes.

    Its states are those of h11: the client is IDLE until its request is complete or refused, and the
    server is in MUST_CLOSE once it has responded.
    """

    def __init__(self, server: HTTPServer) -> None:
        self._server = server
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_BYTES - 1)
        self._received = 0
        self._task: asyncio.Task[None] | None = None
        self._head_only = self._eof_received = False

    @property
    def closing(self) -> bool:
        """True once it is aborted or closed at both ends."""
        return self._transport.is_closing()

    def abort(self) -> None:
        """Close it without sending what is buffered."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._timer = asyncio.get_running_loop().call_later(EXCHANGE_SECONDS, self.abort)
        self._server.on_opened(self)

    def data_received(self, data: bytes) -> None:
        # h11 limits an incomplete head only, so a longer one must not reach it complete. It refuses
        # REQUEST_BYTES without an end with 431.
        head = data[: REQUEST_BYTES - self._received]
        self._received += len(data)
        if self._received > REQUEST_BYTES + EXCESS_BYTES:
            self.abort()
        elif self._http.their_state is h11.IDLE:
            self._http.receive_data(head)
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                self._send_status(HTTPStatus(error.error_status_hint))
            else:
                if isinstance(event, h11.Request):
                    self._handle(event)

    def eof_received(self) -> bool:
        self._eof_received = True
        # Stay open while a response is being made.
        return self._http.their_state is not h11.IDLE and self._http.our_state is not h11.MUST_CLOSE

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        self._server.on_closed(self)

    def _handle(self, request: h11.Request) -> None:
        self._head_only = request.method == b"HEAD"
        path = _NOT_PATH.sub(b"", request.target).decode()
        handler = self._server.handlers.get(path)
        if not request.http_version.startswith(b"1."):  # h11 leaves the version to its user
            self._send_status(HTTPStatus.BAD_REQUEST)
        elif handler is None:
            self._send_status(HTTPStatus.NOT_FOUND)
        elif request.method not in (b"GET", b"HEAD"):
            self._send_status(HTTPStatus.METHOD_NOT_ALLOWED, ("Allow", "GET, HEAD"))
        else:
            self._task = asyncio.get_running_loop().create_task(self._run(path, handler))

    async def _run(self, path: str, handler: Handler) -> None:
        try:
            response = await handler()
        except Exception as error:
            text = "cannot respond to a request for %s: %s: %s"
            logger.error(text, path, type(error).__name__, error, extra={"event": "metrics"})
            self._send_status(HTTPStatus.INTERNAL_SERVER_ERROR)
        else:
            self._send(response)

    def _send_status(self, status: HTTPStatus, *more: tuple[str, str]) -> None:
        self._send(Response(TEXT, f"{status.value} {status.phrase}\n".encode(), status), *more)

    def _send(self, response: Response, *more: tuple[str, str]) -> None:
        if self.closing:
            return
        content_type, body, status = response
        headers = [
            ("Date", formatdate(usegmt=True)),
            ("Content-Type", content_type),
            ("Content-Length", str(len(body))),
            *more,
            ("Connection", "close"),
        ]
        events = (
            h11.Response(status_code=status, reason=status.phrase, headers=headers),
            h11.Data(data=b"" if self._head_only else body),
            h11.EndOfMessage(),
        )
        self._transport.write(b"".join(self._http.send(event) for event in events))
        try:
            if self._eof_received:
                self._transport.close()
            else:
                self._transport.write_eof()
        except OSError:  # ENOTCONN: the client has reset the connection since
            self.abort()
