"""One client of a check: a raw socket that connects, speaks, listens, and says how it ended.

Invariants:

- The kernel's own state of the connection is asked (``TCP_INFO``, tcp(7)): ``recv`` returns the end of stream
  also where a reset follows it, and does not show the reset.
- Every wait has a deadline, and the socket is closed however the client ends.
- Nothing is sent that the check did not ask for.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import struct
from time import perf_counter
from typing import TYPE_CHECKING, Self

from greeter.conformance.findings import Ending, Experience
from greeter.core.proxy_protocol import encode

if TYPE_CHECKING:
    from greeter.conformance.dial import Dial

# How long after the end of stream a reset is looked for, in seconds. On a path without queues it follows at
# once.
RESET_DELAY = 0.15
# What a client receives at the most.
MAX_BYTES = 16 * 1024 * 1024
# Of enum tcp_states in the kernel's tcp_states.h: no connection any more.
_TCP_CLOSE = 7
# Where tcpi_total_retrans is in struct tcp_info of <linux/tcp.h>.
_TOTAL_RETRANS = slice(100, 104)
# Errors of this machine, not of the service.
LOCAL_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}


class Ended(Exception):  # not an error: how a client ended, from wherever it ended
    """The client's connection has ended."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending)
        self.ending = ending


class Probe:
    """One client. Use it with ``async with``; its methods raise ``Ended`` where its connection ends.

    Args:
        dial: How to connect.
        timeout: Takes the place of ``dial.timeout``.
    """

    def __init__(self, dial: Dial, *, timeout: float | None = None) -> None:
        self.dial = dial
        self.data = bytearray()
        self.eof = False
        self.truncated = False
        self._loop = asyncio.get_running_loop()
        self._story: list[tuple[float, str]] = []
        self._start = perf_counter()  # uvloop's clock has milliseconds
        self._syn_again = False
        self._deadline = self._loop.time() + (dial.timeout if timeout is None else timeout)
        self._sock: socket.socket | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._paused = False  # for as long as ends ``idle:DUR``

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    # -- what a client does

    async def connect(self) -> None:
        """Connect, and send the PROXY header if there is one."""
        self._note("connect")
        try:
            self._sock = sock = socket.socket(self.dial.family, socket.SOCK_STREAM)
            sock.setblocking(False)
            async with asyncio.timeout_at(self._deadline):
                await self._loop.sock_connect(sock, self.dial.address)
        except TimeoutError:  # ours or the kernel's
            raise Ended(Ending.CONNECT_TIMEOUT) from None
        except OSError as error:
            self._note(errno.errorcode.get(error.errno or 0, "error"))
            raise Ended(Ending.LOCAL if error.errno in LOCAL_ERRORS else Ending.REFUSED) from None
        self._syn_again = any(self._tcp_info()[_TOTAL_RETRANS])  # no lateness of this process, as a time is
        if self.dial.proxy is not None:
            header = encode(self.dial.proxy, sock.getsockname(), sock.getpeername())
            await self.send_raw(header, f"sent a PROXY header of {len(header)} B")

    async def handshake(self) -> None:
        """Complete the TLS handshake. Does nothing without TLS."""
        if self.dial.tls is None:
            return
        self._tls = self._session(self.dial.tls)
        first = True
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await (self._first_flight() if first else self._flush())
                first = False
                received = await self._receive()
                if not received:
                    self._note("closed in the handshake")
                    raise Ended(Ending.TLS_ERROR) from None
                self._incoming.write(received)
            except ssl.SSLError as error:
                with contextlib.suppress(Ended):
                    await self._flush()  # the alert
                self._note(f"TLS: {error.reason or 'error'}".lower())
                raise Ended(Ending.TLS_ERROR) from None
            else:
                break
        await self._flush()
        self._note(self._tls.version() or "TLS")

    def _session(self, context: ssl.SSLContext) -> ssl.SSLObject:
        version, bounds = self.dial.tls_version, (context.minimum_version, context.maximum_version)
        if version is not None:  # a context cannot be copied, and a session takes its bounds when it begins
            context.minimum_version = context.maximum_version = version
        try:
            return context.wrap_bio(self._incoming, self._outgoing, server_hostname=self.dial.server_name)
        finally:
            if version is not None:
                context.minimum_version, context.maximum_version = bounds

    async def _first_flight(self) -> None:
        flight = self.dial.joined + self._outgoing.read()
        if not self.dial.pieces:
            await self.send_raw(flight, f"sent {len(flight)} B of TLS")
            return
        for byte in flight:
            await self.send_raw(bytes([byte]), "")
            await asyncio.sleep(0)
        self._note(f"sent {len(flight)} B of TLS, byte by byte")

    async def send_close_notify(self) -> None:
        """End our side of the TLS stream."""
        assert self._tls is not None
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        await self._flush("sent close_notify")

    async def open(self, *, request: bool = True) -> None:
        """Connect, complete the preamble, and say what the service waits for."""
        await self.connect()
        await self.proceed(request=request)

    async def proceed(self, *, request: bool = True) -> None:
        """Do what ``open`` does after it has connected."""
        await self.handshake()
        if request and self.dial.send:
            await self.send(self.dial.send)

    async def send(self, data: bytes) -> None:
        """Send ``data``, over TLS if there is TLS."""
        if self._tls is None:
            await self.send_raw(data)
            return
        self._tls.write(data)
        await self._flush(f"sent {len(data)} B")

    async def send_raw(self, data: bytes, note: str | None = None) -> None:
        """Send ``data`` as it is."""
        assert self._sock is not None
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._loop.sock_sendall(self._sock, data)
        except TimeoutError:
            self._note("the window stayed shut")
            raise Ended(self._at_deadline()) from None
        except OSError:
            self._note("RST")
            raise Ended(self._after_reset()) from None
        if note != "":
            self._note(note or f"sent {len(data)} B")

    async def listen(self) -> None:
        """Receive until the greeting is whole or the stream ends."""
        while not self.eof and not self.whole:
            if self.dial.until.kind == "idle" and self.data:
                try:
                    async with asyncio.timeout(self.dial.until.idle):
                        await self._read()
                except TimeoutError:
                    self._paused = self._received(socket.MSG_PEEK) is None
                continue
            await self._read()
            if len(self.data) > MAX_BYTES:
                self._note(f"more than {MAX_BYTES} B")
                raise Ended(Ending.OTHER)

    async def drain(self) -> None:
        """Receive until the stream ends, whatever comes."""
        while await self._receive():
            pass

    async def finish(self) -> Ending:
        """Receive the greeting to its end, and say how the connection ended."""
        await self.listen()
        return await self.judge()

    async def judge(self) -> Ending:
        """Say how the connection ended, after ``listen``."""
        if not self.eof and self.dial.until.kind == "eof":
            raise Ended(self._at_deadline())
        said = self.said()
        if said is not Ending.GREETED:
            return said
        # A reset follows the end of stream by what the service needs to see that input was unread.
        for delay in (0.0, RESET_DELAY / 3, RESET_DELAY * 2 / 3) if self.eof else (0.0,):
            await asyncio.sleep(delay)
            if self.is_reset():
                self._note("RST")
                return Ending.RESET
        return Ending.GREETED

    def half_close(self) -> None:
        """End our side of the stream."""
        assert self._sock is not None
        with contextlib.suppress(OSError):  # it is reset, which the next read says
            self._sock.shutdown(socket.SHUT_WR)
        self._note("sent FIN")

    def is_reset(self) -> bool:
        """True if the peer has reset the connection, whether or not a read has shown it."""
        info = self._tcp_info()
        return bool(info) and info[0] == _TCP_CLOSE

    def _tcp_info(self) -> bytes:
        assert self._sock is not None
        if self._sock.family == socket.AF_UNIX:
            return b""
        return self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TOTAL_RETRANS.stop)

    def abort(self) -> None:
        """Reset the connection."""
        if self._sock is not None:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._note("sent RST")
        self.close()

    def close(self) -> None:
        """Close the socket."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def experience(self, ending: Ending) -> Experience:
        """Returns what this client experienced."""
        return Experience(ending, bytes(self.data), tuple(self._story), self.truncated, self._syn_again)

    # -- the rest

    @property
    def closed(self) -> bool:
        """True if the socket is closed, or was never open."""
        return self._sock is None

    @property
    def whole(self) -> bool:
        """True if the greeting has ended, other than by the end of the stream."""
        return self._paused or self.dial.until.end(self.data) is not None

    async def _read(self) -> None:
        """Receive once, and decrypt it."""
        if self._tls is None:
            received = await self._receive()
            self._take(received)
            self.eof = not received
            return
        while not self._decrypt(self._tls):
            received = await self._receive()
            if received:
                self._incoming.write(received)
            else:
                self._incoming.write_eof()

    def _decrypt(self, session: ssl.SSLObject) -> bool:
        """Take what was received over TLS. Returns False if more has to be received first."""
        try:
            plain = session.read(65536)
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLZeroReturnError:
            plain = b""
        except ssl.SSLError:  # SSLEOFError, or a record that is none
            self.truncated = self.eof = True
            return True
        if plain:
            self._take(plain)
        else:  # how _ssl.c returns the end of a session whose other direction is open
            self._note("close_notify")
            self.eof = True
        return True

    async def _receive(self) -> bytes:
        # Not by loop.sock_recv(): if data and the deadline come at once, as after a pause of this process,
        # asyncio cancels the task that the data is for, and it is lost.
        while (received := self._received()) is None:
            if self._loop.time() >= self._deadline:
                self._note("nothing more by the deadline")
                raise Ended(self._at_deadline())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._deadline):
                    await self._until_readable()
        if not received:
            self._note("FIN")
        return received

    def _received(self, flags: int = 0) -> bytes | None:
        """What has come; None if nothing has."""
        assert self._sock is not None
        try:
            return self._sock.recv(65536, flags)
        except BlockingIOError:
            return None
        except OSError:
            self._note("RST")
            raise Ended(self._after_reset()) from None

    async def _until_readable(self) -> None:
        assert self._sock is not None
        sock, readable = self._sock, asyncio.Event()
        self._loop.add_reader(sock, readable.set)
        try:
            await readable.wait()
        finally:
            self._loop.remove_reader(sock)

    def _take(self, received: bytes) -> None:
        if received:
            self.data += received
            self._note(f"got {len(received)} B")

    async def _flush(self, note: str = "") -> None:
        if data := self._outgoing.read():
            await self.send_raw(data, note or f"sent {len(data)} B of TLS")

    def said(self) -> Ending:
        """How the connection ended, by what was received alone."""
        data, dial = self.data, self.dial
        if not data:
            return Ending.LOST
        if not data.startswith(dial.beginning):
            return Ending.LOST if dial.beginning.startswith(data) else Ending.OTHER
        if (dial.expect and dial.expect not in data) or (dial.begins and not data.startswith(dial.begins)):
            return Ending.OTHER
        complete = self.whole or (self.eof and dial.until.ended_by_eof(data))
        return Ending.GREETED if complete and len(data) >= dial.shortest else Ending.LOST

    def _after_reset(self) -> Ending:
        self.eof = True
        said = self.said()
        return Ending.RESET if said is Ending.GREETED else said

    def _at_deadline(self) -> Ending:
        return Ending.INCOMPLETE if self.data else Ending.SILENT

    def _note(self, event: str) -> None:
        if len(self._story) < 100:
            self._story.append((perf_counter() - self._start, event))
