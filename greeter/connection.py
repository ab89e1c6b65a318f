"""One client of the stream path, from the first byte to the last.

The law: a greeting accepted is a greeting delivered. The order is always the same: every byte, then
half-close, then discard what the client says until it closes or the linger deadline passes, then close.
Closing with unread input would make the kernel send a reset that can overtake the greeting (RFC 1122,
4.2.2.13; RFC 9293, 3.6.1). TLS has no half-close: there, close_notify takes its place (RFC 8446, 6.1).

There is no task, no timer and no read buffer per client: a client costs what asyncio's own objects cost,
and a task only while it is brought in or an async greeting is awaited.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from typing import TYPE_CHECKING, cast

from greeter.errors import GreetingError
from greeter.tls import describe_peer

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from greeter.greeting import Greeting, Peer
    from greeter.listeners import Listener
    from greeter.reception import Address, Reception
    from greeter.vestibule import Vestibule

# One write of at most this many bytes at a time: what waits in user space for a slow client is bounded.
CHUNK = 256 * 1024
# Slow sync greetings run in threads, and this many at a time.
THREADS = 32


class House:
    """What the connections of a server share: reception, vestibule, and threads for slow callables."""

    def __init__(self, reception: Reception, vestibule: Vestibule) -> None:
        self.reception = reception
        self.vestibule = vestibule
        self._threads: ThreadPoolExecutor | None = None

    def threads(self) -> ThreadPoolExecutor:
        """Where sync greetings run that are not declared quick."""
        if self._threads is None:
            from concurrent.futures import ThreadPoolExecutor  # most servers never need it

            self._threads = ThreadPoolExecutor(THREADS, "greeter-callable")
        return self._threads

    def close(self) -> None:
        """Start no more threads; a callable that is running runs on."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


class Connection(asyncio.Protocol):
    """One client of the stream path, from accept to close."""

    __slots__ = (
        "_address",  # of the client, where accept() or a PROXY header told it
        "_arrived",  # and counted
        "_house",
        "_listener",
        "_paused",  # the kernel has not yet taken all that was written
        "_peer_done",  # the client has ended its side
        "_rest",  # what is still to be written, or None
        "_size",  # of the greeting; negative until it is there
        "_spoken",  # the end of stream is sent, or nothing will be
        "_task",  # brings the client in, or makes an async greeting
        "_tls",
        "_transport",
    )

    def __init__(self, house: House, listener: Listener) -> None:
        self._house = house
        self._listener = listener
        self._address: Address = None
        self._arrived = self._paused = self._peer_done = self._spoken = self._tls = False
        self._rest: memoryview | None = None
        self._size = -1
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None

    def bring_in(self, sock: socket.socket, address: Address, begun: tuple[bytes, int] | None) -> None:
        """The client was accepted elsewhere, and perhaps part of its greeting was sent there."""
        self._arrived = True
        self._address = address
        if begun is not None:
            greeting, sent = begun
            self._rest, self._size = memoryview(greeting)[sent:], len(greeting)
        house = self._house
        house.reception.wait(self)
        self._task = house.reception.loop.create_task(house.vestibule.bring_in(self, sock))

    def introduce(self, address: Address) -> None:
        """A PROXY header has told who the client is."""
        self._address = address

    @property
    def connected(self) -> bool:
        """Whether there is a transport: the client is past the vestibule."""
        return self._transport is not None

    def address(self) -> Address:
        """The client's address, as accept() gives it; None if it had left before it could be asked."""
        if self._address is None and self._transport is not None:
            self._address = self._transport.get_extra_info("peername")
        return self._address

    def abort(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.abort()

    # -- making the greeting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)
        reception = self._house.reception
        self._tls = self._house.vestibule.tls is not None
        # With no buffer allowed, "not paused" means that the kernel has every byte written so far. TLS
        # pauses at its limit rather than above it, so there it is one byte, and what is still with the
        # transport below is not seen.
        transport.set_write_buffer_limits(1 if self._tls else 0, 0)
        if not self._arrived and not self._arrive():
            return
        if self._rest is not None:
            self._go_on()
            return
        words = reception.words
        if words.fixed is not None:
            self._send(words.fixed)
        elif words.quick:
            try:
                data = words.render(self._peer())
            except GreetingError as error:
                self._fail(error)
            else:
                self._send(data)
        else:
            reception.wait(self)
            self._task = reception.loop.create_task(self._compose(words))

    def _arrive(self) -> bool:
        reception = self._house.reception
        self._arrived = True
        curious = reception.access_log is not None or reception.admission is not None
        address = self.address() if curious else None
        if not reception.arrive(address):
            reception.dismiss(self)
            self.abort()
            return False
        if curious:
            reception.remember(self, address)
        if reception.room <= 0:
            reception.full()
        return True

    def _peer(self) -> Peer:
        address, family = self.address(), self._listener.family
        if isinstance(address, tuple):  # a PROXY header may come from another family
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        peer = self._house.reception.peer(address, family, self._listener.address)
        if self._tls and self._transport is not None:
            ssl_object = self._transport.get_extra_info("ssl_object")
            subject = describe_peer(self._transport.get_extra_info("peercert"))
            peer = dataclasses.replace(peer, tls_version=ssl_object.version() or "", tls_subject=subject)
        return peer

    async def _compose(self, words: Greeting) -> None:
        try:
            if words.kind == "async":
                data = await words.render_async(self._peer())
            else:
                pool = self._house.threads()
                data = await self._house.reception.loop.run_in_executor(pool, words.render, self._peer())
        except GreetingError as error:
            self._fail(error)
        else:
            self._send(data)
        finally:
            self._task = None

    def _fail(self, error: GreetingError) -> None:
        assert self._transport is not None
        if not self._transport.is_closing():
            self._house.reception.not_made(self.address(), error)
            self._house.reception.dismiss(self)
            self._half_close()

    # -- sending it

    def _send(self, data: bytes) -> None:
        assert self._transport is not None
        self._size = len(data)
        if len(data) <= CHUNK:
            self._transport.write(data)
        else:
            self._rest = memoryview(data)
        self._go_on()

    def _go_on(self) -> None:
        """Write until the kernel takes no more; then half-close."""
        transport = self._transport
        assert transport is not None
        while self._rest is not None and not self._paused:
            chunk, self._rest = self._rest[:CHUNK], self._rest[CHUNK:] or None
            transport.write(chunk)
        if transport.is_closing():  # the write failed, or a deadline passed: connection_lost follows
            return
        if self._paused:
            self._house.reception.wait(self)
        elif self._half_close():
            self._house.reception.greeted(self, self._size)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._size >= 0 and not self._spoken:
            self._go_on()

    def _half_close(self) -> bool:
        """Send our end of stream; False if the client is found to be gone."""
        assert self._transport is not None
        self._spoken = True
        try:
            if self._peer_done or self._tls:
                self._transport.close()
            else:
                self._transport.write_eof()
        except OSError:  # ENOTCONN: reset meanwhile
            self._transport.abort()
            return False
        return True

    # -- the client's side

    def data_received(self, data: bytes) -> None:
        pass  # whatever it says, it is not for us

    def eof_received(self) -> bool:
        self._peer_done = True
        # Keep the transport open while we have something to say; TLS ends both sides at once.
        return not self._spoken and not self._tls

    def connection_lost(self, exc: Exception | None) -> None:
        self._spoken = True
        if self._task is not None:
            self._task.cancel()
        self._house.reception.left(self)
