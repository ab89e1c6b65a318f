"""One datagram under test: send it, receive the reply, classify the outcome.

::

    open() -> sent -> classified -> close()

Invariants:

- A datagram is sent once. What is lost stays lost, and counts as ``no_reply``.
- Each has a socket of its own, which is connected: the kernel drops a reply from another address, and reports
  a port that is unreachable (ICMP).
- There is no connect phase: ``connected`` stays 0.
"""

from __future__ import annotations

import errno
import os
import socket

from greeter.core.datagram_sizes import REQUEST
from greeter.loadtest.generator.event_poller import FAILED, READABLE
from greeter.loadtest.generator.load_connection import WOULD_BLOCK, LoadConnection
from greeter.loadtest.plan.outcome import connect_failure


class DatagramConnection(LoadConnection):
    """A datagram under test, with the interface and the attributes of a connection."""

    __slots__ = ()

    def open(self) -> str | None:
        """Open the socket and send the datagram. Returns the class in which that failed, or None."""
        spec = self.spec
        try:
            self.sock = sock = spec.open_socket()
            self.fd = sock.fileno()
            sock.connect(spec.address)
            sock.send(spec.send or REQUEST)
        except OSError as error:
            return self._failed(error.errno or errno.EIO)
        return None

    def on_event(self, mask: int, now: float) -> str | None:
        """Handle an event; see LoadConnection. The socket is writable from the start, which is no news."""
        if mask & FAILED:
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                return self._failed(code)
        return self.read(mask, now) if mask & READABLE else None

    def read(self, mask: int, now: float) -> str | None:
        """Receive the reply. Returns its class, or None if there is none yet."""
        spec = self.spec
        try:
            size = self.sock.recv_into(spec.buffer)
        except WOULD_BLOCK:
            return None
        except OSError as error:
            return self._failed(error.errno or errno.EIO)
        self.ended, self.received, self.last_byte = True, size, now
        if size:
            self.first_byte, self.data = now, bytes(spec.buffer[:size])
        return "too_large" if size > spec.max_bytes else self.classify(complete=True)

    def classify_timeout(self) -> str:
        """Return the class of a datagram whose timeout has passed."""
        return "no_reply"

    def _failed(self, code: int) -> str:
        self.error, self.error_text = code, os.strerror(code)
        return "refused" if code == errno.ECONNREFUSED else connect_failure(code)
