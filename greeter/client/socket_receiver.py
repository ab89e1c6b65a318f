"""Receives from a socket without TLS, by a reader of the event loop instead of a transport.

The CPU time of ``greet()``, as a multiple of that of a bare ``open_connection()``, one at a time and 50 at a
time, from two runs each of ``python -m tests.benchmarks --only client``, in turn: with a transport 0.85 and
0.82 on asyncio, 1.17 and 1.26 on uvloop; with a reader 0.78 and 0.78, and 1.11 and 1.21.

Invariants:

- All that is there is read at once. uvloop reports an error of a socket a single time and then no more
  events, whatever is unread (libuv, ``uv__poll_io()``).
- What the peer sent before an error is received, also when the error is one of sending.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from greeter.client.receiver import Receiver

if TYPE_CHECKING:
    from collections.abc import Callable

    from greeter.client.arguments import Exchange
    from greeter.client.connecting import Connected

_READ_BYTES = 65536


class SocketReceiver(Receiver):
    """Sends some bytes on a connected socket and receives the greeting."""

    def __init__(self, connected: Connected, exchange: Exchange) -> None:
        super().__init__(exchange)
        self.connected = perf_counter()
        self._sock, self.error = connected
        self._unsent = memoryview(b"")
        try:
            self._watch()
        except BaseException:
            self._sock.close()
            raise

    def send(self, data: bytes) -> None:
        """Send ``data``, unless the peer has reset the connection already."""
        if self.error is None:
            self._unsent = memoryview(data)
            self._write()
            if self._unsent:
                self._loop.add_writer(self._sock, self._write)

    def close(self) -> None:
        self._loop.remove_reader(self._sock)
        if self._unsent:
            self._loop.remove_writer(self._sock)
        self._sock.close()

    def _watch(self) -> None:
        self._loop.add_reader(self._sock, self._read)

    def _read(self) -> None:
        while not self.done.done():
            try:
                data = self._sock.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self.error = error
                self.finish()
                return
            if data:
                self.receive(data)
            else:
                self.finish()

    def _write(self) -> None:
        if self.done.done():  # in this iteration of the loop
            return
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            return
        except OSError as error:  # what the peer sent before that is read next
            self.error = error
            sent = len(self._unsent)
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._loop.remove_writer(self._sock)

    def _after_last_read(self, function: Callable[..., object], *args: Any) -> None:
        self._read()
        function(*args)
