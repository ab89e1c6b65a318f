"""The instant path: a greeting that is known at accept time is sent at accept time.

The law is that of the stream path: every byte, half-close, discard, close. But everything up to the
half-close happens between two system calls, in batches, without a transport, a task or a callback; the
greeting and the end of stream leave in one segment (tcp(7), MSG_MORE). What cannot be finished at once is
handed to the stream path, which can wait.
"""

from __future__ import annotations

import contextlib
import socket
from asyncio import AbstractEventLoop, TimerHandle
from socket import SHUT_WR, SOCK_STREAM, SocketType
from typing import TYPE_CHECKING

from greeter.errors import GreetingError
from greeter.listeners import DIED_IN_QUEUE

if TYPE_CHECKING:
    from greeter.greeting import Greeting
    from greeter.listeners import Listener
    from greeter.reception import Address, Reception
    from greeter.stream import StreamPath

# Connections accepted per wake-up: a bit over a millisecond's worth, then other tasks get their turn.
ACCEPT_BATCH = 64

# So many clients in one wake-up are a sign of load. Then we look away for a moment, as a network card
# moderates its interrupts, so that the next ones come in a batch: a wake-up for every few connections,
# each fresh from the caches of another core, costs half as much again as greeting them. Whoever comes
# meanwhile waits for at most this long, in seconds; without load nobody does.
BUSY = 8
REST_SECONDS = 0.001

MSG_MORE = getattr(socket, "MSG_MORE", 0)  # Linux; elsewhere the end of stream takes its own segment
_SEND_FLAGS = MSG_MORE | socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)


def why_not_instant(words: Greeting, loop: AbstractEventLoop) -> str | None:
    """What keeps ``words`` from being said at accept time, or None if nothing does."""
    if words.kind == "async":
        return "an async greeting has to be awaited"
    if not words.quick:
        return "a sync greeting that is not declared quick runs in a thread"
    if type(loop).add_reader is AbstractEventLoop.add_reader or "Proactor" in type(loop).__name__:
        return "this event loop cannot watch a socket"
    return None


class InstantPath:
    """Accepts on ``listeners`` by watching them, and greets in the same breath.

    Every greeting that ``why_not_instant`` has nothing against; a client whose greeting has become of
    another kind meanwhile, or whose socket takes only a part of it, goes to ``stream``.
    """

    name = "instant"

    def __init__(self, reception: Reception, listeners: list[Listener], stream: StreamPath) -> None:
        self._reception = reception
        self._listeners = listeners
        self._stream = stream
        self._accepting = False
        self._resting: dict[Listener, TimerHandle] = {}

    async def start(self) -> None:
        """Begin to accept."""
        self.resume()

    def resume(self) -> None:
        """Accept again after ``stop``."""
        if not self._accepting:
            self._accepting = True
            for listener in self._listeners:
                self._watch(listener)

    def stop(self) -> None:
        """Accept no more for now. Those in the listen queue stay there."""
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                if (timer := self._resting.pop(listener, None)) is not None:
                    timer.cancel()
                else:
                    self._reception.loop.remove_reader(listener.sock.fileno())

    def _watch(self, listener: Listener) -> None:
        self._resting.pop(listener, None)
        self._reception.loop.add_reader(listener.sock.fileno(), self._on_readable, listener)

    def _on_readable(self, listener: Listener) -> None:
        reception = self._reception
        limit = min(ACCEPT_BATCH, reception.room)
        try:
            greeted = self.greet_queue(listener, limit)
        except OSError as error:
            reception.cannot_accept(error)
            return
        if reception.room <= 0:
            reception.full()
        elif BUSY <= greeted < limit:
            loop = reception.loop
            loop.remove_reader(listener.sock.fileno())
            self._resting[listener] = loop.call_later(REST_SECONDS, self._watch, listener)

    def greet_queue(self, listener: Listener, limit: int) -> int:
        """Greet up to ``limit`` clients from the listen queue; returns how many there were.

        Raises OSError when the system cannot accept, for want of descriptors or memory.
        """
        reception = self._reception
        arrive, accept, family = reception.arrive, listener.accept_fd, listener.family
        greeted: list[SocketType] = []
        total = accepted = 0
        try:
            while accepted < limit:
                fd, address = accept()
                accepted += 1
                sock = SocketType(family, SOCK_STREAM, 0, fd)
                arrive(address)
                data = reception.words.fixed
                if data is None and (data := self._render(sock, address, listener)) is None:
                    continue
                try:
                    sent = sock.send(data, _SEND_FLAGS)
                    if sent == len(data):
                        sock.shutdown(SHUT_WR)
                        total += sent
                        greeted.append(sock)
                        continue
                except BlockingIOError:
                    sent = 0
                except OSError:  # EPIPE, ECONNRESET, ENOTCONN: it left before it was greeted
                    sock.close()
                    reception.lost()
                    continue
                self._stream.take(sock.detach(), address, listener, (data, sent))
        except BlockingIOError:
            pass  # the queue is empty
        except OSError as error:
            if error.errno not in DIED_IN_QUEUE:
                raise
        finally:
            if greeted:
                reception.served(total, len(greeted))
                reception.parking.park(greeted)
        return accepted

    def _render(self, sock: SocketType, address: Address, listener: Listener) -> bytes | None:
        """The greeting for one client; None if it is not ours to say, or there is none."""
        reception = self._reception
        if not reception.words.quick:  # since a reload
            self._stream.take(sock.detach(), address, listener)
            return None
        try:
            return reception.words.render(reception.peer(address, listener.family, listener.address))
        except GreetingError as error:
            reception.not_made(address, error)
            with contextlib.suppress(OSError):
                sock.shutdown(SHUT_WR)
            reception.parking.park([sock])
            return None
