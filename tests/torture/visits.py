"""Clients of every kind: what each does, and what became of it.

A visit of a good client ends in one of three ways. ``greeted``: every byte and an orderly end. ``refused``:
no connection. ``lost``: anything else, and ``how`` says what.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import greeter
from greeter.core.proxy_protocol import encode
from tests.support.peers import read_within_tls, reset
from tests.torture.schedule import GOOD

if TYPE_CHECKING:
    from greeter.core.proxy_protocol import ProxyVersion
    from tests.torture.schedule import Event
    from tests.torture.service import Service

# A good client that has no end after so long is lost, in seconds.
DEADLINE = 30.0
# A datagram may be lost: the client asks again after so long, in seconds.
ASK_AGAIN = 0.3
LINE = b"Hello from a client"
FLOOD = 60_000
SMALL_WINDOW, TINY_WINDOW = 16_384, 1


@dataclass
class Visit:
    """One client.

    Attributes:
        kind: What it does.
        endpoint: Where it connects: ``tcp``, ``unix`` or ``udp``.
        began: When it began to connect, on the monotonic clock; ``connected`` and ``ended`` are as late.
        connected: 0 if it has no connection.
        outcome: ``greeted``, ``refused`` or ``lost``; "" for a bad client, and before its end.
        how: How it was lost.
        received: The bytes of the greeting that it received.
    """

    kind: str
    endpoint: str
    began: float = 0.0
    connected: float = 0.0
    ended: float = 0.0
    outcome: str = ""
    how: str = ""
    received: int = 0

    @property
    def good(self) -> bool:
        """Whether it must be greeted or refused."""
        return self.kind in GOOD

    @property
    def connecting(self) -> bool:
        """Whether it waits for its connection. Cancelled before it begins, a task would not judge it."""
        return bool(self.began) and not (self.connected or self.ended)

    def __str__(self) -> str:
        seconds = self.ended - (self.connected or self.began)
        return f"{self.kind} ({self.endpoint}): {self.outcome} {self.how}, after {seconds:.3f} s"


class Refused(Exception):  # an outcome, not an error
    """There is no connection."""


class Client:
    """One client of a service.

    Args:
        service: The service.
        event: What kind of client it is, and how long it takes.
        number: Which one of the event.
    """

    def __init__(self, service: Service, event: Event, number: int) -> None:
        chance = random.Random(f"{event.what} {event.value} {number}")
        streams = [name for name in ("tcp", "unix") if name in service.addresses]
        endpoint = "udp" if event.what == "datagram" else streams[(event.value + number) % len(streams)]
        self.visit = Visit(event.what, endpoint)
        self._service = service
        self._seconds = event.ms / 1000 * chance.uniform(0.5, 1.0)
        self._chance = chance
        # Several addresses, for what is limited for each.
        self._host = f"127.0.0.{2 + (event.value + number) % 3}"
        self._proxy_version: ProxyVersion = "v1" if chance.random() < 0.5 else "v2"
        self._loop = asyncio.get_running_loop()

    async def come(self) -> None:
        """Visit once, and judge it."""
        visit = self.visit
        visit.began = time.monotonic()
        try:
            if visit.good:
                async with asyncio.timeout(DEADLINE):
                    received = await self._good()
                visit.received = len(received)
                self._judge(received)
            else:
                async with asyncio.timeout(DEADLINE):
                    await self._bad()
        except Refused:
            visit.outcome = "refused"
        except TimeoutError:
            visit.outcome, visit.how = "lost", f"no end within {DEADLINE:g} s"
        except (OSError, greeter.GreetFailed) as error:
            visit.outcome, visit.how = "lost", f"{error!r} after {visit.received} bytes"
        except asyncio.CancelledError:
            if visit.connected:
                raise
            visit.outcome = "refused"  # it was still connecting when the last process had exited
        finally:
            visit.ended = time.monotonic()
            if not visit.good:
                visit.outcome = visit.how = ""

    def _judge(self, received: bytes) -> None:
        wanted = self._wanted()
        if received == wanted:
            self.visit.outcome = "greeted"
        else:
            self.visit.outcome = "lost"
            self.visit.how = f"an end after {len(received)} of {len(wanted)} bytes: {received[:30]!r}"

    def _wanted(self) -> bytes:
        if self._service.spec.greeting != "template":
            return self._service.greeting
        if self.visit.endpoint == "unix" and self._header_version() == "v1":
            return b"to "  # the header says UNKNOWN
        return b"to " if self.visit.endpoint == "unix" else b"to " + self._source().encode()

    def _source(self) -> str:
        own = self.visit.kind in ("greet", "datagram")  # they do not choose their address
        return "127.0.0.1" if own else self._host

    def _header_version(self) -> str:
        return self._proxy_version if self._service.spec.proxy else ""

    # -- connecting

    async def _connect(self, *, window: int = 0) -> socket.socket:
        """Return a connected, non-blocking socket. Raises Refused."""
        address = self._service.addresses[self.visit.endpoint]
        unix = self.visit.endpoint == "unix"
        sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        try:
            sock.setblocking(False)
            if window:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
            if unix:
                await self._connect_unix(sock, address.removeprefix("unix:"))
            else:
                sock.bind((self._host, 0))
                host, _, port = address.rpartition(":")
                await self._loop.sock_connect(sock, (host, int(port)))
        except (ConnectionRefusedError, FileNotFoundError) as error:
            sock.close()
            raise Refused from error
        except BaseException:
            sock.close()
            raise
        self.visit.connected = time.monotonic()
        return sock

    async def _connect_unix(self, sock: socket.socket, path: str) -> None:
        while True:
            try:
                await self._loop.sock_connect(sock, path)
            except BlockingIOError:  # the accept queue is full, and the kernel does not let us wait (unix(7))
                await asyncio.sleep(0.01)
            else:
                return

    def _header(self, sock: socket.socket) -> bytes:
        if not self._service.spec.proxy:
            return b""
        return encode(self._proxy_version, sock.getsockname(), sock.getpeername())

    # -- good clients

    async def _good(self) -> bytes:
        if self.visit.kind == "greet":
            return await self._greet()
        if self.visit.kind == "datagram":
            return await self._ask()
        window = SMALL_WINDOW if self.visit.kind == "small window" else 0
        sock = await self._connect(window=window)
        try:
            if self._service.spec.tls:
                return await self._read_tls(sock)
            return await self._read_plain(sock)
        finally:
            sock.close()

    async def _read_tls(self, sock: socket.socket) -> bytes:
        kind = self.visit.kind
        if kind == "dawdle":
            await asyncio.sleep(self._seconds)
        return await read_within_tls(
            sock,
            self._service.context,
            "127.0.0.1",
            header=self._header(sock),
            say=LINE if kind in ("speak", "urgent", "flood") else b"",
            piece=20 if kind == "pieces" else 0,
        )

    async def _read_plain(self, sock: socket.socket) -> bytes:
        kind, header = self.visit.kind, self._header(sock)
        if kind == "pieces":
            whole = header + LINE
            for first in range(0, len(whole), 9):
                await self._loop.sock_sendall(sock, whole[first : first + 9])
                await asyncio.sleep(self._seconds / 20)
        elif kind == "dawdle":
            await self._loop.sock_sendall(sock, header)
            await asyncio.sleep(self._seconds)
        else:
            say = {"speak": LINE, "flood": b"f" * FLOOD}.get(kind, b"")
            await self._loop.sock_sendall(sock, header + say)
        if kind == "urgent" and self.visit.endpoint == "tcp":
            sock.send(b"!", socket.MSG_OOB)
            await self._loop.sock_sendall(sock, LINE)
        elif kind == "half-close":
            sock.shutdown(socket.SHUT_WR)
        received = bytearray()
        while chunk := await self._loop.sock_recv(sock, 65536):
            received += chunk
            self.visit.received = len(received)
        return bytes(received)

    async def _greet(self) -> bytes:
        """The client of greeter itself."""
        self.visit.connected = time.monotonic()  # it does not tell
        service = self._service
        try:
            reply = await greeter.greet(
                service.addresses[self.visit.endpoint],
                timeout=DEADLINE,
                connect_timeout=DEADLINE,
                max_bytes=1 << 21,
                ssl=service.context if service.spec.tls else None,
                server_hostname="127.0.0.1" if service.spec.tls else None,
                proxy_protocol=("v1" if self._proxy_version == "v1" else "v2")
                if service.spec.proxy
                else None,
            )
        except greeter.ConnectFailed as error:
            if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                raise Refused from error
            raise
        if reply.reset or reply.truncated:
            raise ConnectionResetError(f"{'reset' if reply.reset else 'truncated'}: {reply.data[:30]!r}")
        return reply.data

    async def _ask(self) -> bytes:
        """A client for datagrams."""
        host, _, port = self._service.addresses["udp"].removeprefix("udp:").rpartition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect((host, int(port)))
            while True:
                try:
                    await self._loop.sock_sendall(sock, LINE * 9)
                    async with asyncio.timeout(ASK_AGAIN):
                        return await self._loop.sock_recv(sock, 65536)
                except ConnectionRefusedError as error:
                    raise Refused from error
                except TimeoutError:
                    continue

    # -- bad clients

    async def _bad(self) -> None:
        kind = self.visit.kind
        sock = await self._connect(window=TINY_WINDOW if kind == "tiny window" else 0)
        try:
            with contextlib.suppress(OSError):
                await getattr(self, "_" + kind.replace(" ", "_"))(sock)
        finally:
            sock.close()

    async def _reset(self, sock: socket.socket) -> None:
        await asyncio.sleep(self._seconds / 10)
        reset(sock)

    async def _vanish(self, sock: socket.socket) -> None:
        """It closes at once."""

    async def _stall(self, sock: socket.socket) -> None:
        """It says nothing, not even a header or a handshake."""
        await asyncio.sleep(self._seconds)

    async def _hold(self, sock: socket.socket) -> None:
        """It is greeted, and does not close."""
        await self._loop.sock_sendall(sock, self._header(sock))
        await asyncio.sleep(self._seconds)

    async def _tiny_window(self, sock: socket.socket) -> None:
        """It does not read, and has room for little."""
        await self._hold(sock)
        reset(sock)

    async def _garbage(self, sock: socket.socket) -> None:
        await self._loop.sock_sendall(sock, self._chance.randbytes(self._chance.choice((1, 100, 5000))))
        await asyncio.sleep(self._seconds)

    async def _bad_preamble(self, sock: socket.socket) -> None:
        """A header that is no header, or a handshake that turns into something else."""
        wrong = [
            b"PROXY TCP4 1.2.3.4\r\n",
            b"PROXY TCP9 ",
            b"\r\n\r\n\0\r\nQUIT\n\xff",
            b"GET / HTTP/1.1\r\n\r\n",
        ]
        hello = self._client_hello()
        wrong += [hello[:50] + b"\xff" * 100, hello + b"\x17\x03\x03\x00\x04junk"]
        data = self._chance.choice(wrong)
        good_header = self._header(sock) if data[:1] == b"\x16" else b""
        await self._loop.sock_sendall(sock, good_header + data)
        await asyncio.sleep(self._seconds)

    async def _cut_preamble(self, sock: socket.socket) -> None:
        """The first part of a header or of a handshake, and then an end or a reset."""
        whole = self._header(sock) + self._client_hello()
        await self._loop.sock_sendall(sock, whole[: self._chance.randrange(1, len(whole))])
        await asyncio.sleep(self._seconds)
        if self._chance.random() < 0.5:
            reset(sock)

    def _client_hello(self) -> bytes:
        outgoing = ssl.MemoryBIO()
        tls = self._service.context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        return outgoing.read()
