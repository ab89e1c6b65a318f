"""The HTTP/1.1 server of ``greeter serve --metrics``: a few paths, GET and HEAD, one request per connection.

h11 parses requests and frames responses; this module owns the sockets, the deadline and the bounds.

Invariants:

- A connection is aborted after EXCHANGE_SECONDS, whatever state it is in; a pause of the process moves that.
- A request head has at most REQUEST_BYTES. What follows it is discarded, up to EXCESS_BYTES.
- At most MAX_CONNECTIONS are open; further clients wait. While one waits, the oldest connection is aborted
  once it has been open for GRACE_SECONDS: clients that never finish cannot block others, and clients that
  connect at the same moment do not cut each other off.
- The server half-closes after the response and reads to the client's end of stream: a close with unread
  input would reset the connection and could destroy the response (RFC 9112, 9.6).
- Nothing runs while no client is connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import re
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

from greeter.errors import ConfigError, MissingExtra
from greeter.server.accept_pause import RETRY_SECONDS
from greeter.server.timeouts import Deadline, timeout_without_pauses
from greeter.system.listeners import TRANSIENT_ACCEPT_ERRORS, Listener, open_listeners

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
MAX_CONNECTIONS = 16  # for which greeter.system.fdlimit.RESERVE has descriptors
# Longer than a request takes on its way through a network, from the first packet on.
GRACE_SECONDS = 0.25
BACKLOG = 128  # connections that the kernel queues beyond MAX_CONNECTIONS

TEXT = "text/plain; charset=utf-8"

# What a request target has besides its path: scheme and authority (RFC 9112, 3.2.2), and the query.
_NOT_PATH = re.compile(rb"^https?://[^/?]*|\?.*", re.IGNORECASE)


class Response(NamedTuple):
    """The response to one request.

    Args:
        content_type: The value of its ``Content-Type`` field.
        body: Its content; a response to HEAD is sent without it.
        status: Its status code.
        fields: Further header fields, as names and values.
    """

    content_type: str
    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    fields: tuple[tuple[str, str], ...] = ()


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
        ConfigError: It is one for datagrams.
    """
    listeners = open_listeners([endpoint], backlog=BACKLOG, unix_mode=unix_mode)
    try:
        for listener in listeners:  # the type of an inherited socket is known now
            listener.endpoint.require_stream("HTTP")
    except ConfigError:
        for listener in listeners:
            listener.close()
        raise
    server = HTTPServer(listeners, handlers)
    server._start()
    return server


class HTTPServer:
    """A running server, as ``serve_http`` returns it."""

    def __init__(self, listeners: list[Listener], handlers: Mapping[str, Handler]) -> None:
        self.handlers = handlers
        self._listeners = listeners
        self._accepting: list[asyncio.Task[None]] = []
        self._connections: dict[_HTTPConnection, None] = {}  # the oldest first
        self._freed = asyncio.Event()  # set when a connection is closed
        self._idle = asyncio.Event()
        self._closed = False

    @property
    def address(self) -> str:
        """The address that it listens on, with the actual port."""
        return self._listeners[0].address

    def _start(self) -> None:
        for listener in self._listeners:
            task = asyncio.get_running_loop().create_task(self._accept_from(listener))
            self._accepting.append(task)
            task.add_done_callback(functools.partial(self._on_accepting_ended, listener))

    def _on_accepting_ended(self, listener: Listener, _: asyncio.Task[None]) -> None:
        listener.close()  # the event loop watches the socket no more

    async def _accept_from(self, listener: Listener) -> None:
        """Accept connections one by one. The one that was accepted last waits here until there is room."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener.sock)
            except OSError as error:
                if error.errno not in TRANSIENT_ACCEPT_ERRORS:
                    await asyncio.sleep(RETRY_SECONDS)
                continue
            try:
                await self._wait_for_room()
            except asyncio.CancelledError:
                sock.close()
                raise
            with contextlib.suppress(OSError):  # the client has reset the connection since
                await loop.connect_accepted_socket(lambda: _HTTPConnection(self), sock)

    async def _wait_for_room(self) -> None:
        """Wait until another connection may be opened, and abort the oldest one if that takes too long."""
        loop = asyncio.get_running_loop()
        while len(active := [each for each in self._connections if not each.closing]) >= MAX_CONNECTIONS:
            self._freed.clear()
            try:
                left = active[0].opened + GRACE_SECONDS - loop.time()
                async with timeout_without_pauses(max(0.0, left)):
                    await self._freed.wait()
            except TimeoutError:
                active[0].abort()

    def close(self) -> None:
        """Stop listening and abort every connection."""
        self._closed = True
        for task in self._accepting:
            task.cancel()
        for connection in self._connections:
            connection.abort()
        self._check_idle()

    async def wait_closed(self) -> None:
        """Wait until the server and every connection are closed."""
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await self._idle.wait()

    def on_opened(self, connection: _HTTPConnection) -> None:
        """Add a connection."""
        self._connections[connection] = None
        if self._closed:  # since the connection was accepted
            connection.abort()

    def on_closed(self, connection: _HTTPConnection) -> None:
        """Remove a connection that is closed."""
        del self._connections[connection]
        self._freed.set()
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
        loop = asyncio.get_running_loop()
        self.opened = loop.time()
        self._deadline = Deadline(loop, EXCHANGE_SECONDS, self.abort)
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
        self._deadline.cancel()
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

    def _send_status(self, status: HTTPStatus, *fields: tuple[str, str]) -> None:
        self._send(Response(TEXT, f"{status.value} {status.phrase}\n".encode(), status, fields))

    def _send(self, response: Response) -> None:
        if self.closing:
            return
        content_type, body, status, fields = response
        headers = [
            ("Date", formatdate(usegmt=True)),
            ("Content-Type", content_type),
            ("Content-Length", str(len(body))),
            *fields,
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
