"""The instant path: a greeting that is known at accept time is sent at accept time.

The law is that of the stream path: every byte, half-close, discard, close. But everything up to the
half-close happens between two system calls, in batches, without a transport, a task or a callback; the
greeting and the end of stream leave in one segment (tcp(7), MSG_MORE). What cannot be finished at once is
handed to the stream path, which can wait.
"""

from __future__ import annotations

import contextlib
import socket
from socket import SHUT_WR, SOCK_STREAM, SocketType
from time import perf_counter
from typing import TYPE_CHECKING

from greeter.errors import GreetingError
from greeter.listeners import DIED_IN_QUEUE

if TYPE_CHECKING:
    from greeter.address import Address
    from greeter.greeting import Greeting
    from greeter.listeners import Listener
    from greeter.reception import Reception
    from greeter.stream import Stream

MSG_MORE = getattr(socket, "MSG_MORE", 0)  # Linux; elsewhere the end of stream takes its own segment
_SEND_FLAGS = MSG_MORE | socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)


def why_not_instant(words: Greeting) -> str | None:
    """What keeps ``words`` from being said at accept time, or None if nothing does."""
    if words.kind == "async":
        return "an async greeting has to be awaited"
    if not words.quick:
        return "a sync greeting that is not declared quick runs in a thread"
    return None


class Instant:
    """Greets clients in the same breath as it accepts them.

    A client whose greeting has become of another kind since the start, by a reload, or whose socket takes
    only a part of it, goes to ``stream``.
    """

    def __init__(self, reception: Reception, stream: Stream) -> None:
        self._reception = reception
        self._stream = stream

    def greet_queue(self, listener: Listener, limit: int) -> int:
        """Greet up to ``limit`` clients from the listen queue; returns how many there were.

        One that died in the queue ends the batch. Zero means that the queue is empty.
        Raises OSError when the system cannot accept, for want of descriptors or memory.
        """
        reception = self._reception
        arrive, accept, family = reception.arrive, listener.accept_fd, listener.family
        greeted: list[SocketType] = []
        total = accepted = 0
        start = perf_counter()
        try:
            while accepted < limit:
                fd, address = accept()
                accepted += 1
                # A plain socket, in blocking mode: what socket.socket adds costs as much as a system call.
                sock = SocketType(family, SOCK_STREAM, 0, fd)
                if not arrive(address):
                    sock.close()
                    continue
                data = reception.words.fixed
                if data is None and (data := self._render(sock, address, listener)) is None:
                    continue
                try:
                    sent = sock.send(data, _SEND_FLAGS)
                    if sent == len(data):
                        sock.shutdown(SHUT_WR)
                        total += sent
                        greeted.append(sock)
                        if reception.admission is not None:
                            reception.remember(sock, address)
                        continue
                except BlockingIOError:
                    sent = 0
                except OSError:  # EPIPE, ECONNRESET, ENOTCONN: it left before it was greeted
                    sock.close()
                    reception.lost()
                    reception.release(address)
                    continue
                self._stream.take(sock.detach(), address, listener, (data, sent))
        except BlockingIOError:
            pass  # the queue is empty
        except OSError as error:
            if error.errno not in DIED_IN_QUEUE:
                raise
            accepted += 1  # it was one of them: the queue need not be empty
        finally:
            if greeted:
                reception.served(total, (perf_counter() - start) / accepted, len(greeted))
                reception.parking.park(greeted)
        return accepted

    def _render(self, sock: SocketType, address: Address, listener: Listener) -> bytes | None:
        """The greeting for one client; None if it is not ours to say, or there is none."""
        reception = self._reception
        if not reception.words.quick:  # since a reload
            self._stream.take(sock.detach(), address, listener)
            return None
        try:
            count = reception.stats.accepted
            return reception.words.render(reception.peer(address, listener.family, listener.address, count))
        except GreetingError as error:
            reception.not_made(address, error)
            reception.remember(sock, address)
            with contextlib.suppress(OSError):
                sock.shutdown(SHUT_WR)
            reception.parking.park([sock])
            return None
