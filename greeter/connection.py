"""One client of the stream path, from the first byte to the last.

The law: a greeting accepted is a greeting delivered. The order is always the same: every byte, then
half-close, then discard what the client says until it closes or the linger deadline passes, then close.
Closing with unread input would make the kernel send a reset that can overtake the greeting (RFC 1122,
4.2.2.13; RFC 9293, 3.6.1).

There is no task, no timer and no read buffer per client: a client costs what asyncio's own objects cost,
and a task only while it is brought in or an async greeting is awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, cast

from greeter.errors import GreetingError
from greeter.handover import Handover, accepted
from greeter.listeners import cork

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import ThreadPoolExecutor

    from greeter.address import Address
    from greeter.greeting import Greeting, Peer
    from greeter.listeners import Listener
    from greeter.reception import Reception
    from greeter.seal import Seal
    from greeter.vestibule import Vestibule

# One write of at most this many bytes at a time: what waits in user space for a slow client is bounded.
CHUNK = 256 * 1024
# Slow sync greetings run in threads, and this many at a time.
THREADS = 32


class House:
    """What the connections of a server share: reception, vestibule, the way to a transport, and threads for
    slow callables."""

    def __init__(self, reception: Reception, vestibule: Vestibule) -> None:
        self.reception = reception
        self.vestibule = vestibule
        self.hand_over = Handover(reception.loop)
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
        "_count",  # which client of the server it is; 0 until it has arrived
        "_family",  # of that address, where it is not the listener's
        "_house",
        "_listener",
        "_paused",  # the kernel has not yet taken all that was written
        "_peer_done",  # the client has ended its side
        "_pieces",  # what is still to be written, or None
        "_seal",  # TLS, or None
        "_size",  # of the greeting; negative until it is there
        "_spoken",  # the end of stream is sent, or nothing will be
        "_task",  # brings the client in, or makes an async greeting
        "_transport",
    )

    def __init__(self, house: House, listener: Listener) -> None:
        self._house = house
        self._listener = listener
        self._address: Address = None
        self._count = self._family = 0
        self._paused = self._peer_done = self._spoken = False
        self._pieces: Iterator[bytes | memoryview] | None = None
        self._seal: Seal | None = None
        self._size = -1
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None

    def bring_in(self, fd: int, address: Address, begun: tuple[bytes, int] | None) -> None:
        """The client was accepted by hand, and perhaps part of its greeting was sent there."""
        house = self._house
        self._count = house.reception.stats.accepted
        self._address = address
        if begun is not None:
            greeting, sent = begun
            self._pieces, self._size = _cut(memoryview(greeting)[sent:]), len(greeting)
        reception = house.reception
        reception.wait(self)
        family = self._listener.family
        if not house.vestibule.empty:
            self._task = house.vestibule.bring_in(self, accepted(family, fd))
            return
        try:
            house.hand_over(fd, family, self)
        except OSError:  # it was reset on the way in
            reception.left(self)

    def introduce(self, address: Address, family: int) -> None:
        """A PROXY header has told who the client is."""
        self._address, self._family = address, family

    def sealed(self, seal: Seal) -> None:
        """What is written from here on goes through TLS."""
        self._seal = seal

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
        self._spoken = True
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.abort()

    # -- making the greeting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)
        if self._spoken:  # given up in the turn before this one
            transport.abort()
            return
        reception = self._house.reception
        # With no buffer allowed, "not paused" means that the kernel has every byte written so far.
        transport.set_write_buffer_limits(0, 0)
        if not self._count and not self._arrive():
            return
        if self._pieces is not None:
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
            self._task = reception.loop.create_task(self._compose(words))

    def _arrive(self) -> bool:
        reception = self._house.reception
        reception.wait(self)
        curious = reception.access_log is not None or reception.admission is not None
        address = self.address() if curious else None
        if not reception.arrive(address):
            reception.dismiss(self)
            self.abort()
            return False
        self._count = reception.stats.accepted
        if curious:
            reception.remember(self, address)
        if reception.room <= 0:
            reception.full()
        return True

    def _peer(self) -> Peer:
        listener = self._listener
        peer = self._house.reception.peer(
            self.address(), self._family or listener.family, listener.address, self._count
        )
        if (seal := self._seal) is not None:
            peer = dataclasses.replace(peer, tls_version=seal.version, tls_subject=seal.subject)
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
        except RuntimeError as error:  # no thread can be started
            self._fail(GreetingError(str(error)))
        except asyncio.CancelledError:
            if self._task is None or self._task.cancelling():
                raise  # it is we who give up
            self._fail(GreetingError("the greeting callable raised CancelledError"))
        else:
            self._send(data)
        finally:
            self._task = None

    def _fail(self, error: GreetingError) -> None:
        assert self._transport is not None
        if not self._transport.is_closing():
            self._house.reception.not_made(self.address(), error)
            self._house.reception.dismiss(self)
            if self._seal is not None:
                self._transport.write(b"".join(self._seal.pieces(b"")))
            self._half_close()

    # -- sending it

    def _send(self, data: bytes) -> None:
        assert self._transport is not None
        self._size = size = len(data)
        if self._seal is not None:
            self._pieces = self._seal.pieces(data)
        elif size <= CHUNK:
            self._transport.write(data)
        else:
            self._pieces = _cut(memoryview(data))
        self._go_on()

    def _go_on(self) -> None:
        """Write until the kernel takes no more; then half-close."""
        transport = self._transport
        assert transport is not None
        while self._pieces is not None and not self._paused:
            piece = next(self._pieces, None)
            if piece is None:
                self._pieces = None
            else:
                transport.write(piece)
        if transport.is_closing():  # the write failed, or a deadline passed: connection_lost follows
            return
        if not self._paused and self._half_close():
            self._house.reception.greeted(self, self._size)

    def pause_writing(self) -> None:
        self._paused = True
        # It goes in parts, and a part that waits for company waits for the client's delayed acknowledgement.
        assert self._transport is not None
        if (sock := self._transport.get_extra_info("socket")) is not None:
            with contextlib.suppress(OSError):  # reset meanwhile
                cork(sock, False)

    def resume_writing(self) -> None:
        self._paused = False
        # In a later turn: asyncio calls this amid its own writing, and looks for an end of stream after it.
        self._house.reception.loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self._size >= 0 and not self._spoken and not self._paused:
            self._go_on()

    def _half_close(self) -> bool:
        """Send our end of stream; False if the client is found to be gone."""
        assert self._transport is not None
        self._spoken = True
        try:
            if self._peer_done:
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
        return not self._spoken  # keep the transport open while we have something to say

    def connection_lost(self, exc: Exception | None) -> None:
        self._spoken = True
        if self._task is not None:
            self._task.cancel()
        self._house.reception.left(self)


def _cut(data: memoryview) -> Iterator[memoryview]:
    return (data[at : at + CHUNK] for at in range(0, len(data), CHUNK))
