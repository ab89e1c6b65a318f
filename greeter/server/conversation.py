"""The life of a connection, top to bottom, whatever moves its bytes.

``Conversation.run`` is the one coroutine that says in which order things happen: PROXY header, admission, TLS
handshake, greeting, send, half-close, lingering close. It runs over a Connection (connection.py), of which
there are two kinds: a plain socket (direct_connection.py), and a StreamReader and StreamWriter (streams.py).

Invariants:

- A connection that fails before its greeting is closed without one, and the callable is not called.
- What comes behind a PROXY header belongs to the TLS handshake, or is discarded.
- Every await is bounded by the greet deadline or the linger deadline, which the tracker enforces by
  ``Connection.abort``. No await is needed on the way out.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

from greeter.core.address import unix_name
from greeter.core.greeting import Peer, raise_callable_error
from greeter.errors import GreetingError, ProxyProtocolError, os_error_text
from greeter.server.accept_pause import logger
from greeter.server.connection import GREETING, NO_TLS, PREAMBLE

if TYPE_CHECKING:
    import asyncio

    from greeter.core.address import Address
    from greeter.core.admission import Networks
    from greeter.core.greeting import Greeting
    from greeter.core.tls_session import TLSSession
    from greeter.server.connection import Connection
    from greeter.server.threads import CallableThreads
    from greeter.server.tracker import ConnectionTracker

# Bytes read at a time before the greeting: the longest PROXY header, or a ClientHello.
READ_SIZE = 4096

# Looking up an enum takes as long as a dozen other steps of a greeting.
_address_family = functools.cache(socket.AddressFamily)


class Conversation:
    """What the connections of one server go through.

    Args:
        tracker: counts them, has their deadlines, and the configuration of the server.
    """

    def __init__(self, tracker: ConnectionTracker) -> None:
        self.tracker = tracker
        self._hostname = socket.gethostname()
        self._threads: CallableThreads | None = None

    def close(self) -> None:
        """Start no more threads; a callable that is running runs on."""
        if self._threads is not None:
            self._threads.close()

    async def run(self, connection: Connection) -> None:
        """Serve ``connection``, which the tracker has started, until it is closed or lingers by itself."""
        config = self.tracker.config
        if config.has_preamble:
            connection.state = PREAMBLE
        try:
            received = b""
            session: TLSSession | None = None
            if config.proxy_from is not None:
                header = await self._read_proxy_header(connection, config.proxy_from)
                if header is None:
                    self.tracker.abort(connection)
                    return
                received = header
            if (context := self.tracker.config.tls) is not None:
                session = await self._do_handshake(connection, context, received)
                if session is None:
                    await self._end(connection)
                    return
            await self._greet(connection, session)
        except OSError as error:
            self._lost(connection, error)

    async def send_rest(self, connection: Connection, data: bytes, sent: int) -> None:
        """Send a greeting from ``sent`` on, where the kernel took only so many bytes of it at once."""
        connection.state = GREETING
        try:
            await connection.send(memoryview(data)[sent:], last=True)
            await self._end(connection, len(data))
        except OSError as error:
            self._lost(connection, error)

    def begin(self, greeting: Greeting, peer: Peer) -> asyncio.Future[bytes]:
        """Begin to make a greeting that takes its time: an async one, or a sync one in a thread.

        Raises:
            GreetingError: the system cannot start a thread.
        """
        loop = self.tracker.loop
        work: asyncio.Future[bytes]
        if greeting.kind == "async":
            work = loop.create_task(greeting.render_async(peer))
            work.add_done_callback(retrieve)
            return work
        if self._threads is None:
            from greeter.server.threads import CallableThreads  # most servers never need it

            self._threads = CallableThreads(loop)
        work = self._threads.begin(greeting, peer)
        work.add_done_callback(retrieve)
        return work

    def peer(self, connection: Connection) -> Peer:
        """The Peer for the greeting of ``connection``."""
        return self.make_peer(
            connection.address, connection.family, connection.server, connection.count, connection.tls
        )

    def make_peer(
        self, address: Address, family: int, server: str, count: int, tls: tuple[str, str] = NO_TLS
    ) -> Peer:
        """The Peer for a client; the arguments are as in Connection."""
        host, port = address[:2] if isinstance(address, tuple) else (unix_name(address), 0)
        return Peer(
            host=host,
            port=port,
            family=_address_family(family),
            server=server,
            hostname=self._hostname,
            time=time.time(),
            count=count,
            tls_version=tls[0],
            tls_subject=tls[1],
        )

    # -- the steps

    async def _read_proxy_header(self, connection: Connection, trusted: Networks) -> bytes | None:
        """Learn the client's address from the header, and decide about it.

        The header is accepted from trusted sources only, and never guessed (PROXY protocol, section 2).

        Returns:
            What was received behind the header; None if the connection failed or was rejected.
        """
        from greeter.core.proxy_protocol import NeedMore, parse  # only a server behind a proxy needs it

        tracker, address = self.tracker, connection.address
        # The permissions of a Unix socket's file say who may connect.
        if isinstance(address, tuple) and address[0].partition("%")[0] not in trusted:
            tracker.reject(connection, "untrusted")
            return None
        received = b""
        try:
            while True:
                more = await connection.receive(READ_SIZE)
                if not more:
                    raise ProxyProtocolError("the end of stream came first", len(received))
                received += more
                if not isinstance(parsed := parse(received), NeedMore):
                    break
        except (ProxyProtocolError, OSError) as error:
            what = os_error_text(error) if isinstance(error, OSError) else str(error)
            tracker.fail_preamble(connection, "proxy", f"no PROXY header ({what})", left=not received)
            return None
        header = parsed.header
        if header.source is not None and header.family is not None:
            connection.address, connection.family = header.source, header.family
            tracker.log.introduced(connection.key, header.source)
        if not tracker.admit(connection.address, connection.key):
            tracker.reject(connection)
            return None
        return received[parsed.consumed :]

    async def _do_handshake(
        self, connection: Connection, context: ssl.SSLContext, received: bytes
    ) -> TLSSession | None:
        """Returns the session, whose last bytes of the handshake are still to be sent; None if it failed."""
        from greeter.core.tls_session import TLSSession  # only a server with TLS needs it

        session = TLSSession(context)
        heard = bool(received)
        try:
            while not session.do_handshake(received):
                if reply := session.data_to_send():
                    await connection.send(reply)
                received = await connection.receive(READ_SIZE)
                if not received:
                    raise ConnectionError("the end of stream came first")
                heard = True
        except (ssl.SSLError, OSError) as error:
            if isinstance(error, ssl.SSLError):
                what = (error.reason or str(error)).lower().replace("_", " ")
                with contextlib.suppress(OSError):
                    await connection.send(session.data_to_send(), last=True)  # the alert
            else:
                what = os_error_text(error)
            self.tracker.fail_preamble(connection, "tls", f"no TLS handshake ({what})", left=not heard)
            return None
        connection.tls = session.version, session.subject
        return session

    async def _greet(self, connection: Connection, session: TLSSession | None) -> None:
        connection.state = GREETING
        greeting = self.tracker.greeting
        failure: GreetingError | None = None
        try:
            if greeting.fixed is not None:
                data = greeting.fixed
            elif greeting.quick:
                data = greeting.render(self.peer(connection))
            else:
                if session is not None and (flight := session.data_to_send()):
                    await connection.send(flight)
                data = await connection.result_of(self.begin(greeting, self.peer(connection)))
        except GreetingError as error:
            failure, data = error, b""
        if session is not None:
            # With TLS 1.3 and a short greeting that is known, everything leaves in one segment: session
            # tickets, greeting, close_notify and the end of stream.
            for piece, last in session.encrypt(data):
                await connection.send(piece, last=last)
        elif failure is None:
            await connection.send(data, last=True)
        if failure is not None:
            self.tracker.fail_greeting(connection, failure)
        await self._end(connection, len(data) if failure is None else None)

    async def _end(self, connection: Connection, sent: int | None = None) -> None:
        """Half-close and linger. ``sent`` is the size of the greeting, None if there was none."""
        await connection.half_close()
        if sent is not None:
            self.tracker.mark_greeted(connection, sent)
        await connection.linger()

    def _lost(self, connection: Connection, error: OSError) -> None:
        """The connection broke: it counts as reset unless it was greeted or has failed already."""
        logger.debug("%r: %s", connection, os_error_text(error))
        connection.abort()


def made(work: asyncio.Future[bytes]) -> bytes:
    """The greeting that ``work``, which is done, has made.

    Raises:
        GreetingError: its callable failed, in whatever way.
    """
    try:
        return work.result()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise_callable_error(error)


def retrieve(work: asyncio.Future[Any]) -> None:
    """Look at the outcome of what was begun for a client that may be gone; or else asyncio would log it."""
    if not work.cancelled():
        work.exception()
