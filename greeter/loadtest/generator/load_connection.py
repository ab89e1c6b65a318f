"""One connection under test, from its socket to the class in which it ends.

The law: a connection looks at its socket only when a poll says that there is something to see, takes all
that is there, and says in which class it has ended, or that it goes on. It counts nothing and closes
nothing but itself.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from contextlib import suppress
from itertools import takewhile
from math import inf
from typing import TYPE_CHECKING

from greeter.loadtest.generator.event_poller import ENDED, FAILED, READABLE
from greeter.loadtest.plan.outcome import GREETED, connect_failure

if TYPE_CHECKING:
    from greeter.loadtest.generator.target import Target
    from greeter.loadtest.plan.plan import LoadPlan

# Errors of a socket that was connected. Linux says EPIPE for a reset behind the end of the stream.
_RESET_ERRORS = (errno.ECONNRESET, errno.EPIPE)

_IN_PROGRESS = (0, errno.EINPROGRESS)
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class ConnectionSpec:
    """What all connections of a run have in common: where they go, and what a whole greeting is."""

    def __init__(self, plan: LoadPlan, target: Target) -> None:
        self.target, self.address, self.open_socket = target, target.address, target.open
        self.connection_class = TLSLoadConnection if plan.tls else LoadConnection
        self.until_line = plan.until == "line"
        self.expect = None if plan.expect is None else plan.expect.encode(errors="surrogateescape")
        self.keep_data = self.until_line or self.expect is not None
        self.max_bytes = plan.max_bytes
        self.buffer = memoryview(bytearray(65536))  # of all; nothing stays in it
        # A read of less than this has emptied the socket. With TLS there may be more, and no event for it.
        self.drained_below = 0 if plan.tls else len(self.buffer)


class LoadConnection:
    """``intended`` is when it was meant to begin, ``start`` when it did; ``connected`` and ``first`` (its
    first byte) are 0 until they happen. All are moments of one clock, in seconds.

    ``fd`` is its descriptor, -1 if none could be had. ``why`` has the system's words for a failure that
    has any. ``ended`` says that no more can come from the peer, ``measured`` that it is part of the run
    and not of the warm-up.
    """

    __slots__ = (
        "connected",
        "data",
        "ended",
        "error",
        "fd",
        "first_byte",
        "intended",
        "measured",
        "queue_full",
        "received",
        "spec",
        "sock",
        "start",
        "error_text",
    )

    sock: socket.SocketType
    data: bytes

    def __init__(self, spec: ConnectionSpec, intended: float, start: float, measured: bool = True) -> None:
        self.spec = spec
        self.intended = intended
        self.start = start
        self.measured = measured
        self.connected = self.first_byte = 0.0
        self.fd = -1
        self.received = self.error = 0
        self.ended = self.queue_full = False
        self.error_text = ""

    def open(self) -> str | None:
        """Make the socket and connect. Returns the class in which that failed, or None.

        ``queued`` says afterwards that ``connect`` has to be called again later: a Unix socket whose
        queue is full says EAGAIN, and there is no event for "no longer" (connect(2)).
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
        """Connect once more."""
        self.queue_full = False
        code = self.sock.connect_ex(self.spec.address)
        return None if code in _IN_PROGRESS else self._connect_failed(code)

    def _connect_failed(self, code: int) -> str | None:
        if code == errno.EAGAIN and self.spec.target.family == socket.AF_UNIX:
            self.queue_full = True
            return None
        return self._classify_connect_error(code)

    def on_event(self, mask: int, now: float) -> str | None:
        """Look at what a poll reported with ``mask`` at ``now``; returns the class it ended in, or None."""
        if mask & FAILED:
            # This takes the error from the socket: from here on it gives its data, and then the end.
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code and not self.connected and code not in _RESET_ERRORS:
                return self._classify_connect_error(code)
            self.error = self.error or code
        if not self.connected:
            self.connected = now
        return self.read(mask, now) if mask & READABLE else None

    def read(self, mask: int, now: float) -> str | None:
        """Take what there is: the class in which it has ended, or None if there is more to come."""
        spec = self.spec
        while True:
            try:
                size = self.sock.recv_into(spec.buffer)
            except _WOULD_BLOCK:
                return None
            except OSError as error:
                return self.classify_error(error)
            if not size:
                break
            if not self.received:
                self.first_byte = now
            self.received += size
            whole = spec.keep_data and self._keep(bytes(spec.buffer[:size]))
            if self.received > spec.max_bytes:
                return "too_large"
            if whole:
                return self.classify(whole=True)
            if size < spec.drained_below:
                if not mask & ENDED:
                    return None
                break  # the socket is empty, and the end is behind that
        self.ended = True
        return self.classify()

    def classify_error(self, error: OSError) -> str:
        """The class of a connection whose socket raised ``error`` when it was read."""
        self.error = error.errno or errno.EIO
        self.ended = True
        return self.classify()

    def classify(self, *, whole: bool = False) -> str:
        """The class of a connection whose greeting is ``whole``, or whose stream has ended."""
        expect = self.spec.expect
        if self.error and self.error != errno.EPIPE and not whole:
            # No end came before the reset: only the expected text can tell that the greeting was whole.
            if expect is None or not self.received or expect not in self.data:
                self.error_text = "" if self.error == errno.ECONNRESET else os.strerror(self.error)
                return "reset"
        elif not self.received:
            return "empty"
        elif expect is not None and expect not in self.data:
            return "unexpected_greeting"
        return GREETED

    def drain(self) -> bool:
        """Discard what comes behind the greeting; true when the peer has closed or reset it."""
        try:
            while self.sock.recv_into(self.spec.buffer):
                pass
        except _WOULD_BLOCK:
            return False
        except OSError as error:
            self.error = error.errno or errno.EIO
        return True

    def classify_timeout(self) -> str:
        """The class of a connection whose deadline has passed."""
        if not self.connected:
            return "connect_timeout"
        return "greeting_timeout" if self.received else "connected_no_greeting"

    def close(self) -> None:
        """Close it, in whatever state it is."""
        try:
            sock = self.sock
        except AttributeError:  # none could be had
            return
        sock.close()

    def _keep(self, data: bytes) -> bool:
        """Keep ``data``; true if the greeting is whole before the end of the stream. What is behind a line is
        no part of it, however it came."""
        end = data.find(b"\n") + 1 if self.spec.until_line else 0
        if end:
            self.received -= len(data) - end
            data = data[:end]
        self.data = data if self.received == len(data) else self.data + data
        return end > 0

    def _classify_connect_error(self, code: int) -> str:
        self.error_text = os.strerror(code)
        return connect_failure(code)


class TLSLoadConnection(LoadConnection):
    """A connection that shakes hands before it reads; ``sock`` becomes an SSLSocket when it is connected."""

    __slots__ = ("handshake_done",)

    def on_event(self, mask: int, now: float) -> str | None:
        outcome = super().on_event(mask, now)
        if outcome is None and self.connected and not isinstance(self.sock, ssl.SSLSocket):
            return self.read(mask, now)  # nothing to read yet: in TLS it is the client that speaks first
        return outcome

    def read(self, mask: int, now: float) -> str | None:
        try:
            self._do_handshake()
        except _WOULD_BLOCK:
            return None
        except OSError as error:
            return self.classify_error(error)
        return super().read(mask, now)

    def classify_error(self, error: OSError) -> str:
        # After a reset, whose error ``on_event`` has taken, TLS sees an end that it did not expect.
        if isinstance(error, ssl.SSLError) and not (self.error and isinstance(error, ssl.SSLEOFError)):
            self.error_text = str(error.reason or error).lower().replace("_", " ")
            return "tls_error"
        return super().classify_error(error)

    def close(self) -> None:
        if self.connected and isinstance(self.sock, ssl.SSLSocket):
            with suppress(OSError, ValueError):  # say goodbye, if that needs no waiting
                self.sock.unwrap()
        super().close()

    def _do_handshake(self) -> None:
        """Begin the handshake, or go on with it; raises SSLWantReadError until it is done."""
        if not isinstance(self.sock, ssl.SSLSocket):
            target = self.spec.target
            assert target.ssl_context is not None
            plain = socket.socket(fileno=self.sock.detach())
            self.sock = plain
            plain.setblocking(False)
            self.sock = target.ssl_context.wrap_socket(
                plain, server_hostname=target.server_name, do_handshake_on_connect=False
            )
            self.handshake_done = False
        if not self.handshake_done:
            self.sock.do_handshake()
            self.handshake_done = True


def started_by(moment: float, waiting: dict[int, LoadConnection]) -> list[LoadConnection]:
    """Those begun by then; they are in the order of their beginning."""
    return list(takewhile(lambda connection: connection.start <= moment, waiting.values()))


def earliest_start(waiting: dict[int, LoadConnection]) -> float:
    """When the first of them began."""
    return next((connection.start for connection in waiting.values()), inf)
