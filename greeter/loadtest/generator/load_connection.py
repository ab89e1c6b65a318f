"""One connection under test: connect, receive the greeting, classify the outcome.

::

    open() -> connecting -> [PROXY header] -> [TLS handshake] -> [send] -> receiving -> classified
           -> [held] -> close()

A connection is classified in any state before that one: by an event (``on_event``), by its timeout
(``classify_timeout``) or by an error of its socket. The engine holds or closes it.

Invariants:

- The socket is read only after an event, and then until it is empty.
- What the client sends first is sent while the greeting is received: neither waits for the other.
- ``on_event`` returns the class in which the connection has ended, or None while it continues.
- A connection counts nothing and closes only its own socket.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from itertools import islice, takewhile
from math import inf
from typing import TYPE_CHECKING, cast

from greeter.core.proxy_protocol import encode
from greeter.loadtest.generator.event_poller import ENDED, FAILED, READABLE
from greeter.loadtest.metrics.greeting_table import HEAD_BYTES
from greeter.loadtest.plan.outcome import GREETED, connect_failure

if TYPE_CHECKING:
    from greeter.loadtest.generator.target import Target
    from greeter.loadtest.plan.plan import LoadPlan

# Bytes of the first read: more than most greetings have.
_FIRST_READ = 1024

# Errors of a connected socket. Linux reports EPIPE for a reset after the end of the stream.
_RESET_ERRORS = (errno.ECONNRESET, errno.EPIPE)
# The error of a TLS stream that ended without close_notify: bytes may be missing (RFC 8446 6.1). It is the
# only one that does not come from a system call.
TRUNCATED = errno.EPROTO
# Errors after the end of the stream, which do not make a greeting incomplete.
_AFTER_THE_END = (0, errno.EPIPE, TRUNCATED)

_TCP_CLOSE = 7  # of tcpi_state (linux/tcp.h)
_IN_PROGRESS = (0, errno.EINPROGRESS)
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class ConnectionSpec:
    """What all connections of a run have in common: the target, and what a complete greeting is.

    Args:
        plan: the plan of the run.
        target: its resolved target.
    """

    def __init__(self, plan: LoadPlan, target: Target) -> None:
        self.target, self.address, self.open_socket = target, target.address, target.open
        self.until = plan.ending
        self.expect = None if plan.expect is None else plan.expect.encode(errors="surrogateescape")
        self.keep_data = self.until.kind not in ("eof", "idle") or self.expect is not None
        self.proxy_protocol, self.send = plan.proxy_protocol, cast("bytes", plan.send)
        self.speaks_first = bool(self.send or self.proxy_protocol)
        self.max_bytes = plan.max_bytes
        self.buffer = memoryview(bytearray(65536))  # shared: its content is used at once
        # A shorter read has emptied the socket. With TLS, more may be buffered without an event for it.
        self.drained_below = 0 if plan.tls else len(self.buffer)


class LoadConnection:
    """A connection under test.

    Times are in seconds of one clock:

    - ``intended``, ``start``: when it should have started and when it did.
    - ``connected``, ``first_byte``: when it was connected and when its first byte arrived; 0 until then.

    State:

    - ``fd``: its descriptor; -1 if no socket could be opened.
    - ``received``: the number of bytes of the greeting so far. ``data`` has them, or only the first
      HEAD_BYTES, if the others are not needed.
    - ``error``: the errno of the socket, or 0. ``error_text``: the text of a failure's error.
    - ``queue_full``: the queue of a Unix socket was full, and ``connect`` must be called again.
    - ``unsent``: what is still to be sent.
    - ``last_byte``: when its last byte arrived, so far.
    - ``ended``: the peer has closed or reset the connection.
    - ``refusals``: how many connections of its slot have failed in a row to connect; see Engine.
    - ``measured``: it is part of the run, not of the warm-up.
    """

    __slots__ = (
        "connected",
        "data",
        "ended",
        "error",
        "fd",
        "first_byte",
        "intended",
        "last_byte",
        "measured",
        "queue_full",
        "received",
        "refusals",
        "spec",
        "sock",
        "start",
        "error_text",
        "unsent",
    )

    sock: socket.SocketType
    data: bytes | bytearray
    last_byte: float

    def __init__(self, spec: ConnectionSpec, intended: float, start: float, measured: bool = True) -> None:
        self.spec = spec
        self.intended = intended
        self.start = start
        self.measured = measured
        self.connected = self.first_byte = 0.0
        self.fd = -1
        self.received = self.error = self.refusals = 0
        self.ended = self.queue_full = False
        self.error_text = ""
        self.data = self.unsent = b""

    def open(self) -> str | None:
        """Open the socket and start to connect. Sets ``queue_full``.

        Returns:
            The class in which that failed, or None.
        """
        spec = self.spec
        try:
            self.sock = sock = spec.open_socket()
        except OSError as error:
            return self._classify_connect_error(error.errno or 0)
        self.fd = sock.fileno()
        code = sock.connect_ex(spec.address)
        return None if code in _IN_PROGRESS else self._connect_failed(code)

    def connect(self) -> str | None:
        """Try again to connect. Sets ``queue_full``; returns as ``open``."""
        self.queue_full = False
        code = self.sock.connect_ex(self.spec.address)
        return None if code in _IN_PROGRESS else self._connect_failed(code)

    def _connect_failed(self, code: int) -> str | None:
        # A Unix socket whose queue is full. No event reports that there is space again (connect(2)).
        if code == errno.EAGAIN and self.spec.target.family == socket.AF_UNIX:
            self.queue_full = True
            return None
        return self._classify_connect_error(code)

    def on_event(self, mask: int, now: float) -> str | None:
        """Handle an event.

        Args:
            mask: the bits that the poll reported.
            now: the time of the poll.

        Returns:
            The class in which the connection has ended, or None.
        """
        if mask & FAILED:
            # SO_ERROR clears the error. Further reads return the data, and then the end of the stream.
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code and not self.connected and code not in _RESET_ERRORS:
                return self._classify_connect_error(code)
            self.error = self.error or code
        if not self.connected:
            self.connected = now
            if self.spec.speaks_first:
                self._prepare_to_send()
        if self.unsent:
            self._send()
        return self.read(mask, now) if mask & READABLE else None

    def _prepare_to_send(self) -> None:
        """Set ``unsent`` to the PROXY header of this connection, and what the plan sends first."""
        self.unsent = self._proxy_header() + self.spec.send

    def _proxy_header(self) -> bytes:
        version = self.spec.proxy_protocol
        if version is None:
            return b""
        try:
            return encode(version, self.sock.getsockname(), self.sock.getpeername())
        except OSError as error:  # reset already; the next read reports it
            self.error = self.error or error.errno or errno.ECONNRESET
            return b""

    def _send(self) -> None:
        """Send what the socket takes. A failure is that of the connection, which the next read reports."""
        try:
            self.unsent = self.unsent[self.sock.send(self.unsent) :]
        except WOULD_BLOCK:
            pass
        except OSError as error:
            self.unsent = b""
            self.error = self.error or (errno.ECONNRESET if error.errno == errno.EPIPE else error.errno or 0)

    def read(self, mask: int, now: float) -> str | None:
        """Read until the socket is empty. Returns the class in which the connection has ended, or None."""
        spec, complete = self.spec, False
        while True:
            try:
                if self.received:
                    size = self.sock.recv_into(spec.buffer)
                    data, space = None, spec.drained_below
                else:
                    data = self.sock.recv(_FIRST_READ)  # its bytes are kept: cheaper than to copy them
                    size, space = len(data), spec.drained_below and _FIRST_READ
            except WOULD_BLOCK:
                return None
            except OSError as error:
                return self.classify_error(error)
            if not size:
                break
            self.last_byte = now
            if data is None:
                self.received += size
                if spec.keep_data or len(self.data) < HEAD_BYTES:
                    complete = self._append(bytes(spec.buffer[:size]))
            else:
                self.first_byte, self.received = now, size
                self.data = data
                if spec.keep_data:
                    complete = self._is_complete(0)
            if self.received > spec.max_bytes:
                return "too_large"
            if complete:
                return self.classify(complete=True)
            if size < space:
                if not mask & ENDED:
                    return None
                break  # the socket is empty, and the end of the stream has arrived
        self.ended = True
        if spec.speaks_first and not self.error and self._reset_after_end():
            self.error = errno.EPIPE
        return self.classify()

    def _reset_after_end(self) -> bool:
        """Return whether a reset has followed the end of the stream, as it does if input was not read."""
        if self.sock.family == socket.AF_UNIX:
            return False
        state: int = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        return state == _TCP_CLOSE  # instead of CLOSE_WAIT; recv(2) does not tell

    def classify_error(self, error: OSError) -> str:
        """Return the class of a connection whose socket raised ``error`` on a read."""
        self.error = error.errno or errno.EIO
        self.ended = True
        return self.classify()

    def classify(self, *, complete: bool = False) -> str:
        """Return the class of a connection whose greeting is ``complete``, or whose stream has ended."""
        expect, until = self.spec.expect, self.spec.until
        if self.error not in _AFTER_THE_END and not complete:
            # A reset without an end of stream: only the expected text shows that the greeting is complete.
            if until.kind != "eof" or expect is None or expect not in self.data:
                self.error_text = "" if self.error == errno.ECONNRESET else os.strerror(self.error)
                return "reset"
        elif not self.received:
            return "empty"
        elif (expect is not None and expect not in self.data) or not (
            complete or until.kind == "eof" or until.ended_by_eof(self.data)
        ):
            return "unexpected_greeting"
        return GREETED

    def drain(self) -> bool:
        """Discard what follows the greeting. Returns True if the peer has closed or reset the connection."""
        try:
            while self.sock.recv_into(self.spec.buffer):
                pass
        except WOULD_BLOCK:
            return False
        except OSError as error:
            self.error = error.errno or errno.EIO
        return True

    def classify_timeout(self) -> str:
        """Return the class of a connection whose connect timeout or timeout has passed."""
        if not self.connected:
            return "connect_timeout"
        return "greeting_timeout" if self.received else "connected_no_greeting"

    def close(self) -> None:
        """Close the socket, in any state."""
        try:
            sock = self.sock
        except AttributeError:  # no socket could be opened
            return
        sock.close()

    def _append(self, data: bytes) -> bool:
        """Add to ``data``. Returns as ``_is_complete``."""
        seen = len(self.data)
        if isinstance(self.data, bytes):
            self.data = bytearray(self.data)  # grows without being copied
        self.data += data
        return self.spec.keep_data and self._is_complete(seen)

    def _is_complete(self, seen: int) -> bool:
        """Return whether the greeting is complete before the end of the stream, and drop what follows it.

        Args:
            seen: how many bytes of ``data`` were looked at before.
        """
        end = self.spec.until.end(self.data, seen)
        if end is None:
            return False
        self.received, self.data = end, self.data[:end]
        return True

    def _classify_connect_error(self, code: int) -> str:
        self.error_text = os.strerror(code)
        return connect_failure(code)


def started_by(moment: float, waiting: dict[int, LoadConnection], limit: int) -> list[LoadConnection]:
    """Return the first connections, ``limit`` at most, that were started at ``moment`` or before.

    ``waiting`` is in the order of the starts.
    """
    return list(takewhile(lambda connection: connection.start <= moment, islice(waiting.values(), limit)))


def earliest_start(waiting: dict[int, LoadConnection]) -> float:
    """Return when the first connection of ``waiting`` was started; infinity if it is empty."""
    return next((connection.start for connection in waiting.values()), inf)
